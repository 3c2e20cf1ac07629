"""Reads a checkpoint without running code from it, on every torch since 2.1."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import os.path as osp
import pickle
import re
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.fileio import get_local_path, isfile
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import serialization

from ..utils import UserError, describe_error

# Before, `weights_only=True` runs code from tar and TorchScript archives (CVE-2025-32434).
_TORCH_READS_SAFELY = digit_version(torch.__version__) >= digit_version('2.6')
# Before, weights that are shorter in the archive than its pickle says are filled up with whatever lies behind them in
# memory (pytorch/pytorch#165553).
_TORCH_CHECKS_LENGTHS = digit_version(torch.__version__) >= digit_version('2.10')
_REFUSED_KINDS = {
    'TorchScript archives': 'a TorchScript archive',
    'legacy .tar format': 'a tar archive',
}  # torch's words


def _history_statistics(owner: type, name: str) -> Callable:
    """Stands in for ``getattr`` while a checkpoint is read: it finds a log history's statistics and nothing else."""
    if owner is not HistoryBuffer or name not in ('mean', 'max', 'min', 'current'):
        raise pickle.UnpicklingError(f'function builtins.getattr of {owner!r} and {name!r}')
    return getattr(owner, name)


def _plain_data() -> dict[str, Any]:
    """Name in a file -> class or function, for what checkpoints hold beside tensors: all of it is plain data.

    These are a timm trainer's arguments, MMEngine's log history and NumPy's arrays and numbers. NumPy 1 and 2 name
    their internals differently, and a file may come from either.
    """
    array_parts = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in '?SU' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']}
    return {
        'builtins.getattr': _history_statistics,
        **{f'{kind.__module__}.{kind.__name__}': kind for kind in (argparse.Namespace, HistoryBuffer, *dtypes)},
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        **{f'numpy.{core}.multiarray.{part.__name__}': part for core in ('core', '_core') for part in array_parts},
    }


def allow_safe_globals() -> None:
    """Lets MMEngine resume from its own checkpoints, whether they were written under NumPy 1 or 2.

    From torch 2.6 on MMEngine reads them by torch's safe loader, whose allow-list gets what they hold beside tensors.
    Before, they are read by name, and NumPy before 1.26 does not know the name that NumPy 2 writes.
    """
    if _TORCH_READS_SAFELY:
        serialization.add_safe_globals([(part, name) for name, part in _plain_data().items()])
    elif digit_version(np.__version__) < digit_version('1.26'):
        sys.modules.setdefault('numpy._core.multiarray', np.core.multiarray)


@lru_cache(maxsize=None)
def _allow_list() -> dict[str, Any]:
    """Name in a file -> what the unpickler below takes for it: the same as torch's safe loader from 2.6 on."""
    constants = [value for value in vars(torch).values() if isinstance(value, (torch.dtype, torch.qscheme))]
    return {
        **torch._weights_only_unpickler._get_allowed_globals(),
        **{str(value): value for value in constants},
        **{f'{kind.__module__}.{kind.__name__}': kind for kind in (bytearray, complex, set, Counter, torch.device)},
        '_codecs.encode': codecs.encode,
        'torch._utils._rebuild_qtensor': torch._utils._rebuild_qtensor,
        **_plain_data(),
    }


# Python's own one, of which typeshed knows the C version alone: without parts that can be replaced.
_PythonUnpickler: Any = getattr(pickle, '_Unpickler')  # noqa: B009


class _Unpickler(_PythonUnpickler):
    """Python's unpickler, which finds, builds and changes nothing but what is on the allow-list."""

    dispatch = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        full_name = f'{"builtins" if module == "__builtin__" else module}.{name}'
        if full_name not in _allow_list():
            raise pickle.UnpicklingError(f'GLOBAL {full_name}')
        return _allow_list()[full_name]

    def load_build(self) -> None:
        kind = type(self.stack[-2])  # of what gets a new state: never a class or a function
        if kind not in _allow_list().values():
            raise pickle.UnpicklingError(f'class {kind.__module__}.{kind.__name__}')
        super().load_build()

    def load_binpersid(self) -> None:
        if self.stack[-1][0] != 'storage':  # the old format has another kind, source code of modules
            raise pickle.UnpicklingError(f'persistent object {self.stack[-1][0]!r}')
        super().load_binpersid()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid


class _Archive:
    """An archive's reader that refuses weights shorter than the archive's pickle says, as torch does from 2.10 on."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def get_storage_from_record(self, name: str, size: int, kind: Any) -> Any:
        found = len(self._reader.get_record(name))
        if found < size:
            raise EOFError(f'{name} has {found} bytes instead of {size}')
        return self._reader.get_storage_from_record(name, size, kind)


class _Pickle:
    """What torch's readers use of the module ``pickle``."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: BinaryIO, **kwargs: Any) -> Any:
        return _Unpickler(file, **kwargs).load()


def _load(path: str, mmap: bool) -> Any:
    """What ``torch.load(path, weights_only=True)`` does from torch 2.10 on."""
    if _TORCH_CHECKS_LENGTHS:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    unpickler: Any = torch._weights_only_unpickler if _TORCH_READS_SAFELY else _Pickle
    with open(path, 'rb') as file:
        if serialization._is_zipfile(file):
            with serialization._open_zipfile_reader(file) as archive:
                if serialization._is_torchscript_zip(archive):
                    raise pickle.UnpicklingError('TorchScript archives')
                return serialization._load(_Archive(archive), 'cpu', unpickler, encoding='utf-8')
        if tarfile.is_tarfile(path):
            raise pickle.UnpicklingError('legacy .tar format')
        return serialization._legacy_load(file, 'cpu', unpickler, encoding='utf-8')


def _explain(error: Exception) -> str:
    reason = str(error)
    for words, kind in _REFUSED_KINDS.items():
        if words in reason:
            return f'is refused: it is {kind}, which could run code; take one of bare weights'
    asked = re.search(r'(?:GLOBAL|class|function) ([\w.]+\.\w+)', reason)
    if asked is None or not isinstance(error, pickle.UnpicklingError):
        return 'is truncated or no PyTorch checkpoint'
    return f'is refused: to be read it asks for {asked[1]}, which could run code; take one of bare weights'


def check_archive(path: str, name: str | None = None) -> None:
    """Compares a checkpoint's bytes with the check sums of its archive, which torch does not do.

    Files in torch's format from before 1.6 are no archives and have no check sums.

    Args:
        path (str): A local file.
        name (str, optional): What to call it, if it is a copy.

    Raises:
        UserError: If a byte has changed.
    """
    with open(path, 'rb') as file:
        if not serialization._is_zipfile(file):
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # whatever a damaged directory makes of it
        raise UserError(f'{name or path} is truncated or no PyTorch checkpoint') from error
    if damaged:
        raise UserError(f'{name or path} is damaged: {damaged} in it does not fit its check sum')


@contextlib.contextmanager
def _fetch(path: str) -> Iterator[str]:
    """Gives the local file of a path or an address; raises as :func:`read_checkpoint` does."""
    if '://' not in path:
        local_path = osp.expanduser(path)  # as MMEngine does
        if not isfile(local_path):
            raise FileNotFoundError(f'checkpoint {path} does not exist')
        yield local_path
        return
    with contextlib.ExitStack() as stack:
        try:
            local_path = stack.enter_context(get_local_path(path))
        except KeyError as error:  # of the scheme
            raise UserError(f'{path} cannot be read: MMEngine has no file client for {error}') from error
        except Exception as error:  # each file client has its own
            raise UserError(f'{path} cannot be read ({describe_error(error)})') from error
        yield local_path


def read_checkpoint(path: str, mmap: bool = False, check: bool = True) -> dict:
    """Reads a checkpoint to the CPU without running code from it.

    Args:
        path (str): A local file, where ``~`` is the home folder, or any address that MMEngine's file clients take.
        mmap (bool): From torch 2.10 on, map the weights instead of reading them, where the file's format allows it.
            Defaults to False.
        check (bool): Compare all bytes with their check sums first. Defaults to True.

    Returns:
        dict: The content of the file.

    Raises:
        FileNotFoundError: If ``path`` is a local file that does not exist.
        PermissionError: If it may not be read.
        UserError: If an address gives no file, or the file is no complete PyTorch checkpoint or asks for more
            than the allow-list holds.
    """
    allow_safe_globals()  # again: torch's own context manager, where another library uses it, takes them off the list
    path = str(path)
    with _fetch(path) as local_path:
        try:
            if check:
                check_archive(local_path, path)
            checkpoint = _load(local_path, mmap)
        except (PermissionError, UserError):
            raise
        except Exception as error:  # a damaged pickle may raise anything
            raise UserError(f'{path} {_explain(error)}') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} holds no weights: it is a {type(checkpoint).__name__}, not a dict of them')
    return checkpoint
