"""`compare` of classifiers: rows of the paper's Table 1, trained or tested with published weights, in one report."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers import load_tool
from mmefficientmod.compare.results import collect
from mmefficientmod.compare.settings import Settings, backbone_config
from mmefficientmod.compare.table import compare
from mmefficientmod.utils import UserError
from mmefficientmod.zoo.backbones import TABLE1, select_backbones, task_backbones
from mmefficientmod.zoo.published import published
from mmefficientmod.zoo.tasks import CLASSIFICATION, TASKS

COMPARE = load_tool('compare').main

pytestmark = pytest.mark.libraries

timm = pytest.importorskip('timm')
BACKBONES = task_backbones(CLASSIFICATION)
MISSING = ['EdgeViT-XXS', 'EdgeViT-XS', 'MobileFormer-508M', 'EdgeViT-S']  # no library has them


def test_the_backbones_are_those_of_table_1_that_a_library_has():
    names = [name for name in TABLE1 if name not in MISSING]
    assert [backbone.name for backbone in BACKBONES.values()] == names and len(names) == 22
    assert select_backbones(CLASSIFICATION, ['table1', 'all']) == (list(BACKBONES.values()), [])
    assert CLASSIFICATION.group == 'table1' and set(published(CLASSIFICATION.table)) == set(TABLE1)
    keys = [backbone.key for backbone in select_backbones(CLASSIFICATION, ['table7'])[0]]
    assert 'efficientformerv2-s2' in keys and 'pvt-tiny' not in keys


@pytest.mark.parametrize('backbone', [each for each in BACKBONES.values() if each.weights], ids=lambda each: each.key)
def test_images_are_those_that_timm_tests_the_weights_with(backbone):
    config, expected = backbone.load_config(), timm.get_pretrained_cfg(backbone.weights[len('timm://') :])
    assert config.model.backbone.model_name == expected.architecture and expected.hf_hub_id
    assert config.data_preprocessor.mean == pytest.approx([255 * value for value in expected.mean])
    assert config.data_preprocessor.std == pytest.approx([255 * value for value in expected.std])
    side = expected.input_size[-1]
    for split in ('val', 'test'):
        resize, crop = config[f'{split}_dataloader'].dataset.pipeline[1:3]
        assert crop.crop_size == side == published('imagenet')[backbone.name]['input']
        assert resize.scale == math.floor(side / (expected.test_crop_pct or expected.crop_pct))
        assert resize.interpolation == expected.interpolation and expected.crop_mode == 'center'
    assert config.train_dataloader.dataset.pipeline[1].scale == side
    assert ('dist_in1k' in backbone.weights) == (backbone.recipe == 'distillation')


def test_released_files_of_efficientmod_that_are_distilled_are_known():
    recipes = {key: each.recipe for key, each in BACKBONES.items() if key.startswith('efficientmod')}
    assert [key for key, recipe in recipes.items() if recipe == 'distillation'] == [*recipes][:3]
    assert [key for key, recipe in recipes.items() if not recipe] == ['efficientmod-s-conv']


def test_size_and_length():
    config, _ = backbone_config(BACKBONES['mobilevit-xs'], Settings(CLASSIFICATION, size=(64, 64), epochs=1))
    assert config.train_dataloader.dataset.pipeline[1].scale == 64
    assert [each.get('scale', each.get('crop_size')) for each in config.test_dataloader.dataset.pipeline[1:3]] == [
        71,
        64,
    ]
    warm_up, cosine = config.param_scheduler
    assert (warm_up.begin, warm_up.end, cosine.begin, cosine.end, cosine.T_max) == (0, 1, 0, 1, 1)
    long, _ = backbone_config(BACKBONES['efficientmod-s'], Settings(CLASSIFICATION, epochs=30))
    warm_up, cosine = long.param_scheduler
    assert (warm_up.end, cosine.begin, cosine.end) == (1, 1, 30)
    with pytest.raises(UserError, match='classifiers take square images, not 64 x 96'):
        backbone_config(BACKBONES['efficientmod-s'], Settings(CLASSIFICATION, size=(64, 96)))


def test_checkpoints(tmp_path):
    def load_from(key: str, *places: str) -> str:
        return backbone_config(BACKBONES[key], Settings(CLASSIFICATION, checkpoints=places))[1]['load_from']

    folder = str(tmp_path)
    for name in ('efficientMod_s.pth', 'fasternet-t0.safetensors', 'deit-t.pth'):
        (tmp_path / name).touch()
    assert load_from('efficientmod-s', folder, 'published') == f'{folder}/efficientMod_s.pth'
    assert load_from('fasternet-t0', folder) == f'timm://fasternet_t0.in1k={folder}/fasternet-t0.safetensors'
    assert load_from('deit-t', folder) == f'{folder}/deit-t.pth'  # as a training here leaves it
    assert load_from('mobileone-s1', folder, 'published') == 'timm://mobileone_s1.apple_in1k'
    for places, message in (
        ([folder], r'holds no file for mobileone-s1, such as mobileone-s1\.pth; put it there'),
        (['published', 'mobileone-s1=none.pth'], r'none\.pth does not exist'),
        (['deit-t=x.pth'], 'names no file for mobileone-s1: add mobileone-s1=FILE'),
    ):
        with pytest.raises(UserError, match=message):
            load_from('mobileone-s1', *places)
    with pytest.raises(UserError, match=r'--checkpoints names no file for resnet-18: add resnet-18=FILE'):
        task = TASKS['detection']
        backbone_config(task_backbones(task)['resnet-18'], Settings(task, checkpoints=['published']))


@pytest.fixture(scope='module')
def work_dirs(tmp_path_factory) -> tuple[Path, Path]:
    """A short training on a few pictures, and a test of weights as timm publishes them."""
    from safetensors.torch import save_file

    root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for split in ('train', 'val'):
        lines = []
        for i in range(4):
            path = root / split / f'n0{i % 2}' / f'{i}.JPEG'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 255, (80, 96, 3), np.uint8))
            lines.append(f'{path.relative_to(root / split)} {i % 2}\n')
        (root / 'meta').mkdir(exist_ok=True)
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))
    torch.manual_seed(0)
    save_file(timm.create_model('mobilevit_xs').state_dict(), root / 'mobilevit-xs.safetensors')
    options = f'--data-root {root} --size 64 --batch-size 2 --workers 0 --cfg-options test_dataloader.batch_size=2'
    run = ['run', 'classification', *options.split(), 'optim_wrapper.type=OptimWrapper']
    trained, tested = root / 'trained', root / 'tested'
    COMPARE(
        [*run, '--backbones', 'mobilenetv2-1.0', '--epochs', '1', '--work-dir', str(trained)],
    )
    COMPARE([*run, '--backbones', 'MobileViT-XS', '--checkpoints', str(root), 'published', '--work-dir', str(tested)])
    return trained, tested


@pytest.mark.slow
def test_run_report_and_latency(work_dirs, tmp_path):
    options = f'--backbones mobilenetv2-1.0 --parts classifier --sizes 64 --repeats 2 --warmup 1 --out {tmp_path}'
    load_tool('benchmark').main(options.split())
    benchmark = str(tmp_path / 'benchmark.json')
    COMPARE(['report', *map(str, work_dirs), '--benchmark', benchmark, '--out', str(tmp_path)])
    with open(tmp_path / 'comparison.csv') as file:
        rows = {row['backbone']: row for row in csv.DictReader(file)}
    row, other = rows['MobileNetV2-1.0'], rows['MobileViT-XS']
    assert list(rows)[:2] == ['MobileNetV2-1.0', 'MobileViT-XS'] and len(rows) == 22
    (metrics,) = (work_dirs[0] / 'mobilenetv2-1.0' / 'test').glob('*/*.json')
    top1 = json.loads(metrics.read_text())['accuracy/top1']
    assert float(row['top-1, measured']) == top1 and row['top-1, published'] == '71.8'
    assert float(row['top-1, difference']) == pytest.approx(top1 - 71.8)
    assert row['parameters (M), published'] == '3.5' and abs(float(row['parameters (M), difference'])) < 0.05
    assert row['MACs (G), published size, published'] == '0.3' and other['MACs (G), published size, published'] == '1.1'
    assert float(other['MACs (G), published size, measured']) == pytest.approx(1.026, abs=1e-3)  # at 256 x 256
    latency = json.loads((tmp_path / 'benchmark.json').read_text())['measurements'][0]['median_ms']
    assert float(row['ms, 64 x 64, batch 1, fp32, eager, measured']) == pytest.approx(latency, abs=1e-3)
    paper = [float(row[f'published ms, batch 1, {machine}']) for machine in CLASSIFICATION.machines]
    assert paper == [2.1, 3.8, 1.4, 1.1, 1.3]
    assert row['remark'] == 'test of epoch_1.pth; trained 1/1 epoch'
    assert other['remark'] == 'test of mobilevit-xs.safetensors' and rows['DeiT-T']['remark'] == 'no result: not run'
    assert '- test size: 64 x 64' in (tmp_path / 'comparison.md').read_text()


@pytest.mark.slow
def test_what_is_not_as_published_is_said(work_dirs):
    comparison = compare(work_dirs)
    (note,) = [warning for warning in comparison.warnings if warning.startswith('This is not the published setting')]
    assert '4 validation images instead of 50000' in note and 'batch 2 instead of 2048 (MobileNetV2-1.0)' in note
    assert 'test size 64 x 64 instead of 256 x 256 (MobileViT-XS)' in note
    assert 'not trained here' not in note  # these weights are those of the published figure


@pytest.mark.slow
def test_a_test_by_another_tool_is_known_by_its_model(work_dirs):
    for config in work_dirs[1].rglob('*.py'):
        text = config.read_text()
        config.write_text(text[: text.index('mmefficientmod = ')] + text[text.index('model = ') :])
    assert list(collect([work_dirs[1]])[1]) == ['mobilevit-xs']


def test_distilled_weights_that_are_only_tested_are_said_to_be(tmp_path):
    config, _ = backbone_config(BACKBONES['efficientformerv2-s2'], Settings(CLASSIFICATION, checkpoints=['published']))
    run = tmp_path / 'efficientformerv2-s2' / 'test' / '20260101_000000'
    (run / 'vis_data').mkdir(parents=True)
    config.dump(run / 'vis_data' / 'config.py')
    (run / f'{run.name}.json').write_text('{"accuracy/top1": 82.0, "accuracy/top5": 95.0}')
    (run / f'{run.name}.log').write_text('Epoch(test) [196/196]')
    comparison = compare([tmp_path])
    assert comparison.warnings[0].startswith(
        'This is not the published setting: not trained here, and its published weights come from distillation.'
    )
    assert not comparison.comparable
    assert comparison.remarks['efficientformerv2-s2'] == 'test of efficientformerv2_s2.snap_dist_in1k'
