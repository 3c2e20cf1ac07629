"""Runs an exported detector on an image, without this package: python serve.py EXPORTED_FOLDER IMAGE."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

folder, image = Path(sys.argv[1]), cv2.imread(sys.argv[2])
about = json.loads((folder / 'export.json').read_text(encoding='utf-8'))
[step] = about['input']['steps']
if (step.get('rule'), step.get('keep_ratio'), step['interpolation']) != ('scale', True, 'bilinear'):
    sys.exit(f'this example knows one step, a resizing that keeps the ratio, not {step}')

height, width = image.shape[:2]
factor = min(max(step['size']) / max(height, width), min(step['size']) / min(height, width))
resized = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)))
h, w = resized.shape[:2]
chosen = min((H * W, i) for i, (H, W) in enumerate(about['sizes']) if h <= H and w <= W)[1]

tensor = np.empty((1, 3, *about['sizes'][chosen]), np.float32)
tensor[:] = np.reshape(about['input']['fill'], (3, 1, 1))
tensor[0, :, :h, :w] = resized.transpose(2, 0, 1)
session = onnxruntime.InferenceSession(folder / about['files']['onnx'][chosen])
values = session.run(about['outputs'], {'image': tensor, 'image_size': np.array([h, w], np.float32)})
found = dict(zip(about['outputs'], values))
for box, score, label in zip(found['boxes'], found['scores'], found['labels']):
    if score >= 0.3:
        left, top, right, bottom = box / ([w / width, h / height] * 2)
        print(f'{about["classes"][label]} {score:.3f} {left:.1f} {top:.1f} {right:.1f} {bottom:.1f}')
