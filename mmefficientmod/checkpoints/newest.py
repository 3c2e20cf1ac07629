"""Finds the checkpoint of a work directory that a training can go on from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..utils import UserError, first_line
from .reading import check_archive, read_checkpoint
from .weights import check_values, find_weights

NEEDED = ('meta', 'message_hub', 'state_dict', 'optimizer')  # what MMEngine resumes from


class Choice(NamedTuple):
    """The checkpoint to resume from, None without any, and lines on those that were passed over."""

    path: str | None
    notes: list[str]


def find_newest_whole(work_dir: str | os.PathLike) -> Choice:
    """Finds the newest checkpoint that is whole, by the time that is written in it.

    Neither ``last_checkpoint`` nor the work directory's place need to be as they were. Files named ``best_...`` are
    no candidates: MMEngine saves them without the optimizer.

    Args:
        work_dir (str): The work directory.

    Returns:
        Choice: With one line for each file that was passed over and why.

    Raises:
        UserError: If there are checkpoints and none of them is whole. Starting anew would overwrite them.
    """
    whole, notes = _rank(Path(work_dir))
    for path in whole:
        try:
            check_archive(str(path))
        except UserError as error:
            notes.append(f'passed over: {first_line(error)}')
            continue
        return Choice(str(path), notes)
    if notes:
        raise UserError(
            f'no checkpoint in {work_dir} can be resumed from ({"; ".join(notes)}): name another one, or remove them '
            'to start from the beginning'
        )
    return Choice(None, [f'{work_dir} holds no checkpoint: the training starts from the beginning'])


def find_newest_finite(work_dir: str | os.PathLike) -> str | None:
    """The newest checkpoint that is whole and has no NaN or Inf in its weights, None if there is none."""
    for path in _rank(Path(work_dir))[0]:
        try:
            weights = find_weights(read_checkpoint(str(path)), str(path))
            check_values({name: value for name, value in weights.items() if value.is_floating_point()})
        except UserError:
            continue
        return str(path)
    return None


def _rank(work_dir: Path) -> tuple[list[Path], list[str]]:
    """The checkpoints that can be opened, newest first, and lines on the others. Their weights are not read."""
    found, notes = [], []
    for path in _candidates(work_dir):
        try:
            found.append((_read_age(path), path))
        except (UserError, OSError) as error:
            notes.append(f'passed over: {first_line(error)}')
    return [path for _, path in sorted(found, reverse=True)], notes


def _candidates(work_dir: Path) -> list[Path]:
    """The checkpoints in a work directory; without any, those beside the one that its note names (``out_dir``)."""
    note = work_dir / 'last_checkpoint'
    files = _files(work_dir)
    if files or not note.is_file():
        return files
    try:
        named = Path(note.read_text(errors='replace').strip())
        return _files(named.parent) if named.is_file() else []
    except (OSError, ValueError):  # damaged: no path can be made of it
        return []


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob('*.pth') if not path.name.startswith(('.', 'best_')))


def _read_age(path: Path) -> tuple[str, int]:
    """When a checkpoint was written, and after which iteration.

    Raises:
        UserError: If it cannot be read, or a training cannot be resumed from it.
    """
    if path.is_dir():  # by DeepSpeed, or by FSDP where each process writes its part
        raise UserError(f'{path} is a folder of a sharded training: name it by --resume PATH')
    checkpoint = read_checkpoint(str(path), mmap=True, check=False)
    missing = [key for key in NEEDED if not isinstance(checkpoint.get(key), Mapping)]
    if missing:
        raise UserError(f'{path} holds no {missing[0]}: it is for inference or for load_from')
    meta = checkpoint['meta']
    if not all(isinstance(meta.get(key), int) for key in ('epoch', 'iter')):
        raise UserError(f'{path} does not say at which epoch and iteration it was written')
    return str(meta.get('time', '')), meta['iter']
