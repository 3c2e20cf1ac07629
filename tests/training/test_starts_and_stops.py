"""What a run reads when it starts, and what it keeps: the tables in docs/reliability.md, with real runs."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from helpers import REPO
from mmefficientmod.checkpoints.reading import read_checkpoint
from mmefficientmod.codebases.packages import find_shipped
from mmefficientmod.training.interrupt import resume_command, set_command
from mmefficientmod.training.lock import lock_work_dir
from mmefficientmod.training.start import choose_start
from mmefficientmod.utils import UserError
from trainings import TASKS, assert_equal, last_metrics

SEGMENTATION = REPO / 'demo/configs' / TASKS['segmentation'][0]
KEEP = 'default_hooks.checkpoint.max_keep_ckpts=9'


@pytest.fixture
def stopped(training, tmp_path):
    """A segmentor's training, the work directory of one that was not stopped, and one stopped after 9 of 12."""
    run, uninterrupted = training('segmentation', 0)
    (tmp_path / 'run').mkdir()
    for name in ('iter_9.pth', 'validated.json'):
        shutil.copy(uninterrupted / name, tmp_path / 'run')
    return run, uninterrupted, tmp_path / 'run'


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


# --- where a run starts ---


@pytest.fixture
def fine_tuning(stopped, tmp_path):
    """A config that names a finished run's checkpoint in ``load_from``."""
    config = tmp_path / 'fine_tuning.py'
    config.write_text(f"_base_ = '{SEGMENTATION}'\nload_from = '{stopped[1]}/iter_12.pth'\n")
    return config


OWN_SCRIPT = pytest.param('own', marks=pytest.mark.slow)


@pytest.mark.parametrize('script', ['tools/train.py', OWN_SCRIPT])
def test_the_work_directory_comes_before_load_from(script, stopped, fine_tuning):
    """MMSegmentation's script keeps ``load_from`` with ``--resume``, and MMEngine resumes from there."""
    run, uninterrupted, work_dir = stopped
    path = REPO / script if script != 'own' else Path(find_shipped('mmseg', 'tools/train.py'))
    code, output = run.run(work_dir, resume=True, config=fine_tuning, script=path)
    assert code == 0, output[-3000:]
    assert f'resuming from {work_dir}/iter_9.pth' in output and 'resumed epoch: 0, iter: 9' in output
    assert_equal(work_dir / run.last, uninterrupted / run.last)
    assert last_metrics(work_dir) == last_metrics(uninterrupted)
    assert 'was validated before the stop' in output and output.count('Iter(val) [1/3]') <= 1, 'only iteration 12'


def test_a_first_start_with_resume_takes_the_weights_of_load_from(stopped, fine_tuning, tmp_path):
    """As scripts that requeue a job start it."""
    run, uninterrupted, _ = stopped
    options = ('train_cfg.max_iters=1', 'train_cfg.val_interval=9')
    losses = []
    for resume in (True, False):
        code, output = run.run(tmp_path / f'new-{resume}', *options, resume=resume, config=fine_tuning)
        assert code == 0 and f'Load checkpoint from {uninterrupted}/iter_12.pth' in output, output[-3000:]
        losses.append(re.search(r'Iter\(train\) \[1/1\].* loss: ([\d.]+)', output)[1])
        assert ('holds no checkpoint: starting at iteration 0 with the weights of' in output) == resume
        assert 'resumed epoch' not in output
    assert losses[0] == losses[1]


@pytest.fixture
def files(stopped, tmp_path):
    """A work directory with a checkpoint, an empty one, and further checkpoints: of a training, and only weights."""
    _, uninterrupted, work_dir = stopped
    checkpoint = read_checkpoint(str(uninterrupted / 'iter_12.pth'))
    torch.save(dict(state_dict=checkpoint['state_dict']), tmp_path / 'weights.pth')
    return dict(
        run=str(work_dir),
        empty=str(tmp_path / 'empty'),
        newest=f'{work_dir}/iter_9.pth',
        state=f'{uninterrupted}/iter_12.pth',
        weights=str(tmp_path / 'weights.pth'),
    )


@pytest.mark.parametrize('kept_by_the_script', [True, False])  # MMSegmentation's keeps load_from, the others do not
@pytest.mark.parametrize(
    ('work_dir', 'written', 'command', 'resume', 'start'),
    [
        # nothing is to be resumed
        ('run', dict(load_from='state'), None, False, 'state'),
        ('run', {}, None, False, None),
        # --resume
        ('run', {}, {}, True, 'newest'),
        ('run', dict(load_from='state'), {}, True, 'newest'),
        ('run', dict(load_from='weights'), {}, True, 'newest'),
        ('empty', {}, {}, False, None),
        ('empty', dict(load_from='state'), {}, False, 'state'),
        ('empty', dict(load_from='weights'), {}, False, 'weights'),
        # --resume PATH
        ('run', dict(load_from='weights'), dict(resumed='state'), True, 'state'),
        ('empty', dict(load_from='state'), dict(resumed='state'), True, 'state'),
        # --resume --cfg-options load_from=PATH
        ('run', dict(load_from='weights'), dict(loaded='state'), True, 'state'),
        ('run', {}, dict(loaded='weights'), True, 'newest'),
        ('empty', {}, dict(loaded='weights'), False, 'weights'),
        # resume=True in the config, which MMSegmentation's script overwrites
        ('run', dict(resume=True), None, True, 'newest'),
        ('run', dict(resume=True, load_from='state'), None, True, 'newest'),
        ('empty', dict(resume=True, load_from='state'), None, True, 'state'),
        ('empty', dict(resume=True), None, False, None),
    ],
)
def test_where_a_run_starts(work_dir, written, command, resume, start, kept_by_the_script, files):
    written = {key: files.get(value, value) for key, value in written.items()}
    named = {key: files[value] for key, value in (command or {}).items()}
    config = Config(dict(resume=command is not None, work_dir=files[work_dir], load_from=written.get('load_from')))
    if command is None:
        config.resume = written.get('resume', False) and not kept_by_the_script
    elif kept_by_the_script:
        config.load_from = named.get('loaded', config.load_from)
    else:
        config.load_from = named.get('resumed')
    choose_start(config, written, **named)
    assert (config.resume, config.get('load_from')) == (resume, files.get(start))


def test_weights_that_the_command_line_names_cannot_be_resumed(files):
    config = Config(dict(resume=True, work_dir=files['run'], load_from=files['weights']))
    with pytest.raises(UserError, match=r'weights\.pth holds no meta.*leave out --resume: --cfg-options load_from='):
        choose_start(config, {}, resumed=files['weights'])


@pytest.mark.parametrize('form', ['--resume PATH', '--resume=PATH'])
def test_resume_takes_a_path_in_mmsegmentation_too(form, stopped, tmp_path):
    """Its own script refuses one; messages name the option for every codebase."""
    run, _, work_dir = stopped
    how = dict(resume=work_dir / 'iter_9.pth') if ' ' in form else {}
    (tmp_path / 'other').mkdir()
    command = run.command(tmp_path / 'other', 'train_cfg.max_iters=10', **how)
    if '=' in form:
        command.insert(3, f'--resume={work_dir}/iter_9.pth')
    code, output = run._run(command)
    assert code == 0, output[-3000:]
    assert f'resuming from {work_dir}/iter_9.pth' in output and 'resumed epoch: 0, iter: 9' in output


# --- settings ---


def rates(output: str) -> list[str]:
    return re.findall(r'Iter\(train\) .*?lr: ([\d.e-]+)', output)


def test_settings_without_effect_are_named(stopped):
    run, _, work_dir = stopped
    options = (
        *('optim_wrapper.optimizer.lr=5e-4', 'optim_wrapper.optimizer.weight_decay=0.1', 'param_scheduler.1.end=300'),
        *('train_cfg.max_iters=10', 'train_dataloader.batch_size=4', 'auto_scale_lr.enable=True'),
    )
    code, output = run.run(work_dir, *options, resume=True)
    assert code == 0, output[-3000:]
    line = next(line for line in output.splitlines() if 'those of the checkpoint' in line)
    for part in (
        'optim_wrapper.optimizer.lr=0.00025 (0.001 in the checkpoint)',  # scaled: 4 images in place of 8
        'optim_wrapper.optimizer.weight_decay=0.1 (0.0001 in the checkpoint)',
        'param_scheduler.1.end=300 (200 in the checkpoint)',
        'auto_scale_lr included',
        '--cfg-options default_hooks.exact_resume.new_schedule=True',
        f'--cfg-options load_from={work_dir}/iter_9.pth, without --resume',
    ):
        assert part in line, part
    assert rates(output) == ['5.2632e-04'], 'the rate of the checkpoint: 1e-3 in the warm-up of 20 iterations'


def test_a_new_schedule_takes_effect(stopped):
    """Half the rate gives half the rate, at the same place in the schedule; the momenta stay."""
    run, _, work_dir = stopped
    options = ('optim_wrapper.optimizer.lr=5e-4', 'default_hooks.exact_resume.new_schedule=True')
    code, output = run.run(work_dir, *options, 'train_cfg.max_iters=10', resume=True)
    assert code == 0 and 'those of the checkpoint' not in output, output[-3000:]
    assert rates(output) == ['2.6316e-04']
    assert 'step' in str(read_checkpoint(str(work_dir / 'iter_10.pth'))['optimizer']['state'][0].keys())


def write_config(folder: Path, settings: str) -> Path:
    """The demo's config with other settings."""
    path = folder / 'other.py'
    path.write_text(f"_base_ = '{SEGMENTATION}'\n{settings}\n")
    return path


WARM_UP = "param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=9)]"


def test_a_schedule_that_ends_before_the_training_is_named(stopped, tmp_path):
    run, _, work_dir = stopped
    options = ('default_hooks.exact_resume.new_schedule=True', 'train_cfg.max_iters=10')
    code, output = run.run(work_dir, *options, resume=True, config=write_config(tmp_path, WARM_UP))
    assert code == 0 and 'the schedules end at iteration 9 of 10' in output, output[-3000:]
    assert rates(output) == ['1.0000e-03']


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        (
            "optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9))",
            r"the config's optimizer is not of the checkpoint's kind; a fresh optimizer at iteration 0",
        ),
        (WARM_UP, r'the config has 1 schedules \(param_scheduler\), the checkpoint 2; .*new_schedule=True'),
        (
            "param_scheduler = [dict(type='MultiStepLR', milestones=[9]), dict(type='MultiStepLR', milestones=[9])]",
            r"param_scheduler\.0 is not of the checkpoint's kind; .*new_schedule=True",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused(settings, said, stopped, tmp_path):
    run, _, work_dir = stopped
    code, output = run.run(work_dir, resume=True, config=write_config(tmp_path, settings))
    assert code == 1 and 'Traceback' not in output, output[-3000:]
    assert re.match(rf'error: .*iter_9\.pth cannot be resumed: {said}', last_line(output)), last_line(output)


# --- validations ---


@pytest.mark.slow
def test_a_validation_that_was_done_is_not_repeated_even_with_other_hooks(stopped, tmp_path):
    """The moving average is exchanged with the weights around a validation; a replayed one does so too."""
    run, _, work_dir = stopped
    average = write_config(tmp_path, "custom_hooks = [dict(type='EMAHook', momentum=0.1)]")
    shutil.rmtree(work_dir)
    code, output = run.run(work_dir, KEEP, config=average)
    assert code == 0, output[-3000:]
    other = work_dir.with_name('resumed')
    other.mkdir()
    for name in ('iter_9.pth', 'validated.json'):
        shutil.copy(work_dir / name, other)
    code, output = run.run(other, KEEP, config=average, resume=True)
    assert code == 0 and 'was validated before the stop' in output, output[-3000:]
    assert_equal(other / run.last, work_dir / run.last)
    one, two = (read_checkpoint(str(folder / run.last)) for folder in (work_dir, other))
    assert all(torch.equal(value, two['ema_state_dict'][name]) for name, value in one['ema_state_dict'].items())
    history = [part['message_hub']['log_scalars']['val/mIoU'].data[0].tolist() for part in (one, two)]
    assert history[0] == history[1] and len(history[0]) == 3


def test_notes_of_another_training_are_not_used(stopped, training):
    run, uninterrupted, work_dir = stopped
    note = (work_dir / 'validated.json').read_text()
    identity = read_checkpoint(str(work_dir / 'iter_9.pth'))['exact_resume']['identity']
    assert identity in note
    (work_dir / 'validated.json').write_text(note.replace(identity, 'f' * 32))
    code, output = run.run(work_dir, resume=True)
    assert code == 0 and 'written before a validation, which is done now' in output, output[-3000:]
    assert_equal(work_dir / run.last, uninterrupted / run.last)


# --- what is kept ---


@pytest.fixture(scope='module')
def with_best(training, tmp_path_factory):
    """A training of six iterations that keeps its best checkpoints, by two metrics, and publishes."""
    run, _ = training('segmentation', 0)
    folder = tmp_path_factory.mktemp('best') / 'a'
    code, output = run.run(folder, *BEST, 'train_cfg.max_iters=6')
    assert code == 0, output[-3000:]
    return run, folder


BEST = ("default_hooks.checkpoint.save_best=['mIoU','aAcc']", 'default_hooks.checkpoint.published_keys=[state_dict]')


def content_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob('*.pth')}


def best_files(folder: Path) -> list[str]:
    return sorted(
        re.sub(r'\d+', 'N', name) for name in content_of(folder) if name.startswith('best_') and '-' not in name
    )


def test_published_checkpoints_are_whole(with_best):
    _, folder = with_best
    published = [name for name in content_of(folder) if '-' in name]
    assert len(published) == 3, 'the last and two best ones'
    for name in published:
        assert name.endswith(f'-{content_of(folder)[name][:8]}.pth')
        assert list(read_checkpoint(str(folder / name))) == ['state_dict']


@pytest.mark.parametrize(
    'how', ['copied', *(pytest.param(how, marks=pytest.mark.slow) for how in ('links', 'moved', 'other'))]
)
def test_only_files_of_the_own_folder_are_removed(how, with_best, tmp_path):
    """A run's folder is copied, linked file by file, moved, or its checkpoint resumed in another folder."""
    run, original = with_best
    before, work_dir, resume = content_of(original), tmp_path / 'b', True
    if how == 'other':
        resume = original / 'iter_6.pth'
    else:
        shutil.copytree(str(original), str(work_dir))
    if how == 'links':
        for path in work_dir.glob('*.pth'):
            path.unlink()
            path.symlink_to(original / path.name)
    if how == 'moved':
        work_dir.rename(tmp_path / 'c')
        work_dir = tmp_path / 'c'
    code, output = run.run(work_dir, *BEST, 'train_cfg.max_iters=24', resume=resume)
    assert code == 0, output[-3000:]
    assert content_of(original) == before
    assert 'is saved to best_' in output, 'else this test shows nothing'
    assert best_files(work_dir) == ['best_aAcc_iter_N.pth', 'best_mIoU_iter_N.pth'], sorted(content_of(work_dir))


def test_a_full_disk_leaves_the_best_checkpoint(with_best, tmp_path):
    run, original = with_best
    work_dir = tmp_path / 'b'
    shutil.copytree(str(original), str(work_dir))
    before = content_of(work_dir)
    size = min(path.stat().st_size for path in work_dir.glob('best_*.pth'))
    options = ('train_cfg.max_iters=24', 'default_hooks.checkpoint.interval=40')
    code, output = run.run(work_dir, *BEST, *options, resume=True, file_size=size // 2)
    assert code == 1 and 'Traceback' not in output, output[-3000:]
    assert re.match(r'error: checkpoint .*best_\*\.pth cannot be written: File too large; ', last_line(output))
    assert content_of(work_dir) == before


# --- Ctrl-C, SIGTERM, two at once ---


@pytest.mark.parametrize(
    ('workers', 'number', 'code'),
    [
        (0, signal.SIGINT, 130),
        pytest.param(2, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed(workers, number, code, training, tmp_path):
    """The state is saved at once, the last line resumes it, and the end is that of a training that was not stopped."""
    run, uninterrupted = training('segmentation', workers)
    work_dir = tmp_path / 'run'
    never = 'default_hooks.checkpoint.interval=100'
    assert run.interrupt(work_dir, 'Iter(train) [ 2/12]', number, never)[0] == code
    output = (work_dir / 'output').read_text()
    assert 'Traceback' not in output and (work_dir / 'interrupted.pth').exists(), output[-3000:]
    done = int(re.search(r'stopped after iteration (\d+), .*interrupted\.pth holds its state', output)[1])
    assert 2 <= done < 12 and read_checkpoint(str(work_dir / 'interrupted.pth'))['meta']['iter'] == done
    command = last_line(output).rpartition(' - WARNING - ')[2].split()
    assert command[:2] == [sys.executable, str(REPO / 'tools/train.py')] and command[-1] == '--resume'
    code, output = run.run(work_dir, resume=True)
    assert code == 0 and f'resumed epoch: 0, iter: {done}' in output, output[-3000:]
    assert_equal(work_dir / run.last, uninterrupted / run.last)
    assert not (work_dir / 'interrupted.pth').exists(), 'a later checkpoint takes its place'


@pytest.mark.slow
@pytest.mark.ops
@pytest.mark.parametrize('moment', ['[1][1/3]', '[1][3/3]', 'Epoch(val)'])
def test_interrupted_in_an_epoch_or_a_validation(moment, training, tmp_path):
    run, uninterrupted = training('detection', 0)
    options = ('default_hooks.checkpoint.interval=4',)
    code, output = run.interrupt(tmp_path / 'run', moment, signal.SIGTERM, *options)
    assert code == 143 and 'Traceback' not in output, output[-3000:]
    code, output = run.run(tmp_path / 'run', *options, resume=True)
    assert code == 0, output[-3000:]
    assert_equal(tmp_path / 'run' / run.last, uninterrupted / run.last)
    assert last_metrics(tmp_path / 'run') == last_metrics(uninterrupted)


def test_interrupted_before_the_first_iteration(stopped, tmp_path):
    run, _, _ = stopped
    code, output = run.interrupt(tmp_path / 'new', 'System environment', signal.SIGTERM)
    assert (code, last_line(output)) == (
        143,
        'stopped without saving: --resume continues from the last checkpoint, or starts again',
    )


POOLS = """
import faulthandler, subprocess, time
from multiprocessing import get_context
from mmefficientmod.training.interrupt import Interruption
from mmefficientmod.utils import exit_in_one_line

def pools():
    for _ in range(8):  # as in MMDetection's VOCMetric
        pool = get_context('fork').Pool(3)
        assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
        pool.close()
        pool.terminate()
        pool.join()

def strangers_signals():
    with get_context('fork').Pool(1) as pool:
        slow = pool.apply_async(time.sleep, [1])
        for name in ('TERM', 'INT', 'HUP'):
            subprocess.run(['kill', f'-{name}', str(pool._pool[0].pid)], check=True)
        slow.get(timeout=20)

faulthandler.dump_traceback_later(100, exit=True)
with exit_in_one_line():
    pools()
    run = Interruption()
    run.during(pools)
    run.during(strangers_signals)
    assert not run.number
"""


def test_processes_of_a_metric_end_with_it():
    """A process that a training forks obeys its parent only; with the training's handlers, it would never end."""
    result = subprocess.run([sys.executable, '-c', POOLS], capture_output=True, text=True, timeout=200)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_the_second_training_in_a_work_directory_is_refused(stopped):
    run, _, work_dir = stopped
    with run.start(work_dir, 'train_cfg.max_iters=1000', resume=True) as first:
        while 'Iter(train)' not in (work_dir / 'output').read_text() and first.poll() is None:
            pass
        before = content_of(work_dir)
        code, output = run.run(work_dir, resume=True)
        first.kill()
    said = rf'error: {work_dir} belongs to a training that is running \(process {first.pid} on .* since .*\): wait'
    assert code == 1 and re.match(said, last_line(output)), output[-3000:]
    assert before.items() <= content_of(work_dir).items()
    lock_work_dir(work_dir)  # a killed training leaves it


def test_a_work_directory_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(
        UserError, match=r'work directory .*file/run cannot be written \(Not a directory\): name another'
    ):
        lock_work_dir(tmp_path / 'file/run')


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ('train.py c.py', 'train.py c.py --resume'),
        ('train.py c.py --resume', 'train.py c.py --resume'),
        ('train.py c.py --resume a/b.pth --amp', 'train.py c.py --amp --resume'),
        ('train.py c.py --resume=a/b.pth', 'train.py c.py --resume'),
        ('train.py c.py --cfg-options load_from=w.pth a=1', 'train.py c.py --cfg-options a=1 --resume'),
        ('train.py c.py --launcher pytorch', 'the command that started it, with --resume'),
    ],
)
def test_the_command_that_resumes(given, expected):
    set_command(given.split())
    assert resume_command() == expected
    set_command([])


# --- tests of a model ---


def parts(weights: dict) -> dict[str, dict]:
    """Checkpoints that a test must refuse, by name: parts of a whole one, and other heads."""
    head = {name: value for name, value in weights.items() if 'conv_seg' in name}
    return {
        'only-a-backbone': {name: value for name, value in weights.items() if name.startswith('backbone.')},
        'without-one-bias': {name: value for name, value in weights.items() if not name.endswith('conv_seg.bias')},
        'other-classes': {**weights, **{name: value[:5] for name, value in head.items()}},
    }


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('only-a-backbone', r'of \d+, \d\d missing: neck\.lateral_convs'),
        ('without-one-bias', r'of \d+, 1 missing: decode_head\.conv_seg\.bias;'),
        ('other-classes', r'of \d+, 2 of another shape: decode_head\.conv_seg\.weight'),
    ],
)
def test_a_test_wants_every_weight_of_the_model(name, said, training, tmp_path):
    run, uninterrupted = training('segmentation', 0)
    weights = read_checkpoint(str(uninterrupted / run.last))['state_dict']
    torch.save(dict(state_dict=parts(weights)[name]), tmp_path / 'part.pth')
    code, output = run.test(tmp_path / 'part.pth', tmp_path / 'test')
    assert code == 1 and 'Traceback' not in output, output[-3000:]
    said = rf'error: .*part\.pth does not hold every weight of the model: {said}'
    assert re.match(said, last_line(output)), last_line(output)


def test_a_test_takes_what_the_model_does_not_have(training, tmp_path):
    run, uninterrupted = training('segmentation', 0)
    weights = read_checkpoint(str(uninterrupted / run.last))['state_dict']
    torch.save(dict(state_dict={**weights, 'auxiliary_head.weight': torch.zeros(3)}), tmp_path / 'more.pth')
    code, output = run.test(tmp_path / 'more.pth', tmp_path / 'test')
    assert code == 0 and 'mIoU' in output, output[-3000:]
