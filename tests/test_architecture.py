"""The house keeps its floors (docs/design.md): imports go down, never in a circle; results are read without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import REPO

PACKAGE = 'mmefficientmod'
FLOORS = (
    ('utils', 'version', 'names', 'annotations', 'pictures'),
    ('safe_load', 'registry'),
    ('checkpoint', 'lite', 'cpu_processes', 'sharded'),
    ('resume',),
    ('models', 'optim', 'zoo', 'hooks', 'classifier_checks', 'codebases'),
    ('checks', 'conversion'),
    ('launch', 'measure', 'visualization'),
    ('compare', 'export'),
    ('predict',),
    ('tools', 'demo'),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
READERS = (
    *('zoo.tasks', 'zoo.backbones', 'zoo.published', 'measure.records', 'measure.tables', 'compare.workdir'),
    *(
        'export.description',
        'export.formats',
        'compare.state',
        'compare.settings',
        'compare.results',
        'compare.table',
        'compare.plots',
        'compare.report',
    ),
    *('predict.run', 'predict.exported'),
)


def sources() -> dict[str, Path]:
    """Dotted name -> file, of the package and of what stands on top of it."""
    files = [*(REPO / PACKAGE).rglob('*.py'), *(REPO / 'tools').glob('*.py'), *(REPO / 'demo').glob('*.py')]
    files = [file for file in files if '.mim' not in file.parts]
    return {'.'.join(file.relative_to(REPO).with_suffix('').parts): file for file in files}


def imports(name: str, file: Path) -> Iterator[str]:
    """Dotted names of the package's own modules that a module imports, wherever in its text."""
    package = name.split('.')[:-1]  # an __init__ is a module of its package here
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split('.')[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = '.'.join([*start, *([node.module] if node.module else [])])
            if base.split('.')[0] == PACKAGE:
                for alias in node.names:
                    yield f'{base}.{alias.name}'


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    files = sources()

    def module(name: str) -> str:
        """The module that a name stands for: itself, a package, or the module that holds it."""
        for candidate in (name, f'{name}.__init__', name.rpartition('.')[0], f'{name.rpartition(".")[0]}.__init__'):
            if candidate in files:
                return candidate
        raise AssertionError(f'{name} is no module of the package')

    return {name: {module(found) for found in imports(name, file)} - {name} for name, file in files.items()}


def room(name: str) -> str:
    parts = name.split('.')
    return parts[1] if parts[0] == PACKAGE else parts[0]


def test_every_room_has_a_floor():
    unknown = {room(name) for name in sources()} - {*FLOOR, '__init__'}
    assert not unknown, f'say on which floor of {Path(__file__).name} these belong: {sorted(unknown)}'


@pytest.mark.parametrize('name', sorted(graph()))
def test_imports_go_down(name):
    for other in graph()[name]:
        own, below = room(name), room(other)
        if '__init__' not in (own, below) and own != below:
            assert FLOOR[below] < FLOOR[own], f'{name} imports {other}'


def test_no_import_goes_in_a_circle():
    left = graph()
    while free := [name for name, found in left.items() if not found & left.keys()]:
        for name in free:
            del left[name]
    assert not left, 'these modules import one another in a circle, or a module that is in one'


@pytest.mark.parametrize('name', READERS)
def test_results_are_read_without_torch_and_without_a_lock(name):
    """On a machine that has neither torch nor, as Windows, fcntl."""
    block = "import sys; sys.modules.update({'torch': None, 'fcntl': None, 'resource': None})"
    done = subprocess.run(
        [sys.executable, '-c', f'{block}; import {PACKAGE}.{name}'], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_module_is_long():
    long = {name: len(file.read_text().splitlines()) for name, file in sources().items() if name.startswith(PACKAGE)}
    assert not {name: lines for name, lines in long.items() if lines > 350}
