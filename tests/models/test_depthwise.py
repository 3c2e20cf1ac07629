"""The depth-wise convolution runs in the layout that the rule names, with the same results in both layouts."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import trained
from mmefficientmod.models import depthwise
from mmefficientmod.models.depthwise import conv_layout

NCHW, NHWC = torch.contiguous_format, torch.channels_last
CPU = torch.device('cpu')
FORMS = 'training', 'evaluation', 'deploy', 'ablation'


@pytest.mark.parametrize(
    ('device', 'dtype', 'layout'),
    [
        ('cuda', torch.float32, NCHW),
        ('cuda', torch.float64, NCHW),
        ('cuda', torch.float16, NHWC),
        ('cuda', torch.bfloat16, NHWC),
        ('cpu', torch.float32, NHWC),
        ('cpu', torch.bfloat16, NHWC),
    ],
)
def test_the_rule(device, dtype, layout):
    assert conv_layout(device, dtype) == layout


class ConvRecorder(TorchDispatchMode):
    """Records the layouts of the tensors that meet in each 7 x 7 depth-wise convolution, forward and backward."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == 'aten::convolution' and args[1].shape[1:] == (1, 7, 7):
            self.calls.append((name, [args[0], y]))
        if name == 'aten::convolution_backward' and args[2].shape[1:] == (1, 7, 7):
            self.calls.append((name, [args[1], y[0]]))  # torch itself lays out the gradient as the input
        return y


def build(form, device):
    arch = dict(embed_dims=(16, 24), depths=(2, 2), attn_depths=(0, 1), ratio=3, attn_ratios=(2, 2), drop_path_rate=0.0)
    if form == 'ablation':
        arch['block'] = dict(type='ModulationVariant', kernel_sizes=(7, 7))
    model = trained(arch, out_indices=(0, 1)).to(device).train(form in ('training', 'ablation'))
    if form == 'deploy':
        model.switch_to_deploy()
    return model


def run(model, images):
    """The levels, the gradients of the images and of all parameters."""
    images = images.clone().requires_grad_()
    levels = model(images)
    sum(level.square().mean() for level in levels).backward()
    return [*levels, images.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize('form', FORMS)
def test_both_layouts_give_the_same_and_arrive_at_the_convolution(form, device, monkeypatch):
    images, results = torch.rand(2, 3, 64, 96, device=device), {}
    for layout in (NHWC, NCHW):
        monkeypatch.setattr(depthwise, 'conv_layout', lambda device, dtype, layout=layout: layout)
        with ConvRecorder() as recorder:
            results[layout] = run(build(form, device), images)
        names = [name for name, _ in recorder.calls]
        count = 8 if form == 'ablation' else 4
        assert names.count('aten::convolution') == names.count('aten::convolution_backward') == count
        for name, tensors in recorder.calls:
            assert all(tensor.is_contiguous(memory_format=layout) for tensor in tensors), (name, layout)
    for expected, found in zip(results[NHWC], results[NCHW]):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.compiled
@pytest.mark.parametrize('layout', [NHWC, NCHW], ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_compiled_in_both_layouts(form, layout, device, monkeypatch):
    images = torch.rand(2, 3, 64, 96, device=device)
    expected = run(build(form, device), images)
    monkeypatch.setattr(depthwise, 'conv_layout', lambda device, dtype: layout)
    torch.compiler.reset()
    found = run(torch.compile(build(form, device), backend='aot_eager', fullgraph=True), images)
    for value, other in zip(expected, found):
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


@pytest.mark.compiled
def test_the_compiler_keeps_the_copies(monkeypatch):
    """In NCHW there is one copy before and one behind each of the four convolutions."""
    copies = []
    for layout in (NHWC, NCHW):
        monkeypatch.setattr(depthwise, 'conv_layout', lambda device, dtype, layout=layout: layout)
        torch.compiler.reset()
        graphs = []
        backend = aot_autograd(fw_compiler=lambda graph, inputs, graphs=graphs: graphs.append(graph) or graph)
        with torch.no_grad():
            torch.compile(build('evaluation', CPU), backend=backend, fullgraph=True)(torch.rand(2, 3, 64, 96))
        (graph,) = graphs
        copies.append(sum(node.target is torch.ops.aten.clone.default for node in graph.graph.nodes))
    assert copies[1] - copies[0] == 8
