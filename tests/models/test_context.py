"""What the context sees: the maps are those of the blocks, and the tool draws them for every kind of model."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch.testing import assert_close

from helpers import REPO, build_model, load_tool, randomised, refused, trained
from mmefficientmod.models.context import context_maps, find_backbone, overlay
from mmefficientmod.models.modulation import product

pytestmark = pytest.mark.libraries

CONFIGS = {
    'classifier': 'configs/classification/efficientmod-xxs_8xb256_in1k.py',
    'detector': 'configs/detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py',
    'segmentor': 'configs/segmentation/fpn_efficientmod-xxs_8xb4-40k_ade20k-512x512.py',
}
NO_WEIGHTS = ['--cfg-options', 'model.backbone.init_cfg=None']


@pytest.fixture
def picture(tmp_path):
    image = np.random.RandomState(0).randint(0, 255, (60, 90, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'scene.png'), image)
    return tmp_path / 'scene.png'


@pytest.mark.both_stacks
@pytest.mark.parametrize('deploy', [False, True])
def test_maps_are_what_the_blocks_compute(deploy):
    model, images = trained('xxs'), torch.rand(2, 3, 64, 96)
    if deploy:
        model.switch_to_deploy()
    maps = context_maps(model, images)
    assert [(one.stage, one.block) for one in maps[1]] == [
        *((1, 1), (1, 2), (2, 1), (2, 2)),
        *((3, block) for block in range(1, 7)),
        *((4, 1), (4, 2)),
    ]
    # the second block by hand, in the training form
    model = trained('xxs')
    with torch.no_grad():
        x = model.stages[0][0](model.patch_embeds[0](images.permute(0, 2, 3, 1)))
        block = model.stages[0][1]
        u = block.norm(x)
        context, value = block.context(u), block.fc1(u)
        products = product(value, context).unflatten(-1, (6, 32)).mean(-1)
        values = torch.nn.functional.gelu(value).unflatten(-1, (6, 32)).mean(-1)
    for i, sample in enumerate(maps):
        assert_close(sample[1].context, context[i].mean(-1), rtol=1e-4, atol=1e-5)
        assert_close(sample[1].values, values[i].permute(2, 0, 1), rtol=1e-4, atol=1e-5)
        assert_close(sample[1].products, products[i].permute(2, 0, 1), rtol=1e-4, atol=1e-5)
    assert sample[0].values.shape == (1, 16, 24)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_map_lies_over_its_place_of_the_picture():
    image, heat = np.zeros((40, 60, 3), np.uint8), torch.zeros(2, 2)
    heat[0, 1] = 1  # of a picture of 40 x 60 that was padded to 64 x 64: its right upper part
    drawn = overlay(image, heat, (64, 64), alpha=1.0).astype(int)
    assert drawn.shape == (40, 60, 3)
    red_minus_blue = drawn[..., 0] - drawn[..., 2]
    assert red_minus_blue[0, -1] > 0 > red_minus_blue[0, 0] and red_minus_blue[-1, 0] < 0


@pytest.mark.both_stacks
@pytest.mark.parametrize('kind', ['classifier', pytest.param('detector', marks=pytest.mark.ops), 'segmentor'])
def test_sheets_of_every_kind_of_model(kind, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_tool('visualize_context').main(
        [str(picture.parent), str(REPO / CONFIGS[kind]), '--out-dir', 'out', *NO_WEIGHTS]
    )
    written = {path.name: cv2.imread(str(path)) for path in (tmp_path / 'out').rglob('*.png')}
    assert set(written) == {'scene_context_0.png', 'scene_products_0.png'}
    height, width = written['scene_context_0.png'].shape[:2]
    assert width == 7 * 164 + 4 and height > 4 * 22  # the picture and up to six blocks; four stages
    assert all(image.std() > 10 for image in written.values())


@pytest.mark.both_stacks
@pytest.mark.skipif(not Path('/dev/full').exists(), reason='only Linux has the full device')
def test_a_full_disk_leaves_no_half_of_a_sheet(picture, tmp_path):
    folder = tmp_path / 'out/vis_data/vis_image'
    folder.mkdir(parents=True)
    (folder / 'scene_context_0.png').symlink_to('/dev/full')
    line = refused(
        load_tool('visualize_context').main,
        picture,
        REPO / CONFIGS['classifier'],
        '--out-dir',
        tmp_path / 'out',
        *NO_WEIGHTS,
    )
    assert line == f'error: {folder}/scene_context_0.png cannot be written: is the disk full?'
    assert not list(folder.iterdir())


@pytest.mark.both_stacks
def test_checkpoints_single_files_and_tensorboard(picture, golden, tmp_path, monkeypatch):
    pytest.importorskip('tensorboard')
    monkeypatch.chdir(tmp_path)
    weights = golden('xxs')[0]
    torch.save(dict(state_dict=weights, state_dict_ema={k: v + 0.01 for k, v in weights.items()}), 'released.pth')
    command = [str(picture), str(REPO / CONFIGS['classifier']), 'released.pth', '--single']
    tool = load_tool('visualize_context')
    tool.main([*command, '--out-dir', 'plain'])
    tool.main([*command, '--out-dir', 'ema', '--ema'])
    names = {path.name for path in (tmp_path / 'plain').rglob('*.png')}
    assert {
        'scene_context_3_block-6_0.png',
        'scene_products_1_value-6_0.png',
        'scene_products_8_product-6_0.png',
    } <= names
    one, other = (cv2.imread(f'{name}/vis_data/vis_image/scene_context_0.png') for name in ('plain', 'ema'))
    assert (one != other).any()
    tool.main(
        [*command[:3], '--out-dir', 'board', '--cfg-options', 'visualizer.vis_backends.0.type=TensorboardVisBackend']
    )
    assert list((tmp_path / 'board').rglob('events.out.tfevents*'))


def test_class_activation_map_is_the_one_by_hand():
    """GradCAM, which MMPreTrain's tool calls, with the module of a level as its target layer and no reshaping."""
    cam = pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = (
        randomised(build_model(Config.fromfile(REPO / CONFIGS['classifier']))).eval(),
        torch.rand(1, 3, 64, 64),
    )
    found = cam.GradCAM(model, [model.backbone.levels[3]])(images, targets=[ClassifierOutputTarget(7)])[0]
    (level,) = model.backbone(images)
    (grad,) = torch.autograd.grad(model.head(model.neck((level,)))[0, 7], level)
    heat = (grad.mean((2, 3), keepdim=True) * level).sum(1)[0].relu().detach().numpy()
    heat = cv2.resize((heat - heat.min()) / (heat.max() - heat.min()), (64, 64))
    assert np.abs(found - heat).max() < 1e-4


def test_bad_input_is_refused_in_one_line(picture, tmp_path):
    tool = load_tool('visualize_context')
    config = str(REPO / CONFIGS['segmentor'])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.jpg').write_text('no picture')
    other = str(REPO / 'configs/segmentation/fpn_resnet-18_8xb4-40k_ade20k-512x512.py')
    for argv, message in (
        ([tmp_path / 'nowhere.jpg', config], 'nowhere.jpg does not exist'),
        ([tmp_path / 'empty', config], 'empty: no image is there'),
        ([tmp_path / 'text.jpg', config, *NO_WEIGHTS], 'text.jpg is damaged, or no image that OpenCV reads'),
        ([picture, 'no-config.py'], 'config no-config.py does not exist'),
        ([picture, config, tmp_path / 'no.pth'], 'no.pth does not exist'),
        ([picture, config, '--device', 'abacus'], '--device abacus is not the name of a device'),
        ([picture, config, '--device', 'cuda:99'], '--device cuda:99 is not available'),
        ([picture, other, *NO_WEIGHTS], 'has no EfficientMod: only its blocks have context maps'),
    ):
        with pytest.raises(SystemExit) as error:
            tool.main(['--out-dir', str(tmp_path / 'out'), *map(str, argv)])
        assert str(error.value).startswith('error: ') and message in str(error.value) and '\n' not in str(error.value)


def test_images_whose_names_differ_only_in_the_suffix_keep_it():
    paths = [Path(f'x/{name}') for name in ('a.jpg', 'a.png', 'b.png', 'y/b.png', '\udcff.png')]
    names = load_tool('visualize_context').name_images(paths)
    assert list(names.values()) == ['a.jpg', 'a.png', 'b', 'y_b', r'\udcff']  # OpenCV writes names in UTF-8 only


def test_a_model_without_efficientmod_is_refused():
    with pytest.raises(ValueError, match='Linear has no EfficientMod'):
        find_backbone(torch.nn.Linear(1, 1))
