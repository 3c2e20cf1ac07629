"""Released checkpoints load as they are, convert both ways, and bad ones are refused in one line without harm."""

import argparse
import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from conftest import ARCHS, REPO, build_model
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from mmefficientmod.checkpoint import (
    CheckpointError,
    find_weights,
    load_pretrained,
    read_checkpoint,
    to_project_name,
    to_released_name,
)
from mmefficientmod.conversion import convert_checkpoint
from mmefficientmod.models import EfficientMod


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


@pytest.mark.both_stacks
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR])
def test_load_from_takes_whole_models_of_mmcv_1(config, prefix, tmp_path):
    model = build_model(Config.fromfile(REPO / config))
    state = random_state(model)
    released = OrderedDict()
    for name, value in state.items():
        if name.startswith('backbone.'):
            name = 'backbone.' + to_released_name(name.removeprefix('backbone.'))
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

    messages = []
    import logging

    logger = logging.getLogger('test_load_from')
    logger.setLevel(logging.WARNING)
    logger.addHandler(
        type('Keep', (logging.Handler,), {'emit': lambda _, record: messages.append(record.getMessage())})()
    )
    load_checkpoint(model, str(tmp_path / 'mmcv1.pth'), logger=logger)
    assert messages == []  # MMEngine reports every missing and unexpected name there
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.both_stacks
def test_conversion_there_and_back(golden, tmp_path):
    weights = golden('s')[0]
    source = trainer_file(weights, tmp_path / 'released.pth', prefix='module.')
    project, back = str(tmp_path / 'project.pth'), str(tmp_path / 'back.pth')
    assert convert_checkpoint(source, project) > 100
    assert convert_checkpoint(project, back, to='released') > 100
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
    with pytest.raises(
        CheckpointError, match=r'evil.pth is refused: to be read it asks for (posix|os)\.system'
    ) as error:
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
    with pytest.raises(CheckpointError, match=message) as error:
        model.init_weights()
    assert str(path) in str(error.value) and '\n' not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('other', ['xs', 's', 's_conv'])
def test_another_arch_is_refused_everywhere(other, golden, tmp_path):
    path = trainer_file(golden(other)[0], tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match="does not fit EfficientMod arch 'xxs'"):
        EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()

    detector = build_model(Config.fromfile(REPO / DETECTOR))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    state = {**before, **{f'backbone.{name}': value for name, value in golden(other)[0].items()}}
    state = {
        name: value
        for name, value in state.items()
        if not name.startswith(('backbone.stages', 'backbone.patch_embeds'))
    }
    torch.save(dict(meta={}, state_dict=state), tmp_path / 'detector.pth')
    with pytest.raises(CheckpointError, match="does not fit EfficientMod arch 'xxs'"):
        load_checkpoint(detector, str(tmp_path / 'detector.pth'))
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_a_backbone_file_given_to_load_from_is_no_silent_start_from_scratch(golden, tmp_path):
    path = trainer_file(golden('xxs')[0], tmp_path / 'backbone.pth')
    with pytest.raises(CheckpointError, match=r"names nothing that starts with 'backbone.'.*init_cfg"):
        load_checkpoint(build_model(Config.fromfile(REPO / DETECTOR)), path)


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
