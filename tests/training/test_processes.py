"""Two processes on a CPU, connected by gloo: what they compute together, resuming, and the death of one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import REPO
from mmefficientmod.checkpoints.reading import read_checkpoint
from mmefficientmod.compare.workdir import Run, find_runs
from mmefficientmod.training.cpu import SHARDS_ON_CPU
from scenes import make_dataset

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU, MMEngine connects the processes itself')
CONFIG = REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'
OPTIONS = [
    *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
    *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')),
    *('randomness.seed=7', 'randomness.deterministic=True', 'model.decode_head.norm_cfg.type=SyncBN'),
    *('train_dataloader.batch_size=2', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4'),
    *('default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1'),
]
GLOO = 'env_cfg.dist_cfg.backend=gloo'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """The data: five images to train on and three to validate on, which two processes cannot share evenly."""
    root = tmp_path_factory.mktemp('processes')
    make_dataset(root / 'data', train_images=5, val_images=3, size=(128, 96))
    yield root
    shutil.rmtree(root)


def start(command: list, root: Path, output: Path) -> subprocess.Popen:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    environment = dict(
        os.environ,
        DEMO_ROOT=str(root),
        PYTHONPATH=f'{REPO}:{REPO / "tests"}',
        OMP_NUM_THREADS='1',
        PORT=port,
        PATH=path,
    )
    with open(output, 'w') as file:
        return subprocess.Popen(
            [*map(str, command)],
            env=environment,
            cwd=root,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(command: list, root: Path) -> tuple[int, str]:
    output = root / 'output'
    try:
        code = start(command, root, output).wait(timeout=400)
    finally:
        text = output.read_text()
    return code, text


def train(
    root: Path, work_dir: Path, *arguments: str, config: Path = CONFIG, options: tuple = (GLOO,)
) -> tuple[int, str]:
    script = ['bash', REPO / 'tools/dist_train.sh', config, 2, '--work-dir', work_dir, *arguments]
    return run([*script, '--cfg-options', *OPTIONS, *options], root)


def test_gradients_are_those_of_one_process_with_the_whole_batch(root):
    """In double precision, synchronised batch norm included."""
    script = REPO / 'tests/training/gradients_of_processes.py'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', 2, script, 'SyncBN']
    code, output = run(command, root)
    assert code == 0, output[-3000:]
    assert output.count('rank ') == 2
    print([line for line in output.splitlines() if line.startswith('rank ')])


@pytest.mark.slow
def test_a_signal_to_the_job_saves_the_state_of_all_processes(root, tmp_path):
    """They agree on the iteration after which they end: a process never waits for one that has gone."""
    options = (GLOO, 'train_cfg.max_iters=8')
    code, output = train(root, tmp_path / 'whole', options=options)
    assert code == 0, output[-3000:]
    script = ['bash', REPO / 'tools/dist_train.sh', CONFIG, 2, '--work-dir', tmp_path / 'stopped']
    process = start([*script, '--cfg-options', *OPTIONS, *options], root, root / 'output')
    while 'Iter(train) [2/8]' not in (root / 'output').read_text() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(120) != 0
    output = (root / 'output').read_text()
    assert 'go on with:' in output and 'the command that started it, with --resume' in output, output[-3000:]
    code, output = train(root, tmp_path / 'stopped', '--resume', options=options)
    assert code == 0 and 'resumed epoch: 0, iter: ' in output, output[-3000:]
    one, other = (read_checkpoint(f'{tmp_path}/{name}/iter_8.pth')['state_dict'] for name in ('whole', 'stopped'))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_training_resuming_and_evaluating(root, tmp_path):
    code, output = train(root, tmp_path / 'whole')
    assert code == 0, output[-3000:]
    assert 'strides do not match' not in output  # DDP's warning about gradients that it has to copy

    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'whole/iter_2.pth', tmp_path / 'resumed')
    code, output = train(root, tmp_path / 'resumed', '--resume')
    assert code == 0, output[-3000:]
    one, other = (read_checkpoint(f'{tmp_path}/{name}/iter_4.pth')['state_dict'] for name in ('whole', 'resumed'))
    assert all(torch.equal(value, other[name]) for name, value in one.items())

    checkpoint, metrics = tmp_path / 'whole/iter_4.pth', []
    for name, command in {
        'one': [sys.executable, REPO / 'tools/test.py', CONFIG, checkpoint],
        'two': ['bash', REPO / 'tools/dist_test.sh', CONFIG, checkpoint, 2],
    }.items():
        code, output = run([*command, '--work-dir', tmp_path / name, '--cfg-options', *OPTIONS, GLOO], root)
        assert code == 0, output[-3000:]
        (folder,) = find_runs(tmp_path / name)
        metrics.append({key: value for key, value in Run(folder).test_metrics().items() if 'time' not in key})
    assert metrics[0] == metrics[1] and 'mIoU' in metrics[0]


def flexible_config(path: Path, strategy: dict) -> Path:
    """Writes the demo's config for MMEngine's FlexibleRunner with this strategy."""
    path.write_text(f'_base_ = {str(CONFIG)!r}\nrunner_type = "FlexibleRunner"\nstrategy = {strategy}\n')
    return path


SHARDED = dict(type='mmefficientmod.FSDPStrategy')


@pytest.mark.skipif(SHARDS_ON_CPU, reason='this torch can do it')
def test_sharded_training_is_refused_where_torch_cannot(root, tmp_path):
    code, output = train(root, tmp_path / 'run', config=flexible_config(tmp_path / 'sharded.py', SHARDED))
    assert code != 0 and 'error: torch 2.1' in output and 'cannot share weights out among processes on a CPU' in output


@pytest.mark.slow
@pytest.mark.skipif(not SHARDS_ON_CPU, reason='this torch refuses it on a CPU')
def test_sharded_training(root, tmp_path):
    """MMEngine's FlexibleRunner with FSDP: the losses of DDP, one whole checkpoint, from which it goes on exactly."""
    ddp = dict(type='mmefficientmod.CpuDistributedDataParallel', broadcast_buffers=False)
    strategies = dict(sharded=SHARDED, whole=dict(type='DDPStrategy', model_wrapper=ddp))
    options = (GLOO, 'model.decode_head.norm_cfg.type=BN')
    losses = []
    for name, strategy in strategies.items():
        config = flexible_config(tmp_path / f'{name}.py', strategy)
        code, output = train(root, tmp_path / name, config=config, options=options)
        assert code == 0, output[-3000:]
        (scalars,) = (tmp_path / name).glob('*/vis_data/scalars.json')
        lines = [json.loads(line) for line in scalars.read_text().splitlines()]
        losses.append([line['loss'] for line in lines if 'loss' in line])
    print('losses of FSDP and DDP', losses)
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-3)  # Adam magnifies rounding

    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'sharded/iter_2.pth', tmp_path / 'resumed')
    code, output = train(root, tmp_path / 'resumed', '--resume', config=tmp_path / 'sharded.py', options=options)
    assert code == 0, output[-3000:]
    one, other = (read_checkpoint(f'{tmp_path}/{name}/iter_4.pth')['state_dict'] for name in ('sharded', 'resumed'))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    whole = read_checkpoint(f'{tmp_path}/whole/iter_4.pth')['state_dict']
    shapes = {name: value.shape for name, value in one.items()}
    assert shapes == {name[len('module.') :]: value.shape for name, value in whole.items()}  # as DDPStrategy names them

    command = [sys.executable, REPO / 'tools/test.py', CONFIG, tmp_path / 'sharded/iter_4.pth']
    code, output = run([*command, '--work-dir', tmp_path / 'test', '--cfg-options', *OPTIONS], root)
    assert code == 0 and 'mIoU' in output, output[-3000:]


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_job(root, tmp_path):
    script = ['bash', REPO / 'tools/dist_train.sh', CONFIG, 2, '--work-dir', tmp_path / 'run']
    output = tmp_path / 'output'
    job = start([*script, '--cfg-options', *OPTIONS, GLOO, 'train_cfg.max_iters=10000'], root, output)
    end = time.monotonic() + 300
    while not re.search(r'\(train\) \[ *2/', output.read_text()):
        assert job.poll() is None and time.monotonic() < end, output.read_text()[-3000:]
        time.sleep(0.1)
    # bash has replaced itself with the launcher, whose children are the two processes
    children = Path(f'/proc/{job.pid}/task/{job.pid}/children').read_text().split()
    workers = [pid for pid in children if b'LOCAL_RANK=1\0' in Path(f'/proc/{pid}/environ').read_bytes()]
    assert len(workers) == 1
    begin = time.monotonic()
    os.kill(int(workers[0]), signal.SIGKILL)
    code = job.wait(timeout=120)
    print(f'ended {time.monotonic() - begin:.0f} s after the death of one process, with code {code}')
    assert code != 0
    for pid in children:
        assert not Path(f'/proc/{pid}').exists()


@pytest.mark.slow
def test_without_a_gpu_the_backend_has_to_be_gloo(root, tmp_path):
    code, output = train(root, tmp_path, options=())
    line = 'error: this machine has no GPU: add --cfg-options env_cfg.dist_cfg.backend=gloo'
    assert code != 0 and line in output and not list(tmp_path.iterdir())


def test_command_for_slurm(tmp_path):
    """What the script asks of srun, of which a recorder stands in the path: the real one needs a cluster."""
    recorder = tmp_path / 'srun'
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    recorder.chmod(0o755)
    script = REPO / 'tools/slurm_train.sh'
    environment = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='16', SRUN_ARGS='--time 60 --mem 0')
    done = subprocess.run(
        ['bash', script, 'short', 'name', 'a config.py', '--resume'], env=environment, capture_output=True, text=True
    )
    size = ['--ntasks', '16', '--ntasks-per-node', '8', '--gres', 'gpu:8', '--cpus-per-task', '5']
    command = ['python', '-u', str(REPO / 'tools/train.py'), 'a config.py', '--launcher', 'slurm', '--resume']
    asked = ['--partition', 'short', '--job-name', 'name', *size, '--kill-on-bad-exit=1', '--time', '60', '--mem', '0']
    assert done.returncode == 0 and done.stdout.splitlines() == [*asked, *command]
    short = subprocess.run(['bash', script, 'short', 'name'], env=environment, capture_output=True, text=True)
    assert short.returncode == 2 and short.stderr.startswith('usage: ')
