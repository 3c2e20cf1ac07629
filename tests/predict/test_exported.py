"""tools/predict.py with exported folders: what the checkpoint says, from NumPy, OpenCV and the runtime alone."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import REPO, load_tool
from mmefficientmod.export.inputs import Prepared
from mmefficientmod.export.model import ExportedModel
from mmefficientmod.export.results import Window, detections, merge_windows
from mmefficientmod.utils import UserError

DETECTOR = str(REPO / 'demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py')
SEGMENTOR = str(REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py')
ALONE = """
import importlib.util, runpy, sys
found = [name for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'rich') if importlib.util.find_spec(name)]
assert not found, found
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='module')
def exported(detector, segmentor, tmp_path_factory):
    """The folders of a detector of fixed size and of a segmentor of free size."""
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp('exported')
    for name, config, checkpoint in (('detector', DETECTOR, detector), ('segmentor', SEGMENTOR, segmentor)):
        load_tool('export').main([config, checkpoint, str(folder / name)])
    return folder


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """Runs tools/predict.py on a path of no packages but NumPy, OpenCV and ONNX Runtime with what it needs."""
    folder = tmp_path_factory.mktemp('packages')
    for name in ('numpy', 'cv2', 'onnxruntime', 'flatbuffers', 'google', 'packaging', 'coloredlogs', 'humanfriendly'):
        spec = importlib.util.find_spec(name)
        if spec is None:  # older versions of the runtime need more than newer ones
            continue
        package = Path(next(iter(spec.submodule_search_locations)))
        (folder / name).symlink_to(package)
        for libraries in package.parent.glob('*.libs'):
            if not (folder / libraries.name).exists():
                (folder / libraries.name).symlink_to(libraries)

    def run(*args: object) -> subprocess.CompletedProcess:
        command = [sys.executable, '-S', '-c', ALONE.replace('sys.argv[0]', repr(str(REPO / 'tools/predict.py')))]
        return subprocess.run(
            [*command, *map(str, args)],
            env=dict(os.environ, PYTHONPATH=str(folder)),  # the package itself is found in the clone
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


def read(out):
    return json.loads((out / 'predictions.json').read_text())


def by_checkpoint(out, *args):
    load_tool('predict').main([*map(str, args), '--out', str(out)])
    return read(out)


@pytest.mark.ops
def test_a_detector_finds_what_its_checkpoint_finds(exported, detector, pictures, alone, tmp_path):
    options = '--score-thr', '0.1'
    done = alone(pictures, exported / 'detector', '--out', tmp_path / 'a', *options)
    assert done.returncode == 0, done.stderr
    expected = by_checkpoint(tmp_path / 'b', pictures, DETECTOR, detector, *options)
    found = read(tmp_path / 'a')
    assert len(found) == len(expected) > 10
    taken = set()
    for entry in expected:
        near = [i for i, other in enumerate(found) if i not in taken and _is_like(entry, other)]
        assert near, entry
        taken.add(near[0])
    assert {path.name for path in (tmp_path / 'a/images').iterdir()} == {path.name for path in pictures.iterdir()}


def _is_like(a, b):
    from pycocotools import mask as coco

    same = all(a[key] == b[key] for key in ('image_id', 'category_id', 'category', 'file_name'))
    if not same or abs(a['score'] - b['score']) > 1e-3 or np.abs(np.subtract(a['bbox'], b['bbox'])).max() > 0.1:
        return False
    empty = not coco.area(a['segmentation']) and not coco.area(b['segmentation'])
    return empty or coco.iou([a['segmentation']], [b['segmentation']], [0])[0, 0] > 0.9


@pytest.mark.ops
def test_a_segmentor_says_of_each_pixel_what_its_checkpoint_says(exported, segmentor, pictures, alone, tmp_path):
    done = alone(pictures, exported / 'segmentor', '--out', tmp_path / 'a', '--batch-size', '2')
    assert done.returncode == 0, done.stderr
    assert '3 images in ' in done.stdout
    by_checkpoint(tmp_path / 'b', pictures, SEGMENTOR, segmentor)
    for entry in read(tmp_path / 'a'):
        found, expected = (cv2.imread(str(tmp_path / side / entry['classes']), -1) for side in 'ab')
        assert (found != expected).mean() < 1e-3 and len(np.unique(expected)) > 1
    bad = tmp_path / 'bad.jpg'
    bad.touch()
    done = alone(bad, *pictures.iterdir(), exported / 'segmentor/export.json', '--out', tmp_path / 'c')
    assert done.returncode == 1 and f'error: {bad} is empty\n' == done.stderr
    assert '3 images, 1 failed' in done.stdout


@pytest.mark.ops
def test_what_cannot_be_used_is_one_line(exported, pictures, tmp_path):
    for options, message in ((dict(format='openvino'), 'has no openvino file; it has onnx'),):
        with pytest.raises(UserError, match=message):
            ExportedModel.open(exported / 'segmentor', **options)
    with pytest.raises(UserError, match='is not an exported folder'):
        ExportedModel.open(tmp_path)
    (tmp_path / 'export.json').write_bytes((exported / 'segmentor/export.json').read_bytes())
    with pytest.raises(UserError, match=r'lacks model.onnx'):
        ExportedModel.open(tmp_path)
    (tmp_path / 'model.onnx').write_bytes(b'nothing')
    with pytest.raises(UserError, match='cannot be opened'):
        ExportedModel.open(tmp_path)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(150, 200), (40, 31)], ids=['larger', 'smaller'])
def test_logits_are_resized_as_in_mmsegmentation(size, align_corners):
    torch.manual_seed(0)
    logits = torch.rand(5, 16, 24)
    settings = dict(mode='bilinear', align_corners=align_corners)
    inner = F.interpolate(logits[None], (64, 96), **settings)[..., :60, :90]
    expected = F.interpolate(inner, size, **settings)[0].argmax(0).numpy()
    window = Window(0, 0, (64, 96), logits.numpy())
    found = merge_windows([window], (64, 96), (60, 90), size, align_corners)
    assert (found != expected).mean() < 1e-3


def test_rows_that_are_not_used_are_left_out_and_boxes_are_scaled():
    outputs = dict(
        boxes=np.array([[10, 20, 30, 40], [0, 0, 5, 5], [0, 0, 0, 0]], np.float32),
        scores=np.array([0.9, 0.2, 0], np.float32),
        labels=np.array([2, 1, 0]),
        masks=np.ones((3, 28, 28), np.float32),
    )
    prepared = Prepared(np.zeros((3, 64, 128), np.float32), (50, 100), (0.25, 0.5), 0)
    found = detections(outputs, prepared, (100, 400), 0.0, 0.5)
    assert found.labels.tolist() == [2, 1] and found.boxes[0].tolist() == [40, 40, 120, 80]
    mask = found.masks[0]
    assert mask.bits.sum() == 80 * 40 and mask.bits[40 - mask.top, 40 - mask.left]
    assert len(detections(outputs, prepared, (100, 400), 0.5, 0.5).scores) == 1


# --- examples/serving ---


@pytest.fixture(scope='module')
def served(exported, pictures, tmp_path_factory):
    """What tools/predict.py finds, image by image, in the words of the examples."""
    out = tmp_path_factory.mktemp('served')
    load_tool('predict').main([str(pictures), str(exported / 'detector'), '--out', str(out), '--no-images'])
    lines = {path: [] for path in pictures.iterdir()}
    for entry in read(out):
        left, top, width, height = entry['bbox']
        lines[pictures / entry['file_name']].append(
            (entry['category'], entry['score'], left, top, left + width, top + height)
        )
    assert all(lines.values())
    return lines


def serve(command, folder, path, **keywords):
    done = subprocess.run([*command, folder, path], capture_output=True, text=True, timeout=100, check=True, **keywords)
    return [(name, *map(float, numbers)) for name, *numbers in map(str.split, done.stdout.splitlines())]


@pytest.mark.ops
@pytest.mark.parametrize('language', ['Python', 'C++'])
def test_examples_for_servers_find_the_same(language, exported, served, tmp_path):
    command, keywords = [sys.executable, REPO / 'examples/serving/serve.py'], {}
    if language == 'C++':
        command, keywords = compiled_example(tmp_path)
    for path, expected in served.items():
        found = serve(command, exported / 'detector', path, **keywords)
        assert [line[0] for line in found] == [line[0] for line in expected]
        assert np.allclose([line[1:] for line in found], [line[1:] for line in expected], atol=0.06)


def compiled_example(folder):
    """The command and keywords that run examples/serving/serve.cpp."""
    headers = Path(os.environ.get('ONNXRUNTIME_INCLUDE', '/usr/include/onnxruntime'))
    if not (headers / 'onnxruntime_cxx_api.h').exists() or not Path('/usr/include/opencv4').exists():
        pytest.skip('needs headers of ONNX Runtime and OpenCV for C++ (Debian 13: apt install libonnxruntime-dev ...)')
    library = next(Path(importlib.import_module('onnxruntime').__file__).parent.glob('capi/libonnxruntime.so.*'))
    (folder / 'libonnxruntime.so.1').symlink_to(library)
    libraries = [f'-lopencv_{name}' for name in ('core', 'imgcodecs', 'imgproc')]
    includes = f'-I{headers}', '-I/usr/include/opencv4'
    source = REPO / 'examples/serving/serve.cpp'
    build = ['g++', '-std=c++17', source, *includes, library, *libraries, '-o', folder / 'serve']
    subprocess.run(build, check=True, timeout=300)
    return [folder / 'serve'], dict(env=dict(os.environ, LD_LIBRARY_PATH=str(folder)))
