"""The blocks of the paper's ablations: parameters and cost as published, outputs as their equations say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch.testing import assert_close

from helpers import REPO, randomised
from mmefficientmod.measure.complexity import measure_config
from mmefficientmod.models import EfficientMod, ModulationVariant, SeparateMlpBlock
from mmefficientmod.models.layers import ModulationBlock
from mmefficientmod.training.checks.run import try_backbones
from mmefficientmod.utils import UserError
from mmefficientmod.zoo.published import published

CONFIGS = REPO / 'configs/ablations'
KERNELS = {name: row for name, row in published('kernel_ablation').items() if name != '7'}
ROWS = {
    **{f'kernels-{name.replace(",", "-")}': row for name, row in KERNELS.items()},
    'separate-mlp': published('separate_mlp_ablation')['separate MLP'],
}
SMALL = dict(embed_dims=(8, 16), depths=(2, 2), attn_depths=(0, 0), ratio=3, attn_ratios=(4, 4), drop_path_rate=0.0)


def config_of(name):
    return CONFIGS / f'efficientmod-s-conv_{name}_8xb256_in1k.py'


@pytest.mark.libraries
@pytest.mark.parametrize('name', ROWS)
def test_parameters_and_cost_are_as_published(name):
    cost = measure_config(config_of(name), (224, 224))
    assert [round(cost.params / 1e6, 1), round(cost.macs / 1e9, 1)] == ROWS[name][:2]


@pytest.mark.libraries
def test_every_row_of_the_context_ablation_has_its_config():
    rows = {name: f'context-{name.replace("+", "-")}' for name in published('context_ablation')}
    rows['sum_instead_of_product'] = 'sum'
    del rows['f+conv+g']  # the network itself
    for name in rows.values():
        block = Config.fromfile(config_of(name)).model.backbone.arch.block
        parts = block.get('parts', ('f', 'conv', 'g'))
        assert name == ('sum' if block.get('operator') == 'sum' else f'context-{"-".join(parts)}')
    found = {path.name for path in CONFIGS.glob('*.py')}
    assert found == {config_of(name).name for name in (*rows.values(), *ROWS)}


@pytest.mark.parametrize('ratio', [1, 3])
def test_whole_variant_is_the_block_itself(ratio):
    block, variant = randomised(ModulationBlock(8, ratio)).eval(), ModulationVariant(8, ratio)
    names = {name: name.replace('dwconv.', 'dwconvs.0.') for name in block.state_dict()}
    variant.load_state_dict({names[name]: value for name, value in block.state_dict().items()})
    x = torch.randn(2, 9, 7, 8)
    assert_close(variant(x), block(x))


@pytest.mark.parametrize(
    ('parts', 'kernel_sizes', 'operator'),
    [
        (('f',), (7,), 'product'),
        (('conv',), (7,), 'product'),
        (('g', 'conv'), (3, 5), 'product'),
        (('f', 'conv', 'g'), (3, 5, 7), 'sum'),
    ],
)
def test_variants_compute_their_equation(parts, kernel_sizes, operator):
    block = randomised(ModulationVariant(4, 2, parts=parts, kernel_sizes=kernel_sizes, operator=operator))
    x = torch.randn(1, 6, 5, 4)
    u = F.layer_norm(x, (4,), block.norm.weight, block.norm.bias)
    context = F.linear(u, block.context.f.weight, block.context.f.bias) if 'f' in parts else u
    if 'conv' in parts:
        maps = [
            F.gelu(F.conv2d(context.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=size // 2, groups=4))
            for size, conv in zip(kernel_sizes, block.context.dwconvs)
        ]
        context = sum(maps).permute(0, 2, 3, 1)
    if 'g' in parts:
        context = F.linear(context, block.context.g.weight, block.context.g.bias)
    value, context = F.gelu(F.linear(u, block.fc1.weight, block.fc1.bias)), context.repeat(1, 1, 1, 2)
    y = value * context if operator == 'product' else value + context
    assert_close(block(x), x + block.gamma * F.linear(y, block.fc2.weight, block.fc2.bias))


def test_a_separate_mlp_has_the_parameters_of_the_fused_block():
    for ratio in (1, 6):
        separate, fused = SeparateMlpBlock(64, ratio), ModulationBlock(64, ratio)
        matrices = [sum(p.numel() for p in b.parameters() if p.ndim > 1) for b in (separate, fused)]
        assert matrices[0] == matrices[1]
    x = torch.randn(1, 6, 5, 64)
    block = randomised(separate).eval()
    assert_close(block(x), block.modulation(x) + block.mlp(block.modulation(x)))


def test_variants_train_in_the_network():
    block = dict(type='mmefficientmod.ModulationVariant', kernel_sizes=(3, 5))
    model = EfficientMod(dict(SMALL, block=block), out_indices=(0, 1)).train()
    assert type(model.stages[0][0]) is ModulationVariant and len(model.stages[0][0].context.dwconvs) == 2
    model.init_weights()
    sum(level.sum() for level in model(torch.rand(1, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match='ModulationVariant'):
        model.switch_to_deploy()


@pytest.mark.parametrize(
    ('block', 'message'),
    [
        ('NoSuchBlock', "arch names an unknown block 'NoSuchBlock'"),
        (dict(parts=('f',)), 'arch names an unknown block None'),
        (dict(type='ModulationVariant', parts=('h',)), r"parts must be some of f, conv, g, got \('h',\)"),
        (dict(type='ModulationVariant', kernel_sizes=(4,)), r'kernel_sizes must be odd numbers, got \(4,\)'),
        (dict(type='ModulationVariant', operator='max'), "operator must be 'product' or 'sum', got 'max'"),
    ],
)
def test_bad_blocks_are_refused(block, message):
    with pytest.raises(ValueError, match=message):
        EfficientMod(dict(SMALL, block=block), out_indices=(0, 1))


def test_an_unknown_block_is_refused_before_the_start():
    backbone = dict(type='mmefficientmod.EfficientMod', arch=dict(SMALL, block='NoSuchBlock'), out_indices=(0, 1))
    with pytest.raises(UserError, match=r"^model\.backbone: arch names an unknown block 'NoSuchBlock'[^\n]*$"):
        try_backbones(Config(dict(model=dict(backbone=backbone))), training=True)
