"""INT8 files by NNCF, calibrated with the user's pictures; softmax, norms and resizing stay in floating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .check import Sample, level_difference
from .formats import require

INT8_FLAGS = ('avx512_vnni', 'avx_vnni', 'amx_int8', 'asimddp')  # of /proc/cpuinfo: instructions for products of bytes


def quantize(source: Path, target: Path, format: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Writes the INT8 form of a file.

    Args:
        source (Path): The file in float32.
        target (Path): The file to write.
        format (str): ``'onnx'`` or ``'openvino'``.
        feeds (Sequence[Mapping[str, np.ndarray]]): Inputs by name, to calibrate with.
    """
    require(('nncf', 'onnx', 'openvino') if format == 'openvino' else ('nncf', 'onnx'), '--int8')
    import logging

    import nncf

    nncf.set_log_level(logging.ERROR)
    data = nncf.Dataset(list(feeds))
    # The scheme for networks with attention: symmetric activations, attention's products in float where that matters.
    settings = dict(model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds))
    if format == 'onnx':
        import onnx

        onnx.save(nncf.quantize(onnx.load(str(source)), data, **settings), str(target))
    else:
        import openvino

        model = openvino.Core().read_model(source)
        openvino.save_model(nncf.quantize(model, data, **settings), target, compress_to_fp16=False)


def has_int8_instructions() -> bool:
    """Whether this CPU has instructions for products of bytes, without which INT8 is not expected to be faster."""
    path = Path('/proc/cpuinfo')
    flags = set(path.read_text().split()) if path.exists() else set()
    return bool(flags & set(INT8_FLAGS))


def compare_int8(task: str, expected: Sequence[Mapping], found: Sequence[Mapping], samples: Sequence[Sample]) -> dict:
    """What INT8 changes, on all check pictures: the share of pixels of another class, or of a level's largest value."""
    if task == 'segmentation':
        sizes = [sample.picture for sample in samples]
        different = sum((a['classes'] != b['classes'])[:, :h, :w].sum() for a, b, (h, w) in zip(expected, found, sizes))
        pixels = sum(a['classes'][:, :h, :w].size for a, (h, w) in zip(expected, sizes))
        return dict(name='share of pixels of another class', figure=float(different / pixels))
    worst = max(level_difference(a, b) for a, b in zip(expected, found))
    return dict(name='largest difference of an output, as a share of its largest value', figure=worst)
