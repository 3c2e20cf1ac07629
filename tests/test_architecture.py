"""Results are read without torch, and nothing needs Linux at import; a contract in pyproject.toml holds the floors."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import mmefficientmod
from helpers import REPO

READERS = (
    *('zoo.tasks', 'zoo.backbones', 'zoo.published', 'measure.records', 'measure.tables'),
    *('codebases.config', 'export.description', 'export.formats', 'predict.run', 'export.model'),
    *(f'compare.{name}' for name in ('workdir', 'state', 'settings', 'results', 'table', 'plots', 'report')),
)


def test_results_are_read_without_torch_and_without_a_lock():
    """On a machine that has neither torch nor, as Windows, fcntl."""
    block = "import sys; sys.modules.update({'torch': None, 'fcntl': None, 'resource': None})"
    names = ', '.join(f'mmefficientmod.{name}' for name in READERS)
    done = subprocess.run([sys.executable, '-c', f'{block}; import {names}'], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.libraries
def test_nothing_needs_linux_at_import():
    """On a machine without what Windows lacks; nothing here was run on Windows or macOS."""
    block = (
        'import os, runpy, signal, sys\n'
        'sys.modules.update(fcntl=None, resource=None)\n'
        'for name in ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1"): delattr(signal, name)\n'
        'for name in ("fork", "killpg", "setsid", "getloadavg", "sched_getaffinity"): delattr(os, name)\n'
        'for name in sys.argv[1].split(): __import__(name)\n'
        'for path in sys.argv[2:]: runpy.run_path(path, {}, "tool")\n'
    )
    found = pkgutil.walk_packages(mmefficientmod.__path__, 'mmefficientmod.')
    names = ' '.join(module.name for module in found if module.name.rpartition('.')[2] != '__main__')
    command = [sys.executable, '-W', 'ignore', '-c', block, names, *map(str, REPO.glob('tools/*.py'))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_needs_linux_says_so(tmp_path):
    code = (
        'import sys; sys.modules.update(fcntl=None)\n'
        'from pathlib import Path; from mmefficientmod.compare.runs import Job\n'
        'with Job("xxs", Path(sys.argv[1]), None, "config.py").lock(False): pass\n'
    )
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=REPO, capture_output=True, text=True)
    assert 'UserError: trainings are run and compared on Linux and macOS only' in done.stderr
