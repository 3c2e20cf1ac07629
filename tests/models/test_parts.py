"""The training operator stands in for a block's parts only where nobody can tell: hooks, wrappers, pruning, LoRA."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.nn.utils import parametrize, prune

from helpers import build_model, randomised
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.layers import ModulationBlock
from mmefficientmod.models.pointwise import Pointwise

PARTS = ('norm', 'context', 'context.f', 'context.dwconv', 'context.g', 'fc1', 'fc2')


def build(**kwargs):
    return randomised(EfficientMod('xxs', drop_path_rate=0.0, **kwargs)).train()


def gradients(model, images):
    model.zero_grad()
    sum(level.square().mean() for level in model(images)).backward()
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize('deploy', [False, True])
def test_every_forward_hook_fires(deploy):
    model, fired = build(), set()
    if deploy:
        model.switch_to_deploy()
        model.eval()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    model(torch.rand(1, 3, 64, 64))
    silent = {name for name, module in model.named_modules() if type(module) is not nn.ModuleList} - fired
    assert silent == set()


def test_every_backward_hook_fires():
    model, fired = build(), set()
    for name, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: fired.add(name))
    gradients(model, torch.rand(1, 3, 64, 64, requires_grad=True))
    silent = {name for name, module in model.named_modules() if type(module) is not nn.ModuleList} - fired
    assert silent == set()


def test_a_global_hook_sees_every_part():
    model, seen = build(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model(torch.rand(1, 3, 64, 64))
    finally:
        handle.remove()
    parts = [
        block.get_submodule(part) for block in model.modules() if isinstance(block, ModulationBlock) for part in PARTS
    ]
    assert {id(part) for part in parts} <= {id(module) for module in seen}


@pytest.mark.parametrize('part', PARTS)
def test_a_hook_changes_no_result(part):
    model, images = build(), torch.rand(2, 3, 64, 64)
    expected = gradients(model, images)
    for block in model.modules():
        if isinstance(block, ModulationBlock):
            block.get_submodule(part).register_forward_hook(lambda *_: None)
    for name, grad in gradients(model, images).items():
        assert (grad - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name


def test_the_operator_is_back_when_the_hook_is_gone():
    model, images = build(), torch.rand(1, 3, 64, 64)
    expected = gradients(model, images)
    model.stages[0][1].fc1.register_forward_hook(lambda *_: None).remove()
    assert all(torch.equal(grad, expected[name]) for name, grad in gradients(model, images).items())


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('part', PARTS)
def test_a_wrapped_part_does_what_it_says(part, training):
    torch.manual_seed(0)
    block = randomised(ModulationBlock(6, 2)).double().train(training)
    x, original = torch.randn(1, 5, 5, 6, dtype=torch.float64), copy.deepcopy(block)
    parent, _, name = part.rpartition('.')
    setattr(block.get_submodule(parent), name, Doubled(block.get_submodule(part)))

    scale = {part: 2}
    u = scale.get('norm', 1) * original.norm(x)
    f = scale.get('context.f', 1) * original.context.f(u)
    conv = scale.get('context.dwconv', 1) * original.context.dwconv(f.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    context = scale.get('context', 1) * scale.get('context.g', 1) * original.context.g(nn.functional.gelu(conv))
    value = nn.functional.gelu(scale.get('fc1', 1) * original.fc1(u)) * context.repeat(1, 1, 1, 2)
    torch.testing.assert_close(block(x), x + original.gamma * scale.get('fc2', 1) * original.fc2(value))


def test_parametrised_weights_train():
    model = build()
    for module in model.modules():
        if isinstance(module, Pointwise):
            parametrize.register_parametrization(module, 'weight', Doubled(nn.Identity()))
    assert 'stages.0.1.fc1.parametrizations.weight.original' in gradients(model, torch.rand(1, 3, 64, 64))


def test_pruned_weights_train_step_after_step():
    model, images = build(), torch.rand(1, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, Pointwise):
            prune.l1_unstructured(module, 'weight', 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        gradients(model, images)
        optimizer.step()
    model(images)
    assert (model.stages[0][1].fc1.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.libraries
@pytest.mark.both_stacks
def test_lora_of_mmpretrain_trains():
    from mmpretrain.models.peft import LoRAModel

    backbone = dict(type='mmefficientmod.EfficientMod', arch='xxs')
    model = LoRAModel(
        backbone, rank=2, targets=[dict(type=name) for name in ('fc1', 'fc2', 'context.f', 'qkv')]
    ).train()
    grads = gradients(model, torch.rand(1, 3, 64, 64))
    assert {name.split('.')[-2] for name in grads} == {'lora_down', 'lora_up'}
    assert all(grad.isfinite().all() for grad in grads.values())
    assert any(grad.any() for name, grad in grads.items() if '.fc1.lora_up' in name)


@pytest.mark.libraries
@pytest.mark.both_stacks
@pytest.mark.parametrize('target', ['fc1', 'context.f'])
def test_what_lora_saves_is_loaded_again(target, tmp_path):
    """It saves what it added alone, also to blocks of which it must not look like the deploy form."""
    from mmengine.runner.checkpoint import load_checkpoint

    lora = dict(type='LoRAModel', module=dict(type='mmefficientmod.EfficientMod', arch='xxs'), rank=2)
    config = dict(
        type='ImageClassifier',
        backbone=dict(lora, targets=[dict(type=target)]),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=256),
    )
    model = build_model(Config(dict(model=config, default_scope='mmpretrain')))
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    assert {name.split('.')[-2] for name in state if name.startswith('backbone.')} == {'lora_down', 'lora_up'}
    torch.save(dict(state_dict=state), tmp_path / 'lora.pth')
    load_checkpoint(model, str(tmp_path / 'lora.pth'))
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert not model.backbone.module.deploy


def set_anew(**settings):
    """Gives the context's convolution of a block other settings."""

    def change(block):
        for name, value in settings.items():
            setattr(block.context.dwconv, name, value)

    return change


def without_affine(block):
    block.norm = nn.LayerNorm(block.gamma.numel(), elementwise_affine=False)


SETTINGS = {
    'dilation': set_anew(dilation=(2, 2), padding=(6, 6)),
    'padding': set_anew(padding_mode='circular', _reversed_padding_repeated_twice=[3, 3, 3, 3]),
    'no affine': without_affine,
}


@pytest.mark.parametrize('change', SETTINGS.values(), ids=SETTINGS)
def test_a_part_with_other_settings_trains_with_them(change):
    model, images = build(), torch.rand(2, 3, 64, 64)
    change(model.stages[0][0])
    trained, tested = model(images), model.eval()(images)
    for one, other in zip(trained, tested):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.detach().abs().max()))


@pytest.mark.parametrize(
    'change', [*SETTINGS.values(), lambda block: setattr(block.norm, 'eps', 1e-2)], ids=[*SETTINGS, 'eps']
)
def test_the_inference_form_refuses_settings_that_it_does_not_know(change):
    model = build()
    change(model.stages[1][1])
    with pytest.raises(ValueError, match=r'stages\.1\.1\..* has settings of its own'):
        model.switch_to_deploy()


@pytest.mark.parametrize(
    'change',
    [
        lambda block: setattr(block, 'fc1', Doubled(block.fc1)),
        lambda block: prune.l1_unstructured(block.context.g, 'weight', 0.5),
        lambda block: parametrize.register_parametrization(block.fc2, 'weight', nn.Identity()),
        lambda block: block.norm.register_forward_hook(lambda *_: None),
        lambda block: parametrize.register_parametrization(block, 'gamma', nn.Identity()),
    ],
    ids=['wrapped', 'pruned', 'parametrised', 'hooked', 'gamma'],
)
def test_the_inference_form_does_not_lose_what_was_added(change):
    model = build()
    change(model.stages[1][1])
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r'stages.1.1.*: merge or remove that before switch_to_deploy'):
        model.switch_to_deploy()
    assert list(model.state_dict()) == before


def test_the_inference_form_is_not_trained():
    model = build(deploy=True)
    with pytest.raises(RuntimeError, match='this is the deploy form, which is not trained: build the backbone without'):
        model.train()(torch.rand(1, 3, 64, 64))
    frozen = build(deploy=True, frozen_stages=4).train()  # a fixed backbone under heads that are trained
    assert len(frozen(torch.rand(1, 3, 64, 64))) == 4
