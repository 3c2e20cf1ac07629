"""Forms and files in 16 bits: computed in bfloat16, or with float16 weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NETWORK = ('backbone', 'neck', 'model')  # children of a form that are computed in bfloat16, from maps to maps
# Operations whose weights are stored in float16: of ONNX, and of OpenVINO.
HALF_INPUTS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
HALF_INPUTS_OPENVINO = ('Convolution', 'GroupConvolution', 'ConvolutionBackpropData', 'MatMul', 'Reshape')
HALF_MAX = 65504.0  # the largest value in float16


class InBf16(nn.Module):
    """A form whose backbone and neck run under autocast in bfloat16; heads, boxes and scores stay in float32.

    Args:
        form (nn.Module): The form, which is left as it is.
    """

    def __init__(self, form: nn.Module) -> None:
        super().__init__()
        self.form = copy.copy(form)
        self.form._modules = {
            name: _Autocast(child) if name in NETWORK and child is not None else child
            for name, child in form._modules.items()
        }
        self.output_names = form.output_names

    def forward(self, *inputs: Tensor) -> Any:
        return self.form(*inputs)


class _Autocast(nn.Module):
    """A module from maps to maps, which are float32 outside and bfloat16 inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, maps: Any) -> Any:
        with torch.autocast('cpu', torch.bfloat16):
            found = self.module(maps)
        return found.float() if isinstance(found, Tensor) else tuple(level.float() for level in found)


def write_half_weights(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Writes an ONNX file whose weights of products and convolutions are float16; it computes in float32.

    Constants such as anchors, whose coordinates float16 would round, are left as they are.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    used = {name for node in graph.node if node.op_type in HALF_INPUTS for name in node.input}
    casts = []
    for tensor in graph.initializer:
        if tensor.name not in used or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        if abs(values).max() > HALF_MAX:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype('float16'), f'{name}.fp16'))
        casts.append(onnx.helper.make_node('Cast', [tensor.name], [name], f'{name}/Cast', to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, str(target))


def halve_weights(model: Any) -> None:
    """Makes the weights of products and convolutions float16 in a model of OpenVINO, which computes in float32.

    Its own compression takes every constant, anchors as well.
    """
    from openvino import opset8

    for node in model.get_ops():
        if node.get_type_name() != 'Constant' or node.get_element_type().get_type_name() != 'f32':
            continue
        uses = node.output(0).get_target_inputs()
        if len(node.shape) < 2 or any(use.get_node().get_type_name() not in HALF_INPUTS_OPENVINO for use in uses):
            continue
        if abs(node.data).max() <= HALF_MAX:
            whole = opset8.convert(opset8.constant(node.data.astype('float16')), 'f32')
            for use in uses:
                use.replace_source_output(whole.output(0))
