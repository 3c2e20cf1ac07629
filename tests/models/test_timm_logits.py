"""Whole timm classifiers in MMPreTrain's: their logits, their published weights, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from helpers import REPO, build_model
from mmefficientmod.models import TimmLogits
from mmefficientmod.utils import UserError

pytestmark = pytest.mark.libraries

CONFIG = REPO / 'configs/classification/timm_8xb256_in1k.py'
NAME = 'timm://mobilenetv2_100.ra_in1k'

timm = pytest.importorskip('timm')


def classifier(model_name: str, **keywords) -> torch.nn.Module:
    config = Config.fromfile(CONFIG)
    config.model.backbone.update(model_name=model_name, **keywords)
    return build_model(config).eval()


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file as timm publishes it, with random weights, and the model that they are of."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = timm.create_model('mobilenetv2_100').eval()
    path = tmp_path_factory.mktemp('timm') / 'model.safetensors'
    save_file(model.state_dict(), path)
    return path, model


@pytest.mark.both_stacks
def test_published_weights_are_the_checkpoint_of_a_test(published):
    path, theirs = published
    ours, image = classifier('mobilenetv2_100'), torch.rand(2, 3, 64, 64)
    load_checkpoint(ours, f'{NAME}={path}', logger=None)
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image)) and ours(image).shape == (2, 1000)
        ours.backbone.switch_to_deploy()
        torch.testing.assert_close(ours(image), theirs(image))


def test_they_start_a_training(published):
    path, theirs = published
    ours = TimmLogits('mobilenetv2_100', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    ours.init_weights()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.model.state_dict().items())


@pytest.mark.parametrize('keywords', [dict(model_name='mobilenetv2_050'), dict(num_classes=7)])
def test_a_checkpoint_of_another_model_is_refused(keywords, published):
    model = classifier(**{'model_name': 'mobilenetv2_100', **keywords})
    with pytest.raises(UserError, match=r"^the checkpoint does not fit timm's mobilenetv2_\d+: \d+ tensors are "):
        load_checkpoint(model, f'{NAME}={published[0]}', logger=None)


def test_a_file_without_the_model_s_prefix_is_refused(published, tmp_path):
    torch.save(published[1].state_dict(), tmp_path / 'bare.pth')
    with pytest.raises(UserError, match='tensors are missing'):
        load_checkpoint(classifier('mobilenetv2_100'), str(tmp_path / 'bare.pth'), logger=None)


def test_missing_weights_name_the_file_and_its_place(published, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    model = classifier('mobilenetv2_100')
    for source, message in (
        (NAME, r'get model\.safetensors from https://huggingface.co/timm/mobilenetv2_100\.ra_in1k elsewhere and name'),
        (f'{NAME}={tmp_path}/none.safetensors', r'none\.safetensors does not exist'),
        (f'timm://fasternet_t0.in1k={published[0]}', r'model\.safetensors: Error'),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_checkpoint(model, source, logger=None)
        assert '\n' not in str(error.value)
