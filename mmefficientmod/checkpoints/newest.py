"""Finds the checkpoint in a work directory from which a training can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..utils import UserError, first_line
from .reading import read_checkpoint
from .weights import check_values, find_weights

NEEDED = ('meta', 'message_hub', 'state_dict', 'optimizer')  # what MMEngine resumes from


class Choice(NamedTuple):
    """The checkpoint to resume from, None if there is none, and one line for each file that was passed over."""

    path: str | None
    notes: list[str]


def find_newest_whole(work_dir: str | os.PathLike) -> Choice:
    """Finds the newest complete checkpoint, judged by the time that is written in it.

    Only the entries of each file are read; the bytes are compared with their check sums from the newest file on, until
    one is complete. Neither the note ``last_checkpoint`` nor the position of the work directory need to be as they
    were. Files named ``best_...`` are not considered: MMEngine saves them without the optimizer.

    Args:
        work_dir (str): The work directory.

    Returns:
        Choice: The checkpoint, and for each file that was passed over one line with the reason.

    Raises:
        UserError: If there are checkpoints and none of them is complete. A new training would overwrite them.
    """
    newest_first, notes = _rank(Path(work_dir))
    for path in newest_first:
        try:
            read_checkpoint(str(path), mmap=True)  # compares all bytes with their check sums
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
    """Finds the newest complete checkpoint without NaN or Inf in its weights; None if there is none."""
    for path in _rank(Path(work_dir))[0]:
        try:
            weights = find_weights(read_checkpoint(str(path)), str(path))
            check_values({name: value for name, value in weights.items() if value.is_floating_point()})
        except UserError:
            continue
        return str(path)
    return None


def _rank(work_dir: Path) -> tuple[list[Path], list[str]]:
    """The checkpoints that can be opened, newest first, and one line for each of the others; reads no weights."""
    found, notes = [], []
    for path in _candidates(work_dir):
        try:
            found.append((_read_age(path), path))
        except (UserError, OSError) as error:
            notes.append(f'passed over: {first_line(error)}')
    return [path for _, path in sorted(found, reverse=True)], notes


def _candidates(work_dir: Path) -> list[Path]:
    """The checkpoints in a work directory; if it has none, those in the folder that its note names (``out_dir``)."""
    note = work_dir / 'last_checkpoint'
    files = _files(work_dir)
    if files or not note.is_file():
        return files
    try:
        named = Path(note.read_text(errors='replace').strip())
        return _files(named.parent) if named.is_file() else []
    except (OSError, ValueError):  # damaged: it holds no path
        return []


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob('*.pth') if not path.name.startswith(('.', 'best_')))


def _read_age(path: Path) -> tuple[str, int]:
    """The time at which a checkpoint was written, and the iteration after which it was.

    Raises:
        UserError: If it cannot be read, or a training cannot be resumed from it.
    """
    if path.is_dir():  # DeepSpeed writes one, and FSDP if each process writes its part
        raise UserError(f'{path} is a folder of a sharded training: name it with --resume PATH')
    checkpoint = read_checkpoint(str(path), mmap=True, check=False)
    missing = [key for key in NEEDED if not isinstance(checkpoint.get(key), Mapping)]
    if missing:
        raise UserError(f'{path} holds no {missing[0]}: it is for inference or for load_from')
    meta = checkpoint['meta']
    if not all(isinstance(meta.get(key), int) for key in ('epoch', 'iter')):
        raise UserError(f'{path} does not say at which epoch and iteration it was written')
    return str(meta.get('time', '')), meta['iter']
