"""Results are read without torch; the floors of the house are held by the import-linter contract in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

from helpers import REPO

READERS = (
    *('zoo.tasks', 'zoo.backbones', 'zoo.published', 'measure.records', 'measure.tables'),
    *('codebases.config', 'export.description', 'export.formats', 'predict.run', 'predict.exported'),
    *(f'compare.{name}' for name in ('workdir', 'state', 'settings', 'results', 'table', 'plots', 'report')),
)


def test_results_are_read_without_torch_and_without_a_lock():
    """On a machine that has neither torch nor, as Windows, fcntl."""
    block = "import sys; sys.modules.update({'torch': None, 'fcntl': None, 'resource': None})"
    names = ', '.join(f'mmefficientmod.{name}' for name in READERS)
    done = subprocess.run([sys.executable, '-c', f'{block}; import {names}'], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
