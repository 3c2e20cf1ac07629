"""Runs trainings and tests one after another, keeps their logs, and continues after a stop."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..checkpoints.newest import find_newest_whole
from ..codebases.config import read_config
from ..utils import UserError, describe_error, replace_file
from .state import State
from .workdir import last_line, saved_step, training_progress

TOOLS = (Path(__file__).parents[1] / '.mim' / 'tools').resolve()


@dataclass(frozen=True)
class Launcher:
    """The way in which ``tools/train.py`` and ``tools/test.py`` are started."""

    kind: str = 'none'  # 'none', 'pytorch' or 'slurm'
    gpus: int = 1  # number of processes, one for each GPU; 'none' starts one process
    arguments: str = ''  # passed on to torch.distributed.run or srun

    def command(self, script: str, operands: Sequence[str]) -> list[str]:
        """The command line that runs one of the two tools."""
        extra = shlex.split(self.arguments)
        start = {
            'none': [sys.executable, *extra],
            'pytorch': [
                *(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(self.gpus)),
                *(extra or ['--standalone']),
            ],
            'slurm': ['srun', '--ntasks', str(self.gpus), '--kill-on-bad-exit=1', *extra, sys.executable, '-u'],
        }[self.kind]
        end = [] if self.kind == 'none' else ['--launcher', self.kind]
        return [*start, str(TOOLS / f'{script}.py'), *operands, *end]

    def job_array(self, name: str, backbones: Sequence[str], command_line: Sequence[str]) -> str:
        """A batch script for ``sbatch`` in which every task of a job array runs one backbone.

        Args:
            name (str): Name of the job.
            backbones (Sequence[str]): Keys of the backbones.
            command_line (Sequence[str]): The command that runs all of them, ``--dry-run`` included.
        """
        command = shlex.join(word for word in command_line if word != '--dry-run')
        options = [f'--job-name={name}', f'--array=0-{len(backbones) - 1}', f'--ntasks={self.gpus}']
        lines = [f'#SBATCH {option}' for option in options]
        if self.arguments:
            lines.append(f'#SBATCH {self.arguments}')
        lines += [f'cd {shlex.quote(os.getcwd())}', f'backbones=({" ".join(backbones)})']
        return '\n'.join(['#!/bin/bash', *lines, f'exec {command} --backbones "${{backbones[$SLURM_ARRAY_TASK_ID]}}"'])


@dataclass(frozen=True)
class Job:
    """A training and its test, or only a test, in its own folder.

    The folder holds the config as it runs, MMEngine's work directories ``train`` and ``test``, and their output,
    ``train.log`` and ``test.log``. ``state.json`` lists the commands that were started and the steps that are done.
    """

    name: str  # its name on the screen
    folder: Path  # its folder
    config: Config  # its config
    config_name: str  # file name of the config in the folder
    checkpoint: str | None = None  # a complete model to test in place of a training
    launcher: Launcher = field(default_factory=Launcher)  # the way in which the steps are started
    # environment variables of the steps, added to those of this process
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps in their order."""
        return ('test',) if self.checkpoint else ('train', 'test')

    @property
    def state(self) -> State:
        """The content of ``state.json``."""
        return State.read(self.folder, self.name)

    @property
    def config_file(self) -> Path:
        """The config in the folder."""
        return self.folder / self.config_name

    @property
    def trained(self) -> str | None:
        """The path of the training's newest whole checkpoint; None before there is one.

        Raises:
            UserError: If the training has checkpoints and none of them is complete.
        """
        return find_newest_whole(self.folder / 'train').path

    def command(self, step: str) -> list[str]:
        """The command line of a step as it would be started now.

        Raises:
            UserError: If the training has checkpoints and none of them is complete.
        """
        trained = self.trained
        operands = [str(self.config_file)]
        if step == 'test':
            operands.append(str(self.checkpoint or trained or self.folder / 'train' / 'LAST_CHECKPOINT'))
        operands += ['--work-dir', str(self.folder / step)]
        if step == 'train' and trained:
            operands.append('--resume')  # finds the same file
        return self.launcher.command(step, operands)

    @contextlib.contextmanager
    def lock(self, wait: bool) -> Iterator[int | None]:
        """Locks the job for this process and its children: a training that survives its parent is not started twice.

        Yields:
            int | None: The descriptor for the children to inherit, None if another process holds the lock.
        """
        try:
            import fcntl
        except ImportError:
            raise UserError('trainings are run and compared on Linux and macOS only; "report" works here') from None
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / '.lock', 'w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()

    def prepare(self) -> None:
        """Writes the config; refuses a folder in which the job ran with other settings, and leaves it as it is."""
        self._check_processes()
        if self.state.commands and self.config_file.exists():
            try:
                same = read_config(self.config_file).to_dict() == self.config.to_dict()
            except UserError as error:
                raise UserError(f'{error}: correct it, or delete {self.folder} to run {self.name} again') from error
            if not same:
                raise UserError(
                    f'{self.folder} holds a run of {self.name} with other settings: name another '
                    '--work-dir, or delete that folder to run it again'
                )
        replace_file(self.config_file, self.config.pretty_text)

    def _check_processes(self) -> None:
        """Refuses to continue a training with another number of processes: its steps would have other images."""
        state = self.state
        before = [entry.get('processes') for entry in state.commands if entry.get('step') == 'train']
        continued = 'train' not in state.done and saved_step(self.folder / 'train')
        if continued and before and before[-1] not in (None, self.launcher.gpus):
            raise UserError(
                f'{self.folder} holds a training with {before[-1]} processes, not {self.launcher.gpus}: continue it '
                f'with --gpus {before[-1]}, or delete that folder to run it again'
            )

    def run_step(self, step: str, argv: Sequence[str], lock: int, tick: Callable[[], None]) -> None:
        """Runs one step to its end, and notes it in ``state.json``.

        Args:
            step (str): ``'train'`` or ``'test'``.
            argv (Sequence[str]): Its command line.
            lock (int): Descriptor of the lock, for the command to inherit.
            tick (Callable): Called about every second.

        Raises:
            UserError: If the command fails, with the reason that it printed.
        """
        log, state = self.folder / f'{step}.log', self.state
        entry: dict[str, Any] = dict(
            step=step,
            command=shlex.join(argv),
            directory=os.getcwd(),
            processes=self.launcher.gpus,
            started=_now(),
            ended=None,
            exit_code=None,
            started_by=shlex.join(getattr(sys, 'orig_argv', None) or [sys.executable, *sys.argv]),
        )
        state.error = None
        state.commands.append(entry)
        state.write(self.folder)
        begin = log.stat().st_size if log.exists() else 0
        code = self._execute(argv, log, lock, tick)
        entry.update(ended=_now(), exit_code=code)
        if code:
            end = f'exit code {code}' if code > 0 else signal.Signals(-code).name
            state.error = f'{step} ended with {end}: {last_line(log, begin)} (log: {log})'
        else:
            state.done.append(step)
        state.write(self.folder)
        if state.error:
            raise UserError(state.error)

    def _execute(self, argv: Sequence[str], log: Path, lock: int, tick: Callable[[], None]) -> int:
        """Runs a command with its output at the end of a log; returns its exit code, negative after a signal."""
        with open(log, 'ab') as out:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **self.environment},
                pass_fds=[lock],
                start_new_session=True,
            )
            try:
                while (code := _wait(process, 1)) is None:
                    tick()
            finally:  # also after Ctrl-C and SIGTERM: nothing goes on in the background
                _end(process)
        return code


def run_jobs(jobs: Sequence[Job], console: Console) -> dict[str, str | None]:
    """Runs jobs one after another; one that fails does not stop the others, one that is done is skipped.

    A job that another process works on is waited for at the end.

    Returns:
        dict[str, str | None]: For every job by name the reason why it is not done, None if it is.
    """
    columns = (
        SpinnerColumn(),
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.fields[note]}'),
        TimeElapsedColumn(),
    )
    outcomes: dict[str, str | None] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        overall = progress.add_task('all', total=len(jobs), note=f'0/{len(jobs)}')

        def attempt(job: Job, wait: bool) -> bool:
            """Runs a job; False if another process works on it."""
            try:
                with job.lock(wait) as lock:
                    if lock is None:
                        console.print(f'{job.name}: another process works on it, so it comes last')
                        return False
                    job.prepare()
                    for step in job.steps:
                        _run_step(job, step, lock, progress)
                outcomes[job.name] = None
            except Exception as error:  # any error concerns only this job, and the others go on
                outcomes[job.name] = str(error) if isinstance(error, UserError) else describe_error(error)
                console.print(f'{job.name}: {outcomes[job.name]}', style='red', markup=False, soft_wrap=True)
            progress.update(overall, completed=len(outcomes), note=f'{len(outcomes)}/{len(jobs)}')
            return True

        busy = [job for job in jobs if not attempt(job, wait=False)]
        for job in busy:
            attempt(job, wait=True)
    return outcomes


def _run_step(job: Job, step: str, lock: int, progress: Progress) -> None:
    """Runs a step unless it is done, with a progress bar."""
    if step in job.state.done:
        progress.console.print(f'{job.name}: {step} is done already')
        return
    verb = dict(train='training', test='testing')[step]
    argv = job.command(step)
    resumed = ' (continued from the last checkpoint)' if '--resume' in argv else ''
    log = job.folder / f'{step}.log'
    progress.console.print(f'{job.name}: {verb}{resumed}, log in {log}', markup=False, soft_wrap=True)
    bar = progress.add_task(f'{job.name}: {verb}', total=1 if step == 'train' else None, note='')

    def tick() -> None:
        if step == 'train':
            with contextlib.suppress(Exception):  # whatever the log holds: a bar must not end a training
                share, note = training_progress(job.folder / 'train', job.config)
                progress.update(bar, completed=share, note=note)

    try:
        job.run_step(step, argv, lock, tick)
    finally:
        progress.remove_task(bar)


def _end(process: subprocess.Popen) -> None:
    """Ends a process that leads a session, and its children: data loading processes outlive it for seconds."""
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
