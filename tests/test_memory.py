"""Freed memory that glibc keeps: fewer pages are taken from the system, and results stay the same."""

from __future__ import annotations

import json
import os
import platform

import pytest

from helpers import REPO
from interpreter import run_python

PASSES = """
import json, resource, sys
import torch
from mmefficientmod.models import EfficientMod
from mmefficientmod.utils import keep_freed_memory
kept = keep_freed_memory()
torch.manual_seed(0)
network, image = EfficientMod('s_conv').eval(), torch.rand(1, 3, 512, 512)
with torch.inference_mode():
    network(image), network(image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sums = [float(level.double().sum()) for level in network(image)]
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps(dict(kept=kept, faults=faults, sums=sums)))
"""


def passes(**variables: str) -> dict:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    environment.update(variables, PYTHONPATH=str(REPO), OMP_NUM_THREADS='1')
    done = run_python('-c', PASSES, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='a setting of glibc')
def test_freed_memory_is_kept():
    kept, given = passes(), passes(MALLOC_ARENA_MAX='8')  # who sets the allocator decides it
    assert kept['kept'] and not given['kept']
    assert kept['sums'] == given['sums']
    print(f'page faults in a pass: {given["faults"]} without, {kept["faults"]} with')
    assert kept['faults'] < given['faults'] / 10
