"""What does not fit is named on the screen, whoever imports the package."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import metadata
from pathlib import Path
from typing import Sequence

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from helpers import REPO

BUILD = 'from mmengine.registry import MODELS; MODELS.build(dict(type="mmefficientmod.EfficientMod", arch="xxs"))'


def run(code: str, *paths: object, options: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """Runs Python code with the repository and other folders first on its path."""
    path = os.pathsep.join(str(part) for part in (*paths, REPO))
    return subprocess.run(
        [sys.executable, *options, '-W', 'ignore', '-c', code],
        env=dict(os.environ, PYTHONPATH=path),
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.mark.both_stacks
@pytest.mark.parametrize('code', ['import mmefficientmod', BUILD], ids=['import', 'registry'])
@pytest.mark.parametrize('version', ['1.7.2', '3.0.0'])
def test_a_package_outside_the_range_is_named(code, version, tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text(f'__version__ = {version!r}\n')
    done = run(code, tmp_path)
    assert done.returncode != 0
    line = f'needs mmcv>=2.0.1,<3.0.0, but mmcv {version} is installed: pip uninstall -y '
    assert [text for text in done.stderr.splitlines() if text.startswith('error: mmefficientmod') and line in text]


def test_a_missing_package_is_named_where_it_is_needed(tmp_path):
    for entry in Path(sysconfig.get_path('purelib')).iterdir():
        if entry.name != 'mmengine':
            (tmp_path / entry.name).symlink_to(entry)
    done = run('import mmefficientmod', tmp_path, options=['-S'])  # this environment's folder is left out
    assert done.returncode == 0, done.stderr  # exported files are run and reports drawn so
    done = run('import mmefficientmod.models', tmp_path, options=['-S'])
    assert done.returncode != 0
    assert 'needs mmengine>=' in done.stderr and 'but mmengine is not installed: pip install' in done.stderr
    assert 'ModuleNotFoundError' not in done.stderr


@pytest.mark.export  # whose pins are installed there
@pytest.mark.parametrize('python', ['3.10', '3.12', '3.13'])
def test_pins_of_every_python_can_be_installed_on_each(python):
    """A pin that newer Pythons alone can install needs a marker and a line for the older ones."""
    refused = []
    for name in ('torch', 'runtime', 'export', 'tests'):
        for line in (REPO / f'requirements/{name}.txt').read_text().splitlines():
            text = line.partition('#')[0].strip()
            if not text:
                continue
            pin = Requirement(text)
            marker = pin.marker
            if marker and not (marker.evaluate({'python_version': python}) and marker.evaluate()):
                continue  # not for that Python, or another version than the one installed here
            needed = metadata(pin.name).get('Requires-Python') or ''
            if not SpecifierSet(needed).contains(f'{python}.99'):
                refused.append(f'{name}.txt: {text} needs Python {needed}')
    assert not refused
