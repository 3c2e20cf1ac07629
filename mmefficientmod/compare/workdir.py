"""The configs, logs, scalars and checkpoints that MMEngine leaves in a work directory; reading them needs no torch.

A work directory holds one folder for each start of a training or a test, named by the time. Here it is called a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config

IDENTITY = 'mmefficientmod'  # the key in a config under which `compare run` writes the task, the backbone, the settings


class Run:
    """One start of a training or a test.

    Args:
        folder (Path): The folder that MMEngine named by the time.

    Attributes:
        config (Config): The config of the run.
        log (str): The log, empty if there is none.
        processes (int): Number of its processes.
        identity (Mapping): ``task``, ``backbone`` and ``settings`` of `compare run`, empty if another tool ran it.

    Raises:
        Exception: Whatever the config raises: a config is a program, and a kill may have cut it off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = Config.fromfile(folder / 'vis_data' / 'config.py', import_custom_modules=False)
        log = folder / f'{folder.name}.log'
        self.log = log.read_text(errors='replace') if log.is_file() else ''
        self.identity = self.config.get(IDENTITY) or {}
        processes = re.search(r'GPU number: (\d+)', self.log)
        self.processes = int(processes[1]) if processes else 1

    @property
    def work_dir(self) -> Path:
        """The work directory, which several runs may share."""
        return self.folder.parent

    def test_metrics(self) -> dict:
        """The metrics of a test, empty if the run was not a test."""
        path = self.folder / f'{self.folder.name}.json'
        return _parse(path.read_text(errors='replace')) if path.is_file() else {}

    def scalars(self) -> list[dict]:
        """Every line of ``scalars.json``: the losses and metrics of a training; empty if the run was not one."""
        return list(_scalars(self.folder))

    def images(self, split: str, expected: int) -> int | None:
        """Images of the last complete validation or test, None if no log tells.

        MMEngine only counts batches, and the processes fill up the last one. If ``expected`` images fit into the
        batches, that is the answer.
        """
        batches = re.findall(rf'\({split}\) *(?:\[ *\d+\] *)?\[ *(\d+)/\1\]', self.log)
        if not batches:
            return None
        step = self.processes * self.config[f'{split}_dataloader'].batch_size
        most = int(batches[-1]) * step
        return expected if most - step < expected <= most else most


def find_runs(folder: Path) -> list[Path]:
    """The folders of all runs at or below a folder."""
    return [file.parents[1] for file in sorted(folder.rglob('vis_data/config.py')) if file.is_file()]


def training_length(config: Mapping) -> tuple[int, str]:
    """Length of the training and its unit, ``'epoch'`` or ``'iteration'``."""
    loop = config['train_cfg']
    return (loop['max_epochs'], 'epoch') if 'max_epochs' in loop else (loop['max_iters'], 'iteration')


def saved_step(work_dir: Path) -> int:
    """The epoch or iteration of a training's newest checkpoint, judged by names only; 0 if there is none.

    MMEngine's note names the newest one, unless a move or an edit left the note behind: then the highest step counts.
    The checkpoint to resume from is found by :func:`mmefficientmod.checkpoints.newest.find_newest_whole`, which opens
    the files.
    """
    note = work_dir / 'last_checkpoint'
    noted = Path(note.read_text(errors='replace').strip()).name if note.is_file() else ''
    if noted and (work_dir / noted).is_file():
        return checkpoint_step(noted)
    steps = [checkpoint_step(path) for path in work_dir.glob('*.pth') if re.match(r'(epoch|iter)_\d', path.name)]
    return max(steps, default=checkpoint_step(noted))


def checkpoint_step(checkpoint: str | Path) -> int:
    """The epoch or iteration in a checkpoint's name, 0 if there is none."""
    step = re.search(r'(?:epoch|iter)_(\d+)\.pth$', Path(checkpoint).name)
    return int(step[1]) if step else 0


def training_progress(work_dir: Path, config: Config) -> tuple[float, str]:
    """Finished share of a training, and its newest loss in words."""
    runs = sorted(file.parents[1] for file in work_dir.glob('*/vis_data/scalars.json'))
    losses = [entry for entry in (_scalars(runs[-1]) if runs else ()) if 'loss' in entry]
    if not losses:
        return 0.0, ''
    total, unit = training_length(config)
    step = losses[-1]['epoch' if unit == 'epoch' else 'step']
    done = step - 1 if unit == 'epoch' else step
    return done / total, f'{unit} {step}/{total}, loss {losses[-1]["loss"]:.3f}'


def last_line(log: Path, begin: int = 0) -> str:
    """The last line of a log that names an error, otherwise the last with text: launchers write more below the reason.

    Args:
        log (Path): The file.
        begin (int): Position of the newest run in bytes. Defaults to 0.
    """
    with open(log, 'rb') as file:
        file.seek(max(begin, log.stat().st_size - 20000))
        lines = [line.strip() for line in file.read().decode(errors='replace').splitlines() if line.strip()]
    pattern = re.compile(r'(\[rank\d+\]: )?(error: |[\w.]*(Error|Exception|Interrupt)\b)')
    errors = [line for line in lines if pattern.match(line) and 'ChildFailedError' not in line]
    return [*errors[-1:], *lines[-1:], 'it printed nothing'][0]


def _scalars(run: Path) -> Iterator[dict]:
    path = run / 'vis_data' / 'scalars.json'
    return map(_parse, path.read_text(errors='replace').splitlines() if path.exists() else [])


def _parse(text: str) -> dict:
    try:
        # Every process of a test writes the same file: the end of a longer text may follow a shorter one.
        entry, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):  # being written, or cut off by a kill
        return {}
    return entry if isinstance(entry, dict) else {}
