"""Options of `compare run` become settings of a config; wrong ones start nothing; launchers get the right commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from helpers import REPO, ended, load_tool
from mmefficientmod.compare.settings import Settings, backbone_config, find_weights_file
from mmefficientmod.utils import UserError
from mmefficientmod.zoo.backbones import select_backbones, task_backbones
from mmefficientmod.zoo.tasks import TASKS

COMPARE = load_tool('compare').main

TOOL = str(REPO / 'tools' / 'compare.py')


def test_backbones():
    for task in (TASKS['detection'], TASKS['segmentation']):
        backbones, problems = select_backbones(task, ['table7', 'EfficientMod_XS', 'efficientmod-s2', 'nothing'])
        assert [backbone.key for backbone in backbones][-1] == 'efficientmod-xs' and len(backbones) == 9
        assert problems[0] == "there is no backbone 'efficientmod-s2': did you mean efficientmod-s?"
        assert problems[1].startswith("there is no backbone 'nothing': it has resnet-18, ")
        assert len(select_backbones(task, ['all'])[0]) == 19


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_without_options_every_backbone_keeps_the_published_setting(task):
    for backbone in task_backbones(task).values():
        config, options = backbone_config(backbone, Settings(task))
        assert set(options) == {'randomness.seed', 'default_hooks.checkpoint.max_keep_ckpts'}
        assert config.mmefficientmod.to_dict() == dict(task=task.name, backbone=backbone.key, settings=options)
        changed, original = config.to_dict(), backbone.load_config().to_dict()
        del changed['mmefficientmod'], changed['randomness']
        for settings in (changed, original):
            settings['default_hooks']['checkpoint'].pop('max_keep_ckpts', None)
        assert changed == original


def test_mixed_precision_and_checkpoints_are_settings(tmp_path):
    """So that a folder with other ones is refused."""
    task = TASKS['segmentation']
    backbone = task_backbones(task)['resnet-18']
    assert backbone_config(backbone, Settings(task, amp=True))[0].optim_wrapper.type == 'AmpOptimWrapper'
    (tmp_path / 'resnet-18.pth').touch()
    checkpoint = str(tmp_path / 'resnet-18.pth')
    assert backbone_config(backbone, Settings(task, checkpoints=[checkpoint[:-14]]))[0].load_from == checkpoint


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--iters 0', "argument --iters: '0' is not a whole number from 1 to 1000000"),
        ('--gpus 8', '--gpus and --launcher-args need --launcher'),
        ('--dry', 'unrecognized arguments: --dry'),  # a job array would hand it on
        ('--workers -3', "argument --workers: '-3' is not a whole number from 0 to 1024"),
        ('--cfg-options foo', "error: --cfg-options takes KEY=VALUE pairs, not 'foo'"),
        ('--cfg-options foo=(1,2', 'error: --cfg-options takes KEY=VALUE pairs (Imbalanced brackets'),
        ("--launcher slurm --launcher-args='gpu", 'cannot be split into words (No closing quotation)'),
        (
            '--pretrained resnet19=x.pth',
            "resnet19=x.pth: there is no backbone 'resnet19': did you mean resnet-18?",
        ),
    ],
)
def test_wrong_options_start_nothing(options, message, tmp_path, capsys):
    line = str(
        ended(
            COMPARE,
            'run',
            'segmentation',
            '--backbones',
            'resnet-18',
            '--work-dir',
            tmp_path / 'work',
            *options.split(),
        )
    )
    assert message in line + capsys.readouterr().err and not (tmp_path / 'work').exists()


def test_the_schedule_follows_the_length():
    def options(task: str, **settings) -> dict:
        return backbone_config(task_backbones(TASKS[task])['efficientmod-s'], Settings(TASKS[task], **settings))[1]

    short = options('segmentation', iters=4000)
    assert short['param_scheduler.0.end'] == 100
    assert short['param_scheduler.1.T_max'] == short['param_scheduler.1.end'] == 4000
    assert short['train_cfg.val_interval'] == short['default_hooks.checkpoint.interval'] == 400
    long = options('detection', epochs=36)
    assert long['train_cfg.max_epochs'] == 36 and long['param_scheduler.1.milestones'] == [24, 33]
    with pytest.raises(UserError, match='detection trains by epochs here: give --epochs, not --iters'):
        options('detection', iters=100)


def test_size_and_data_root():
    task = TASKS['detection']
    settings = Settings(task, size=(256, 320), data_root='/some where')
    config, _ = backbone_config(task_backbones(task)['efficientformer-l1'], settings)
    for pipeline in (config.train_dataloader.dataset.pipeline[2:], config.test_dataloader.dataset.pipeline[1:]):
        assert pipeline[0].scale == (320, 256)
    assert config.model.backbone.img_size == 256
    assert config.val_evaluator.ann_file == '/some where/annotations/instances_val2017.json'
    task = TASKS['segmentation']
    config, _ = backbone_config(task_backbones(task)['resnet-18'], Settings(task, size=(256, 256)))
    assert config.train_dataloader.dataset.pipeline[2].scale == (1024, 256)
    assert config.model.data_preprocessor.size == (256, 256)


def test_overlay():
    task = TASKS['segmentation']
    demo = str(REPO / 'demo/configs/datasets/semantic.py')
    config, _ = backbone_config(task_backbones(task)['resnet-18'], Settings(task, overlays=[demo], data_root='/x'))
    assert config.train_dataloader.dataset.metainfo.classes[0] == 'sky'
    assert config.test_dataloader.dataset.data_root == '/x'
    with pytest.raises(UserError, match=r'overlay: config no\.py does not exist'):
        backbone_config(task_backbones(task)['resnet-18'], Settings(task, overlays=['no.py']))


def test_weights(tmp_path):
    task = TASKS['segmentation']
    backbones = task_backbones(task)
    (tmp_path / 'efficientmod_s.pth').touch()
    backbone = backbones['efficientmod-s']
    assert find_weights_file(backbone, [str(tmp_path)], '--pretrained') == str(tmp_path / 'efficientmod_s.pth')
    config, _ = backbone_config(backbone, Settings(task, pretrained=[str(tmp_path)]))
    assert config.model.backbone.init_cfg.checkpoint == str(tmp_path / 'efficientmod_s.pth')
    with pytest.raises(UserError, match=r'holds no file for resnet-18, such as resnet-18\.pth'):
        find_weights_file(backbones['resnet-18'], [str(tmp_path)], '--checkpoints')
    with pytest.raises(UserError, match=r'--checkpoints: gone\.pth does not exist'):
        find_weights_file(backbones['resnet-18'], ['ResNet-18=gone.pth'], '--checkpoints')


def test_a_folder_may_have_an_equals_sign(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'lr=0.1'
    folder.mkdir()
    (folder / 'resnet-18.pth').touch()
    arguments = ['run', 'detection', '--backbones', 'resnet-18', '--work-dir', 'work', '--dry-run']
    COMPARE([*arguments, '--checkpoints', 'lr=0.1'])
    assert 'lr=0.1/resnet-18.pth' in capsys.readouterr().out


def test_a_missing_checkpoint_leaves_the_others(tmp_path, capsys):
    (tmp_path / 'resnet-18.pth').touch()
    assert (
        ended(
            COMPARE,
            'run',
            'detection',
            '--backbones',
            'resnet-18',
            'pvt-tiny',
            'nothing',
            '--checkpoints',
            tmp_path,
            '--work-dir',
            tmp_path / 'work',
            '--dry-run',
        )
        == 1
    )
    printed = capsys.readouterr()
    commands = [line for line in printed.out.splitlines() if not line.startswith('#')]
    assert len(commands) == 1 and 'tools/test.py' in commands[0] and str(tmp_path / 'resnet-18.pth') in commands[0]
    assert "there is no backbone 'nothing'" in printed.err and 'holds no file for pvt-tiny' in printed.err
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    ('launcher', 'start'),
    [
        (['pytorch', '--gpus', '8'], f'{sys.executable} -m torch.distributed.run --nproc_per_node 8 --standalone '),
        (
            ['slurm', '--gpus', '16', '--launcher-args=-p gpu --gres=gpu:8'],
            f'srun --ntasks 16 --kill-on-bad-exit=1 -p gpu --gres=gpu:8 {sys.executable} -u ',
        ),
    ],
)
def test_launchers(launcher, start, tmp_path, capsys):
    arguments = ['--backbones', 'pvt-tiny', '--work-dir', str(tmp_path), '--dry-run', '--launcher', *launcher]
    COMPARE(['run', 'detection', *arguments])
    commands = capsys.readouterr().out.partition('#!/bin/bash')[0]
    train, test = (line for line in commands.splitlines() if not line.startswith('#'))
    assert train.startswith(f'{start}{REPO}/tools/train.py') and train.endswith(f'--launcher {launcher[0]}')
    assert test.startswith(f'{start}{REPO}/tools/test.py') and test.endswith(f'--launcher {launcher[0]}')


def test_slurm_job_array_runs_one_backbone_a_task(tmp_path, capsys):
    """The printed script as Slurm would run it; on a machine without Slurm, ``srun`` fails in the end."""
    work_dir = tmp_path / 'work dir'
    launcher = ['--launcher', 'slurm', '--gpus', '2', '--launcher-args=-p gpu']
    backbones = ['--backbones', 'resnet-18', 'pvt-tiny', '--work-dir', str(work_dir)]
    COMPARE(['run', 'segmentation', *backbones, *launcher, '--dry-run'])
    printed = capsys.readouterr().out
    script = printed[printed.index('#!/bin/bash') :]
    options = [line.split(' ', 1)[1] for line in script.splitlines() if line.startswith('#SBATCH ')]
    assert options == ['--job-name=compare-segmentation', '--array=0-1', '--ntasks=2', '-p gpu']
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID='1', PATH='/usr/bin:/bin')
    done = subprocess.run(['bash'], input=script, env=environment, capture_output=True, text=True)
    if shutil.which('srun', path='/usr/bin:/bin') is None:
        assert done.returncode == 1 and "No such file or directory: 'srun'" in done.stderr
    assert [path.name for path in work_dir.iterdir()] == ['pvt-tiny']
    assert json.loads((work_dir / 'pvt-tiny/state.json').read_text())['commands'][0]['command'].startswith(
        'srun --ntasks 2 --kill-on-bad-exit=1 -p'
    )
