"""INT8 files: what they change, as a figure, and what cannot be written."""

from __future__ import annotations

import resource
import shutil
import sys

import numpy as np
import pytest
import torch

from mmefficientmod.export.changes import changed_detections, measure_change
from mmefficientmod.export.files import write_file
from mmefficientmod.export.formats import FORMATS, INPUT, Job, file_name, open_file
from mmefficientmod.utils import UserError


def result(*rows: tuple) -> dict:
    """Rows of x, score and label as detections of 10 x 10 pixels, among unused rows."""
    boxes = np.zeros((4, 4), np.float32)
    scores, labels = np.zeros(4, np.float32), np.zeros(4, np.int64)
    for i, (x, score, label) in enumerate(rows):
        boxes[i], scores[i], labels[i] = (x, 0, x + 10, 10), score, label
    return dict(boxes=boxes, scores=scores, labels=labels)


def test_detections_are_the_same_by_class_and_place():
    float32 = result((0, 0.9, 1), (50, 0.8, 0), (80, 0.1, 0))
    assert changed_detections(float32, float32) == (0, 4)  # a score of 0.1 does not count
    assert changed_detections(float32, result((1, 0.35, 1), (50, 0.2, 0))) == (0, 3)  # one is found, below 0.3
    assert changed_detections(float32, result((0, 0.9, 0), (56, 0.8, 0))) == (4, 4)  # another class, another place
    assert changed_detections(result(), result((0, 0.9, 0))) == (1, 1)
    change = measure_change('detection', [float32, result()], [result((0, 0.9, 1)), result()], [])
    assert change['figure'] == 1 / 3 and change['name'].startswith('share of 3 detections')
    assert measure_change('detection', [result()], [result()], [])['figure'] == 0


def test_the_figure_of_a_classifier_is_its_best_class():
    one, other = np.float32([[0.6, 0.4], [0.2, 0.8]]), np.float32([[0.9, 0.1], [0.7, 0.3]])
    change = measure_change('classification', [dict(scores=one)], [dict(scores=other)], [])
    assert change['figure'] == 0.5


def test_int8_that_gives_no_numbers_is_refused():
    outputs = dict(classes=np.zeros((1, 2, 2), np.int64), logits=np.ones((1, 3, 2, 2), np.float32))
    broken = dict(outputs, logits=np.full((1, 3, 2, 2), np.nan, np.float32))
    with pytest.raises(UserError, match='a file gives NaN'):
        measure_change('segmentation', [outputs, outputs], [outputs, broken], [])


@pytest.mark.export
@pytest.mark.parametrize('kind', ['onnx', 'openvino'])
def test_what_the_exporters_and_runtimes_raise_is_one_line(kind, tmp_path):
    (tmp_path / FORMATS['onnx'].file).write_bytes(b'no model')
    if kind == 'openvino':
        (tmp_path / file_name('onnx-int8')).write_bytes(b'no model')
    image = np.zeros((1, 3, 32, 32), np.float32)
    job = Job(torch.nn.Identity(), (), [INPUT], calibration=[image], feeds=lambda image: {INPUT: image})
    with pytest.raises(UserError, match=f'{kind}-int8: this model cannot be written') as written:
        write_file(f'{kind}-int8', job, tmp_path)
    path = tmp_path / FORMATS[kind].file
    for part in (path, path.with_suffix('.bin')):
        part.write_bytes(b'no model')
    with pytest.raises(UserError, match='cannot be opened') as opened:
        open_file(path, kind, [])
    assert '\n' not in f'{written.value}{opened.value}'


@pytest.mark.export
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits the size of a file')
def test_a_full_disk_is_one_line(exported, tmp_path):
    """OpenVINO's writer raises what names neither the file nor the disk."""
    shutil.copy(exported('segmentor', part='backbone')[1] / FORMATS['onnx'].file, tmp_path / file_name('onnx-int8'))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match='openvino-int8: this model cannot be written'):
            write_file('openvino-int8', Job(torch.nn.Identity(), (), [INPUT]), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
