"""Any size, batch, layout and arch: shapes as documented, no NaN, deploy equals training form, copies equal."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import randomised
from mmefficientmod.models import EfficientMod

TRY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
TINY = dict(
    embed_dims=(8, 12, 16, 24), depths=(1, 1, 1, 1), attn_depths=(0, 0, 1, 1), ratio=2, attn_ratios=(2, 2, 2, 2),
    drop_path_rate=0.0,
)  # fmt: skip
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.1}


def tiny(**kwargs) -> EfficientMod:
    return randomised(EfficientMod({**TINY, **kwargs.pop('arch', {})}, **kwargs)).eval()


def layouts(images: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another order in memory."""
    if layout == 'channels_last':
        return images.contiguous(memory_format=torch.channels_last)
    if layout == 'transposed':
        return images.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == 'sliced':
        return torch.cat([images, images], dim=3)[..., : images.shape[3]]
    if layout == 'strided':
        return images.repeat_interleave(2, dim=2)[:, :, ::2]
    if layout == 'expanded':
        return images[:1].expand(images.shape)
    return images


SIZE = st.integers(32, 400)
LAYOUT = st.sampled_from(['contiguous', 'channels_last', 'transposed', 'sliced', 'strided', 'expanded'])


@TRY
@given(SIZE, SIZE, st.integers(1, 3), LAYOUT, st.sampled_from(list(TOLERANCE)), st.booleans())
def test_any_size_layout_and_precision(height, width, batch, layout, dtype, deploy):
    torch.manual_seed(height * 1000 + width)
    model = tiny().to(dtype)
    images = layouts(torch.randn(batch, 3, height, width, dtype=dtype), layout)
    with torch.no_grad():
        maps = model(images)
        again = model(images.contiguous())
        if deploy:
            form = copy.deepcopy(model)
            form.switch_to_deploy()
            inference = form(images)
    assert all(value.isfinite().all() and value.is_contiguous() and value.dtype == dtype for value in maps)
    for one, other in zip(maps, inference if deploy else again):
        assert (one - other).abs().max() <= TOLERANCE[dtype] * (1 + one.abs().max())


@TRY
@given(SIZE, SIZE, st.integers(1, 2))
def test_shapes(height, width, batch):
    model = tiny()
    with torch.no_grad():
        maps = model(torch.randn(batch, 3, height, width))
    assert [tuple(value.shape) for value in maps] == measured_shapes(model, batch, height, width)


def measured_shapes(model: EfficientMod, batch: int, height: int, width: int) -> list[tuple]:
    """By each convolution's own arithmetic: kernel, stride and padding of the patch embeddings."""
    shapes = []
    for i, embed in enumerate(model.patch_embeds):
        conv = embed.proj
        height, width = (
            (side + 2 * conv.padding[axis] - conv.kernel_size[axis]) // conv.stride[axis] + 1
            for axis, side in enumerate((height, width))
        )
        if i in model.out_indices:
            shapes.append((batch, conv.out_channels, height, width))
    return shapes


ARCH = st.integers(1, 4).flatmap(
    lambda stages: st.fixed_dictionaries(
        dict(
            embed_dims=st.lists(st.sampled_from([4, 8, 12, 20]), min_size=stages, max_size=stages),
            depths=st.lists(st.integers(0, 2), min_size=stages, max_size=stages),
            attn_depths=st.lists(st.integers(0, 1), min_size=stages, max_size=stages),
            ratio=st.sampled_from([1, 2, 3, 6]),
            attn_ratios=st.lists(st.sampled_from([1, 2.7, 4]), min_size=stages, max_size=stages),
            drop_path_rate=st.sampled_from([0.0, 0.1]),
        )
    )
)


@TRY
@given(ARCH, st.data())
def test_any_arch(arch, data):
    """Widths, depths of 0, ratios of attention that are no integers, stages put out and frozen; saved and copied."""
    stages = len(arch['embed_dims'])
    out = data.draw(st.lists(st.integers(0, stages - 1), min_size=1, max_size=stages, unique=True).map(sorted))
    frozen = data.draw(st.integers(-1, out[-1] + 1))
    model = randomised(EfficientMod(arch, out_indices=tuple(out), frozen_stages=frozen))
    images = torch.randn(2, 3, 64, 40)
    loss = sum(value.square().mean() for value in model.train()(images))
    if loss.requires_grad:
        loss.backward()
    for i, stage in enumerate(model.stages):
        still = i < frozen
        assert all(parameter.requires_grad != still for parameter in stage.parameters())
        assert all(parameter.grad is None or not still for parameter in stage.parameters())

    model.eval()
    with torch.no_grad():
        maps = model(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), _through_a_file(model, arch, out)):
            assert all(torch.equal(one, two) for one, two in zip(maps, other(images)))
        model.switch_to_deploy()
        for one, two in zip(maps, model(images)):
            assert (one - two).abs().max() <= 1e-4 * (1 + one.abs().max())
    assert all(value.isfinite().all() for value in maps)


def _through_a_file(model: EfficientMod, arch: dict, out: list[int]) -> EfficientMod:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = EfficientMod(arch, out_indices=tuple(out))
    other.load_state_dict(torch.load(file, weights_only=True))
    return other.eval()


@pytest.mark.parametrize('deploy', [False, True])
def test_an_empty_batch_gives_empty_maps(deploy):
    model = tiny()
    if deploy:
        model.switch_to_deploy()
    with torch.no_grad():
        maps = model(torch.zeros(0, 3, 64, 96))
    assert [tuple(value.shape) for value in maps] == measured_shapes(model, 0, 64, 96)


def resident() -> int:
    """Memory of this process in bytes."""
    gc.collect()
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.slow
@pytest.mark.parametrize('form', ['eager', 'deploy', 'training'])
def test_memory_stays_flat(form):
    """2,000 calls at changing sizes, 300 training iterations: within 5 % in their second half."""
    model, calls = tiny(), 300 if form == 'training' else 2000
    if form == 'deploy':
        model.switch_to_deploy()
    optimizer = torch.optim.AdamW(model.train(form == 'training').parameters(), 1e-4)
    sizes = torch.randint(32, 200, (calls, 2), generator=torch.Generator().manual_seed(0)).tolist()
    after_warm_up = 0
    for i, size in enumerate(sizes):
        if i == calls // 2:
            after_warm_up = resident()
        images = torch.randn(1, 3, *size)
        if form == 'training':
            optimizer.zero_grad()
            sum(value.square().mean() for value in model(images)).backward()
            optimizer.step()
        else:
            with torch.no_grad():
                model(images)
    growth = resident() / after_warm_up - 1
    print(f'{form}: {after_warm_up / 2**20:.0f} MiB, {growth:+.2%} after {calls} calls')
    assert growth < 0.05
