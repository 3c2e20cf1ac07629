"""INT8 files with NNCF, calibrated with the user's images; norms, softmax and all outside the network stay in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..utils import UserError, quiet
from .check import Sample, box_ious, is_finite, level_difference
from .environment import read_cpu
from .formats import FORMATS, IN_MODULE, INT8, one_line, write_openvino

T = TypeVar('T')
PACKAGES = ('nncf',)  # import names, to write an INT8 file, in addition to those for the float32 one
SCORE, IOU = 0.3, 0.5  # which detections count where INT8 is compared, and which are the same
INT8_FLAGS = {'avx512_vnni', 'avx_vnni', 'amx_int8', 'asimddp'}  # instructions for products of bytes


def write_int8(
    kind: str,
    folder: Path,
    calibration: Sequence[T],
    feeds: Callable[[T], Mapping[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> Path:
    """Writes the INT8 file of a format: ONNX's from the float32 one in the folder, OpenVINO's from ONNX's in INT8.

    Args:
        kind (str): ``'onnx'`` or ``'openvino'``.
        folder (Path): Holds the file that it is made from.
        calibration (Sequence[T]): What ONNX's file is calibrated with.
        feeds (Callable[[T], Mapping[str, np.ndarray]]): Makes inputs by name of one of these.
        metadata (Mapping[str, str]): Written into OpenVINO's file; ONNX's keeps that of the float32 one.

    Returns:
        Path: The file.

    Raises:
        UserError: In one line, if it cannot be written.
    """
    path = folder / INT8[kind]
    with one_line(f'{kind}-int8: this model cannot be written'), quiet():
        if kind == 'onnx':
            _quantize(folder / FORMATS['onnx'].file, path, calibration, feeds)
        else:
            write_openvino(folder / INT8['onnx'], path, metadata)
    return path


def _quantize(source: Path, target: Path, calibration: Sequence[T], feeds: Callable[[T], Mapping]) -> None:
    """Writes the INT8 form of an ONNX file. What a form does outside the network, such as NMS, stays in float32."""
    import logging

    import nncf
    import onnx

    nncf.set_log_level(logging.ERROR)
    model = onnx.load(str(source))
    outside = [node.name for node in model.graph.node if IN_MODULE not in node.name]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(calibration, feeds),
        # The scheme for networks with attention: activations symmetric, attention's products in float where it matters.
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
    )
    onnx.save(quantized, str(target))


def has_int8_instructions() -> bool:
    """Whether this CPU has instructions for products of bytes, without which INT8 is not expected to be faster."""
    return not INT8_FLAGS.isdisjoint(read_cpu().flags)


def compare_int8(task: str, expected: Sequence[Mapping], found: Sequence[Mapping], samples: Sequence[Sample]) -> dict:
    """What INT8 changes on all check images: classes of pixels or images, detections, or values of the outputs.

    Raises:
        UserError: If INT8 makes a value NaN or infinite.
    """
    if not all(map(is_finite, found)):
        raise UserError('the INT8 file gives NaN or infinite values: calibrate with more images; no file was left')
    if task == 'segmentation':
        sizes = [sample.size for sample in samples]
        different = sum((a['classes'] != b['classes'])[:, :h, :w].sum() for a, b, (h, w) in zip(expected, found, sizes))
        pixels = sum(a['classes'][:, :h, :w].size for a, (h, w) in zip(expected, sizes))
        return dict(name='share of pixels of another class', figure=float(different / pixels))
    if task == 'detection':
        changed, total = map(sum, zip(*(changed_detections(a, b) for a, b in zip(expected, found))))
        name = f'share of {total} detections (score >= {SCORE}) that the other lacks (same class, IoU >= {IOU})'
        return dict(name=name, figure=changed / max(total, 1))
    if task == 'classification':
        best, other = (np.concatenate([one['scores'].argmax(1) for one in each]) for each in (expected, found))
        return dict(name='share of images of another best class', figure=float((best != other).mean()))
    worst = max(level_difference(a, b) for a, b in zip(expected, found))
    return dict(name='largest difference of an output, as a share of its largest value', figure=worst)


def changed_detections(one: Mapping, other: Mapping) -> tuple[int, int]:
    """How many detections of either result the other lacks, and how many there are; scores may differ."""
    changed = total = 0
    for mine, theirs in ((one, other), (other, one)):
        for i in np.flatnonzero(mine['scores'] >= SCORE):
            same = theirs['boxes'][(theirs['scores'] > 0) & (theirs['labels'] == mine['labels'][i])]
            changed += not (box_ious(mine['boxes'][i], same) >= IOU).any()
            total += 1
    return int(changed), total
