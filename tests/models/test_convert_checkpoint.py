"""Checkpoints convert both ways; a damaged or unusable one is refused, and no file is left."""

from __future__ import annotations

import os

import pytest
import torch
from mmengine.config import Config

from helpers import ARCHS, REPO, build_model, random_state, trainer_file
from interpreter import run_python
from mmefficientmod.checkpoints.loading import load_pretrained
from mmefficientmod.checkpoints.names import to_project_name, to_released_name
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.conversion import convert_checkpoint
from mmefficientmod.utils import UserError

DETECTOR = 'configs/detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py'


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


def convert(*args):
    return run_python(REPO / 'tools/convert_checkpoint.py', *args)


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
    for bad, message in [
        (tmp_path / 'bad.pth', 'truncated or not a PyTorch'),
        (tmp_path / 'none.pth', 'does not exist'),
    ]:
        failed = convert(bad, tmp_path / 'new.pth')
        assert failed.returncode == 1 and message in failed.stderr and 'Traceback' not in failed.stderr
    assert not (tmp_path / 'new.pth').exists()


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
            assert os.listdir(tmp_path) == ['in.pth']


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
    with pytest.raises(UserError, match='this is the deploy form'):
        convert_checkpoint(source, target, to='released')
    assert convert_checkpoint(source, target).changed == 0
