"""The deploy form equals the trained one, by itself and inside built models, and survives saving."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch._inductor import config as inductor

from helpers import ARCHS, REPO, build_model, classifier_config, trained
from interpreter import run_python
from mmefficientmod.codebases.packages import find_shipped
from mmefficientmod.models import EfficientMod


def assert_close(levels, expected, tolerance=1e-5):
    assert len(levels) == len(expected)
    for level, reference in zip(levels, expected):
        assert (level - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize('arch', ARCHS)
def test_deploy_form_equals_training_form(arch, device):
    model, images = trained(arch).to(device), torch.rand(1, 3, 64, 96, device=device)
    with torch.no_grad():
        expected = model(images)
        model.switch_to_deploy()
        names = set(model.state_dict())
        assert_close(model(images), expected)
        model.switch_to_deploy()  # nothing is left to do
        assert_close(model(images), expected)
    assert set(model.state_dict()) == names
    assert not any('gamma' in name or '.norm' in name for name in names if name.startswith('stages'))


def test_state_dict_of_the_deploy_form(device, tmp_path):
    """A file that a GPU wrote is read on a CPU."""
    model, images = trained('xxs').to(device), torch.rand(1, 3, 64, 64)
    original = copy.deepcopy(model.state_dict())
    model.switch_to_deploy()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'deploy.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'deploy.pth'))
    loaded = EfficientMod('xxs', deploy=True, init_cfg=init_cfg).eval()
    loaded.init_weights()
    with torch.no_grad():
        assert_close(loaded(images), model.cpu()(images), 0)
    with pytest.raises(RuntimeError, match=r'Missing key.*stages\.0\.0\.gamma'):
        EfficientMod('xxs').load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*stages\.0\.0\.gamma'):
        loaded.load_state_dict(original)


@pytest.mark.libraries
@pytest.mark.parametrize(
    'config',
    [
        'detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py',
        'segmentation/fpn_efficientmod-xxs_8xb4-40k_ade20k-512x512.py',
    ],
)
def test_inside_a_built_model(config):
    model, images = build_model(Config.fromfile(REPO / 'configs' / config)).eval(), torch.rand(1, 3, 64, 64)
    model.backbone.load_state_dict(trained('xxs').state_dict())
    with torch.no_grad():
        expected = model.extract_feat(images)
        model.backbone.switch_to_deploy()
        assert_close(model.extract_feat(images), expected)


def test_gradients_reach_the_input_in_deploy_form():
    model = trained('xxs')
    model.switch_to_deploy()
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    sum(level.sum() for level in model(images)).backward()
    assert images.grad.isfinite().all() and images.grad.any()


@pytest.mark.libraries
@pytest.mark.both_stacks
def test_re_parameterisation_tool_of_mmpretrain(tmp_path):
    """Its own script, as its users type it: CONFIG CHECKPOINT SAVE_PATH."""
    config, checkpoint, converted = (tmp_path / name for name in ('config.py', 'trained.pth', 'deploy.pth'))
    classifier_config(10).dump(config)
    model, images = build_model(Config.fromfile(config)).eval(), torch.rand(2, 3, 64, 64)
    model.backbone.load_state_dict(trained('xxs').state_dict())
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)

    script = find_shipped('mmpretrain', 'tools/model_converters/reparameterize_model.py')
    done = run_python(script, config, checkpoint, converted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]

    deployed = build_model(classifier_config(10, deploy=True)).eval()
    load_checkpoint(deployed, str(converted), strict=True)
    with torch.no_grad():
        assert_close([deployed(images)], [model(images)])


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.skipif(not any(map(shutil.which, ('c++', 'g++', 'clang++'))), reason='torch.compile needs a C++ compiler')
def test_compiled_with_constant_weights(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))  # nothing from an earlier run
    arch = dict(embed_dims=(16, 24), depths=(1, 1), attn_depths=(0, 1), ratio=3, attn_ratios=(2, 2), drop_path_rate=0.0)
    model = trained(arch, out_indices=(1,))
    compiled = copy.deepcopy(model)
    compiled.switch_to_deploy()
    compiled = torch.compile(compiled, fullgraph=True)
    with torch.inference_mode(), inductor.patch(freezing=True):
        for shape in ((1, 3, 64, 96), (2, 3, 65, 97)):  # at the second, torch compiles for any size
            images = torch.rand(shape)
            assert_close(compiled(images), model(images))
