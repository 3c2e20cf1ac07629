"""The mistakes that users make most: each ends in one line that says what to change, before anything is trained."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers import REPO, refused
from interpreter import run_python
from mmefficientmod.models import EfficientMod
from mmefficientmod.training.launch import launch
from scenes import make_dataset

DETECTION = REPO / 'demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py'
SEGMENTATION = REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'
LOADER = ('num_workers=0', 'persistent_workers=False')
SCRATCH = 'model.backbone.init_cfg=None'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('mistakes')
    make_dataset(root / 'data', train_images=2, val_images=2, size=(128, 96))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def root(data, tmp_path, monkeypatch):
    """A copy of the data that a test may damage, known to the demo's configs."""
    shutil.copytree(data / 'data', tmp_path / 'data')
    monkeypatch.setenv('DEMO_ROOT', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def annotations(root: Path, change) -> None:
    path = root / 'data/coco/annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


def weights(root: Path, name: str, arch: str = 'xxs', deploy: bool = False, prefix: str = '') -> str:
    model = EfficientMod(arch)
    if deploy:
        model.switch_to_deploy()
    torch.save({'state_dict': {prefix + key: value for key, value in model.state_dict().items()}}, root / name)
    return str(root / name)


def no_images(root: Path) -> None:
    for path in (root / 'data/ade/ADEChallengeData2016/images/training').iterdir():
        path.unlink()


# what is wrong -> task, a change of the data, options of the command line, the line
MISTAKES = {
    'channels of another backbone': (
        *(DETECTION, None, ['model.neck.in_channels=[64,128,256,512]']),
        r'in_channels is \[64, 128, 256, 512\], but .* gives \[32, 64, 128, 256\]: set neck=',
    ),
    'an arch that does not exist': (
        *(DETECTION, None, ['model.backbone.arch=m']),
        r"model\.backbone: unknown arch 'm': choose one of xxs, xs, s, s_conv",
    ),
    'a misspelt argument of the backbone': (
        *(SEGMENTATION, None, ['model.backbone.frozen_stage=1']),
        r"model\.backbone\.frozen_stage is not a setting of EfficientMod: is 'frozen_stages' meant",
    ),
    'out_indices of five stages': (
        *(DETECTION, None, ['model.backbone.out_indices=(0,1,2,3,4)']),
        r'model\.backbone: out_indices must be ascending stages out of 0 to 3',
    ),
    'fewer classes in a detector than in the data': (
        *(DETECTION, None, ['model.roi_head.bbox_head.num_classes=2']),
        r'bbox_head\.num_classes is 2, but .* names 6 classes: add --cfg-options',
    ),
    'fewer classes in a segmentor than in the data': (
        *(SEGMENTATION, None, ['model.decode_head.num_classes=8']),
        r'decode_head\.num_classes is 8, but .* names 9 classes',
    ),
    'a length below zero': (
        *(SEGMENTATION, None, ['train_cfg.max_iters=-5']),
        r'train_cfg\.max_iters is -5: set a whole number above 0',
    ),
    'a learning rate that is a text': (
        *(DETECTION, None, ['optim_wrapper.optimizer.lr=abc']),
        r"optim_wrapper\.optimizer\.lr is 'abc': set a number above 0",
    ),
    'no training at all': (*(DETECTION, None, ['train_cfg=None']), r'the config has no train_cfg'),
    'an option without a key': (*(DETECTION, None, ['=1']), r"KEY=VALUE pairs, and '' is not a complete key"),
    'categories of other names': (
        DETECTION,
        lambda root: annotations(root, lambda a: {**a, 'categories': [{'id': 1, 'name': 'dog'}]}),
        [],
        r'none of the classes ball, .* is a category of .*, which has dog: set metainfo.classes',
    ),
    'annotations without objects': (
        DETECTION,
        lambda root: annotations(root, lambda a: {**a, 'annotations': []}),
        [],
        'has no object of the classes',
    ),
    'annotations without images': (
        DETECTION,
        lambda root: annotations(root, lambda a: {**a, 'images': []}),
        [],
        'lists no images',
    ),
    'annotations in another format': (
        DETECTION,
        lambda root: annotations(root, lambda a: [a]),
        [],
        'is not an annotation file in the format of COCO',
    ),
    'an empty annotation file': (
        DETECTION,
        lambda root: (root / 'data/coco/annotations/instances_train2017.json').write_text(''),
        [],
        'is not an annotation file in the format of COCO',
    ),
    'a missing annotation file': (
        DETECTION,
        lambda root: (root / 'data/coco/annotations/instances_val2017.json').unlink(),
        [],
        r'annotation file .*instances_val2017.json does not exist: .* val_dataloader\.dataset\.ann_file=PATH',
    ),
    'a missing file of the evaluator': (
        *(DETECTION, None, ['val_evaluator.ann_file=/no/file.json']),
        r'annotation file /no/file\.json does not exist.*val_evaluator\.ann_file=PATH',
    ),
    'a missing folder of label images': (
        SEGMENTATION,
        lambda root: shutil.rmtree(root / 'data/ade/ADEChallengeData2016/annotations/validation'),
        [],
        r'data folder .*val_dataloader\.dataset\.data_prefix\.seg_map_path=PATH',
    ),
    'a missing folder of images': (
        DETECTION,
        lambda root: shutil.rmtree(root / 'data/coco/train2017'),
        [],
        r'data folder .*train2017/? does not exist',
    ),
    'an empty folder of images': (SEGMENTATION, no_images, [], r'images/training holds no file that ends in .jpg'),
    'a missing data root': (
        *(SEGMENTATION, None, ['train_dataloader.dataset.data_root=/no/data']),
        r'data root /no/data does not exist.*--cfg-options train_dataloader\.dataset\.data_root=PATH',
    ),
    'a missing pretrained file': (
        *(DETECTION, None, ['model.backbone.init_cfg.checkpoint=no.pth']),
        r'checkpoint no\.pth does not exist: download it .*init_cfg\.checkpoint=PATH.*init_cfg=None',
    ),
    'a missing checkpoint to start from': (*(SEGMENTATION, None, ['load_from=no.pth']), r'no\.pth does not exist'),
    "the stock backbone's weights": (
        *(SEGMENTATION, None, ['model.pretrained=open-mmlab://resnet50_v1c']),
        r"model\.pretrained is another backbone's: set model\.pretrained=None",
    ),
    'a deploy form to train on': (
        SEGMENTATION,
        lambda root: weights(root, 'deploy.pth', deploy=True, prefix='backbone.'),
        ['load_from=deploy.pth'],
        'is in the deploy form: train on from the checkpoint that it was made of',
    ),
    'training the deploy form': (
        *(SEGMENTATION, None, ['model.backbone.deploy=True']),
        r'backbone\.deploy=True is only for inference',
    ),
    'mixed precision on a CPU': (
        *(SEGMENTATION, None, ['optim_wrapper.type=AmpOptimWrapper']),
        'leave out --amp',
    ),
    'a type that no library has': (
        *(SEGMENTATION, None, ['model.backbone.type=mmefficientmod.EfficientNet']),
        r'the config names what is not there: mmefficientmod\.EfficientNet is not in the',
    ),
    'a dict on the command line': (
        *(SEGMENTATION, None, ["model.backbone.init_cfg=dict(type='Pretrained', checkpoint='no.pth')"]),
        '--cfg-options takes KEY=VALUE pairs',
    ),
    'one process where several are asked for': (
        *(SEGMENTATION, None, ['launcher=pytorch']),
        'this machine has no GPU: add --cfg-options env_cfg.dist_cfg.backend=gloo',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_one_line(mistake, root):
    config, damage, options, message = MISTAKES[mistake]
    if config == DETECTION and not _has_operators():
        pytest.skip('MMDetection needs MMCV with operators')
    if damage:
        damage(root)
    options = [SCRATCH, *options] if not any('init_cfg' in option for option in options) else options
    line = refused(partial(launch, 'train'), config, '--work-dir', root / 'run', '--cfg-options', *options)
    assert re.search(message, line), line


def _has_operators() -> bool:
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        return False
    return True


def test_another_arch_in_the_checkpoint(root):
    """Found while the weights are loaded, by the runner: by the command, its last line names both shapes."""
    path = weights(root, 'xs.pth', 'xs')
    options = ['model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={path}']
    options += [f'{split}_dataloader.{key}' for split in ('train', 'val') for key in LOADER]
    done = run_python(REPO / 'tools/train.py', SEGMENTATION, '--work-dir', root, '--cfg-options', *options)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr[-3000:]
    assert last.startswith('error: ') and "does not fit EfficientMod arch 'xxs'" in last
