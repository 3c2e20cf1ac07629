"""Checkpoints are loaded with `init_cfg`, `load_from` and `load_state_dict`, or one line says why not."""

from __future__ import annotations

import copy
import logging
import pickle
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from helpers import ARCHS, REPO, Detector, build_model, random_state, trainer_file
from mmefficientmod.checkpoints.loading import adapt_stem, load_pretrained, read_checkpoint
from mmefficientmod.checkpoints.names import to_released_name
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.conversion import convert_checkpoint
from mmefficientmod.utils import UserError


@pytest.mark.both_stacks
@pytest.mark.parametrize(
    ('layout', 'prefix'),
    [
        ('state_dict', ''),
        ('state_dict', 'module.'),
        ('state_dict_ema', ''),
        ('state_dict_ema', 'module.'),
        ('model', ''),
    ],
)
@pytest.mark.parametrize('arch', ARCHS)
def test_init_cfg_takes_released_imagenet_files(arch, layout, prefix, golden, device, tmp_path):
    weights = golden(arch)[0]
    path = trainer_file(weights, tmp_path / 'released.pth', layout, prefix)
    model = EfficientMod(arch, init_cfg=dict(type='Pretrained', checkpoint=path)).to(device)
    model.init_weights()
    assert all(value.device.type == device.type for value in model.state_dict().values())
    loaded = {to_released_name(name): value.cpu() for name, value in model.state_dict().items()}
    assert loaded.keys() == {name for name in weights if not name.startswith(('norm.', 'head.'))}
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())


def test_init_cfg_takes_bare_weights_and_fewer_stages(golden, tmp_path):
    weights = golden('xxs')[0]
    torch.save(weights, tmp_path / 'bare.pth')
    model = EfficientMod(
        'xxs', out_indices=(1, 2), init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'bare.pth'))
    )
    model.init_weights()
    assert torch.equal(model.stages[2][0].gamma, weights['layers.2.blocks.0.gamma_1'])


DETECTOR = 'configs/detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py'


SEGMENTOR = 'configs/segmentation/fpn_efficientmod-xxs_8xb4-40k_ade20k-512x512.py'


@pytest.mark.libraries
@pytest.mark.both_stacks
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('config', [pytest.param(DETECTOR, marks=pytest.mark.ops), SEGMENTOR])
def test_load_from_takes_whole_models_of_mmcv_1(config, prefix, messages, tmp_path):
    model = build_model(Config.fromfile(REPO / config))
    state = random_state(model)
    released = OrderedDict()
    for name, value in state.items():
        if name.startswith('backbone.'):
            name = 'backbone.' + to_released_name(name[len('backbone.') :])
        if not name.startswith('data_preprocessor.'):
            released[prefix + name] = value
    meta = dict(
        mmdet_version='2.19.0',
        config='model = dict()',
        seed=0,
        exp_name='x.py',
        epoch=12,
        iter=87960,
        CLASSES=('a', 'b'),
    )
    torch.save(dict(meta=meta, state_dict=released, optimizer=dict(state={}, param_groups=[])), tmp_path / 'mmcv1.pth')

    load_checkpoint(model, str(tmp_path / 'mmcv1.pth'), logger='current')
    assert messages() == []  # MMEngine reports every missing and unexpected name there
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize('other', ['xs', 's', 's_conv'])
def test_another_arch_is_refused_everywhere(other, golden, tmp_path):
    path = trainer_file(golden(other)[0], tmp_path / 'other.pth')
    with pytest.raises(UserError, match="does not fit EfficientMod arch 'xxs'"):
        EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()

    model = Detector('xxs')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {f'backbone.{name}': value for name, value in golden(other)[0].items()}
    torch.save(dict(meta={}, state_dict={**state, 'head.weight': before['head.weight'] + 1}), tmp_path / 'detector.pth')
    with pytest.raises(UserError, match="does not fit EfficientMod arch 'xxs'"):
        load_checkpoint(model, str(tmp_path / 'detector.pth'))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_backbone_file_given_to_load_from_is_no_silent_start_from_scratch(golden, tmp_path):
    path = trainer_file(golden('xxs')[0], tmp_path / 'backbone.pth')
    with pytest.raises(UserError, match=r"names nothing that starts with 'backbone.'.*init_cfg"):
        load_checkpoint(Detector('xxs'), path)


@pytest.mark.ops
def test_prefix_takes_the_backbone_out_of_a_detector(tmp_path):
    state = random_state(build_model(Config.fromfile(REPO / DETECTOR)))
    torch.save(dict(state_dict=state), tmp_path / 'detector.pth')
    model = EfficientMod(
        'xxs', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'detector.pth'), prefix='backbone.')
    )
    model.init_weights()
    assert all(torch.equal(value, state[f'backbone.{name}']) for name, value in model.state_dict().items())


def damaged(state):
    """A state dict without one name and with one of another network."""
    state = {name: value + 1 for name, value in state.items() if not name.endswith('stages.0.0.fc2.bias')}
    return {**state, 'backbone.other.weight': torch.rand(3)}


def test_load_state_dict_reports_names_as_torch_does():
    model = Detector('xxs')
    state = damaged(model.state_dict())
    names = ['backbone.stages.0.0.fc2.bias'], ['backbone.other.weight']
    kept = model.backbone.stages[0][0].fc2.bias.clone()
    assert tuple(model.load_state_dict(state, strict=False)) == names
    assert torch.equal(model.backbone.stages[0][0].fc2.weight, state['backbone.stages.0.0.fc2.weight'])
    assert torch.equal(model.backbone.stages[0][0].fc2.bias, kept)
    with pytest.raises(RuntimeError, match=r'Missing key.*stages\.0\.0\.fc2\.bias(.|\n)*Unexpected key.*other\.weight'):
        model.load_state_dict(state)

    backbone = EfficientMod('xxs')
    assert len(backbone.load_state_dict({}, strict=False).missing_keys) == len(backbone.state_dict())
    released = {to_released_name(name): value + 1 for name, value in backbone.state_dict().items()}
    assert tuple(backbone.load_state_dict(released, strict=False)) == ([], [])
    assert torch.equal(backbone.stages[0][0].gamma, released['layers.0.blocks.0.gamma_1'])


@pytest.mark.parametrize('strict', [True, False])
def test_a_wrong_shape_is_refused_before_anything_is_loaded(strict):
    model = Detector('xxs')
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    state['backbone.stages.3.0.fc2.bias'] = torch.zeros(7)
    with pytest.raises(UserError, match=r'1 of another shape: stages\.3\.0\.fc2\.bias \(7,\) instead of \(256,\)'):
        model.load_state_dict(state, strict=strict)
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith('backbone.')}
    assert all(torch.equal(value, before[name]) for name, value in backbone.items())


@pytest.mark.both_stacks
def test_load_from_warns_once_of_a_partial_match(messages, tmp_path):
    model = Detector('xxs')
    torch.save(damaged(model.state_dict()), tmp_path / 'partial.pth')
    load_checkpoint(model, str(tmp_path / 'partial.pth'))
    total = len(model.backbone.state_dict())
    assert messages() == [
        f"EfficientMod arch 'xxs' is loaded in part: {total - 1} tensors loaded; 1 missing: stages.0.0.fc2.bias; "
        '1 unexpected: other.weight'
    ]


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=['copy', 'pickle']
)
def test_a_copy_judges_what_is_loaded_into_it(copied, tmp_path):
    """Averaging of weights copies a model; each network is switched to the form of its own file."""
    original = Detector('xxs')
    model, deployed = copied(original), EfficientMod('xxs')
    deployed.switch_to_deploy()
    torch.save({f'backbone.{name}': value for name, value in deployed.state_dict().items()}, tmp_path / 'deploy.pth')
    load_checkpoint(model, str(tmp_path / 'deploy.pth'))
    assert model.backbone.deploy and not original.backbone.deploy
    assert all(map(torch.equal, model.backbone.state_dict().values(), deployed.state_dict().values()))


def test_load_from_refuses_a_backbone_of_which_nothing_matches(tmp_path):
    torch.save({'backbone.conv1.weight': torch.rand(3), 'head.bias': torch.zeros(3)}, tmp_path / 'resnet.pth')
    with pytest.raises(UserError, match=r"does not fit EfficientMod arch 'xxs' - .* 1 unexpected: conv1.weight"):
        load_checkpoint(Detector('xxs'), str(tmp_path / 'resnet.pth'))


def test_load_from_takes_other_classes_with_one_warning_about_the_heads(messages, capsys, tmp_path):
    torch.save(dict(state_dict=random_state(Detector('xxs', classes=80))), tmp_path / 'coco.pth')
    model = Detector('xxs', classes=2)
    load_checkpoint(model, str(tmp_path / 'coco.pth'), logger='current')
    (message,) = messages()
    assert 'size mismatch for head.weight' in message and 'backbone' not in message


@pytest.mark.both_stacks
def test_init_cfg_says_what_it_loaded(golden, messages, tmp_path):
    path = trainer_file(golden('xxs')[0], tmp_path / 'released.pth')
    EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    total = len(EfficientMod('xxs').state_dict())
    loaded = f"EfficientMod arch 'xxs': {total} tensors loaded from"
    assert messages(logging.INFO) == [f'{loaded} {path}, plain copy; left out: norm, head']

    ema = trainer_file(golden('xxs')[0], tmp_path / 'ema.pth', layout='model_ema')
    EfficientMod('xxs', out_indices=2, init_cfg=[dict(type='Pretrained', checkpoint=ema)]).init_weights()
    assert messages(logging.INFO)[1].endswith(
        f'{ema}, moving average (EMA); left out: patch_embeds.3, stages.3, norm, head'
    )

    weights = EfficientMod('xxs').state_dict()
    torch.save(dict(state_dict=weights, ema_state_dict=weights), tmp_path / 'hook.pth')  # MMEngine's EMAHook
    load_pretrained(EfficientMod('xxs'), str(tmp_path / 'hook.pth'))
    assert messages(logging.INFO)[2] == f'{loaded} {tmp_path / "hook.pth"}, moving average (EMA)'


@pytest.mark.parametrize('in_channels', [1, 2, 4, 5, 6, 8])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_stem_of_other_input_channels(in_channels, dtype, golden, messages, tmp_path):
    adapt_input_conv = pytest.importorskip('timm.models').adapt_input_conv
    weights = {name: value.to(dtype) for name, value in golden('xxs')[0].items()}
    stem = weights['patch_embed.proj.weight']
    expected = adapt_input_conv(in_channels, stem)
    torch.testing.assert_close(adapt_stem(stem, in_channels), expected, rtol=0, atol=0)
    path = trainer_file(weights, tmp_path / 'released.pth')
    model = EfficientMod('xxs', in_channels=in_channels, init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    assert torch.equal(model.patch_embeds[0].proj.weight, expected.float())
    assert f'; stem adapted from 3 to {in_channels} input channels; left out' in messages(logging.INFO)[0]
    model(torch.rand(1, in_channels, 32, 32))


def test_only_a_stem_of_three_channels_is_adapted(golden, tmp_path):
    weights = dict(golden('xxs')[0])
    weights['patch_embed.proj.weight'] = torch.rand(32, 4, 7, 7)
    path = trainer_file(weights, tmp_path / 'four.pth')
    with pytest.raises(UserError, match=r'1 of another shape: patch_embeds.0.proj.weight \(32, 4, 7, 7\)'):
        EfficientMod('xxs', in_channels=1, init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()


UNUSABLE = {
    'int8': (lambda value: value.to(torch.int8), 'of the type torch.int8'),
    'bool': (lambda value: value > 0, 'of the type torch.bool'),
    'complex': (lambda value: value.to(torch.complex64), 'of the type torch.complex64'),
    'float8': (lambda value: value.to(torch.float8_e4m3fn), 'of the type torch.float8_e4m3fn'),
    'nan': (lambda value: value.clone().index_fill_(0, torch.tensor([1]), float('nan')), 'with NaN or Inf'),
    'inf': (lambda value: value.half().index_fill_(0, torch.tensor([1]), float('inf')), 'with NaN or Inf'),
    'sparse': (lambda value: value.to_sparse(), 'in the layout torch.sparse_coo'),
    'quantised': (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), 'of the type torch.qint8'),
    'meta': (lambda value: value.to('meta'), 'on the meta device'),
    'shared': (lambda value: value[:1, :1].expand_as(value), 'with elements that share their storage'),
}


@pytest.mark.parametrize('kind', UNUSABLE)
def test_unusable_weights_are_refused_by_name(kind, tmp_path):
    if not hasattr(torch, 'float8_e4m3fn') and kind == 'float8':
        pytest.skip('this torch has no float8')
    make, problem = UNUSABLE[kind]
    name = 'stages.1.0.fc1.weight'
    before = random_state(EfficientMod('xxs'))
    state = {**before, name: make(before[name])}
    message = f'weights must be dense, finite, floating-point tensors, but there is 1 {problem}: {name}$'

    model = Detector('xxs')
    model.backbone.load_state_dict(before)
    whole = dict(state_dict={f'backbone.{name}': value for name, value in state.items()})
    checkpoint = tmp_path / 'bad.pth'
    try:
        torch.save(whole, checkpoint)
        read_checkpoint(checkpoint)
    except KeyError:
        assert kind == 'float8'  # which torch 2.1 does not save
    except UserError as error:  # torch's safe loader may not take the kind at all
        assert kind in ('quantised', 'float8', 'meta') and '\n' not in str(error)
    else:
        load = dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.')
        with pytest.raises(UserError, match=message):
            EfficientMod('xxs', init_cfg=load).init_weights()
        with pytest.raises(UserError, match=message):
            convert_checkpoint(str(checkpoint), str(tmp_path / 'out.pth'), to='released')
        assert not (tmp_path / 'out.pth').exists()
    with pytest.raises(UserError, match=message):
        _load_checkpoint_to_model(model, whole)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_is_taken(dtype, tmp_path):
    state = {name: value.to(dtype) for name, value in random_state(EfficientMod('xxs')).items()}
    torch.save(state, tmp_path / 'weights.pth')
    model = EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    model.init_weights()
    assert all(torch.equal(value, state[name].float()) for name, value in model.state_dict().items())


def test_training_weights_do_not_fit_the_inference_form(tmp_path):
    path = str(tmp_path / 'training.pth')
    torch.save({f'backbone.{n}': v for n, v in EfficientMod('xxs').state_dict().items()}, path)
    message = 'this is the training form: remove deploy=True from the backbone'
    with pytest.raises(UserError, match=message):
        init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
        EfficientMod('xxs', deploy=True, init_cfg=init_cfg).init_weights()
    with pytest.raises(UserError, match=message):
        load_checkpoint(Detector('xxs', deploy=True), path)
