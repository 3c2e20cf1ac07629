"""`compare report` shows what was measured, how far it is from the published setting, and nothing else."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import pytest
from mmengine.config import Config

from helpers import ITERS, REPO, ended, load_tool, make_run, refused
from mmefficientmod.compare.report import html as render
from mmefficientmod.compare.results import collect
from mmefficientmod.compare.settings import Settings, backbone_config
from mmefficientmod.compare.table import compare
from mmefficientmod.utils import UserError
from mmefficientmod.zoo.backbones import task_backbones
from mmefficientmod.zoo.tasks import TASKS

COMPARE = load_tool('compare').main


TOOL = str(REPO / 'tools' / 'compare.py')


def test_report_shows_what_was_measured(report, work_dir):
    with open(report / 'comparison.csv') as file:
        rows = list(csv.DictReader(file))
    row = rows[0]
    (metrics,) = (work_dir / 'resnet-18' / 'test').glob('*/*.json')
    miou = json.loads(metrics.read_text())['mIoU']
    assert row['backbone'] == 'ResNet-18' and float(row['mIoU, measured']) == pytest.approx(miou, abs=1e-3)
    assert row['mIoU, published'] == '32.9' and float(row['mIoU, difference']) == pytest.approx(miou - 32.9, abs=1e-3)
    assert row['parameters (M), published'] == '15.5' and abs(float(row['parameters (M), difference'])) < 0.1
    assert row['MACs (G), 512 x 512, published'] == '32.2'
    benchmark = json.loads((report / 'benchmark.json').read_text())['measurements']
    small, published = (f'ms, {side} x {side}, batch 1, fp32, eager' for side in (64, 512))
    assert float(row[f'{small}, measured']) == pytest.approx(benchmark[0]['median_ms'], abs=1e-3)
    assert row[f'{published}, published, A100'] == '8.5' and f'{small}, published, A100' not in row
    assert row['remark'] == f'test of iter_{ITERS}.pth; trained {ITERS}/{ITERS} iterations'
    others = {row['backbone']: row for row in rows[1:]}
    assert len(others) == 18 and all(row['mIoU, measured'] == '' for row in others.values())
    assert others['EfficientMod-xxs']['remark'].startswith('no result: train ended with exit code 1')
    assert others['EfficientMod-s']['remark'] == 'no result: not run'


def test_report_needs_neither_torch_nor_locks(report, work_dir, tmp_path):
    """The same figures, but for those that take building the model."""
    block = 'import runpy, sys; sys.modules.update(torch=None, fcntl=None, resource=None); sys.argv = sys.argv[1:]'
    code = f"{block}; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [TOOL, 'report', work_dir, '--benchmark', report / 'benchmark.json', '--out', tmp_path]
    done = subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0 and 'note: No parameters and cost of ResNet-18: ' in done.stderr, done.stderr
    with open(tmp_path / 'comparison.csv') as here, open(report / 'comparison.csv') as there:
        without, complete = (next(csv.DictReader(file)) for file in (here, there))
    differing = {name for name in complete if complete[name] != without[name]}
    assert {name.partition(',')[0] for name in differing} == {'parameters (M)', 'MACs (G)'}


def test_report_says_how_far_it_is_from_the_published_setting(report):
    text = (report / 'comparison.md').read_text()
    assert (
        'This is not the published setting: 2 validation images instead of 2000; '
        'schedule 8 iterations instead of 40000 iterations; '
        'batch 2 instead of 32; training size 64 x 64 instead of 512 x 512; '
        'test size 64 x 256 instead of 512 x 2048; '
        'weights random instead of pretrained.'
    ) in text
    assert '- seed: 7' in text and 'tools/train.py' in text
    assert '- PoolFormer-S12, EfficientMod-s-Conv' in text and ': not run' in text


def test_report_of_results_that_do_not_belong_together(work_dir, tmp_path):
    shutil.copytree(work_dir / 'resnet-18', tmp_path / 'elsewhere')
    message = refused(COMPARE, 'report', work_dir, tmp_path / 'elsewhere')
    assert message.startswith('error: resnet-18 has train results in ') and message.endswith('name the one to report')

    other = tmp_path / 'efficientmod-s'  # the same results, as of another backbone on another data set
    shutil.move(str(tmp_path / 'elsewhere'), str(other))
    for path in list(other.rglob('*.py')):
        text = path.read_text().replace("ADEChallengeData2016'", "Other'").replace("'resnet-18'", "'efficientmod-s'")
        path.with_name(path.name.replace('resnet-18', 'efficientmod-s')).write_text(text)
        if 'resnet-18' in path.name:
            path.unlink()
    message = refused(COMPARE, 'report', work_dir, other)
    assert message.startswith('error: results of different data sets: ') and '/Other' in message
    assert 'resnet-18 on ADE20KDataset' in message and 'efficientmod-s on ADE20KDataset' in message

    for path in list(other.rglob('*.py')):
        path.write_text(path.read_text().replace("default_scope = 'mmseg'", "default_scope = 'mmdet'"))
    assert refused(COMPARE, 'report', work_dir, other) == (
        'error: these are results of detection and of segmentation: report one task at a time'
    )


def test_report_without_results(work_dir, tmp_path):
    assert refused(COMPARE, 'report', tmp_path / 'none') == f'error: {tmp_path / "none"} does not exist'
    assert refused(COMPARE, 'report', __file__) == f'error: {__file__} is not a folder'
    assert refused(COMPARE, 'report', tmp_path) == f'error: {tmp_path} holds no work directory of MMEngine'
    begun = tmp_path / 'work' / 'resnet-18' / 'train' / '20260101_000000' / 'vis_data'
    begun.mkdir(parents=True)
    source = next((work_dir / 'resnet-18' / 'train').glob('*/vis_data/config.py'))
    shutil.copy(source, begun)
    (begun / 'scalars.json').write_text('{"loss": 3.5, "step": 1}\n{"loss": 3.')  # cut off by a kill
    assert refused(COMPARE, 'report', tmp_path) == (
        'error: no backbone has metrics yet: resnet-18 began, but nothing was validated or tested'
    )
    assert not (tmp_path / 'report').exists()


def test_an_unfinished_backbone_is_called_so(work_dir, tmp_path):
    """The resumed run without its last iteration."""
    resumed = sorted((work_dir / 'resnet-18' / 'train').glob('*/vis_data'))[-1].parent
    copy = tmp_path / 'resnet-18' / 'train' / resumed.name
    shutil.copytree(resumed, copy)
    shutil.copy(next((work_dir / 'resnet-18' / 'train').glob('*.py')), copy.parent)
    scalars = copy / 'vis_data' / 'scalars.json'
    lines = scalars.read_text().splitlines(keepends=True)
    scalars.write_text(''.join(line for line in lines if json.loads(line)['step'] < ITERS))
    comparison = compare([tmp_path])
    assert not comparison.comparable
    assert comparison.remarks['resnet-18'] == (
        f'validation during training, at iteration {ITERS - 1}; trained {ITERS - 1}/{ITERS} iterations'
    )
    assert f'Not at the end of their training: ResNet-18 ({ITERS - 1}/{ITERS} iterations).' in comparison.warnings


def test_a_backbone_in_the_published_setting_is_comparable(tmp_path):
    """2000 images that three processes fill up to 2001 are the published ones; of two trainings the new one counts."""
    config, folder = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config), tmp_path / 'resnet-18'
    config.train_dataloader.batch_size = 8
    log = 'GPU number: 4\n'
    make_run(folder, '20260101_000000', config, '{"loss": 9, "step": 50}\n{"mIoU": 1, "step": 40000}\n', log)
    make_run(folder, '20260102_000000', config, '{"loss": 2, "step": 100}\n{"mIoU": 32, "step": 40000}\n', log)
    result = collect([tmp_path])[1]['resnet-18']
    assert result.metrics == {'mIoU': 32} and list(result.losses) == [100] and result.split == 'val'
    config.load_from = 'x/iter_40000.pth'
    make_run(folder, '20260103_000000', config, '{"mIoU": 33.4}', 'GPU number: 3\nIter(test) [667/667]  mIoU: 33.4')
    comparison = compare([tmp_path])
    assert comparison.warnings == [] and comparison.comparable == {'resnet-18'}
    assert comparison.table.loc['resnet-18', ('mIoU', 'difference')] == pytest.approx(0.5)
    page = render(comparison, {})
    assert 'class="difference better" data-value="0.5' in page and 'class="difference worse"' not in page


def test_a_test_of_an_intermediate_checkpoint_is_not_the_end(tmp_path):
    """Although the training went on to its end; a released checkpoint, which has no step in its name, is one."""
    config, folder = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config), tmp_path / 'resnet-18'
    make_run(folder, '20260101_000000', config, '{"loss": 2, "step": 100}\n{"mIoU": 32, "step": 40000}\n')
    for checkpoint, expected in (('iter_20000.pth', 'ResNet-18 (test of iter_20000.pth).'), ('resnet_18.pth', None)):
        config.load_from = f'x/{checkpoint}'
        make_run(folder / 'test', '20260102_000000', config, '{"mIoU": 33}')
        warnings = compare([tmp_path]).warnings
        said = [line.partition(': ')[2] for line in warnings if line.startswith('Not at the end of their training')]
        assert said == ([expected] if expected else [])
        shutil.rmtree(folder / 'test')


def test_another_learning_rate_schedule_and_accumulated_steps_are_said(tmp_path):
    config = Config.fromfile(task_backbones(TASKS['detection'])['resnet-18'].config)
    config.merge_from_dict({'param_scheduler.1.milestones': [6, 9], 'optim_wrapper.accumulative_counts': 2})
    text = '{"loss": 2, "step": 100}\n{"coco/bbox_mAP": 0.3, "step": 12}\n'
    make_run(tmp_path / 'resnet-18', '20260101_000000', config, text, 'GPU number: 8\n')
    (warning,) = (line for line in compare([tmp_path]).warnings if line.startswith('This is not the published'))
    assert (
        'learning rate schedule LinearLR, MultiStepLR at 6 and 9 instead of LinearLR, MultiStepLR at 8 and 11; '
        'batch 64 instead of 32'
    ) in warning


def test_what_cannot_be_read_is_said_where_nothing_else_is_found(tmp_path):
    config = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config)
    make_run(tmp_path / 'resnet-18', '20260101_000000', config, '{"loss": 2, "step": 100}')
    make_run(tmp_path / 'cut', '20260101_000000', config, '{"mIoU": 3}')
    (tmp_path / 'cut' / '20260101_000000' / 'vis_data' / 'config.py').write_text('model = dict(')
    with pytest.raises(UserError, match=r'nothing was validated or tested; .*/cut/.* cannot be read \(SyntaxError\)'):
        collect([tmp_path])


def test_validated_and_tested_backbones_side_by_side(tmp_path):
    """On CamVid the two are different images."""
    task = TASKS['segmentation']
    overlay = Settings(task, overlays=[str(REPO / 'configs/_base_/overlays/camvid.py')])
    for key, metrics in (('resnet-18', '{"mIoU": 30}'), ('efficientmod-s', '{"mIoU": 40, "step": 40000}')):
        make_run(tmp_path / key, '20260101_000000', backbone_config(task_backbones(task)[key], overlay)[0], metrics)
    comparison = compare([tmp_path])
    data = dict(comparison.setting)['data set']
    assert 'images/test annotations/test (11 classes) (ResNet-18)' in data and 'images/val' in data
    assert 'The backbones were not run alike: see data set.' in comparison.warnings
    assert comparison.columns['mIoU'].label('published') == 'published, ADE20K' and not comparison.comparable


def test_what_cannot_be_read_is_an_error_and_the_rest_is_reported(work_dir, tmp_path, capsys):
    odd, cut, foreign, other = (
        tmp_path / name / '20260101_000000' / 'vis_data' for name in ('odd', 'cut', 'foreign', 'other')
    )
    for folder, text in (
        (odd, "default_scope = 'mmseg'\ntrain_cfg = dict(max_iters=1)"),
        (cut, 'model = dict('),
        (foreign, "default_scope = 'mmpose'"),
        (other, "default_scope = 'mmseg'"),
    ):
        folder.mkdir(parents=True)
        (folder / 'config.py').write_text(text)
        (folder.parent / '20260101_000000.json').write_text('{"mIoU": 3}')
    (other / 'scalars.json').write_text('{"loss": 1, "step": 1}')
    (tmp_path / 'state.json').write_text('[1]')
    assert ended(COMPARE, 'report', work_dir, tmp_path, '--out', tmp_path / 'out') == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 4 and 'cut' in errors[0] and 'other/20260101_000000 is not understood' in errors[1]
    assert errors[2].startswith('error: odd: its config is not understood')
    with open(tmp_path / 'out' / 'comparison.csv') as file:
        assert [row['backbone'] for row in csv.DictReader(file) if row['mIoU, measured']] == ['ResNet-18']
