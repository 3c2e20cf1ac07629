"""The modulation operator: its backward pass is right everywhere, and it keeps as little as promised."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel

from helpers import HALVES, end_process, released_form, trained
from mmefficientmod.measure.training import saved_bytes
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.layers import ModulationBlock


def plain(block, x):
    """The block written out by autograd's own operators."""
    u = block.norm(x)
    context = block.context(u)
    value = block.fc1(u)
    ratio = value.shape[-1] // x.shape[-1]
    if ratio > 1:
        value = torch.nn.functional.gelu(value)
    return x + block.gamma * block.fc2(value * context.repeat(1, 1, 1, ratio))


def build_block(ratio, device, dims=6, dtype=torch.float64):
    torch.manual_seed(0)
    block = ModulationBlock(dims, ratio).to(device, dtype)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.3)
    return block


def gradients(function, block, x):
    x = x.clone().requires_grad_()
    block.zero_grad()
    y = function(x)
    y.float().square().mean().backward()
    return {'output': y.detach(), 'x': x.grad, **{name: p.grad.clone() for name, p in block.named_parameters()}}


@pytest.mark.parametrize('ratio', [1, 2, 6])
def test_gradcheck(ratio, device):
    block = build_block(ratio, device, dims=3)
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64, device=device, requires_grad=True)
    parameters = dict(block.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(block, dict(zip(parameters, values)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


@pytest.mark.parametrize('ratio', [1, 6])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, *HALVES])
def test_equals_the_plain_form(ratio, dtype, device):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}[dtype]
    block = build_block(ratio, device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(2, 9, 7, 6).to(block.gamma)
    half = dtype in HALVES
    with torch.autocast(device.type, dtype if half else torch.bfloat16, enabled=half):  # an old torch judges it anyway
        ours = gradients(block, block, x)
    expected = gradients(lambda x: plain(block, x), block, x)
    torch.testing.assert_close(block.eval()(x), expected['output'])
    for name, value in expected.items():
        assert (ours[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.mark.compiled
@pytest.mark.parametrize('ratio', [1, 6])
def test_compiled(ratio, device):
    block = build_block(ratio, device, dtype=torch.float32)
    x = torch.randn(2, 9, 7, 6, device=device)
    expected = gradients(block, block, x)
    compiled = gradients(torch.compile(block, backend='aot_eager', fullgraph=True), block, x)
    for name, value in expected.items():
        torch.testing.assert_close(compiled[name], value)


@pytest.mark.parametrize('arch', ['s', 's_conv'])
def test_keeps_little_for_the_backward_pass(arch, device):
    images = torch.rand(2, 3, 256, 256, device=device)
    ours = saved_bytes(EfficientMod(arch).to(device).train(), images)
    assert ours <= 0.55 * saved_bytes(released_form().build(arch).to(device).train(), images)


def step(model, images):
    """Gradients of one training step."""
    model.zero_grad()
    torch.stack([level.square().mean() for level in model(images)]).mean().backward()
    return {name.replace('module.', '', 1): parameter.grad for name, parameter in model.named_parameters()}


def distributed_steps(rank, folder, images, with_cp, device, processes):
    """What each process does: two steps of MMEngine's data-parallel model on its share of the images."""
    torch.set_num_threads(1)
    meeting = dict(init_method=f'file://{folder}/meeting', timeout=timedelta(seconds=120))
    backend = 'gloo' if device.type == 'cpu' else 'nccl'
    dist.init_process_group(backend, rank=rank, world_size=processes, **meeting)
    torch.backends.cudnn.allow_tf32 = False
    model = trained('xxs', drop_path_rate=0.0, with_cp=with_cp).to(device).train()
    ids = None if device.type == 'cpu' else [0]
    model = MMDistributedDataParallel(model, device_ids=ids, find_unused_parameters=False)
    for i in range(2):  # the second step raises an error if the first left a parameter without a gradient
        grads = step(model, images.chunk(processes)[rank].to(device))
        torch.save({name: grad.cpu() for name, grad in grads.items()}, folder / f'{rank}-{i}.pth')
    end_process()


@pytest.mark.parametrize('with_cp', [False, True])
def test_distributed_training_gives_the_gradients_of_the_whole_batch(with_cp, device, tmp_path):
    """Two processes on a CPU, connected by gloo; one on a GPU, as NCCL takes one GPU a process."""
    images, processes = torch.rand(4, 3, 64, 64), 2 if device.type == 'cpu' else 1
    expected = step(trained('xxs', drop_path_rate=0.0).to(device).train(), images.to(device))
    torch.multiprocessing.spawn(distributed_steps, (tmp_path, images, with_cp, device, processes), nprocs=processes)
    for rank, i in itertools.product(range(processes), range(2)):
        grads = torch.load(tmp_path / f'{rank}-{i}.pth')
        assert grads.keys() == expected.keys()
        for name, grad in expected.items():
            assert (grads[name] - grad.cpu()).abs().max() <= 1e-5 * grad.abs().max(), name


def test_gradients_have_the_strides_of_their_parameters(device):
    """Distributed training warns of any other ("Grad strides do not match bucket view strides") and copies them."""
    model = trained('xxs').to(device).train()
    for name, grad in step(model, torch.rand(2, 3, 64, 64, device=device)).items():
        assert grad.stride() == model.get_parameter(name).stride(), name
