"""Reads checkpoints with torch before 2.10 as safely as ``torch.load(weights_only=True)`` does since.

This file goes when torch 2.10 is the oldest supported version, with the branch in :mod:`.reading` that imports it.
"""

from __future__ import annotations

import codecs
import os
import pickle
import tarfile
from collections import Counter
from functools import lru_cache
from typing import Any, BinaryIO

import torch
from torch import serialization

from .allowed import TORCH_READS_SAFELY, plain_data


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
        **plain_data(),
    }


# The unpickler written in Python, which typeshed does not know: parts of the one in C cannot be replaced.
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
        kind = type(self.stack[-2])  # the object that gets a new state: never a class or a function
        if kind not in _allow_list().values():
            raise pickle.UnpicklingError(f'class {kind.__module__}.{kind.__name__}')
        super().load_build()

    def load_binpersid(self) -> None:
        if self.stack[-1][0] != 'storage':  # the old format also has source code of modules
            raise pickle.UnpicklingError(f'persistent object {self.stack[-1][0]!r}')
        super().load_binpersid()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid


class _Archive:
    """An archive's reader that maps weights if asked to, and rejects those that are shorter than the pickle says."""

    def __init__(self, reader: Any, mapped: torch.UntypedStorage | None, check: bool) -> None:
        self._reader, self._mapped, self._check = reader, mapped, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def get_storage_from_record(self, name: str, size: int, kind: Any) -> Any:
        if self._check or self._mapped is None:
            found = len(self._reader.get_record(name))
            if found < size:
                raise EOFError(f'{name} has {found} bytes instead of {size}')
        if self._mapped is None:
            return self._reader.get_storage_from_record(name, size, kind)
        begin = self._reader.get_record_offset(name)
        return torch.empty(0, dtype=torch.uint8).set_(self._mapped[begin : begin + size])


class _Pickle:
    """The parts of the module ``pickle`` that torch's readers use."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: BinaryIO, **kwargs: Any) -> Any:
        return _Unpickler(file, **kwargs).load()


def load(path: str, mmap: bool, check: bool) -> Any:
    """Reads a checkpoint to the CPU.

    Args:
        path (str): A local file.
        mmap (bool): Map the weights of an archive instead of reading them.
        check (bool): Compare the lengths of mapped weights with the archive's, which reads them once. Weights that are
            not mapped are always compared.

    Raises:
        Exception: Of any class, if the file is damaged or asks for more than the allow-list holds.
    """
    unpickler: Any = torch._weights_only_unpickler if TORCH_READS_SAFELY else _Pickle
    with open(path, 'rb') as file:
        if serialization._is_zipfile(file):
            mapped = torch.UntypedStorage.from_file(path, False, os.path.getsize(path)) if mmap else None
            with serialization._open_zipfile_reader(file) as reader:
                if serialization._is_torchscript_zip(reader):
                    raise pickle.UnpicklingError('TorchScript archives')
                return serialization._load(_Archive(reader, mapped, check), 'cpu', unpickler, encoding='utf-8')
        if tarfile.is_tarfile(path):
            raise pickle.UnpicklingError('legacy .tar format')
        return serialization._legacy_load(file, 'cpu', unpickler, encoding='utf-8')
