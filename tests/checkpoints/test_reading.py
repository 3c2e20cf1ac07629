"""Reading a checkpoint runs no code from it, on every torch and numpy, and a bad file is refused in one line."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from helpers import Detector, trainer_file
from mmefficientmod.checkpoints.loading import load_pretrained, read_checkpoint
from mmefficientmod.checkpoints.weights import find_weights, pick_weights
from mmefficientmod.models import EfficientMod
from mmefficientmod.utils import UserError


@pytest.mark.skipif(not hasattr(torch.serialization, 'safe_globals'), reason='torch >= 2.5 has that context manager')
def test_reading_does_not_depend_on_what_other_libraries_do_to_the_allow_list(golden, tmp_path):
    path = trainer_file(golden('xxs')[0], tmp_path / 'released.pth')
    with torch.serialization.safe_globals([(argparse.Namespace, 'argparse.Namespace')]):
        pass  # at its end, torch takes the class off the list
    with pytest.raises(pickle.UnpicklingError, match=r'argparse\.Namespace'):
        torch.load(path, weights_only=True)
    assert torch.equal(read_checkpoint(path)['state_dict']['head.bias'], golden('xxs')[0]['head.bias'])


def test_the_plain_copy_comes_before_the_moving_average(golden, tmp_path):
    weights = golden('xxs')[0]
    ema = {name: value + 1 for name, value in weights.items()}
    path = trainer_file(weights, tmp_path / 'released.pth', ema=ema)
    content = read_checkpoint(path)
    assert torch.equal(find_weights(content, path)['head.bias'], weights['head.bias'])
    assert torch.equal(pick_weights(content, path, ema=True)[0]['head.bias'], ema['head.bias'])


@pytest.mark.parametrize('whole', [True, False])
def test_keys_that_are_not_names_are_refused(whole):
    weights = {0: torch.ones(1), 'a': torch.ones(1)}
    with pytest.raises(UserError, match=r'^x\.pth holds tensors with keys that are not names: 0$'):
        find_weights(dict(state_dict=weights) if whole else weights, 'x.pth')


class Touch:
    """Unpickling it runs code: it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.both_stacks
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_reading_never_runs_code_from_the_file(legacy, golden, tmp_path):
    path, witness = str(tmp_path / 'evil.pth'), tmp_path / 'witness'
    torch.save(dict(state_dict=golden('xxs')[0], extra=Touch(witness)), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r'evil.pth is refused: it asks for (posix|os)\.system') as error:
        EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    assert '\n' not in str(error.value)
    assert not witness.exists()


def truncated(weights, path):
    trainer_file(weights, path)
    path.write_bytes(path.read_bytes()[:20000])


BAD_FILES = {
    'truncated': (truncated, 'is truncated or not a PyTorch checkpoint'),
    'empty': (lambda weights, path: path.write_bytes(b''), 'is truncated or not a PyTorch checkpoint'),
    'text': (lambda weights, path: path.write_text('<html>404</html>'), 'is truncated or not a PyTorch checkpoint'),
    'pickle': (
        lambda weights, path: path.write_bytes(pickle.dumps(dict(a=1))),
        'is truncated or not a PyTorch checkpoint|holds no weights',
    ),
    'without weights': (
        lambda weights, path: torch.save(dict(epoch=3, args=argparse.Namespace()), path),
        'holds no weights; its entries are: epoch, args',
    ),
    'a list': (lambda weights, path: torch.save([1, 2], path), 'holds no weights: it is a list'),
    'another network': (
        lambda weights, path: torch.save({'conv1.weight': torch.rand(3)}, path),
        r'does not fit .* 1 unexpected: conv1.weight',
    ),
    'a whole model': (
        lambda weights, path: torch.save({f'backbone.{n}': v for n, v in weights.items()}, path),
        "add prefix='backbone.'",
    ),
    'incomplete': (
        lambda weights, path: torch.save({n: v for n, v in weights.items() if 'fc2.bias' not in n}, path),
        r'does not fit .* missing: stages.0.0.fc2.bias',
    ),
}


@pytest.mark.parametrize('kind', BAD_FILES)
def test_a_bad_file_is_one_clear_line_and_loads_nothing(kind, golden, tmp_path):
    make, message = BAD_FILES[kind]
    path = tmp_path / 'bad.pth'
    make(golden('xxs')[0], path)
    model = EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        model.init_weights()
    assert str(path) in str(error.value) and '\n' not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_missing_file_names_both_ways_out(tmp_path):
    model = EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'none.pth')))
    with pytest.raises(FileNotFoundError, match=r'none.pth does not exist: .*init_cfg.checkpoint=PATH.*init_cfg=None'):
        model.init_weights()


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(dict(weight=torch.ones(1)), tmp_path / 'w.pth')
    assert read_checkpoint('~/w.pth') == dict(weight=torch.ones(1))
    with pytest.raises(FileNotFoundError, match=r'checkpoint ~/none\.pth does not exist'):
        read_checkpoint('~/none.pth')
    with pytest.raises(FileNotFoundError, match=r'checkpoint ~/ is a folder: name a file in it'):
        read_checkpoint('~/')


@pytest.mark.parametrize(
    ('address', 'reason'),
    [
        ('http://127.0.0.1:1/w.pth', r'\(URLError: .*\)'),
        ('torchvision://resnet18', "MMEngine has no file client for 'torchvision'"),
    ],
)
def test_an_address_that_gives_no_file(address, reason):
    with pytest.raises(UserError, match=f'^{address} cannot be read:? {reason}$'):
        read_checkpoint(address)


def mmengine_file(path, old=None, new=None):
    """A file as MMEngine writes it, with a name in its pickle changed from ``old`` to ``new``."""
    loss = HistoryBuffer([1.5, 2.5], [1, 1])
    info = dict(
        epoch=1,
        lr=np.float64(0.1),
        best=np.float32(0.5),
        seen=np.arange(3),
        flag=np.bool_(True),
        tags=np.array(['a', 'bb']),
    )
    content = dict(
        meta=dict(epoch=1, experiment_name='x'),
        state_dict=Detector('xxs').state_dict(),
        message_hub=dict(log_scalars=OrderedDict(loss=loss), runtime_info=OrderedDict(info), resumed_keys={}),
    )
    torch.save(content, path)
    if old is None:
        return str(path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = [name for name in records if name.endswith('/data.pkl')]
    assert old in records[pickled] or new in records[pickled]
    records[pickled] = records[pickled].replace(old, new)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, value in records.items():
            archive.writestr(name, value)
    return str(path)


@pytest.mark.both_stacks
@pytest.mark.parametrize(
    'names', [(b'numpy.core.', b'numpy._core.'), (b'numpy._core.', b'numpy.core.')], ids=['numpy 2', 'numpy 1']
)
@pytest.mark.filterwarnings('ignore:numpy.core is deprecated')
def test_checkpoints_cross_numpy_1_and_2(names, tmp_path):
    path = mmengine_file(tmp_path / 'epoch_1.pth', *names)
    for content in (read_checkpoint(path), CheckpointLoader.load_checkpoint(path, map_location='cpu')):
        assert content['message_hub']['log_scalars']['loss'].mean() == 2
        info = content['message_hub']['runtime_info']
        assert (info['lr'], info['best'], info['flag']) == (0.1, 0.5, True)
        assert info['seen'].tolist() == [0, 1, 2] and info['tags'].tolist() == ['a', 'bb']
    load_pretrained(EfficientMod('xxs'), path, prefix='backbone.')


@pytest.mark.filterwarnings('ignore::UserWarning')  # of torch, about the kind of file
def test_archives_that_torch_reads_unsafely_are_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / 'script.pth'))
    with pytest.raises(UserError, match=r'script.pth is refused: it is a TorchScript archive') as error:
        read_checkpoint(tmp_path / 'script.pth')
    assert '\n' not in str(error.value)

    witness = tmp_path / 'witness'
    (tmp_path / 'pickle').write_bytes(pickle.dumps(Touch(witness), protocol=2))
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            archive.add(tmp_path / 'pickle', name)
    with pytest.raises(UserError, match=r'old.pth is refused: it is a tar archive'):
        read_checkpoint(tmp_path / 'old.pth')
    assert not witness.exists()


def test_a_file_does_not_change_classes(tmp_path):
    stream = b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\nN}X\x04\x00\x00\x00meanK\x01s\x86b.'
    with zipfile.ZipFile(tmp_path / 'evil.pth', 'w') as archive:
        archive.writestr('evil/data.pkl', stream)
        archive.writestr('evil/version', '3\n')
    mean = HistoryBuffer.mean
    with pytest.raises(UserError, match=r'evil.pth'):
        read_checkpoint(tmp_path / 'evil.pth')
    assert HistoryBuffer.mean is mean


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_both_file_formats_are_read(legacy, golden, tmp_path):
    weights = golden('xxs')[0]
    torch.save(weights, tmp_path / 'weights.pth', _use_new_zipfile_serialization=not legacy)
    content = read_checkpoint(tmp_path / 'weights.pth')
    assert all(torch.equal(content[name], value) for name, value in weights.items())


def test_opening_a_checkpoint_reads_its_entries_only(tmp_path):
    counters = Path('/proc/self/io')
    if not counters.exists():
        pytest.skip('this system does not count what a process reads')

    def bytes_read():
        return int(re.search(r'rchar: (\d+)', counters.read_text())[1])

    path = tmp_path / 'large.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(16 * 2**20)), meta=dict(epoch=3)), path)
    before = bytes_read()
    content = read_checkpoint(path, mmap=True, check=False)
    assert bytes_read() - before < path.stat().st_size / 50
    assert content['meta'] == dict(epoch=3) and content['state_dict']['weight'].shape == (16 * 2**20,)
    assert content['state_dict']['weight'][-1] == 1
