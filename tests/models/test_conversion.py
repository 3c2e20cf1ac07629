"""The deploy form as a file: one command writes it, no option loads it, nothing trains it; published files."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint

from helpers import REPO, build_model, load_tool, randomised, trained
from interpreter import run_python
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.conversion import convert_checkpoint, publish
from mmefficientmod.utils import UserError

SEGMENTOR = 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'


class Model(BaseModule):
    """A backbone inside a model, as MMEngine loads it."""

    def __init__(self, arch='xxs', **kwargs):
        super().__init__()
        self.backbone = EfficientMod(arch, **kwargs)


def save(path, model, prefix='', **content):
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save(dict(state_dict=state, **content), path)
    return str(path)


@pytest.fixture
def deployed(tmp_path):
    """A trained backbone, and a file of it in the deploy form."""
    model = trained('xxs')
    source, target = save(tmp_path / 'trained.pth', model), str(tmp_path / 'deploy.pth')
    convert_checkpoint(source, target, deploy=True)
    return model, target


@torch.no_grad()
def assert_same(model, expected, tolerance=1e-5):
    images = torch.rand(1, 3, 64, 96)
    for level, reference in zip(model.eval()(images), expected.eval()(images)):
        assert (level - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.both_stacks
@pytest.mark.parametrize('arch', ['xxs', 's', 's_conv'])
def test_the_inference_form_of_a_backbone_is_written_and_taken_by_init_cfg(arch, tmp_path):
    model = trained(arch)
    source, target = save(tmp_path / 'in.pth', model, meta=dict(epoch=3)), str(tmp_path / 'out.pth')
    assert convert_checkpoint(source, target, deploy=True).form == 'deploy'
    content = torch.load(target, weights_only=True)
    assert content['meta']['epoch'] == 3 and content['meta']['mmefficientmod']['form'] == 'deploy'
    loaded = EfficientMod(arch, init_cfg=dict(type='Pretrained', checkpoint=target))
    loaded.init_weights()
    assert loaded.deploy and set(loaded.state_dict()) == set(content['state_dict'])
    assert_same(loaded, model)


def test_the_released_classifier_keeps_its_head(golden, tmp_path):
    weights = golden('xs')[0]
    torch.save(dict(state_dict=weights), tmp_path / 'in.pth')
    convert_checkpoint(str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth'), deploy=True)
    state = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    assert all(state[name].equal(weights[name]) for name in weights if name.startswith(('norm.', 'head.')))
    model, loaded = EfficientMod('xs'), EfficientMod('xs', deploy=True)
    model.load_state_dict(weights)
    assert loaded.load_state_dict(state) is not None
    assert_same(loaded, model)


@pytest.mark.libraries
@pytest.mark.both_stacks
def test_a_whole_model_is_switched_by_mmengine_loading_the_file(tmp_path):
    model = build_model(Config.fromfile(REPO / SEGMENTOR))
    randomised(model.backbone)
    source, target = save(tmp_path / 'in.pth', model), str(tmp_path / 'out.pth')
    convert_checkpoint(source, target, deploy=True)
    loaded = build_model(Config.fromfile(REPO / SEGMENTOR))
    load_checkpoint(loaded, target, strict=True)
    assert loaded.backbone.deploy
    assert all(value.equal(loaded.state_dict()[n]) for n, value in model.state_dict().items() if 'backbone' not in n)
    assert_same(loaded.backbone, model.backbone)


def test_half_precision_is_kept(tmp_path):
    model = trained('xxs')
    source, target = save(tmp_path / 'in.pth', EfficientMod('xxs').half()), str(tmp_path / 'out.pth')
    save(source, model.half())
    convert_checkpoint(source, target, deploy=True)
    state = torch.load(target, weights_only=True)['state_dict']
    assert {value.dtype for value in state.values()} == {torch.float16}
    loaded = EfficientMod('xxs', deploy=True)
    loaded.load_state_dict(state)
    assert_same(loaded, model.float(), 0.02)


def test_plain_loading_means_what_torch_says(deployed):
    state = torch.load(deployed[1], weights_only=True)['state_dict']
    model = EfficientMod('xxs')
    with pytest.raises(RuntimeError, match=r'Missing key.*stages\.0\.0\.gamma'):
        model.load_state_dict(state)
    assert not model.deploy


def test_what_does_not_fit_leaves_the_backbone_as_it_is(deployed, tmp_path):
    wide = EfficientMod('xs')
    state = torch.load(deployed[1], weights_only=True)['state_dict']
    torch.save({f'backbone.{name}': value for name, value in state.items()}, tmp_path / 'whole.pth')
    with pytest.raises(UserError, match='does not fit EfficientMod arch'):
        EfficientMod.init_weights(_with_file(wide, deployed[1]))
    model = Model('xs')
    with pytest.raises(UserError, match='does not fit EfficientMod arch'):
        load_checkpoint(model, str(tmp_path / 'whole.pth'))
    hooked = Model()
    hooked.backbone.stages[0][0].fc1.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=r'deploy form, which the backbone cannot take: stages\.0\.0\.fc1'):
        load_checkpoint(hooked, str(tmp_path / 'whole.pth'))
    assert not any(backbone.deploy for backbone in (wide, model.backbone, hooked.backbone))


def _with_file(model, path):
    model.init_cfg = dict(type='Pretrained', checkpoint=path)
    return model


def test_training_from_the_inference_form_is_refused(deployed):
    model = _with_file(EfficientMod('xxs'), deployed[1])
    model.init_weights()
    with pytest.raises(RuntimeError, match='start from the checkpoint that the deploy form was made of'):
        model.train()(torch.rand(1, 3, 64, 64))
    frozen = _with_file(EfficientMod('xxs', frozen_stages=4), deployed[1])
    frozen.init_weights()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert len(frozen.train()(torch.rand(1, 3, 64, 64))) == 4


# --- the command ---


convert = load_tool('convert_checkpoint').main


def test_published_files_hold_weights_alone_and_name_their_hash(tmp_path, capsys):
    model, average = trained('xxs'), trained('xxs')
    average.patch_embeds[0].proj.bias.data += 1
    # As MMEngine's EMAHook saves: the average in the first place, the plain copy beside it.
    plain = {f'module.{name}': value for name, value in model.state_dict().items()}
    source = save(tmp_path / 'in.pth', average, meta=dict(epoch=1), ema_state_dict=plain, optimizer=dict(lr=1))
    convert([source, str(tmp_path / 'model.pth'), '--publish', '--deploy'])
    said = capsys.readouterr().out
    (path,) = tmp_path.glob('model*')
    assert path.name == f'model-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth'
    assert said.startswith(f'{path}: ') and 'moving average' in said and 'deploy form' in said
    content = torch.load(path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert content['state_dict']['patch_embeds.0.proj.bias'].equal(average.patch_embeds[0].proj.bias)
    convert([source, str(tmp_path / 'other.pth'), '--publish', '--deploy'])
    assert path.name[6:] in capsys.readouterr().out  # the same content has the same hash


def test_any_name_is_published(tmp_path):
    (tmp_path / 'a').write_bytes(b'a')
    assert Path(publish(str(tmp_path / 'a'))).name == 'a-ca978112.pth'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--deploy', '--to', 'released'], "the authors' code has no deploy form"),
        (['no-such-folder/out.pth'], 'no-such-folder/out.pth cannot be written: No such file or directory'),
    ],
)
def test_bad_input_is_one_line(options, message, tmp_path):
    source = save(tmp_path / 'in.pth', EfficientMod('xxs'))
    target = [] if 'out.pth' in options[0] else [str(tmp_path / 'out.pth')]
    with pytest.raises(SystemExit, match=message) as error:
        convert([source, *target, *options])
    assert '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']


@pytest.mark.parametrize('meta', [None, 'a note'])
def test_what_is_no_dict_in_the_place_of_meta_is_left_out(meta, tmp_path):
    source = save(tmp_path / 'in.pth', EfficientMod('xxs'), meta=meta)
    convert([source, str(tmp_path / 'out.pth')])
    assert torch.load(tmp_path / 'out.pth', weights_only=True)['meta'] == {}


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits the size of a file')
def test_a_full_disk_leaves_nothing_behind(tmp_path):
    source = save(tmp_path / 'in.pth', EfficientMod('xxs'))
    done = run_python(REPO / 'tools/convert_checkpoint.py', source, tmp_path / 'out.pth', file_size=1_000_000)
    assert done.returncode == 1 and 'out.pth cannot be written: ' in done.stderr and done.stderr.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['in.pth']
