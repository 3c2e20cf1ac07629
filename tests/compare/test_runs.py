"""`compare run` survives a kill and a failing backbone, and loses nothing of what is there."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from helpers import ITERS, REPO, ended, load_tool, make_run, refused, state_of
from interpreter import run_python
from mmefficientmod.compare.runs import Job, Launcher
from mmefficientmod.compare.state import State
from mmefficientmod.compare.table import compare
from mmefficientmod.utils import UserError
from mmefficientmod.zoo.backbones import task_backbones
from mmefficientmod.zoo.tasks import TASKS

COMPARE = load_tool('compare').main


TOOL = str(REPO / 'tools' / 'compare.py')


def test_killed_and_started_again(killed, work_dir):
    assert killed['done'] == [] and killed['commands'][-1]['ended'] is None
    state = state_of(work_dir, 'resnet-18')
    assert state['done'] == ['train', 'test'] and state['error'] is None
    train, resumed, test = state['commands']
    assert train == killed['commands'][0] and '--resume' not in train['command']
    assert resumed['command'] == f'{train["command"]} --resume' and resumed['exit_code'] == 0
    assert 'tools/test.py' in test['command'] and f'iter_{ITERS}.pth' in test['command']
    runs = sorted((work_dir / 'resnet-18' / 'train').glob('*/vis_data/scalars.json'))
    steps = [[json.loads(line)['step'] for line in run.read_text().splitlines() if '"loss"' in line] for run in runs]
    assert len(runs) == 2 and steps[0][0] == 1 and steps[1][0] > 1 and steps[1][-1] == ITERS  # not from the start
    assert set(steps[0] + steps[1]) == set(range(1, ITERS + 1))


def test_a_failing_backbone_is_recorded_and_the_rest_goes_on(work_dir):
    state = state_of(work_dir, 'efficientmod-xxs')
    assert state['done'] == [] and 'train.log' in state['error']
    assert "unexpected keyword argument 'depth'" in state['error']
    assert [entry['exit_code'] for entry in state['commands']] == [1]


def test_what_is_done_is_skipped(arguments, work_dir, capsys):
    before = state_of(work_dir, 'resnet-18')
    COMPARE([*arguments, '--backbones', 'resnet-18'])
    printed = capsys.readouterr().out
    assert 'resnet-18: train is done already' in printed and 'resnet-18: test is done already' in printed
    assert shlex.split(printed.splitlines()[-1])[-2:] == ['report', str(work_dir)]  # its name has spaces
    assert state_of(work_dir, 'resnet-18') == before


def test_other_settings_need_another_folder(arguments, work_dir, capsys):
    before = state_of(work_dir, 'resnet-18')
    assert ended(COMPARE, *arguments, '--backbones', 'resnet-18', '--seed', '8') == 1
    assert 'holds a run of resnet-18 with other settings: name another --work-dir' in capsys.readouterr().err
    assert state_of(work_dir, 'resnet-18') == before
    assert Config.fromfile(next((work_dir / 'resnet-18').glob('fpn_*.py'))).randomness.seed == 7


def test_a_backbone_in_use_is_left_alone(arguments, work_dir):
    """What outlives a killed `compare run`, or a second one, holds the lock."""
    job = Job('resnet-18', work_dir / 'resnet-18', Config(), '')
    with job.lock(wait=False) as mine:
        holder = subprocess.Popen(['sleep', '60'], pass_fds=[mine])
    try:
        with job.lock(wait=False) as theirs:
            assert mine is not None and theirs is None
    finally:
        holder.kill()
        holder.wait()
    with job.lock(wait=False) as mine:
        assert mine is not None


@pytest.mark.slow
def test_sigterm_leaves_nothing_behind(arguments, start_training, tmp_path):
    """Not even data loading processes, which would hold the lock for some seconds."""
    more = ['--workers', '1', '--backbones', 'resnet-18', '--work-dir', str(tmp_path)]
    process, _ = start_training([*arguments, *more], tmp_path / 'resnet-18')
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    with Job('resnet-18', tmp_path / 'resnet-18', Config(), '').lock(wait=False) as lock:
        assert lock is not None


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def run_limited(arguments: list[str], size: int) -> subprocess.CompletedProcess:
    """`compare run` with a limit on the size of files."""
    return run_python(TOOL, *arguments, file_size=size)


@pytest.fixture
def moved(arguments, work_dir, tmp_path) -> tuple[list[str], Path]:
    """The finished backbone in another place, and the command that names it."""
    shutil.copytree(work_dir / 'resnet-18', tmp_path / 'moved' / 'resnet-18')
    return [*arguments, '--backbones', 'resnet-18', '--work-dir', str(tmp_path / 'moved')], tmp_path / 'moved'


def test_a_moved_folder_is_known_again(moved, capsys):
    arguments, folder = moved
    before = snapshot(folder)
    COMPARE(arguments)
    assert 'resnet-18: test is done already' in capsys.readouterr().out and snapshot(folder) == before


@pytest.mark.slow
def test_a_moved_run_that_is_not_finished_goes_on_where_it_is(moved):
    """The last checkpoint's note names the old place."""
    arguments, folder = moved
    state = json.loads((folder / 'resnet-18' / 'state.json').read_text())
    (folder / 'resnet-18' / 'state.json').write_text(json.dumps({**state, 'done': ['train']}))
    COMPARE(arguments)
    test = state_of(folder, 'resnet-18')['commands'][-1]
    assert test['step'] == 'test' and f'{folder}/resnet-18/train/iter_{ITERS}.pth' in test['command']


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        ('state.json', '{"name": ', 'is not a JSON file that can be read (JSONDecodeError'),
        ('state.json', '{"name": "resnet-18", "stages": []}', 'is not of this tool (TypeError): delete the folder'),
        ('state.json', '{"row": "resnet-18", "done": []}', 'is not of this tool (TypeError): delete the folder'),
        ('CONFIG', 'model = dict(', 'cannot be read: SyntaxError'),
        ('CONFIG', 'model = missing', 'cannot be read: NameError'),
    ],
)
def test_files_edited_by_hand_are_named_and_nothing_is_lost(file, content, message, moved, capsys):
    """An older version's ``state.json`` among them."""
    arguments, folder = moved
    path = next((folder / 'resnet-18').glob('fpn_*.py')) if file == 'CONFIG' else folder / 'resnet-18' / file
    path.write_text(content)
    before = snapshot(folder)
    assert ended(COMPARE, *arguments) == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if line.strip().startswith('resnet-18: '))
    assert message in line and str(path) in line
    assert snapshot(folder) == before


def test_a_full_disk_before_the_start(arguments, tmp_path):
    done = run_limited([*arguments, '--backbones', 'resnet-18', '--work-dir', str(tmp_path)], 4000)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert f"resnet-18: OSError: [Errno 27] File too large: '{tmp_path}/resnet-18/fpn_" in done.stderr
    assert [path.name for path in (tmp_path / 'resnet-18').iterdir()] == ['.lock']


def test_a_full_disk_beside_a_finished_run(moved):
    arguments, folder = moved
    before = snapshot(folder)
    assert run_limited(arguments, 4000).returncode == 1
    assert snapshot(folder) == before


def test_a_folder_that_cannot_be_written(arguments, work_dir, tmp_path):
    (tmp_path / 'file').touch()
    place = str(tmp_path / 'file' / 'below')
    reason = f' {place} cannot be written: {tmp_path}/file is not a folder. Name another folder'
    assert refused(COMPARE, *arguments, '--work-dir', place) == f'error: --work-dir{reason}'
    assert refused(COMPARE, 'report', work_dir, '--out', place) == f'error: --out{reason}'


def test_a_training_continued_by_another_number_of_processes(tmp_path):
    """It is refused, and a report of one says it."""
    config, folder = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config), tmp_path / 'resnet-18'
    job = Job('resnet-18', folder, config, 'config.py', launcher=Launcher('pytorch', 4))
    state = State('resnet-18', commands=[dict(step='train', processes=8, command='', started='')])
    (folder / 'train').mkdir(parents=True)
    state.write(folder)
    job.prepare()  # nothing of the training is left
    (folder / 'train' / 'iter_4000.pth').touch()
    with pytest.raises(UserError, match='holds a training with 8 processes, not 4: continue it with --gpus 8, or'):
        job.prepare()
    state.done.append('train')
    state.write(folder)
    job.prepare()
    make_run(folder / 'train', '20260101_000000', config, '{"loss": 2, "step": 100}\n', 'GPU number: 8\n')
    config.resume = True
    make_run(folder / 'train', '20260102_000000', config, '{"mIoU": 32, "step": 40000}\n', 'GPU number: 4\n')
    assert 'trained with 8 and 4 processes in turn' in compare([tmp_path]).warnings[0]


def test_a_system_without_sighup():
    code = 'import runpy, signal, sys; del signal.SIGHUP; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], {}, '
    command = [sys.executable, '-c', f"{code}'__main__')", TOOL, '--help']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
