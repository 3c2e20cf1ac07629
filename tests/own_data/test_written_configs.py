"""A written config is short, trains what the data holds, passes the checks before a start, and works anywhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from mmengine.config import Config

from helpers import REPO, build_model
from mmefficientmod.codebases.nodes import find_dicts
from mmefficientmod.data.configs import MODELS, make_plan, write_config
from mmefficientmod.data.formats import recognise
from mmefficientmod.data.inspect import inspect_all
from mmefficientmod.utils import UserError
from own_images import NAMES, write_folders, write_masks


@pytest.fixture
def prepare(coco, tmp_path):
    """A data set for a model with training and validation data, and the folder of what was added to it."""

    def make(model: str):
        task = MODELS[model].task
        if task == 'detection':
            data = recognise(coco)
        elif task == 'segmentation':
            data = recognise(write_masks(tmp_path / 'data', 10, (160, 128)))
        else:
            data = recognise(write_folders(tmp_path / 'data', dict.fromkeys('abcdefg', 5)))
        prepared = tmp_path / 'prepared'
        prepared.mkdir()
        return data.divide(0.2, 0).write(prepared), prepared

    return make


def load(text, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    return Config.fromfile(tmp_path / 'config.py')


@pytest.mark.ops
@pytest.mark.both_stacks
@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('gpus', [0, 2])
def test_every_config_is_short_and_passes_the_checks(model, gpus, prepare, tmp_path):
    data, prepared = prepare(model)
    plan = make_plan(data, model, 'efficientmod-xxs', gpus)
    text = write_config(data, plan, prepared)
    lines = [line for line in text.splitlines() if line.strip()]
    assert 20 <= len(lines) <= 40, text
    assert lines[-1].startswith('# load_from = ')
    config = load(text, tmp_path)
    assert not [finding for finding in inspect_all(config) if finding.level == 'error']
    heads = {place: node['num_classes'] for place, node in find_dicts(config.model, 'model') if 'num_classes' in node}
    assert len(heads) == {'mask-rcnn': 2, 'upernet': 2}.get(model, 1)
    assert set(heads.values()) == {len(data.classes)}
    build_model(config)
    (ramp,) = [each for each in config.param_scheduler if each.type == 'LinearLR']
    assert ramp.end <= max(plan.steps // 10, 2)
    base = {'rtmdet': 4e-3 / 256, 'classifier': 4e-3 / 2048}.get(model, 2e-4 / 32)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(base * plan.batch * max(gpus, 1), rel=0.01)
    assert config.auto_scale_lr.base_batch_size == plan.batch * max(gpus, 1)
    assert config.train_dataloader.batch_size * max(gpus, 1) <= len(data.parts['train'])


@pytest.mark.both_stacks
def test_classes_stand_in_the_order_of_the_file(coco, tmp_path):
    data = recognise(coco)
    config = load(write_config(data, make_plan(data, None, 'efficientmod-s', 1)), tmp_path)
    for split in ('train', 'val', 'test'):
        assert list(config[f'{split}_dataloader'].dataset.metainfo.classes) == NAMES
    assert config.model.type == 'MaskRCNN' and config.default_hooks.checkpoint.save_best == 'coco/segm_mAP'
    assert config.train_dataloader.dataset.pipeline[2].scale == (427, 320)  # 128 x 96, enlarged to what anchors find


def test_boxes_without_masks_get_a_detector_of_boxes(yolo, tmp_path):
    pytest.importorskip('supervision')
    (tmp_path / 'new').mkdir()
    data = recognise(yolo).write(tmp_path / 'new')
    config = load(write_config(data, make_plan(data, None, 'efficientmod-s', 1), tmp_path / 'new'), tmp_path)
    assert config.model.type == 'FasterRCNN' and config.model.roi_head.mask_head is None
    assert config.val_evaluator.metric == 'bbox' and config.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'
    assert config.val_evaluator.ann_file == str(tmp_path / 'new/val.json')


def test_a_long_training_keeps_the_published_schedule(coco):
    data = recognise(coco)
    part = data.parts['train']
    data.parts['train'] = type(part)(part.root, part.images * 1000, part.annotations, part.categories, part.file)
    plan = make_plan(data, 'mask-rcnn', 'efficientmod-s', 8)
    assert (plan.batch, plan.rate, plan.length) == (4, 2e-4, 14)
    plan = make_plan(data, 'mask-rcnn', 'efficientmod-s', 1)
    assert plan.length == 12 and plan.schedule[0]['end'] == 500 and plan.schedule[1]['milestones'] == [8, 11]


def test_what_does_not_go_together(coco, prepare):
    data = recognise(coco)
    for arguments, says in (
        (('classifier', 'efficientmod-s', 1), 'is for classification, the data is for detection'),
        (('mask-rcnn', 'efficientmod-xl', 1), 'no backbone'),
        (('mask-rcnn', 'all', 1), 'several backbones'),
    ):
        with pytest.raises(UserError, match=says):
            make_plan(data, *arguments)
    data.classes[0] = '{{ fileDirname }}'
    with pytest.raises(UserError, match='rename it'):
        write_config(data, make_plan(data, None, 'efficientmod-s', 1))


@pytest.mark.ops
def test_the_tool_writes_a_config_from_anywhere(yolo, tmp_path, own_data, monkeypatch):
    pytest.importorskip('supervision')
    monkeypatch.chdir(tmp_path)
    code, text = own_data(yolo, '--config', 'mine.py', '--gpus', '0', '--backbone', 'efficientmod-xxs')
    assert code == 0, text
    train, test, predict, weights = text.splitlines()[-4:]
    assert (
        'checkpoints/efficientmod_xxs.pth, which is not here' in weights and 'model.backbone.init_cfg=None' in weights
    )
    assert train.endswith('train.py mine.py') and 'work_dirs/mine/best_coco_bbox_mAP_*.pth' in test
    assert "'--annotations'" not in predict and str(yolo) in predict
    prepared = yolo.with_name(f'{yolo.name}_prepared')
    assert sorted(path.name for path in prepared.iterdir()) == ['README.txt', 'train.json', 'val.json']
    assert len(json.loads((prepared / 'train.json').read_text())['images']) == 12
    code, text = own_data(yolo, '--config', 'mine.py')
    assert code == 1 and '--overwrite' in text
    assert own_data(yolo, '--config', 'mine.py', '--overwrite')[0] == 0
    (prepared / 'README.txt').unlink()
    code, text = own_data(yolo, '--config', 'other.py')
    assert code == 1 and '--prepared' in text and not (tmp_path / 'other.py').exists()


@pytest.mark.ops
@pytest.mark.slow
@pytest.mark.both_stacks
@pytest.mark.parametrize('model', ['mask-rcnn', 'semantic-fpn', 'classifier'])
def test_a_written_config_trains_and_keeps_its_best_checkpoint(model, prepare, tmp_path):
    data, prepared = prepare(model)
    text = write_config(data, make_plan(data, model, 'efficientmod-xxs', 0), prepared)
    (tmp_path / 'mine.py').write_text(text)
    unit = 'iters' if model == 'semantic-fpn' else 'epochs'
    options = [f'train_cfg.max_{unit}=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
    command = [sys.executable, str(REPO / 'tools/train.py'), 'mine.py', '--cfg-options', *options]
    done = subprocess.run(
        [*command, *([] if model == 'classifier' else ['model.backbone.init_cfg=None'])],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / 'work_dirs/mine').glob('best_*.pth'))) == 1
