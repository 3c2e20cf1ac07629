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
    """Writes the INT8 form of an ONNX file. Norms and what is outside the network, such as NMS, stay in float32.

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
    modules = {node.name: node.name.rpartition(IN_MODULE)[0] for node in model.graph.node}
    # The parts of ChannelsFirst's norms are not recognised as one.
    floating = [name for name, module in modules.items() if not module or module.endswith('.norm')]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(calibration, feeds),
        # The scheme for networks with attention, whose products stay in float where it matters. Symmetric and without
        # SmoothQuant: zero points and its factors take passes of their own.
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        ),
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=floating, validate=False),
    )
    onnx.save(quantized, str(target))


def has_int8_instructions() -> bool:
    """Whether this CPU has instructions for products of bytes, without which INT8 is not expected to be faster."""
    return not INT8_FLAGS.isdisjoint(read_cpu().flags)
