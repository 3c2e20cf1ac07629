"""A training that is killed and resumed ends bit for bit as one that was not; real trainings, real SIGKILLs."""

from __future__ import annotations

import inspect
import re
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import IterBasedTrainLoop

from mmefficientmod.checkpoints.newest import find_newest_whole
from mmefficientmod.checkpoints.reading import read_checkpoint
from mmefficientmod.training.checks.run import check_run
from mmefficientmod.utils import UserError
from trainings import assert_equal, last_metrics

EACH = [
    ('segmentation', 0, 3),
    pytest.param('segmentation', 0, 5, marks=pytest.mark.slow),
    pytest.param('segmentation', 2, 5, marks=pytest.mark.slow),
    pytest.param('detection', 0, 5, marks=(pytest.mark.ops, pytest.mark.slow)),
    pytest.param('detection', 2, 5, marks=(pytest.mark.ops, pytest.mark.slow)),
]


@pytest.mark.parametrize(('task', 'workers', 'kills'), EACH)
def test_killed_and_resumed(task, workers, kills, training, tmp_path):
    """Several kills in one training: in iterations, while a checkpoint is written, in an evaluation."""
    run, uninterrupted = training(task, workers)
    moments = ('iteration', 'writing', 'evaluation', 'iteration', 'writing')[:kills]
    killed = sum(run.kill(tmp_path, moment, resume=number > 0) for number, moment in enumerate(moments))
    print(f'{task}, {workers} workers: {killed} of {len(moments)} kills came before the end')
    assert killed > kills / 2
    code, output = run.run(tmp_path, resume=True)
    assert code == 0, output[-3000:]
    assert_equal(tmp_path / run.last, uninterrupted / run.last)
    assert last_metrics(tmp_path) == last_metrics(uninterrupted)


@pytest.mark.slow
def test_workers_do_not_change_the_training(training):
    (run, without), (_, with_two) = training('segmentation', 0), training('segmentation', 2)
    assert_equal(without / run.last, with_two / run.last)


@pytest.mark.slow
@pytest.mark.both_stacks
@pytest.mark.ops
def test_resumed_in_the_middle_of_an_epoch(training, tmp_path):
    """A checkpoint every 2 iterations of epochs of 3, the first run stopped after 1 epoch and 1 iteration."""
    run, uninterrupted = training('detection', 0)
    options = ('default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=2')
    code, output = run.run(tmp_path / 'first', *options, 'default_hooks.checkpoint.max_keep_ckpts=9')
    assert code == 0, output[-3000:]
    (tmp_path / 'second').mkdir()
    shutil.copy(tmp_path / 'first/iter_4.pth', tmp_path / 'second')
    code, output = run.run(tmp_path / 'second', *options, resume=True)
    assert code == 0, output[-3000:]
    assert_equal(tmp_path / 'second/iter_12.pth', uninterrupted / run.last)
    assert re.search(r'Epoch\(train\) +\[2\]\[3/3\]', output), 'the loop counts on from the third batch'


@pytest.mark.both_stacks
@pytest.mark.slow
def test_without_a_seed_in_the_config(training, tmp_path):
    """The seed is drawn at the first start; a resumed run goes on with it."""
    run, _ = training('segmentation', 0)
    code, output = run.run(tmp_path / 'first', 'randomness.seed=None', 'default_hooks.checkpoint.max_keep_ckpts=9')
    assert code == 0, output[-3000:]
    (tmp_path / 'second').mkdir()
    shutil.copy(tmp_path / 'first/iter_6.pth', tmp_path / 'second')
    code, output = run.run(tmp_path / 'second', 'randomness.seed=None', resume=True)
    assert code == 0, output[-3000:]
    assert_equal(tmp_path / 'second' / run.last, tmp_path / 'first' / run.last)


@pytest.mark.both_stacks
@pytest.mark.skipif(
    'fast_forward_on_resume' not in inspect.signature(IterBasedTrainLoop).parameters,
    reason="an option of MMEngine's continuation",
)
def test_resumed_where_the_loop_does_not_skip(training, tmp_path):
    run, uninterrupted = training('segmentation', 0)
    shutil.copy(uninterrupted / 'iter_9.pth', tmp_path)
    code, output = run.run(tmp_path, 'train_cfg.fast_forward_on_resume=True', resume=True)
    assert code == 0, output[-3000:]
    assert_equal(tmp_path / run.last, uninterrupted / run.last)


def test_full_disk_leaves_the_last_checkpoint(training, tmp_path):
    run, uninterrupted = training('segmentation', 0)
    shutil.copy(uninterrupted / 'iter_9.pth', tmp_path)
    size = (tmp_path / 'iter_9.pth').stat().st_size
    options = ('default_hooks.checkpoint.max_keep_ckpts=1',)
    code, output = run.run(tmp_path, *options, resume=True, file_size=size // 2)
    last = output.strip().splitlines()[-1]
    assert code == 1 and 'Traceback' not in output, output[-3000:]
    assert f'error: checkpoint {tmp_path}/iter_12.pth cannot be written: File too large' in last and '--resume' in last
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_9.pth']
    assert find_newest_whole(tmp_path).path == str(tmp_path / 'iter_9.pth')


def test_nan_stops_the_run(training, tmp_path):
    run, uninterrupted = training('segmentation', 0)
    shutil.copy(uninterrupted / 'iter_9.pth', tmp_path)
    options = ('optim_wrapper.optimizer.lr=1e30', 'optim_wrapper.clip_grad=None', 'param_scheduler=None')
    code, output = run.run(tmp_path, *options, f'load_from={tmp_path}/iter_9.pth')
    last = output.strip().splitlines()[-1]
    assert code == 1 and 'Traceback' not in output, output[-3000:]
    assert last.startswith('error: ') and 'iteration' in last and 'Lower optim_wrapper.optimizer.lr' in last
    assert f'the last good checkpoint is {tmp_path}' in last


@pytest.fixture
def work_dir(training, tmp_path):
    """A work directory with two checkpoints of a real training."""
    _, uninterrupted = training('segmentation', 0)
    for name in ('iter_9.pth', 'iter_12.pth'):
        shutil.copy(uninterrupted / name, tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(uninterrupted / 'iter_12.pth'))
    return tmp_path


@pytest.mark.parametrize('note', [None, '', '/no/such/folder/iter_12.pth', '\0\xff' * 9])
def test_the_note_of_the_last_checkpoint_is_not_needed(note, work_dir):
    (work_dir / 'last_checkpoint').unlink()
    if note is not None:
        (work_dir / 'last_checkpoint').write_text(note)
    assert find_newest_whole(work_dir) == (str(work_dir / 'iter_12.pth'), [])


def test_damaged_checkpoints_are_passed_over(work_dir):
    whole = (work_dir / 'iter_12.pth').read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged, reason in ((b'', 'truncated'), (whole[:-1000], 'truncated'), (bytes(flipped), 'is damaged: ')):
        (work_dir / 'iter_12.pth').write_bytes(damaged)
        choice = find_newest_whole(work_dir)
        assert choice.path == str(work_dir / 'iter_9.pth')
        assert len(choice.notes) == 1 and 'iter_12.pth' in choice.notes[0] and reason in choice.notes[0]


def test_damaged_checkpoints_are_never_overwritten_by_a_new_start(work_dir):
    for path in work_dir.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(UserError, match=r'no checkpoint in .* can be resumed from .*iter_12.pth.*; name|remove'):
        find_newest_whole(work_dir)


def test_folders_of_a_sharded_training_are_not_said_to_be_missing(tmp_path):
    """FSDP, where each process writes its part, and DeepSpeed write a folder in place of a file."""
    (tmp_path / 'epoch_1.pth').mkdir()
    with pytest.raises(UserError, match=r'epoch_1\.pth is a folder of a sharded training: name it with --resume'):
        find_newest_whole(tmp_path)
    check_run('train', Config(dict(resume=True, load_from=str(tmp_path / 'epoch_1.pth'))))


def test_weights_alone_are_no_checkpoint_to_resume_from(work_dir):
    checkpoint = read_checkpoint(str(work_dir / 'iter_12.pth'))
    torch.save({'state_dict': checkpoint['state_dict'], 'meta': checkpoint['meta']}, work_dir / 'iter_99.pth')
    choice = find_newest_whole(work_dir)
    assert choice.path == str(work_dir / 'iter_12.pth') and 'iter_99.pth holds no message_hub' in choice.notes[0]


def test_checkpoints_kept_elsewhere_are_found(work_dir, tmp_path_factory):
    """CheckpointHook's ``out_dir`` puts them there."""
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    for path in work_dir.glob('*.pth'):
        shutil.move(str(path), str(elsewhere))  # Python 3.8 moves no Path
    (work_dir / 'last_checkpoint').write_text(str(elsewhere / 'iter_9.pth'))
    assert find_newest_whole(work_dir).path == str(elsewhere / 'iter_12.pth')


def test_an_empty_folder_starts_from_the_beginning(tmp_path):
    choice = find_newest_whole(tmp_path)
    assert choice.path is None and 'the training starts from the beginning' in choice.notes[0]
