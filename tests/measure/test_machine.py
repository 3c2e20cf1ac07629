"""The facts that a benchmark notes about its machine and its run are those of the machine and the run."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from helpers import REPO
from mmefficientmod.export.environment import read_cpu, vector_extensions
from mmefficientmod.measure.machine import OtherLoad, describe_allocator, describe_machine, describe_run
from mmefficientmod.measure.tables import describe_machine as describe
from mmefficientmod.version import __version__

linux = pytest.mark.skipif(sys.platform != 'linux', reason='other systems do not tell')


@linux
def test_the_flags_of_the_processor_agree_with_torch():
    flags = {'AVX512': 'avx512f', 'AVX2': 'avx2'}
    if vector_extensions() not in flags:
        pytest.skip('torch uses neither AVX2 nor AVX-512 here')
    assert flags[vector_extensions()] in read_cpu().flags


@linux
def test_work_of_other_processes_counts():
    busy = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        load = OtherLoad()
        time.sleep(2)
        assert 0.5 < load.cores() <= os.cpu_count() + 0.1
    finally:
        busy.kill()
        busy.wait()


@linux
def test_own_work_does_not_count():
    load, begin, own = OtherLoad(), time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < 2:
        pass
    own = (time.process_time() - own) / 2
    assert load.cores() + own <= os.cpu_count() + 0.15


def test_a_run_knows_when_and_from_which_commit():
    run = describe_run()
    age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(run['date'])
    assert abs(age.total_seconds()) < 60 and run['version'] == __version__
    if (REPO / '.git').exists():
        head = subprocess.run(['git', '-C', str(REPO), 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True)
        commit = re.fullmatch(r'([0-9a-f]{12,40})(-dirty)?', run['commit'])
        assert commit and head.stdout.startswith(commit[1])


def test_the_machine_names_its_allocator_and_hides_the_name_of_the_host(monkeypatch):
    monkeypatch.setenv('MALLOC_ARENA_MAX', '2')
    assert describe_allocator().endswith('MALLOC_ARENA_MAX=2')
    facts = describe_machine(torch.device('cpu'))
    assert re.fullmatch('[0-9a-f]{12}', facts['host']) and facts['allocator'] == describe_allocator()
    assert facts['host'] not in describe(facts) and f'cpu {facts["cpu"]}' in describe(facts)
    assert not facts['cpu_flags'] or facts['cpu_flags'] not in describe(facts)
