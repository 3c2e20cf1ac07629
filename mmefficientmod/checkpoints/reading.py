"""Reads a checkpoint without running code from it."""

from __future__ import annotations

import contextlib
import os.path as osp
import pickle
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.fileio import get_local_path, isfile
from mmengine.utils import digit_version
from torch import serialization

from ..utils import UserError, describe_error
from .allowed import allow_safe_globals

# Before, weights that are shorter in the archive than its pickle says are filled up with the memory that follows them
# (pytorch/pytorch#165553).
_TORCH_CHECKS_LENGTHS = digit_version(torch.__version__) >= digit_version('2.10')
NOT_A_CHECKPOINT = 'not a PyTorch checkpoint: check that its download or copy was complete'
_REFUSED_KINDS = {
    'TorchScript archives': 'a TorchScript archive',
    'legacy .tar format': 'a tar archive',
}  # torch's words


def _load(path: str, mmap: bool, check: bool) -> Any:
    """What ``torch.load(path, weights_only=True)`` does from torch 2.10 on."""
    if not _TORCH_CHECKS_LENGTHS:
        from .old_torch import load

        return load(path, mmap, check)
    return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap and zipfile.is_zipfile(path))


def _explain(error: Exception) -> str:
    reason = str(error)
    for words, kind in _REFUSED_KINDS.items():
        if words in reason:
            return f'is refused: it is {kind}, which could run code; take a file that holds only weights'
    asked = re.search(r'(?:GLOBAL|class|function) ([\w.]+\.\w+)', reason)
    if asked is None or not isinstance(error, pickle.UnpicklingError):
        return f'is truncated or {NOT_A_CHECKPOINT}'
    return f'is refused: it asks for {asked[1]}, which could run code; take a file that holds only weights'


def check_archive(path: str, name: str) -> None:
    """Compares a checkpoint's bytes with the check sums of its archive, which torch does not do.

    Files in torch's format from before 1.6 are not archives, and have no check sums.

    Args:
        path (str): A local file.
        name (str): Its name in the message.

    Raises:
        UserError: If a byte has changed.
    """
    with open(path, 'rb') as file:
        if not serialization._is_zipfile(file):
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory may raise anything
        raise UserError(f'{name} is truncated or {NOT_A_CHECKPOINT}') from error
    if damaged:
        raise UserError(
            f'{name} is damaged: {damaged} in it does not fit its check sum; download or copy the file again'
        )


@contextlib.contextmanager
def _fetch(path: str) -> Iterator[str]:
    """Yields the local file of a path or an address; raises as :func:`read_checkpoint` does."""
    if '://' not in path:
        local_path = osp.expanduser(path)  # as MMEngine does
        if not isfile(local_path):
            problem = 'is a folder: name a file in it' if osp.isdir(local_path) else 'does not exist'
            raise FileNotFoundError(f'checkpoint {path} {problem}')
        yield local_path
        return
    with contextlib.ExitStack() as stack:
        try:
            local_path = stack.enter_context(get_local_path(path))
        except KeyError as error:  # the scheme is unknown
            raise UserError(f'{path} cannot be read: MMEngine has no file client for {error}') from error
        except Exception as error:  # each file client has its own
            raise UserError(f'{path} cannot be read ({describe_error(error)})') from error
        yield local_path


def read_checkpoint(path: str, mmap: bool = False, check: bool = True) -> dict:
    """Reads a checkpoint to the CPU without running code from it.

    Args:
        path (str): A local file, where ``~`` is the home folder, or any address that MMEngine's file clients take.
        mmap (bool): Map the weights of an archive instead of reading them: without ``check``, a file of any size costs
            a few milliseconds. Files in torch's format from before 1.6 are read as usual. Defaults to False.
        check (bool): Compare all bytes with their check sums first, which reads the file. Defaults to True.

    Returns:
        dict: The content of the file.

    Raises:
        FileNotFoundError: If ``path`` is a local file that does not exist.
        PermissionError: If it may not be read.
        UserError: If an address gives no file, or the file is not a complete PyTorch checkpoint or asks for more than
            the allow-list holds.
    """
    allow_safe_globals()  # again: torch's own context manager, where another library uses it, takes them off the list
    path = str(path)
    with _fetch(path) as local_path:
        try:
            if check:
                check_archive(local_path, path)
            checkpoint = _load(local_path, mmap, check)
        except (PermissionError, UserError):
            raise
        except Exception as error:  # a damaged pickle may raise anything
            raise UserError(f'{path} {_explain(error)}') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} holds no weights: it is a {type(checkpoint).__name__}, not a dict of them')
    return checkpoint
