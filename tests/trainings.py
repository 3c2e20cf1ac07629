"""Small deterministic trainings of the demo's configs by tools/train.py, to be stopped, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from helpers import REPO
from interpreter import run_python
from mmefficientmod.checkpoints.reading import read_checkpoint

TRAIN = REPO / 'tools/train.py'
TASKS = {
    'detection': (
        'mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py',
        'epoch_4.pth',
        ('train_cfg.max_epochs=4', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1'),
    ),
    'segmentation': (
        'fpn_efficientmod-xxs_1xb8-200_demo-192x256.py',
        'iter_12.pth',
        ('train_cfg.max_iters=12', 'train_cfg.val_interval=3', 'default_hooks.checkpoint.interval=3'),
    ),
}


class Training:
    """A small deterministic training by tools/train.py.

    Args:
        root (Path): Holds the data.
        task (str): A key of ``TASKS``.
        workers (int): Number of processes that load data.
    """

    def __init__(self, root: Path, task: str, workers: int) -> None:
        self.root, self.task, self.workers = root, task, workers
        config, self.last, lengths = TASKS[task]
        self.config = REPO / 'demo/configs' / config
        self.environment = dict(os.environ, DEMO_ROOT=str(root), PYTHONPATH=str(REPO), OMP_NUM_THREADS='1')
        self.options = [
            *('--cfg-options', *lengths, 'train_dataloader.batch_size=2', 'model.backbone.init_cfg=None'),
            f'train_dataloader.num_workers={workers}',
            f'train_dataloader.persistent_workers={workers > 0}',
            *('val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False'),
            *('randomness.seed=7', 'randomness.deterministic=True', 'model.backbone.drop_path_rate=0.2'),
            *('default_hooks.logger.interval=1', 'default_hooks.checkpoint.max_keep_ckpts=2'),
        ]

    def command(
        self, work_dir: Path, *more: str, resume: bool | Path = False, config: Path | None = None, script: Path = TRAIN
    ) -> list[str]:
        """The command line; ``more`` are overrides of the config, ``resume`` may be the checkpoint."""
        resuming = ['--resume', *([str(resume)] if resume is not True else [])] if resume else []
        arguments = ['--work-dir', str(work_dir), *resuming, *self.options, *more]
        return [sys.executable, str(script), str(config or self.config), *arguments]

    def start(self, work_dir: Path, *more: str, **how) -> subprocess.Popen:
        """Starts the training; what it prints goes to ``output`` in its work directory."""
        work_dir.mkdir(exist_ok=True)
        with open(work_dir / 'output', 'w') as output:
            return subprocess.Popen(
                self.command(work_dir, *more, **how),
                env=self.environment,
                cwd=self.root,
                start_new_session=True,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, work_dir: Path, *more: str, file_size: int | None = None, **how) -> tuple[int, str]:
        """Runs the training to its end: exit code and output."""
        work_dir.mkdir(exist_ok=True)
        return self._run(self.command(work_dir, *more, **how), file_size)

    def _run(self, command: list[str], file_size: int | None = None) -> tuple[int, str]:
        done = run_python(*command[1:], env=self.environment, cwd=self.root, file_size=file_size)
        return done.returncode, done.stdout + done.stderr

    def test(self, checkpoint: Path, work_dir: Path) -> tuple[int, str]:
        """Tests a checkpoint with tools/test.py."""
        loading = ('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')
        operands = [str(self.config), str(checkpoint), '--work-dir', str(work_dir), *self.options, *loading]
        return self._run([sys.executable, str(REPO / 'tools/test.py'), *operands])

    def interrupt(self, work_dir: Path, moment: str, number: int, *more: str, **how) -> tuple[int, str]:
        """Sends a signal to the whole process group, as a terminal and Slurm do, once ``moment`` was printed."""
        with self.start(work_dir, *more, **how) as process:
            end = time.monotonic() + 300
            while moment not in (work_dir / 'output').read_text() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            assert process.poll() is None, f'it ended before {moment!r}'
            os.killpg(process.pid, number)
            code = process.wait(timeout=300)
        return code, (work_dir / 'output').read_text()

    def kill(self, work_dir: Path, moment: str, resume: bool) -> bool:
        """Starts or resumes the training and sends SIGKILL to all of its processes; whether it was still running."""
        reached = {
            'iteration': lambda: '(train)' in (work_dir / 'output').read_text(),
            'writing': lambda: any(work_dir.glob('.*.pth')),
            'evaluation': lambda: '(val)' in (work_dir / 'output').read_text(),
        }[moment]
        process = self.start(work_dir, resume=resume)
        end = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < end and not reached():
            time.sleep(0.0005 if moment == 'writing' else 0.02)
        time.sleep(random.uniform(0, {'iteration': 3, 'writing': 0.01, 'evaluation': 0.3}[moment]))
        alive = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return alive


def flatten(node: object, place: str = '') -> dict:
    """Dotted place -> value, of everything in nested dicts and lists."""
    if isinstance(node, (dict, list, tuple)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {key: value for name, child in items for key, value in flatten(child, f'{place}.{name}').items()}
    return {place: node}


def content(path: Path) -> dict:
    """Weights, optimizer and schedules of a checkpoint."""
    checkpoint = read_checkpoint(str(path))
    return flatten({key: checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers')})


def assert_equal(path: Path, expected: Path) -> None:
    one, other = content(path), content(expected)
    assert one.keys() == other.keys()
    different = [
        key
        for key, value in one.items()
        if not (torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key])
    ]
    assert not different, f'{len(different)} of {len(one)} differ: {different[:3]}'


def last_metrics(work_dir: Path) -> dict:
    """The metrics of the newest validation, without times."""
    lines = [json.loads(line) for file in sorted(work_dir.glob('*/vis_data/scalars.json')) for line in file.open()]
    metrics = [line for line in lines if any('mAP' in key or 'mIoU' in key for key in line)][-1]
    return {key: value for key, value in metrics.items() if 'time' not in key}
