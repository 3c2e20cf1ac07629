"""Linear layers as 1x1 convolutions: the same values and gradients, by whichever convolution torch is given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmefficientmod.models.pointwise import pointwise


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


LAYOUTS = {
    'NHWC': lambda x: x,
    'NCHW': lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    'a part of the channels': lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    'a crop': lambda x: F.pad(x, (0, 0, 1, 2, 3, 0))[:, 3:, 1:-2],
}


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    'shape', [(1, 33, 34, 24), (2, 7, 5, 8), (3, 1, 1, 8), (1, 64, 64, 1), (16, 9, 9, 24), (0, 4, 4, 8)]
)
@pytest.mark.parametrize('channels', [1, 16])
def test_is_a_linear_layer(threads, layout, shape, channels, set_threads):
    set_threads(threads)
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.rand(shape, dtype=torch.float32)).requires_grad_()
    weight, bias = torch.randn(channels, shape[-1], requires_grad=True), torch.randn(channels, requires_grad=True)
    found, expected = pointwise(x, weight, bias), F.linear(x, weight, bias)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(expected)
    for mine, right in zip(*(torch.autograd.grad(y, (x, weight, bias), grad) for y in (found, expected))):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('threads', [1, 2])
def test_maps_stay_channels_last(threads, set_threads):
    set_threads(threads)
    for side in (7, 64):
        assert pointwise(torch.rand(2, side, side, 16), torch.rand(32, 16)).is_contiguous()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='this torch has no oneDNN')
@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('batch', [1, 15, 16])
def test_onednn_computes_it(threads, batch, set_threads):
    set_threads(threads)
    x, weight = torch.rand(batch, 48, 48, 16), torch.rand(32, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        pointwise(x, weight)
    assert 'aten::mkldnn_convolution' in {event.key for event in profiler.key_averages()}


def test_a_trace_of_one_thread_takes_any_batch(set_threads):
    set_threads(1)
    weight = torch.rand(32, 16)
    traced = torch.jit.trace(lambda x: pointwise(x, weight), torch.rand(1, 48, 48, 16))
    for x in (torch.rand(0, 48, 48, 16), torch.rand(2, 16, 7, 9).permute(0, 2, 3, 1)):
        torch.testing.assert_close(traced(x), F.linear(x, weight), rtol=1e-4, atol=1e-5)
