"""Released checkpoints load as they are, convert both ways, and bad ones are refused in one line without harm."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from helpers import ARCHS, REPO, build_model
from mmefficientmod.checkpoints.loading import adapt_stem, load_pretrained, read_checkpoint
from mmefficientmod.checkpoints.names import to_project_name, to_released_name
from mmefficientmod.checkpoints.weights import find_weights
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.conversion import convert_checkpoint
from mmefficientmod.utils import UserError


def trainer_file(weights, path, layout='state_dict', prefix='', ema=None):
    """A file as timm 0.6's trainer writes it: weights, their moving average, the optimiser and the arguments."""
    content = {layout: OrderedDict((prefix + name, value) for name, value in weights.items())}
    if ema:
        content['state_dict_ema'] = ema
    args = argparse.Namespace(
        model='efficientMod', lr=4e-3, aa='rand-m9-mstd0.5-inc1', opt_betas=None, mixup=0.8, local_rank=0
    )
    torch.save(
        dict(
            epoch=299,
            arch='efficientMod',
            version=2,
            args=args,
            metric=81.9,
            optimizer=dict(state={}, param_groups=[]),
            amp_scaler=dict(scale=65536.0),
            **content,
        ),
        path,
    )
    return str(path)


class Detector(BaseModule):
    """A backbone inside a model, as MMEngine loads it."""

    def __init__(self, arch, classes=3, **kwargs):
        super().__init__()
        self.backbone = EfficientMod(arch, **kwargs)
        self.head = torch.nn.Linear(self.backbone.out_channels[-1], classes)


@pytest.fixture
def messages():
    """() -> the warnings in MMEngine's log so far, or with ``level`` all of that level."""
    logger, records = MMLogger.get_current_instance(), []
    keep = logging.Handler()
    keep.emit = records.append
    logger.addHandler(keep)
    yield lambda level=logging.WARNING: [record.getMessage() for record in records if record.levelno == level]
    logger.removeHandler(keep)


def random_state(model):
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


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
def test_init_cfg_takes_released_imagenet_files(arch, layout, prefix, golden, tmp_path):
    weights = golden(arch)[0]
    path = trainer_file(weights, tmp_path / 'released.pth', layout, prefix)
    model = EfficientMod(arch, init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    loaded = {to_released_name(name): value for name, value in model.state_dict().items()}
    assert loaded.keys() == {name for name in weights if not name.startswith(('norm.', 'head.'))}
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())


@pytest.mark.skipif(not hasattr(torch.serialization, 'safe_globals'), reason='torch >= 2.5 has that context manager')
def test_reading_does_not_depend_on_what_other_libraries_do_to_the_allow_list(golden, tmp_path):
    path = trainer_file(golden('xxs')[0], tmp_path / 'released.pth')
    with torch.serialization.safe_globals([argparse.Namespace]):  # as timm does; at its end the class is off the list
        pass
    load_pretrained(EfficientMod('xxs'), path)


def test_the_plain_copy_comes_before_the_moving_average(golden, tmp_path):
    weights = golden('xxs')[0]
    ema = {name: value + 1 for name, value in weights.items()}
    path = trainer_file(weights, tmp_path / 'released.pth', ema=ema)
    content = read_checkpoint(path)
    assert torch.equal(find_weights(content, path)['head.bias'], weights['head.bias'])
    assert torch.equal(find_weights(content, path, ema=True)['head.bias'], ema['head.bias'])


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


@pytest.mark.both_stacks
def test_conversion_there_and_back(golden, tmp_path):
    weights = golden('s')[0]
    source = trainer_file(weights, tmp_path / 'released.pth', prefix='module.')
    project, back = str(tmp_path / 'project.pth'), str(tmp_path / 'back.pth')
    assert convert_checkpoint(source, project).changed > 100
    assert convert_checkpoint(project, back, to='released').changed > 100
    converted = torch.load(project, weights_only=True)['state_dict']
    own = set(EfficientMod('s').state_dict())
    assert set(converted) == own | {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    returned = torch.load(back, weights_only=True)['state_dict']
    assert list(returned) == list(weights)
    assert all(torch.equal(returned[name], weights[name]) for name in weights)
    load_pretrained(EfficientMod('s'), project)
    load_pretrained(EfficientMod('s'), back)


@pytest.mark.parametrize('arch', ARCHS)
def test_names_map_one_to_one(arch, golden):
    released = [name for name in golden(arch)[0] if not name.startswith(('norm.', 'head.'))]
    project = list(EfficientMod(arch).state_dict())
    assert sorted(map(to_project_name, released)) == sorted(project)
    assert [to_released_name(to_project_name(name)) for name in released] == released
    assert [to_project_name(name) for name in project] == project


@pytest.mark.ops
def test_conversion_of_a_whole_detector_touches_the_backbone_alone(tmp_path):
    state = random_state(build_model(Config.fromfile(REPO / DETECTOR)))
    torch.save(dict(meta=dict(epoch=3), state_dict=state), tmp_path / 'detector.pth')
    convert_checkpoint(str(tmp_path / 'detector.pth'), str(tmp_path / 'released.pth'), to='released')
    converted = torch.load(tmp_path / 'released.pth', weights_only=True)
    assert converted['meta'] == dict(epoch=3)
    assert {n for n in converted['state_dict'] if not n.startswith('backbone.')} == {
        n for n in state if not n.startswith('backbone.')
    }
    assert 'backbone.layers.0.blocks.0.mlp.context_layer.f.weight' in converted['state_dict']


class Touch:
    """Unpickling it runs code: it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.both_stacks
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_reading_never_runs_code_from_the_file(legacy, golden, tmp_path):
    path, witness = str(tmp_path / 'evil.pth'), tmp_path / 'witness'
    torch.save(dict(state_dict=golden('xxs')[0], extra=Touch(witness)), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r'evil.pth is refused: to be read it asks for (posix|os)\.system') as error:
        EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    assert '\n' not in str(error.value)
    assert not witness.exists()


def truncated(weights, path):
    trainer_file(weights, path)
    path.write_bytes(path.read_bytes()[:20000])


BAD_FILES = {
    'truncated': (truncated, 'is truncated or no PyTorch checkpoint'),
    'empty': (lambda weights, path: path.write_bytes(b''), 'is truncated or no PyTorch checkpoint'),
    'text': (lambda weights, path: path.write_text('<html>404</html>'), 'is truncated or no PyTorch checkpoint'),
    'pickle': (
        lambda weights, path: path.write_bytes(pickle.dumps(dict(a=1))),
        'is truncated or no PyTorch checkpoint|holds no weights',
    ),
    'without weights': (
        lambda weights, path: torch.save(dict(epoch=3, args=argparse.Namespace()), path),
        'holds no weights; its entries are: epoch, args',
    ),
    'a list': (lambda weights, path: torch.save([1, 2], path), 'holds no weights: it is a list'),
    'another network': (
        lambda weights, path: torch.save({'conv1.weight': torch.rand(3)}, path),
        r'does not fit .* 1 unexpected: conv1.weight',
    ),
    'a whole model': (
        lambda weights, path: torch.save({f'backbone.{n}': v for n, v in weights.items()}, path),
        "add prefix='backbone.'",
    ),
    'incomplete': (
        lambda weights, path: torch.save({n: v for n, v in weights.items() if 'fc2.bias' not in n}, path),
        r'does not fit .* missing: stages.0.0.fc2.bias',
    ),
}


@pytest.mark.parametrize('kind', BAD_FILES)
def test_a_bad_file_is_one_clear_line_and_loads_nothing(kind, golden, tmp_path):
    make, message = BAD_FILES[kind]
    path = tmp_path / 'bad.pth'
    make(golden('xxs')[0], path)
    model = EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        model.init_weights()
    assert str(path) in str(error.value) and '\n' not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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


def test_missing_file_names_both_ways_out(tmp_path):
    model = EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth')))
    with pytest.raises(FileNotFoundError, match=r'none.pth does not exist: .*init_cfg.checkpoint=PATH.*init_cfg=None'):
        model.init_weights()


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(dict(weight=torch.ones(1)), tmp_path / 'w.pth')
    assert read_checkpoint('~/w.pth') == dict(weight=torch.ones(1))
    with pytest.raises(FileNotFoundError, match=r'checkpoint ~/none\.pth does not exist'):
        read_checkpoint('~/none.pth')


@pytest.mark.parametrize(
    ('address', 'reason'),
    [
        ('http://127.0.0.1:1/w.pth', r'\(URLError: .*\)'),
        ('torchvision://resnet18', "MMEngine has no file client for 'torchvision'"),
    ],
)
def test_an_address_that_gives_no_file(address, reason):
    with pytest.raises(UserError, match=f'^{address} cannot be read:? {reason}$'):
        read_checkpoint(address)


def convert(*args):
    return subprocess.run(
        [sys.executable, str(REPO / 'tools/convert_checkpoint.py'), *map(str, args)], capture_output=True, text=True
    )


def test_convert_command(golden, tmp_path):
    source, target = trainer_file(golden('xxs')[0], tmp_path / 'in.pth'), tmp_path / 'out.pth'
    done = convert(source, target)
    assert done.returncode == 0 and 'names changed to the project form' in done.stdout
    content = target.read_bytes()

    again = convert(source, target)
    assert (
        again.returncode == 1
        and again.stderr.strip().splitlines()[-1].startswith('error: ')
        and 'exists' in again.stderr
    )
    assert target.read_bytes() == content

    (tmp_path / 'bad.pth').write_bytes(b'nonsense')
    for bad, message in [(tmp_path / 'bad.pth', 'truncated or no PyTorch'), (tmp_path / 'none.pth', 'does not exist')]:
        failed = convert(bad, tmp_path / 'new.pth')
        assert failed.returncode == 1 and message in failed.stderr and 'Traceback' not in failed.stderr
    assert not (tmp_path / 'new.pth').exists()


# --- load_state_dict and load_from ---


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


# --- init_cfg ---


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


# --- values ---

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
    message = f'weights have to be dense, finite, floating-point tensors, but there is 1 {problem}: {name}$'

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


# --- files ---


def mmengine_file(path, old=None, new=None):
    """A file as MMEngine writes it, with a name in its pickle changed from ``old`` to ``new``."""
    loss = HistoryBuffer([1.5, 2.5], [1, 1])
    info = dict(
        epoch=1,
        lr=np.float64(0.1),
        best=np.float32(0.5),
        seen=np.arange(3),
        flag=np.bool_(True),
        tags=np.array(['a', 'bb']),
    )
    content = dict(
        meta=dict(epoch=1, experiment_name='x'),
        state_dict=Detector('xxs').state_dict(),
        message_hub=dict(log_scalars=OrderedDict(loss=loss), runtime_info=OrderedDict(info), resumed_keys={}),
    )
    torch.save(content, path)
    if old is None:
        return str(path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = [name for name in records if name.endswith('/data.pkl')]
    assert old in records[pickled] or new in records[pickled]
    records[pickled] = records[pickled].replace(old, new)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, value in records.items():
            archive.writestr(name, value)
    return str(path)


@pytest.mark.both_stacks
@pytest.mark.parametrize(
    'names', [(b'numpy.core.', b'numpy._core.'), (b'numpy._core.', b'numpy.core.')], ids=['numpy 2', 'numpy 1']
)
@pytest.mark.filterwarnings('ignore:numpy.core is deprecated')
def test_checkpoints_cross_numpy_1_and_2(names, tmp_path):
    path = mmengine_file(tmp_path / 'epoch_1.pth', *names)
    for content in (read_checkpoint(path), CheckpointLoader.load_checkpoint(path, map_location='cpu')):
        assert content['message_hub']['log_scalars']['loss'].mean() == 2
        info = content['message_hub']['runtime_info']
        assert (info['lr'], info['best'], info['flag']) == (0.1, 0.5, True)
        assert info['seen'].tolist() == [0, 1, 2] and info['tags'].tolist() == ['a', 'bb']
    load_pretrained(EfficientMod('xxs'), path, prefix='backbone.')


@pytest.mark.filterwarnings('ignore::UserWarning')  # of torch, about the kind of file
def test_archives_that_torch_reads_unsafely_are_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / 'script.pth'))
    with pytest.raises(UserError, match=r'script.pth is refused: it is a TorchScript archive') as error:
        read_checkpoint(tmp_path / 'script.pth')
    assert '\n' not in str(error.value)

    witness = tmp_path / 'witness'
    (tmp_path / 'pickle').write_bytes(pickle.dumps(Touch(witness), protocol=2))
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            archive.add(tmp_path / 'pickle', name)
    with pytest.raises(UserError, match=r'old.pth is refused: it is a tar archive'):
        read_checkpoint(tmp_path / 'old.pth')
    assert not witness.exists()


def test_a_file_does_not_change_classes(tmp_path):
    stream = b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\nN}X\x04\x00\x00\x00meanK\x01s\x86b.'
    with zipfile.ZipFile(tmp_path / 'evil.pth', 'w') as archive:
        archive.writestr('evil/data.pkl', stream)
        archive.writestr('evil/version', '3\n')
    mean = HistoryBuffer.mean
    with pytest.raises(UserError, match=r'evil.pth'):
        read_checkpoint(tmp_path / 'evil.pth')
    assert HistoryBuffer.mean is mean


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_both_file_formats_are_read(legacy, golden, tmp_path):
    weights = golden('xxs')[0]
    torch.save(weights, tmp_path / 'weights.pth', _use_new_zipfile_serialization=not legacy)
    content = read_checkpoint(tmp_path / 'weights.pth')
    assert all(torch.equal(content[name], value) for name, value in weights.items())


def test_opening_a_checkpoint_reads_its_entries_only(tmp_path):
    counters = Path('/proc/self/io')
    if not counters.exists():
        pytest.skip('this system does not count what a process reads')

    def bytes_read():
        return int(re.search(r'rchar: (\d+)', counters.read_text())[1])

    path = tmp_path / 'large.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(16 * 2**20)), meta=dict(epoch=3)), path)
    before = bytes_read()
    content = read_checkpoint(path, mmap=True, check=False)
    assert bytes_read() - before < path.stat().st_size / 50
    assert content['meta'] == dict(epoch=3) and content['state_dict']['weight'].shape == (16 * 2**20,)
    assert content['state_dict']['weight'][-1] == 1


# --- the deploy form ---


def test_training_weights_do_not_fit_the_inference_form(tmp_path):
    path = str(tmp_path / 'training.pth')
    torch.save({f'backbone.{n}': v for n, v in EfficientMod('xxs').state_dict().items()}, path)
    message = 'this is the training form: remove deploy=True from the backbone'
    with pytest.raises(UserError, match=message):
        init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
        EfficientMod('xxs', deploy=True, init_cfg=init_cfg).init_weights()
    with pytest.raises(UserError, match=message):
        load_checkpoint(Detector('xxs', deploy=True), path)


# --- conversion ---


def write(tmp_path, state):
    torch.save(state, tmp_path / 'in.pth')
    return str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')


@pytest.mark.parametrize('to', ['project', 'released'])
@pytest.mark.parametrize('arch', ARCHS)
def test_conversion_refuses_a_damaged_backbone(arch, to, tmp_path):
    whole = random_state(EfficientMod(arch))
    names = 'stages.0.1.fc2.bias', 'patch_embeds.2.norm.weight', 'stages.3.1.context.dwconv.weight'
    for name in names:
        damages = {
            f'1 missing: {name}': {n: v for n, v in whole.items() if n != name},
            f'1 missing: {name}; 1 unexpected: {name}x': {n + 'x' * (n == name): v for n, v in whole.items()},
            f'1 of another shape: {name}': {n: v[1:] if n == name else v for n, v in whole.items()},
        }
        for message, state in damages.items():
            source, target = write(tmp_path, state)
            with pytest.raises(UserError, match=message):
                convert_checkpoint(source, target, to)
            assert not os.path.exists(target) and not os.path.exists(f'{target}.partial')


def test_conversion_needs_every_block_and_stage(golden, tmp_path):
    released = golden('xs')[0]
    for part in ('layers.0.blocks.2.', 'layers.3.'):
        source, target = write(tmp_path, {n: v for n, v in released.items() if not n.startswith(part)})
        with pytest.raises(UserError, match=r'in.pth: the checkpoint does not fit .* missing: stages\.[03]\.'):
            convert_checkpoint(source, target)


def test_conversion_refuses_unusable_weights_of_the_classifier_too(golden, tmp_path):
    weights = dict(golden('xxs')[0])
    weights['head.bias'] = weights['head.bias'] / 0
    source, target = write(tmp_path, weights)
    with pytest.raises(UserError, match=r'in.pth: .* 1 with NaN or Inf: head.bias'):
        convert_checkpoint(source, target)


@pytest.mark.parametrize('kwargs', [dict(in_channels=4), dict(out_indices=(0, 1)), dict(arch='s', out_indices=0)])
def test_conversion_of_parts_and_other_inputs(kwargs, tmp_path):
    state = EfficientMod(**{'arch': 'xs', **kwargs}).state_dict()
    source, target = write(tmp_path, state)
    assert convert_checkpoint(source, target, to='released').changed > 0


def test_conversion_of_an_arch_of_ones_own(tmp_path):
    arch = dict(
        embed_dims=(24, 40, 56),
        depths=(1, 2, 3),
        attn_depths=(0, 1, 2),
        ratio=3,
        attn_ratios=(4, 3, 2.7),
        drop_path_rate=0.0,
    )
    deeper = {**EfficientMod.arch_settings['xxs'], 'depths': (2, 3, 6, 2)}  # the widths of a published one
    source, target = write(tmp_path, EfficientMod(deeper).state_dict())
    assert convert_checkpoint(source, target, to='released').changed > 0
    os.remove(target)

    whole = EfficientMod(arch, out_indices=2).state_dict()
    source, target = write(tmp_path, whole)
    assert convert_checkpoint(source, target, to='released').changed == len(whole)
    for name in ('stages.1.0.gamma', 'stages.2.4.fc2.weight', 'patch_embeds.1.proj.bias'):
        (tmp_path / 'out.pth').unlink() if (tmp_path / 'out.pth').exists() else None
        source, target = write(tmp_path, {n: v for n, v in whole.items() if n != name})
        with pytest.raises(UserError, match=f"arch 'custom' - 1 missing: {name}"):
            convert_checkpoint(source, target)


def test_the_inference_form_has_no_released_names(tmp_path):
    model = EfficientMod('xxs')
    model.switch_to_deploy()
    source, target = write(tmp_path, model.state_dict())
    with pytest.raises(UserError, match='this is the inference form'):
        convert_checkpoint(source, target, to='released')
    assert convert_checkpoint(source, target).changed == 0
