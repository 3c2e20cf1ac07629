"""Box AP of an exported model on annotated images."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from mmefficientmod.export.changes import recommend
from mmefficientmod.export.description import Description, Input
from mmefficientmod.export.model import ExportedModel
from mmefficientmod.predict.accuracy import box_ap, check_annotations
from mmefficientmod.utils import UserError

pytest.importorskip('pycocotools')
BOXES = np.float32([[4, 4, 44, 44], [50, 10, 90, 60]])


def describe(**changes) -> Description:
    values = dict(
        task='detection',
        part='model',
        num_classes=2,
        classes=['cat', 'dog'],
        palette=[],
        sizes=[[64, 96]],
        batch=1,
        min_size=32,
        files={'openvino-bf16': ['model.xml'], 'openvino': ['model.xml'], 'openvino-int8': ['model-int8.xml']},
        opset=20,
        input=Input('image', 'NCHW', 'BGR', 'float32', [], 32, None, [0.0] * 3),
        size_input='image_size',
        outputs=['boxes', 'scores', 'labels'],
        score_thr=0.0,
        mask_thr=None,
        max_per_img=2,
        align_corners=False,
        slide=None,
        source={},
        versions={},
        cpu={},
        checks=[],
        latency_ms={},
    )
    return Description(**dict(values, **changes))


@pytest.fixture
def annotated(tmp_path):
    """Two images, the second of which is left out of the evaluation, and their annotations."""
    images = [tmp_path / f'{i}.png' for i in range(2)]
    for path in images:
        cv2.imwrite(str(path), np.zeros((64, 96, 3), np.uint8))
    objects = [
        dict(id=2 * i + j + 1, image_id=i + 10, category_id=7 + j, bbox=box, area=box[2] * box[3], iscrowd=0)
        for i in range(2)
        for j, box in enumerate([[4, 4, 40, 40], [50, 10, 40, 50]])
    ]
    content = dict(
        images=[dict(id=i + 10, file_name=path.name, height=64, width=96) for i, path in enumerate(images)],
        categories=[dict(id=7, name='cat'), dict(id=8, name='dog')],
        annotations=objects,
    )
    path = tmp_path / 'coco.json'
    path.write_text(json.dumps(content))
    return images[:1], path


def model(boxes: np.ndarray, labels: list[int]) -> ExportedModel:
    outputs = dict(boxes=boxes, scores=np.float32([0.9, 0.8]), labels=np.array(labels))
    return ExportedModel(describe(), lambda image, size: outputs, 0.0)


def test_ap_of_the_given_images_only(annotated):
    images, annotations = annotated
    assert box_ap(model(BOXES, [0, 1]), images, annotations) == pytest.approx(100)
    assert box_ap(model(BOXES, [0, 0]), images, annotations) == pytest.approx(50)  # of cats 100, of dogs 0
    narrow = BOXES - np.float32([0, 0, 9, 0])  # an IoU of 0.775 counts at 6 of 10 thresholds
    assert box_ap(model(narrow, [0, 1]), images, annotations) == pytest.approx(60)


def test_annotations_that_lack_an_image_or_a_class_are_refused_before_the_work(annotated, tmp_path):
    images, annotations = annotated
    check_annotations(images, annotations, ['cat', 'dog'])
    with pytest.raises(UserError, match="no category 'bird'"):
        check_annotations(images, annotations, ['bird'])
    with pytest.raises(UserError, match='no id'):
        check_annotations([tmp_path / 'other.png'], annotations, ['cat', 'dog'])


def test_the_fastest_within_a_limit():
    times = {'eager': 1.0, 'openvino': 50.0, 'openvino-bf16': 32.0, 'openvino-int8': 30.0}
    changes = {'openvino': 1e-6, 'openvino-bf16': 0.01, 'openvino-int8': 0.2}
    limits = {'openvino': 1e-4}
    checks = [dict(form=name, name='a', figure=value, limit=limits.get(name)) for name, value in changes.items()]
    checks += [dict(form='openvino-bf16', name='a', figure=0.03, limit=None)]  # another size
    description = describe(latency_ms=times, checks=checks)
    listed = '(openvino-int8 30.0 ms, 0.2; openvino-bf16 32.0 ms, 0.03; openvino 50.0 ms, 0)'
    assert recommend(description, 0.05) == f'fastest within 0.05: openvino-bf16 {listed}'
    assert recommend(description, 0.02) == f'fastest within 0.02: openvino {listed}'
    assert recommend(description, 0.5) == f'fastest within 0.5: openvino-int8 {listed}'
    losses = {'openvino': 0.0, 'openvino-bf16': -0.1, 'openvino-int8': 0.6}
    assert recommend(description, 0, losses).startswith('fastest within 0: openvino-bf16 (')
