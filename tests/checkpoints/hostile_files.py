"""Two hundred hand-made checkpoints: what a damaged disk, another program or an attacker may leave in a file."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import Tensor

IS_OLD = digit_version(torch.__version__) < digit_version('2.2')  # which cannot save all types

ARCH = dict(
    embed_dims=(8, 16), depths=(1, 1), attn_depths=(0, 1), ratio=2, attn_ratios=(2, 2), drop_path_rate=0.0
)  # small, so that hundreds of files are quick
NAME = 'patch_embeds.1.proj.weight'  # the weight that is replaced, (16, 8, 3, 3)


class Call:
    """Pickles as a call of a function, and as a state that is set on what it returns."""

    def __init__(self, function: Callable, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple:
        return self.reduced


def saved(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def zipped(data: bytes, **records: bytes) -> bytes:
    """A file in torch's format around a pickle that torch.save does not write."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, value in dict(records, **{'data.pkl': data, 'version': b'3\n', 'byteorder': b'little'}).items():
            archive.writestr(f'archive/{name}', value)
    return file.getvalue()


def rebuilt(weight: Tensor, **changes: Any) -> Call:
    """A tensor as torch.save describes it, with other arguments."""
    arguments = dict(
        storage=weight._typed_storage(),
        offset=0,
        size=tuple(weight.shape),
        stride=weight.stride(),
        requires_grad=False,
        hooks=OrderedDict(),
    )
    return Call(torch._utils._rebuild_tensor_v2, *{**arguments, **changes}.values())


def array(*state: Any) -> Call:
    """A NumPy array of any state: version, shape, dtype, Fortran order, bytes."""
    reconstruct = np.zeros(0).__reduce__()[0]
    return Call(reconstruct, np.ndarray, (0,), b'b', state=state)


def odd_tensors(weight: Tensor) -> Iterator[tuple[str, Any]]:
    """Tensors, or calls for one, that are no usable weight. All are to be refused."""
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64):
        yield f'weight of type {dtype}', weight.to(dtype)
    for dtype in ('float8_e4m3fn', 'float8_e5m2', 'complex128', 'complex32'):
        if hasattr(torch, dtype) and not (IS_OLD and dtype.startswith(('float8', 'complex32'))):
            yield f'weight of type {dtype}', weight.to(getattr(torch, dtype))
    for value in (float('nan'), float('inf'), -float('inf')):
        for place in (0, -1):
            bad = weight.clone()
            bad.view(-1)[place] = value
            yield f'{value} at {place}', bad
            yield f'{value} at {place} in half precision', bad.half()
    yield 'sparse COO', weight.flatten(1).to_sparse()
    yield 'sparse COO, four dimensions', weight.to_sparse()
    yield 'sparse CSR', weight.flatten(1).to_sparse_csr()
    yield 'sparse CSC', weight.flatten(1).to_sparse_csc()
    yield 'quantised', torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    scales = torch.full((len(weight),), 0.1)
    yield 'quantised by channel', torch.quantize_per_channel(weight, scales, torch.zeros(len(weight)), 0, torch.qint8)
    yield 'meta', weight.to('meta')
    yield 'meta parameter', torch.nn.Parameter(weight.to('meta'))
    if not IS_OLD:
        yield 'nested', torch.nested.nested_tensor([weight.flatten(1), weight.flatten(1)[:1]])
    yield 'expanded', torch.zeros(1).expand(weight.shape)
    yield 'expanded along one axis', weight[:1].clone().expand(weight.shape)
    yield 'transposed shape', weight.transpose(0, 1)
    yield 'one element', weight.flatten()[:1]
    yield 'no element', weight.flatten()[:0]
    yield 'scalar', torch.tensor(1.0)
    yield 'one more dimension', weight[None]
    overlapping = weight.clone().view(-1).as_strided(weight.shape, (1, 1, 1, 1))
    yield 'overlapping elements', overlapping
    for value in (None, 1, 1.5, 'text', b'bytes', [1.0], (1.0,), {'a': 1}, {1, 2}, 1j, np.zeros(3), range):
        if value is not range:
            yield f'{type(value).__name__} in the place of a weight', value
    size, count = tuple(weight.shape), weight.numel()
    for what, wrong in {
        'negative size': (-1, *size[1:]),
        'two negative sizes': (-size[0], -size[1], *size[2:]),
        'enormous size': (2**40, *size[1:]),
        'size beyond 64 bits': (2**70, *size[1:]),
        'sizes whose product overflows': (2**32, 2**32, 1, 1),
        'size of text': ('8', *size[1:]),
        'size that is no integer': (8.0, *size[1:]),
        'size that is True': (True, *size[1:]),
        'no size': None,
        'size of a number': 8,
        'size of text alone': 'abcd',
        'too few sizes': size[:1],
        'nested sizes': ((8,), *size[1:]),
    }.items():
        yield what, rebuilt(weight, size=wrong)
    for what, wrong in {
        'negative stride': (-1, 1, 1, 1),
        'enormous stride': (2**62, 1, 1, 1),
        'stride beyond the storage': (count, 1, 1, 1),
        'stride that is no integer': (1.5, 1, 1, 1),
        'stride of text': 'abcd',
        'no stride': None,
        'too few strides': (1,),
    }.items():
        yield what, rebuilt(weight, stride=wrong)
    for wrong in (-1, 1, 2**62, 2**70, 1.5, 'a', None):
        yield f'storage offset {wrong!r}', rebuilt(weight, offset=wrong)
    for wrong in (None, 3, 'storage', torch.Size([1]), weight.clone()):
        yield f'{type(wrong).__name__} as storage', rebuilt(weight, storage=wrong)
    yield 'too few arguments for a tensor', Call(torch._utils._rebuild_tensor_v2)
    yield 'wrong arguments for a tensor', Call(torch._utils._rebuild_tensor_v2, *range(6))
    yield 'wrong arguments for a parameter', Call(torch._utils._rebuild_parameter, 1, 2, 3)
    yield 'parameter of text', Call(torch._utils._rebuild_parameter, 'x', True, OrderedDict())
    yield 'sparse tensor of nonsense', Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (1, 2, 3))
    indices = torch.tensor([[0, 99]])
    yield (
        'sparse indices out of range',
        Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (indices, torch.ones(2), torch.Size([8]), False)),
    )
    yield (
        'negative sparse indices',
        Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (-indices, torch.ones(2), torch.Size([8]), False)),
    )
    yield (
        'meta tensor of negative size',
        Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (-1,), (1,), False),
    )
    yield (
        'meta tensor of enormous size',
        Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (2**40, 8, 1, 1), (8, 1, 1, 1), False),
    )
    yield 'torch.Size of text', Call(torch.Size, ('a', 'b'))


def odd_extras() -> Iterator[tuple[str, Any]]:
    """Objects beside the weights that cannot be built as described, or are harmless."""
    double = np.dtype('float64')
    for shape in ((-1,), (-5, -5), (2**40,), (2**62, 2**62), (2**70,), ('a',), (1.5,), None, 'ab', 3, ((1,),), (3, -1)):
        yield f'array of shape {shape!r}', array(1, shape, double, False, b'\0' * 8)
    for version in (0, -1, 99, None, 'a'):
        yield f'array of version {version!r}', array(version, (1,), double, False, b'\0' * 8)
    for data in (b'', b'\0' * 7, b'\0' * 9, None, 'text', 3, [1.0]):
        yield f'array of bytes {data!r}', array(1, (1,), double, False, data)
    for dtype in (None, 'float64', 3, np.dtype('O'), np.ndarray):
        yield f'array of dtype {dtype!r}', array(1, (1,), dtype, False, b'\0' * 8)
    yield 'array of objects', array(1, (1,), np.dtype('O'), False, [None])
    yield 'array with a short state', array(1)
    yield 'array with a long state', array(*range(20))
    reconstruct, scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    for args in ((), (np.ndarray,), (np.ndarray, (-1,), b'b'), (np.ndarray, (2**50,), b'b'), (np.ndarray, 'a', b'b')):
        yield f'array made of {args[1:]!r}', Call(reconstruct, *args)
    yield 'array of another class', Call(reconstruct, OrderedDict, (0,), b'b')
    for args in ((), (double,), (double, b''), (double, b'\0' * 3), (double, 'a'), (np.dtype('O'), b'a'), (3, b'')):
        yield f'NumPy number of {args!r}', Call(scalar, *args)
    for args in (('f8', False, True, 1), (), ('no dtype',), (None,), ('O8', False, True), ('V99999999999',), ([],)):
        yield f'dtype of {args!r}', Call(np.dtype, *args)
    for state in ((), (3,), 'ab', (99, '<', None, None, None, -1, -1, 0), (3, '?', 1, 2, 3, 4, 5, 6), 7):
        yield f'dtype with the state {state!r}', Call(np.dtype, 'f8', False, True, state=state)
    for args in (
        (1, 2),
        (1, 2, 3),
        ('a',),
        ([1], [1, 2]),
        ([1], [1], -1),
        ([1], [1], 'x'),
        ({}, {}),
        (None, None, None),
    ):
        yield f'HistoryBuffer of {args!r}', Call(HistoryBuffer, *args)
    for state in (3, 'ab', {'a': 1}, {'_log_history': 3}, {'_statistics_methods': {'mean': print.__name__}}, [(1, 2)]):
        yield f'HistoryBuffer with the state {state!r}', Call(HistoryBuffer, state=state)
    for args in ((1,), ([1],), ([[1]],), ('ab',), (None,), ({}, {}), ([(1, 2, 3)],)):
        yield f'OrderedDict of {args!r}', Call(OrderedDict, *args)
    for args in (('nowhere',), ('cpu', 'x'), ('cuda', -9), (), (1.5,)):
        yield f'device of {args!r}', Call(torch.device, *args)
    for function in (os.getcwd, eval, open, exec, getattr, __import__, pickle.loads, torch.load, torch.hub.load):
        yield f'call of {function.__module__}.{function.__name__}', Call(function, 'x')
    yield 'Namespace of arguments', Call(argparse.Namespace, 1)
    yield 'getattr of a class', Call(getattr, HistoryBuffer, '__init__')
    yield 'getattr of a module', Call(getattr, np.ndarray, 'tofile')
    yield 'a function as such', os.system
    yield 'a deep list', Call(list, _nest(300))
    yield 'bytes', Call(bytearray, -1)
    yield 'enormous bytes', Call(bytearray, 2**45)


def _nest(depth: int) -> list:
    nested: list = []
    for _ in range(depth):
        nested = [nested]
    return nested


def odd_pickles(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Files that are no checkpoint, or only almost."""
    for what, data in {
        'nothing': b'',
        'a stop': b'.',
        'none': b'N.',
        'an empty dict': b'}.',
        'an unknown operation': b'\xff.',
        'a reference to nothing': b'h\x05.',
        'a pop of nothing': b'0.',
        'a call of nothing': b'R.',
        'a long string that is not there': b'\x8e' + struct.pack('<Q', 2**60) + b'.',
        'a long text that is not there': b'\x8d' + struct.pack('<Q', 2**60) + b'.',
        'a number of a billion digits': b'\x8b' + struct.pack('<i', 2**30) + b'\1.',
        'a number of negative length': b'\x8b' + struct.pack('<i', -5) + b'\1.',
        'a long frame': b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'}.',
        'a protocol of the future': b'\x80\x63}.',
        'a dict that holds itself': b'}q\0(X\1\0\0\0ah\0u.',
        'a list that holds itself': b']q\0h\0a.',
        'a memo far away': b'}r\xff\xff\xff\x7f.',
        'marks alone': b'(' * 1000 + b'.',
        'no stop': b'}',
        'persistent nonsense': b'NQ.',
        'an extension': b'\x82\x01.',
        'a hundred thousand lists': b']' * 100_000 + b'.',
    }.items():
        yield f'pickle of {what}', zipped(data)
    for what, data in {
        'text': b'<html>404 Not Found</html>',
        'zeros': bytes(4096),
        'ones': b'\xff' * 4096,
        'an empty archive': b'PK\5\6' + bytes(18),
        'the beginning of an archive': b'PK\3\4',
        'a bare pickle': pickle.dumps({'a': 1}),
        'a bare list': pickle.dumps([1]),
        'safetensors': struct.pack('<Q', 2) + b'{}',
        'gzip': b'\x1f\x8b\x08\0' + bytes(50),
        'twice': whole + whole,
        'data behind': whole + bytes(100),
        'data before': bytes(100) + whole,
    }.items():
        yield what, data
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive, zipfile.ZipFile(io.BytesIO(whole)) as original:
        for name in original.namelist():
            if '/data/' not in name:
                archive.writestr(name, original.read(name))
    yield 'an archive without weights', file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive, zipfile.ZipFile(io.BytesIO(whole)) as original:
        for name in original.namelist():
            archive.writestr(name, original.read(name))
    yield 'a compressed archive', file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive, zipfile.ZipFile(io.BytesIO(whole)) as original:
        for name in original.namelist():
            content = original.read(name)
            archive.writestr(name, content[: len(content) // 2] if '/data/' in name else content)
    yield 'an archive with half of each weight', file.getvalue()


def all_files(weights: dict[str, Tensor]) -> Iterator[tuple[str, bytes]]:
    """Every file with its name; weights are of a backbone of ``ARCH``."""
    for what, value in odd_tensors(weights[NAME]):
        yield what, saved({'state_dict': {**weights, NAME: value}})
    for what, value in odd_extras():
        yield what, saved({'state_dict': weights, 'extra': value})
    yield from odd_pickles(saved({'state_dict': weights}))
