"""The backbone equals the released network and behaves as an MM backbone must."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import ARCHS, HALVES, REPO, build_model
from mmefficientmod.checkpoints.names import to_released_name
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.layers import Attention

DETECTOR = 'configs/detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py'


def build(arch='xxs', seed=0, **kwargs):
    """A backbone whose LayerScale does not hide what its blocks do."""
    torch.manual_seed(seed)
    model = EfficientMod(arch, **kwargs)
    for name, parameter in model.named_parameters():
        if name.endswith('gamma'):
            torch.nn.init.normal_(parameter, 0.5, 0.1)
    return model


@pytest.mark.both_stacks
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-4), (torch.float64, 1e-6)], ids=['fp32', 'fp64'])
@pytest.mark.parametrize('training', [False, True], ids=['evaluation', 'training'])
@pytest.mark.parametrize('arch', ARCHS)
def test_equals_released_network(arch, training, dtype, tolerance, golden, device):
    weights, facts, tensors = golden(arch)
    model = EfficientMod(arch, drop_path_rate=0.0).to(device, dtype).train(training)
    model.load_state_dict({name: value.to(dtype) for name, value in weights.items()})
    images = torch.from_numpy(np.random.RandomState(0).standard_normal((1, 3, 96, 160)))
    images = images.to(device, dtype).requires_grad_()
    levels = model(images)
    assert len(levels) == 4
    for i, level in enumerate(levels):
        expected = torch.from_numpy(tensors[f'level{i}']).double()
        assert level.shape == expected.shape
        assert (level.double().cpu() - expected).abs().max() <= tolerance * expected.abs().max()

    loss = sum(level.square().mean() for level in levels)
    loss.backward()
    assert loss.item() == pytest.approx(facts['loss'], rel=1e-4)
    norms = {to_released_name(name): p.grad.double().norm().item() for name, p in model.named_parameters()}
    assert norms == {name: pytest.approx(norm, rel=1e-4) for name, (norm, _) in facts['grad_norm_and_sum'].items()}
    expected = torch.from_numpy(tensors['input_grad']).double()
    assert (images.grad.double().cpu() - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize('arch', ARCHS)
def test_parameter_count_is_the_published_one(arch):
    published = dict(xxs=4_736_264, xs=6_627_544, s=12_897_184, s_conv=12_872_336)  # with the classifier
    model = EfficientMod(arch)
    dims = model.out_channels[-1]
    classifier = 2 * dims + 1000 * dims + 1000
    assert sum(p.numel() for p in model.parameters()) + classifier == published[arch]


class CopyRecorder(TorchDispatchMode):
    """Records every operator that copies a tensor."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in (
            'aten::clone',
            'aten::copy_',
            'aten::contiguous',
            'aten::_to_copy',
            'aten::repeat',
            'aten::cat',
        ):
            self.copies.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('arch', ['s', 's_conv'])
def test_no_block_copies_or_leaves_nhwc(arch, training):
    model = build(arch, drop_path_rate=0.0, contiguous_outputs=False).train(training)
    inputs = []
    for blocks in model.stages:
        for block in blocks:
            block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    images = torch.rand(2, 3, 64, 96)
    with CopyRecorder() as recorder:
        levels = model(images)
    assert recorder.copies == ['aten::clone']  # the image itself, once
    assert all(x.is_contiguous() for x in inputs)
    for level in levels:
        assert level.is_contiguous(memory_format=torch.channels_last)
        assert level._base is not None  # a view


@pytest.mark.libraries
@pytest.mark.ops
@pytest.mark.both_stacks
def test_mmcv_operators_read_the_right_pixels_in_a_detector():
    """MMCV's RoIAlign takes wrong pixels from a channels-last map, without an error; also behind a wrapper."""
    from mmcv.ops import RoIAlign
    from torchvision.ops import roi_align

    class Wrapper(torch.nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

        def forward(self, x):
            return self.backbone(x)

    rois = torch.tensor([[0, 3.0, 5.0, 60.0, 40.0], [1, 20.0, 8.0, 90.0, 60.0]])
    detector = build_model(Config.fromfile(REPO / DETECTOR)).eval()
    for backbone in (detector.backbone, Wrapper(detector.backbone)):
        detector.backbone = backbone
        with torch.no_grad():
            for level in (
                detector.backbone(torch.rand(2, 3, 64, 96))[0],
                detector.extract_feat(torch.rand(2, 3, 64, 96))[0],
            ):
                pooled = RoIAlign(7, 0.25, 2)(level, rois)
                torch.testing.assert_close(pooled, roi_align(level, rois, 7, 0.25, 2, aligned=True))


@pytest.mark.parametrize('contiguous', [True, False])
@pytest.mark.parametrize('deploy', [True, False])
def test_contiguous_outputs(contiguous, deploy):
    kwargs = {} if contiguous else dict(contiguous_outputs=False)
    levels = build(deploy=deploy, **kwargs).eval()(torch.rand(1, 3, 64, 64))
    assert all(level.is_contiguous() == contiguous for level in levels)
    assert all(level.is_contiguous(memory_format=torch.channels_last) != contiguous for level in levels)


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (100, 75), (64, 129)])
@pytest.mark.parametrize('batch', [1, 3])
def test_any_size(size, batch):
    levels = build().eval()(torch.rand(batch, 3, *size))
    for level, channels, stride in zip(levels, (32, 64, 128, 256), (4, 8, 16, 32)):
        assert level.shape == (batch, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert level.isfinite().all()


@pytest.mark.parametrize('size', [(31, 64), (64, 16), (6, 270), (1, 1)])
def test_input_below_32_is_padded_in_evaluation_and_refused_in_training(size):
    model, images = build(), torch.rand(1, 3, *size)
    with pytest.raises(ValueError, match=rf'at least 32 x 32 pixels in training, got {size[0]} x {size[1]}: resize or'):
        model(images)
    levels = model.eval()(images)
    padded = model(torch.nn.functional.pad(images, (0, max(32 - size[1], 0), 0, max(32 - size[0], 0))))
    for level, whole, stride in zip(levels, padded, model.out_strides):
        height, width = (-(-side // stride) for side in size)
        assert level.shape[-2:] == (height, width)
        assert level.is_contiguous() and torch.equal(level, whole[..., :height, :width])


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3,)])
def test_every_level_is_the_output_of_a_module_with_a_name(out_indices):
    model, seen = build(out_indices=out_indices), {}
    for name, module in model.named_modules():
        if name.startswith('levels.'):
            module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: output}))
    levels = model(torch.rand(1, 3, 64, 96))
    assert list(seen) == [f'levels.{i}' for i in out_indices]
    assert all(level is output for level, output in zip(levels, seen.values()))
    assert not any(name.startswith('levels') for name in model.state_dict())


def test_shapes_alone_on_the_meta_device():
    levels = build().to('meta')(torch.rand(1, 3, 64, 64, device='meta'))
    assert [level.shape[-1] for level in levels] == [16, 8, 4, 2]


@pytest.mark.parametrize('dtype', HALVES)
def test_autocast(dtype, device):
    images = torch.rand(2, 3, 64, 64, device=device)
    model = build('s', drop_path_rate=0.0).to(device)
    expected = model(images)
    with torch.autocast(device.type, dtype=dtype):
        levels = model(images)
        loss = sum(level.float().square().mean() for level in levels)
    loss.backward()
    for level, reference in zip(levels, expected):
        assert (level - reference).abs().max() <= 4e-2 * reference.abs().max()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('rate', [0.0, 0.5])
def test_with_cp_gives_the_same_gradients(rate, device):
    grads = []
    for with_cp in (False, True):
        model = build('xxs', drop_path_rate=rate, with_cp=with_cp).to(device).train()
        torch.manual_seed(1)
        sum(level.square().mean() for level in model(torch.rand(4, 3, 64, 64, device=device))).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 4])
def test_frozen_stages_stay_frozen(frozen_stages):
    model = build(frozen_stages=frozen_stages).train()
    model.eval()
    model.train()
    frozen = ['patch_embeds.0'] if frozen_stages >= 0 else []
    frozen += [f'{part}.{i}' for i in range(max(frozen_stages, 0)) for part in ('patch_embeds', 'stages')]
    before = copy.deepcopy(model.state_dict())
    optimizer = (
        torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1) if frozen_stages < 4 else None
    )
    levels = model(torch.rand(2, 3, 64, 64))
    if optimizer:
        sum(level.square().mean() for level in levels).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        is_frozen = name.startswith(tuple(f'{part}.' for part in frozen))
        assert torch.equal(value, before[name]) == is_frozen, name
    for part in frozen:
        assert not any(module.training for module in model.get_submodule(part).modules())


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation():
    from mmefficientmod.models.layers import drop_path

    torch.manual_seed(0)
    x = torch.ones(4096, 2, 3)
    dropped = drop_path(x, 0.25, training=True)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (dropped == dropped[:, :1, :1]).all()  # whole samples
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert drop_path(x, 0.25, training=False) is x


def test_drop_path_rate_grows_linearly_and_defaults_to_the_archs():
    rates = [block.drop_path_rate for blocks in EfficientMod('s').stages for block in blocks]
    assert rates == pytest.approx(np.linspace(0, 0.02, 28).tolist())
    assert max(
        b.drop_path_rate for blocks in EfficientMod('s', drop_path_rate=0.3).stages for b in blocks
    ) == pytest.approx(0.3)


@pytest.mark.parametrize('out_indices', [(0,), (1, 2), (1, 2, 3), (0, 3)])
def test_out_indices(out_indices):
    model, whole = build(out_indices=out_indices).eval(), build().eval()
    model.load_state_dict(whole.state_dict())
    images = torch.rand(1, 3, 64, 64)
    levels, all_levels = model(images), whole(images)
    assert [tuple(level.shape[:2]) for level in levels] == [(1, channels) for channels in model.out_channels]
    assert [64 // level.shape[-1] for level in levels] == list(model.out_strides)
    for i, level in zip(out_indices, levels):
        torch.testing.assert_close(level, all_levels[i])
    sum(level.square().mean() for level in levels).backward()
    assert all(p.grad is not None for p in model.parameters())  # nothing unused, as distributed training demands


@pytest.mark.parametrize(('given', 'meant'), [(3, (3,)), (-1, (3,)), ((-2, -1), (2, 3)), ([1, 3], (1, 3)), (0, (0,))])
def test_out_indices_as_mmpretrain_takes_them(given, meant):
    model = build(out_indices=given)
    assert model.out_indices == meant
    assert len(model(torch.rand(1, 3, 32, 32))) == len(meant)


def test_arch_dict_and_in_channels():
    arch = dict(
        embed_dims=(16, 24, 32),
        depths=(1, 2, 1),
        attn_depths=(0, 0, 1),
        ratio=2,
        attn_ratios=(2, 2, 3),
        drop_path_rate=0.1,
    )
    model = EfficientMod(arch, in_channels=4, out_indices=(0, 1, 2))
    levels = model(torch.rand(1, 4, 40, 40))
    assert [level.shape[1] for level in levels] == [16, 24, 32]
    settings = EfficientMod.arch_settings['xs']
    same = EfficientMod(dict(settings))
    assert {n: p.shape for n, p in same.named_parameters()} == {
        n: p.shape for n, p in EfficientMod('xs').named_parameters()
    }


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='m'), "unknown arch 'm': choose one of xxs, xs, s, s_conv"),
        (dict(arch=dict(embed_dims=(8,))), 'an arch dict needs exactly the fields embed_dims, depths'),
        (dict(arch=dict(EfficientMod.arch_settings['s'], depths=(1, 2))), 'need one value a stage'),
        (
            dict(arch=dict(EfficientMod.arch_settings['s'], ratio=3.5)),
            'ratio must be an integer of at least 1, got 3.5',
        ),
        (dict(out_indices=(0, 4)), r'ascending stages out of 0 to 3, got \(0, 4\)'),
        (dict(out_indices=()), 'ascending stages out of 0 to 3'),
        (dict(out_indices=(2, 1)), 'ascending stages out of 0 to 3'),
        (dict(out_indices=(3, -1)), 'ascending stages out of 0 to 3'),
        (dict(out_indices=-5), 'ascending stages out of 0 to 3, got -5'),
        (dict(frozen_stages=5), 'frozen_stages must be -1 to 4, got 5'),
    ],
)
def test_bad_arguments_say_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EfficientMod(**kwargs)


def test_initialisation_is_the_released_one():
    model = EfficientMod('s')
    model.init_weights()
    linear = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.01)
    for name, value in model.named_parameters():
        if name.endswith('gamma'):
            assert (value == 1e-4).all()
        elif 'norm' in name:
            assert (value == float(name.endswith('weight'))).all()
        elif name.endswith(('fc1.bias', 'fc2.bias', 'f.bias', 'g.bias')):
            assert (value == 0).all()
        elif name.endswith('dwconv.weight'):  # PyTorch's default: uniform within 1 / sqrt(49)
            assert value.abs().max() <= 1 / 7 and value.std().item() == pytest.approx(1 / 7 / 3**0.5, rel=0.1)


@pytest.mark.both_stacks
@pytest.mark.parametrize(
    'codebase',
    [*(pytest.param(name, marks=pytest.mark.libraries) for name in ('mmdet', 'mmseg', 'mmpretrain')), 'mmengine'],
)
def test_found_by_name_without_custom_imports(codebase):
    import importlib

    registry = importlib.import_module(f'{codebase}.registry').MODELS
    model = registry.build(dict(type='mmefficientmod.EfficientMod', arch='xxs'))
    assert isinstance(model, EfficientMod)
    assert MMENGINE_MODELS.get('mmefficientmod.EfficientMod') is EfficientMod


def test_bounded_attention_is_exact_where_it_is_not_needed():
    images = torch.rand(1, 3, 64, 96)  # 4 x 6 pixels in stage 3
    model, bounded = EfficientMod('xxs').eval(), EfficientMod('xxs', attn_max_keys=24).eval()
    bounded.load_state_dict(model.state_dict())
    with torch.no_grad():
        for level, expected in zip(bounded(images), model(images)):
            assert torch.equal(level, expected)


def test_bounded_attention_averages_keys_and_values():
    torch.manual_seed(0)
    attention = Attention(8, num_heads=2, max_keys=6).double()
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)  # windows of 3 x 3, the lower ones 2 x 3: 2 x 2 keys
    q, k, v = attention.qkv(x).unflatten(-1, (3, 2, -1)).unbind(3)  # each (1, 5, 6, heads, head_dims)
    k, v = (torch.stack([y[:, i : i + 3, j : j + 3].mean((1, 2)) for i in (0, 3) for j in (0, 3)], 2) for y in (k, v))
    weights = torch.einsum('bnhd,bhmd->bhnm', q.flatten(1, 2), k)
    expected = torch.einsum('bhnm,bhmd->bnhd', (weights * attention.head_dims**-0.5).softmax(-1), v)
    torch.testing.assert_close(attention(x), attention.proj(expected.reshape(1, 5, 6, -1)))


def test_bounded_attention_in_deploy_form():
    model, images = EfficientMod('xxs', attn_max_keys=9).eval(), torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        expected = model(images)
        model.switch_to_deploy()
        for level, reference in zip(model(images), expected):
            assert (level - reference).abs().max() <= 1e-5 * reference.abs().max()
    with pytest.raises(ValueError, match='attn_max_keys must be None or at least 1, got 0'):
        EfficientMod('xxs', attn_max_keys=0)
