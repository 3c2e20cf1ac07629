"""What is read of MMEngine's work directories: runs, checkpoints, metrics, progress, the reason of a failure."""

from __future__ import annotations

import shutil
import sys

import pytest
from mmengine.config import Config
from rich.console import Console

from helpers import ITERS
from mmefficientmod.compare.results import collect
from mmefficientmod.compare.runs import Job, run_jobs
from mmefficientmod.compare.workdir import Run, last_line, saved_step, training_progress


def test_scalars_that_cannot_be_read_do_not_end_a_training(tmp_path):
    class Short(Job):
        """Another command in place of the tools."""

        def command(self, step):
            return [sys.executable, '-c', 'import time; time.sleep(1.5)']

    config = Config(dict(train_cfg=dict(max_iters=4)))
    scalars = tmp_path / 'train' / '20260101_000000' / 'vis_data' / 'scalars.json'
    scalars.mkdir(parents=True)  # reading it is an OSError
    assert run_jobs([Short('short', tmp_path, config, 'config.py')], Console(quiet=True)) == {'short': None}
    scalars.rmdir()
    scalars.write_bytes(b'{"loss": 1.0, "step": 2}\n[1]\n5\n{"loss": \xff')
    assert training_progress(tmp_path / 'train', config) == (0.5, 'iteration 2/4, loss 1.000')


def test_a_run_knows_who_it_is(work_dir, tmp_path):
    """Whatever its folders and config are called."""
    shutil.copytree(work_dir / 'resnet-18' / 'train', tmp_path / 'moved' / 'elsewhere')
    for config in (tmp_path / 'moved' / 'elsewhere').glob('*.py'):
        config.rename(config.with_name('renamed.py'))
    result = collect([tmp_path])[1]['resnet-18']
    assert result.backbone.name == 'ResNet-18'
    assert result.training.mmefficientmod.settings['train_cfg.max_iters'] == ITERS


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('one\nTraceback\nValueError: two\n', 'ValueError: two'),
        (
            '[rank0]: torch.OutOfMemoryError: CUDA\nW1122 api.py: Sending\nx.errors.ChildFailedError: \n====\n',
            '[rank0]: torch.OutOfMemoryError: CUDA',
        ),
        ('no reason\n\n', 'no reason'),
        ('', 'it printed nothing'),
    ],
)
def test_reason_of_a_failure(text, line, tmp_path):
    (tmp_path / 'log').write_text(text)
    assert last_line(tmp_path / 'log') == line
    with open(tmp_path / 'log', 'a') as file:
        begin = file.tell()
        file.write('another run, killed')
    assert last_line(tmp_path / 'log', begin) == 'another run, killed'


@pytest.mark.parametrize(('note', 'step'), [(None, 10), ('', 10), ('/elsewhere/iter_9.pth', 10), ('iter_2.pth', 2)])
def test_how_far_a_training_was_saved(note, step, tmp_path):
    """Judged by names only: a report needs no torch. A training that began again left older files of higher steps."""
    assert saved_step(tmp_path) == 0
    for name in ('iter_2.pth', 'iter_10.pth', 'best_mIoU_iter_99.pth', '.iter_12.pth'):
        (tmp_path / name).touch()
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note)
    assert saved_step(tmp_path) == step


def test_what_two_processes_wrote_into_one_file_is_read(tmp_path):
    """MMEngine's processes write a test's metrics at the same time; the end of the longer text stays behind."""
    run = tmp_path / '20261128_092300'
    (run / 'vis_data').mkdir(parents=True)
    (run / 'vis_data/config.py').write_text('')
    (run / f'{run.name}.json').write_text('{"mIoU": 24.92, "time": 0.04}}')
    assert Run(run).test_metrics() == dict(mIoU=24.92, time=0.04)
