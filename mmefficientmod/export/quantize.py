"""INT8 files with NNCF, calibrated with the user's images; norms, softmax and all outside the network stay in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from .environment import read_cpu
from .formats import IN_MODULE

T = TypeVar('T')
PACKAGES = ('nncf',)  # import names, to write an INT8 file, in addition to those for the float32 one
INT8_FLAGS = {'avx512_vnni', 'avx_vnni', 'amx_int8', 'asimddp'}  # instructions for products of bytes


def quantize(source: Path, target: Path, calibration: Sequence[T], feeds: Callable[[T], Mapping]) -> None:
    """Writes the INT8 form of an ONNX file. What a form does outside the network, such as NMS, stays in float32.

    Args:
        source (Path): The float32 file.
        target (Path): The file to write.
        calibration (Sequence[T]): What it is calibrated with.
        feeds (Callable[[T], Mapping[str, np.ndarray]]): Makes inputs by name of one of these.
    """
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
