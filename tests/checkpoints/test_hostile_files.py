"""Damaged and hostile checkpoints are refused in one line, or loaded right; no bit of a weight changes unnoticed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from hostile_files import ARCH, all_files, saved

from helpers import REPO
from mmefficientmod.checkpoints.loading import load_pretrained
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.conversion import convert_checkpoint
from mmefficientmod.utils import UserError

LIMIT = 20  # seconds for one file of 100 kB; most take a few milliseconds


@pytest.fixture(scope='module')
def weights():
    torch.manual_seed(0)
    model = EfficientMod(ARCH, out_indices=1)
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def outcome(data: bytes, weights: dict, folder) -> str:
    """``'refused'`` in one line with nothing changed, or ``'loaded'`` right; anything else fails."""
    path = folder / 'file.pth'
    path.write_bytes(data)
    model = EfficientMod(ARCH, out_indices=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    begin = time.monotonic()
    try:
        load_pretrained(model, str(path))
        result, expected = 'loaded', weights
    except UserError as error:
        assert '\n' not in str(error) and str(path) in str(error)
        result, expected = 'refused', before
    assert time.monotonic() - begin < LIMIT
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items()), result
    return result


def test_hand_made_files(weights, tmp_path, monkeypatch):
    """What a file asks for is not called: the working directory stays, and nothing is printed or opened."""
    monkeypatch.chdir(tmp_path)
    results = Counter()
    for what, data in all_files(weights):
        try:
            results[outcome(data, weights, tmp_path)] += 1
        except BaseException as error:
            raise AssertionError(f'{what}: {type(error).__name__}: {error}') from error
    print(dict(results))
    assert results['refused'] >= 180 and results['loaded'] >= 5 and os.listdir(tmp_path) == ['file.pth']


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_truncations(legacy, weights, tmp_path):
    whole, chance = saved({'state_dict': weights}, legacy), random.Random(1)
    lengths = [0, 1, 2, 4, 30, len(whole) - 1, len(whole) - 22, *(chance.randrange(len(whole)) for _ in range(193))]
    assert Counter(outcome(whole[:length], weights, tmp_path) for length in lengths) == {'refused': 200}


def test_flipped_bits(weights, tmp_path):
    """Of an archive every flip is found that changes a weight; those in dates and padding are harmless."""
    whole, chance = saved({'state_dict': weights}), random.Random(2)
    results = Counter()
    for _ in range(600):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        results[outcome(bytes(data), weights, tmp_path)] += 1
    print(dict(results))
    assert results['refused'] >= 540  # nine tenths of the file are weights and what finds them


def test_flips_in_an_archives_directory(weights, tmp_path):
    """The last part of an archive says where everything is."""
    whole, chance = saved({'state_dict': weights}), random.Random(3)
    begin, results = whole.index(b'PK\1\2'), Counter()
    for _ in range(200):
        data = bytearray(whole)
        data[chance.randrange(begin, len(data))] ^= 1 << chance.randrange(8)
        results[outcome(bytes(data), weights, tmp_path)] += 1
    print(dict(results))
    assert results['refused'] >= 60 and results['loaded']


def test_flips_in_the_pickle_of_a_legacy_file_do_no_harm(weights, tmp_path):
    """The format has no check sums: a changed weight is loaded as it is, but never half of a file or with an error."""
    whole, chance = saved({'state_dict': weights}, legacy=True), random.Random(4)
    path, refused = tmp_path / 'file.pth', 0
    for _ in range(200):
        data = bytearray(whole)
        data[chance.randrange(10_000)] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        model = EfficientMod(ARCH, out_indices=1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            load_pretrained(model, str(path))
        except UserError as error:
            refused += 1
            assert '\n' not in str(error)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    print(refused)
    assert 0 < refused < 200


def test_conversion_is_as_strict(weights, tmp_path):
    source, target = tmp_path / 'in.pth', tmp_path / 'out.pth'
    data = bytearray(saved({'state_dict': weights}))
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    with pytest.raises(UserError, match=r'is damaged: archive/data/.* in it does not fit its check sum'):
        convert_checkpoint(str(source), str(target))
    assert not target.exists()


MEASURE = """
import resource, sys
from mmefficientmod.checkpoints.weights import check_values, find_weights
from mmefficientmod.checkpoints.reading import read_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
check_values(find_weights(read_checkpoint(sys.argv[1]), sys.argv[1]))
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_memory_of_reading(legacy, dtype, tmp_path):
    """At most three times the file, also where it is one weight; most of it is the weights themselves."""
    make = (
        f"import sys, torch; torch.save({{'w.weight': torch.ones(64 * 2**20, dtype={dtype})}}, sys.argv[1], "
        f'_use_new_zipfile_serialization={not legacy})'
    )
    path = tmp_path / 'large.pth'
    subprocess.run([sys.executable, '-c', make, str(path)], check=True)  # in another process: its memory is not ours
    environment = dict(os.environ, PYTHONPATH=str(REPO))
    done = subprocess.run(
        ['sh', '-c', f'{sys.executable} -c "$0" {path}', MEASURE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    used = int(done.stdout) / path.stat().st_size
    print(f'{used:.2f} times the file')
    path.unlink()
    assert used <= 3
