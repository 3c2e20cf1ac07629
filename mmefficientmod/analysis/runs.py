"""Trains and tests rows through tools/train.py and tools/test.py, and continues where it was stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from .rows import CompareError, Row, Task, normalise

TOOLS = (Path(__file__).parents[1] / '.mim' / 'tools').resolve()
WEIGHT_SUFFIXES = ('.pth', '.pt', '.safetensors')


@dataclass(frozen=True)
class Settings:
    """What one comparison lays over every row's config, and how it is launched.

    Attributes:
        task (Task): Detection or segmentation.
        work_dir (Path): Each row works in ``work_dir/ROW``.
        overlays (Sequence[str]): Config files merged over every row's config, e.g. another data set.
        data_root (str, optional): Root folder of the data set.
        iters (int, optional): Length of a training that counts iterations; the schedule shrinks or grows with it.
        epochs (int, optional): The same for one that counts epochs.
        size (tuple[int, int], optional): Height and width in pixels: the crop (segmentation), the bound (detection).
        batch_size (int, optional): Images a step and process.
        workers (int, optional): Data loading processes.
        seed (int): Seed of every row.
        amp (bool): Mixed precision in training.
        pretrained (Sequence[str]): ``none``, a folder, or ``ROW=FILE``: the backbone's weights to start from.
        checkpoints (Sequence[str]): A folder, or ``ROW=FILE``: whole models to test in place of training.
        cfg_options (Mapping): Further settings, applied last.
        launcher (str): ``none``, ``pytorch`` or ``slurm``.
        gpus (int): Number of processes, one a GPU, for the launchers ``pytorch`` and ``slurm``.
        launcher_args (str): Arguments passed on to ``torch.distributed.run`` or ``srun``.
    """

    task: Task
    work_dir: Path
    overlays: Sequence[str] = ()
    data_root: str | None = None
    iters: int | None = None
    epochs: int | None = None
    size: tuple[int, int] | None = None
    batch_size: int | None = None
    workers: int | None = None
    seed: int = 0
    amp: bool = False
    pretrained: Sequence[str] = ()
    checkpoints: Sequence[str] = ()
    cfg_options: Mapping = field(default_factory=dict)
    launcher: str = 'none'
    gpus: int = 1
    launcher_args: str = ''


def row_config(row: Row, settings: Settings) -> tuple[Config, dict]:
    """A row's config with the comparison's settings.

    Returns:
        tuple[Config, dict]: The config, and the settings that were laid over it by dotted name.

    Raises:
        CompareError: If a setting does not fit the config.
    """
    config = Config.fromfile(row.config)
    for overlay in settings.overlays:
        try:
            config.merge_from_dict(Config.fromfile(overlay).to_dict())
        except Exception as error:  # a config is a program: whatever it raises is about the config
            raise CompareError(f'overlay {overlay} cannot be used: {describe(error)}') from error
    options = {'randomness.seed': settings.seed, 'default_hooks.checkpoint.max_keep_ckpts': 2}
    if settings.amp:
        options |= {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'}
    if settings.checkpoints:
        options['load_from'] = find_weights_file(row, settings.checkpoints, '--checkpoints')
        if options['load_from'] is None:
            raise CompareError(f'--checkpoints names no file for {row.key}')
    options |= _length(config, settings) | _data(config, settings) | _pretrained(row, config, settings)
    if settings.size:
        options |= _size(config, settings)
    options |= settings.cfg_options
    try:
        config.merge_from_dict(options)
    except Exception as error:
        raise CompareError(f'the settings do not fit its config: {describe(error)}') from error
    return config, options


def _length(config: Config, settings: Settings) -> dict:
    """Another length of training, with the schedule in proportion."""
    by_epoch = 'max_epochs' in config.train_cfg
    wanted, unwanted = (settings.epochs, settings.iters) if by_epoch else (settings.iters, settings.epochs)
    if unwanted is not None:
        used, other = ('epochs', 'iters') if by_epoch else ('iters', 'epochs')
        raise CompareError(f'{settings.task.name} trains by {used} here: give --{used}, not --{other}')
    if wanted is None:
        return {}
    name = 'max_epochs' if by_epoch else 'max_iters'
    ratio = wanted / config.train_cfg[name]
    options = {f'train_cfg.{name}': wanted}
    for i, scheduler in enumerate(config.get('param_scheduler') or []):
        shortest = 2 if scheduler.type == 'LinearLR' else 1  # a ramp has a first and a last step
        for key in ('begin', 'end', 'T_max'):
            if scheduler.get(key):
                options[f'param_scheduler.{i}.{key}'] = max(shortest, round(scheduler[key] * ratio))
        if 'milestones' in scheduler:
            options[f'param_scheduler.{i}.milestones'] = [max(1, round(step * ratio)) for step in scheduler.milestones]
    if not by_epoch:
        options['default_hooks.logger.interval'] = max(1, min(config.default_hooks.logger.interval, wanted // 20))
        for key, interval in (
            ('train_cfg.val_interval', config.train_cfg.val_interval),
            ('default_hooks.checkpoint.interval', config.default_hooks.checkpoint.interval),
        ):
            options[key] = max(1, round(interval * ratio))
    return options


def _data(config: Config, settings: Settings) -> dict:
    """Root, batch size and loading processes."""
    options = {}
    for split in ('train', 'val', 'test'):
        loader = f'{split}_dataloader'
        place, dataset = innermost_dataset(config, split)
        if settings.data_root:
            options[f'{place}.data_root'] = settings.data_root
            evaluator = config.get(f'{split}_evaluator') or {}
            if evaluator.get('ann_file') and dataset.get('data_root'):
                inside = os.path.relpath(evaluator['ann_file'], dataset['data_root'])
                options[f'{split}_evaluator.ann_file'] = os.path.join(settings.data_root, inside)
        if settings.workers is not None:
            options[f'{loader}.num_workers'] = settings.workers
            options[f'{loader}.persistent_workers'] = settings.workers > 0
    if settings.batch_size:
        options['train_dataloader.batch_size'] = settings.batch_size
    return options


def innermost_dataset(config: Config, split: str) -> tuple[str, Mapping]:
    """The dotted place and the dict of a split's data set, below whatever wraps it."""
    place = f'{split}_dataloader.dataset'
    dataset = config[f'{split}_dataloader'].dataset
    while 'dataset' in dataset:
        place, dataset = f'{place}.dataset', dataset.dataset
    return place, dataset


def _size(config: Config, settings: Settings) -> dict:
    """Another image size: every resize of the pipelines keeps its ratio of long to short side."""
    height, width = settings.size
    short, long = sorted(settings.size)
    options = {}
    for split in ('train', 'val', 'test'):
        place, dataset = innermost_dataset(config, split)
        for i, transform in enumerate(dataset.pipeline):
            if transform.type in ('Resize', 'RandomResize'):
                if settings.task.name == 'segmentation':  # the crop bounds the size, the scale only the long side
                    long = round(short * max(transform.scale) / min(transform.scale))
                options[f'{place}.pipeline.{i}.scale'] = (long, short)
            elif transform.type == 'RandomCrop':
                options[f'{place}.pipeline.{i}.crop_size'] = (height, width)
    if 'size' in config.model.get('data_preprocessor', {}):
        options['model.data_preprocessor.size'] = (height, width)
    if 'img_size' in config.model.backbone:
        options['model.backbone.img_size'] = math.ceil(short / 32) * 32
    return options


def _pretrained(row: Row, config: Config, settings: Settings) -> dict:
    """The weights that the backbone starts from; random ones are all trained, their norms' statistics too."""
    if not settings.pretrained or settings.checkpoints:
        return {}
    if list(settings.pretrained) == ['none']:
        trained = dict(init_cfg=None, norm_eval=False, frozen_stages=-1)
        return {f'model.backbone.{key}': value for key, value in trained.items() if key in config.model.backbone}
    path = find_weights_file(row, settings.pretrained, '--pretrained')
    if path is None:
        return {}
    if isinstance(config.model.backbone.get('init_cfg'), Mapping):
        return {'model.backbone.init_cfg.checkpoint': path}
    return {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=path)}


def find_weights_file(row: Row, places: Sequence[str], option: str) -> str | None:
    """A row's file among ``ROW=FILE`` and folders; None if only other rows are named.

    Raises:
        CompareError: If there is no such file.
    """
    folders = [place for place in places if '=' not in place]
    for place in places:
        name, _, path = place.partition('=')
        if path and normalise(name) == normalise(row.key):
            if not Path(path).is_file():
                raise CompareError(f'{option}: {path} does not exist')
            return path
    for folder in folders:
        for path in sorted(Path(folder).glob('*')):
            if path.suffix in WEIGHT_SUFFIXES and normalise(path.stem) == normalise(row.key):
                return str(path)
    if folders:
        raise CompareError(
            f'{option}: {", ".join(folders)} holds no file for {row.key}, such as {row.key}.pth; '
            f'put it there or name it by {option} {row.key}=FILE'
        )
    return None


def command(script: str, operands: Sequence[str], settings: Settings) -> list[str]:
    """The command line that runs ``tools/train.py`` or ``tools/test.py`` under the chosen launcher."""
    extra = shlex.split(settings.launcher_args)
    if settings.launcher == 'pytorch':
        start = [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--nproc_per_node',
            str(settings.gpus),
            *(extra or ['--standalone']),
        ]
    elif settings.launcher == 'slurm':
        start = ['srun', '--ntasks', str(settings.gpus), '--kill-on-bad-exit=1', *extra, sys.executable, '-u']
    else:
        start = [sys.executable, *extra]
    end = [] if settings.launcher == 'none' else ['--launcher', settings.launcher]
    return [*start, str(TOOLS / f'{script}.py'), *operands, *end]


class RowRun:
    """One row's training and test in ``work_dir/ROW``.

    The folder holds the row's config (``CONFIG.py``), MMEngine's own work directories ``train`` and ``test``, what they
    printed (``train.log``, ``test.log``) and ``state.json``: every command that was started, and which steps are done.

    Raises:
        CompareError: If the row cannot run with these settings.
    """

    def __init__(self, row: Row, settings: Settings) -> None:
        self.row, self.settings = row, settings
        self.config, self.options = row_config(row, settings)
        self.folder = settings.work_dir / row.key
        self.config_file = self.folder / Path(row.config).name
        self.checkpoint = self.options.get('load_from') if settings.checkpoints else None
        self.steps = ('test',) if self.checkpoint else ('train', 'test')

    @property
    def state(self) -> dict:
        """The content of ``state.json``."""
        path = self.folder / 'state.json'
        if not path.exists():
            return dict(row=self.row.key, done=[], error=None, commands=[])
        return json.loads(path.read_text())

    def save(self, state: dict) -> None:
        """Replaces ``state.json`` in one step, so that a kill leaves the old one or the new one."""
        draft = self.folder / '.state.json'
        with open(draft, 'w') as file:
            json.dump(state, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.folder / 'state.json')

    def command(self, step: str) -> list[str]:
        """The command line of a step as it would be started now."""
        if step == 'train':
            operands = [str(self.config_file), '--work-dir', str(self.folder / 'train')]
            operands += ['--resume'] if (self.folder / 'train' / 'last_checkpoint').exists() else []
        else:
            checkpoint = self.checkpoint or self.trained()
            operands = [str(self.config_file), str(checkpoint), '--work-dir', str(self.folder / 'test')]
        return command(step, operands, self.settings)

    def trained(self) -> Path:
        """The checkpoint at the end of the training, as MMEngine noted it."""
        note = self.folder / 'train' / 'last_checkpoint'
        return note.parent / (Path(note.read_text().strip()).name if note.exists() else 'LAST_CHECKPOINT')

    @contextlib.contextmanager
    def lock(self, wait: bool) -> Iterator[int | None]:
        """Holds the row for this process and its children, so that what outlives a kill is not disturbed.

        Yields:
            int | None: The descriptor for the children to inherit, None if another process holds the row.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / '.lock', 'w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()

    def prepare(self) -> None:
        """Writes the config; refuses a folder in which the row ran with other settings."""
        began = self.state['commands'] and self.config_file.exists()
        if began and Config.fromfile(self.config_file).to_dict() != self.config.to_dict():
            raise CompareError(
                f'{self.folder} holds a run of {self.row.key} with other settings: name another '
                '--work-dir, or delete that folder to run it anew'
            )
        self.config.dump(self.config_file)

    def run_step(self, step: str, lock: int, tick: Callable[[], None]) -> None:
        """Runs one step to its end; calls ``tick`` about every second.

        Raises:
            CompareError: If the command fails, with the reason that it printed.
        """
        argv, log = self.command(step), self.folder / f'{step}.log'
        state = self.state
        entry = dict(
            step=step,
            command=shlex.join(argv),
            directory=os.getcwd(),
            started=_now(),
            ended=None,
            exit_code=None,
            started_by=shlex.join(sys.orig_argv),
        )
        self.save({**state, 'error': None, 'commands': [*state['commands'], entry]})
        with open(log, 'ab') as out:
            begin = out.tell()
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=[lock], start_new_session=True
            )
            try:
                while (code := _wait(process, 1)) is None:
                    tick()
            finally:  # Ctrl-C and SIGTERM too: nothing of ours goes on in the background
                _end(process)
        entry.update(ended=_now(), exit_code=code)
        end = f'exit code {code}' if code >= 0 else signal.Signals(-code).name
        error = None if code == 0 else f'{step} ended with {end}: {last_line(log, begin)} (log: {log})'
        done = [*state['done'], step] if code == 0 else state['done']
        self.save({**state, 'done': done, 'error': error, 'commands': [*state['commands'], entry]})
        if error:
            raise CompareError(error)

    def progress(self) -> tuple[float, str]:
        """Share of the training that is done, from MMEngine's own scalars, and the newest of them in words."""
        logs = sorted((self.folder / 'train').glob('*/vis_data/scalars.json'))
        lines = [line for line in (logs[-1].read_text().splitlines() if logs else []) if '"loss"' in line]
        try:
            last = json.loads(lines[-1])
        except (IndexError, json.JSONDecodeError):  # not yet there, or being written
            return 0.0, ''
        by_epoch = 'max_epochs' in self.config.train_cfg
        total = self.config.train_cfg['max_epochs' if by_epoch else 'max_iters']
        step = last['epoch'] if by_epoch else last['step']
        unit = 'epoch' if by_epoch else 'iteration'
        return (step - 1 if by_epoch else step) / total, f'{unit} {step}/{total}, loss {last["loss"]:.3f}'


def last_line(log: Path, begin: int = 0) -> str:
    """The last line of a log that names an error, else the last with text: launchers write more below the reason.

    Args:
        log (Path): The file.
        begin (int): Where the newest run begins, in bytes. Defaults to 0.
    """
    with open(log, 'rb') as file:
        file.seek(max(begin, log.stat().st_size - 20000))
        lines = [line.strip() for line in file.read().decode(errors='replace').splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if re.match(r'(\[rank\d+\]: )?(error: |[\w.]*(Error|Exception|Interrupt)\b)', line)
        and 'ChildFailedError' not in line
    ]
    return [*errors[-1:], *lines[-1:], 'it printed nothing'][0]


def describe(error: Exception) -> str:
    """An error in one line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), '')
    return text if isinstance(error, CompareError) else f'{type(error).__name__}: {text}'


def _end(process: subprocess.Popen) -> None:
    """Ends a process that leads a session, and what it started: data loading processes outlive it for seconds."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            _wait(process, 30)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S%z')


def run_rows(rows: Sequence[Row], settings: Settings, console: Console) -> dict[str, str | None]:
    """Runs the rows one after another; one that fails does not stop the others, one that is done is skipped.

    Returns:
        dict[str, str | None]: For every row the reason why it is not done, None if it is.
    """
    outcomes: dict[str, str | None] = {}
    columns = (
        SpinnerColumn(),
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.fields[note]}'),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        overall = progress.add_task('rows', total=len(rows), note=f'0/{len(rows)}')
        queue = [(row, False) for row in rows]
        for row, wait in queue:
            try:
                run = RowRun(row, settings)
                with run.lock(wait) as lock:
                    if lock is None:
                        console.print(f'{row.key}: another process is at work on it, so it comes last')
                        queue.append((row, True))
                        continue
                    run.prepare()
                    _run_steps(run, lock, progress, console)
                outcomes[row.key] = None
            except Exception as error:  # whatever it is, it is about this row, and the others go on
                outcomes[row.key] = describe(error)
                console.print(f'{row.key}: {outcomes[row.key]}', style='red', markup=False, soft_wrap=True)
            progress.update(overall, completed=len(outcomes), note=f'{len(outcomes)}/{len(rows)}')
    return outcomes


def _run_steps(run: RowRun, lock: int, progress: Progress, console: Console) -> None:
    for step in run.steps:
        if step in run.state['done']:
            console.print(f'{run.row.key}: {step} is done already')
            continue
        verb = dict(train='training', test='testing')[step]
        resumed = ' (continued from the last checkpoint)' if '--resume' in run.command(step) else ''
        log = run.folder / f'{step}.log'
        console.print(f'{run.row.key}: {verb}{resumed}, log in {log}', markup=False, soft_wrap=True)
        bar = progress.add_task(f'{run.row.key}: {verb}', total=1 if step == 'train' else None, note='')

        def tick(step: str = step, bar: TaskID = bar) -> None:
            if step == 'train':
                share, note = run.progress()
                progress.update(bar, completed=share, note=note)

        try:
            run.run_step(step, lock, tick)
        finally:
            progress.remove_task(bar)
