"""Command lines that nobody means to write: every tool ends them in one line, before the work, and nothing is lost.

Hypothesis draws options of each parser with hostile values. What a parser cannot know, whether a path can be read or
written, is tried on the tools' ``main``.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config

import make_data  # in demo/, which pytest alone has on its path
import run as demo
from helpers import REPO, load_tool, make_run
from mmefficientmod.codebases.building import build_quietly
from mmefficientmod.training.launch import launch
from mmefficientmod.zoo.backbones import task_backbones
from mmefficientmod.zoo.tasks import TASKS as COMPARED

pytestmark = pytest.mark.libraries
NAMES = ('benchmark', 'compare', 'convert_checkpoint', 'export', 'own_data', 'predict', 'visualize_context')
TOOLS = {name: load_tool(name) for name in NAMES}
TOOLS.update(make_data=make_data, demo=demo)
EMPTY = ('', ' ', '\t')
HOSTILE = (
    *EMPTY,
    *('.', '/', 'a b', 'é', '-', '--', '=', '=1', 'a..b=1', 'x' * 5000, '\\', '$HOME', '*', '%s', '{}', '[1', '(1,2'),
    *('0', '-1', '1', '1.5', '1e999', 'nan', 'inf', '-inf', '9' * 30, '0x10', '1_000', '²', '64', '64x', '999999x64'),
    *('none', 'all', 'cpu', 'cuda:99', 'abacus'),
)
TEXTS = ('launcher_args',)  # options that may be empty


class Captured(Exception):
    """Hands out a tool's parser."""


def parser_of(tool: object) -> argparse.ArgumentParser:
    def capture(parser: argparse.ArgumentParser, *args: object) -> None:
        raise Captured(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Captured) as captured:
        patch.setattr(argparse.ArgumentParser, 'parse_args', capture)
        tool.parse_args([])
    return captured.value.args[0]


def parsers() -> Iterator[tuple[str, list[str], argparse.ArgumentParser]]:
    """Name of a tool, the words that lead to a parser, and the parser: of a tool with commands one for each."""
    for name, tool in TOOLS.items():
        parser = parser_of(tool)
        commands = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if commands:
            yield from ((name, [command], each) for command, each in commands[0].items())
        else:
            yield name, [], parser


PARSERS = list(parsers())


def words(action: argparse.Action) -> st.SearchStrategy[list[str]]:
    """The words of an option or an operand with hostile values; sometimes too few or too many of them."""
    values = st.sampled_from((*HOSTILE, *(str(choice) for choice in action.choices or ())))
    counted = st.lists(values, max_size=3) if action.nargs != 0 else st.just([])
    return counted.map(lambda found: [*action.option_strings[:1], *found])


@pytest.mark.parametrize(('name', 'command', 'parser'), PARSERS, ids=[' '.join([n, *c]) for n, c, _ in PARSERS])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_parser_takes_no_empty_value_and_no_number_without_bounds(name, command, parser, data, capsys):
    actions = [action for action in parser._actions if action.dest not in ('help', argparse.SUPPRESS)]
    operands = [action for action in actions if not action.option_strings]
    chosen = data.draw(st.lists(st.sampled_from([a for a in actions if a.option_strings]), max_size=3, unique=True))
    argv = [*command, *(word for action in (*operands, *chosen) for word in data.draw(words(action)))]
    try:
        args = TOOLS[name].parse_args(argv)
    except SystemExit as end:
        last = capsys.readouterr().err.splitlines()[-1]
        assert end.code == 2 and ': error: ' in last, (argv, end.code, last)
        return
    for key, found in vars(args).items():
        for value in found if isinstance(found, (list, tuple)) else [found]:
            if isinstance(value, (int, float)):
                assert math.isfinite(value) and abs(value) < 2**32, (argv, key, value)
            if isinstance(value, str) and key not in (*TEXTS, 'command_line'):
                assert value.strip(), (argv, key)
    if any(word in EMPTY for word in argv):
        assert any(isinstance(getattr(args, key, None), str) for key in TEXTS), argv


def test_every_help_ends_with_two_or_three_examples(capsys):
    for name, command, parser in PARSERS:
        with pytest.raises(SystemExit) as end:
            TOOLS[name].parse_args([*command, '--help'])
        text = capsys.readouterr().out
        examples = text.rpartition('examples:\n')[2].splitlines()
        assert end.value.code == 0 and len(examples) in (2, 3), (name, command)
        for line in examples:
            assert line.startswith('  python ') and len(line) <= 120, line
            assert parser is not None


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fails a test that waits for ever, for a pipe for example."""

    def stop(number: int, frame: object) -> None:
        pytest.fail(f'it hangs: nothing for {seconds} seconds')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """A current folder with things that are not what a tool expects."""
    monkeypatch.chdir(tmp_path)
    Path('file').write_text('text')
    for name in ('empty', 'empty.jpg', 'empty.pth', 'empty.json'):
        Path(name).touch()
    for name in ('folder', 'earlier', 'broken'):
        Path(name).mkdir()
    Path('earlier/predictions.json').write_text('[1]')
    Path('broken/export.json').write_text('[' * 200_000)
    for name in ('pipe', 'pipe.jpg', 'pipe.pth', 'pipe.json', 'pipe.py'):
        os.mkfifo(name)
    os.symlink('loop', 'loop')
    os.symlink('nowhere', 'dangling')
    Path('deep.json').write_text('[' * 200_000)
    Path('exits.py').write_text('raise SystemExit(0)')
    Path('raises.py').write_text('raise RuntimeError("one\\ntwo")')
    Path('wrong.py').write_text('model = dict(')
    Path('number.py').write_text("default_scope = 'mmseg'\nmodel = 3")
    return tmp_path


INPUTS = ('nowhere', 'file', 'empty', 'folder', 'pipe', 'loop', 'dangling')
IMAGES = ('nowhere.jpg', 'file', 'empty.jpg', 'folder', 'pipe.jpg', 'loop', 'dangling')
OUTPUTS = ('file', 'file/below', 'pipe', 'loop', 'loop/below', 'dangling', f'new/{"x" * 300}')
CONFIGS = ('nowhere', 'folder', 'loop', 'pipe.py', 'exits.py', 'raises.py', 'wrong.py', 'number.py', 'deep.json')
CHECKPOINTS = (*INPUTS, 'empty.pth', 'pipe.pth')
JSONS = (*INPUTS, 'empty.json', 'pipe.json', 'deep.json')
SEGMENTOR = str(REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py')
ONE = ['--backbones', 'efficientmod-xxs']
LINES = [
    ('benchmark', [*ONE, '--parts', 'backbone', '--out', 'PLACE'], OUTPUTS),
    ('compare', ['report', 'PLACE'], INPUTS),
    ('compare', ['report', 'runs', '--benchmark', 'PLACE'], JSONS),
    ('compare', ['report', 'runs', '--out', 'PLACE'], OUTPUTS),
    ('compare', ['run', 'segmentation', *ONE, '--work-dir', 'PLACE'], OUTPUTS),
    ('compare', ['run', 'segmentation', *ONE, '--dry-run', '--overlay', 'PLACE'], CONFIGS),
    ('compare', ['run', 'segmentation', *ONE, '--dry-run', '--pretrained', 'efficientmod-xxs=PLACE'], ('', 'folder')),
    ('convert_checkpoint', ['PLACE', 'out.pth'], CHECKPOINTS),
    ('convert_checkpoint', ['good.pth', 'PLACE'], (*OUTPUTS, 'folder')),
    ('visualize_context', ['PLACE', SEGMENTOR, 'good.pth'], IMAGES),
    ('visualize_context', ['good.png', 'PLACE', 'good.pth'], CONFIGS),
    ('visualize_context', ['good.png', SEGMENTOR, 'PLACE'], CHECKPOINTS),
    ('visualize_context', ['good.png', SEGMENTOR, 'good.pth', '--out-dir', 'PLACE'], OUTPUTS),
    ('make_data', ['PLACE', '--images', '1', '--val-images', '1', '--size', '64', '64'], OUTPUTS),
    ('demo', ['--quick', '--work-dir', 'PLACE'], OUTPUTS),
    ('own_data', ['PLACE'], INPUTS),
    ('own_data', ['folder', '--preview', 'PLACE'], OUTPUTS),
    ('export', ['PLACE', 'good.pth', 'out'], CONFIGS),
    ('export', [SEGMENTOR, 'PLACE', 'out'], CHECKPOINTS),
    ('export', [SEGMENTOR, 'good.pth', 'PLACE'], (*OUTPUTS, 'folder')),
    ('export', [SEGMENTOR, 'good.pth', 'out', '--check', 'PLACE'], IMAGES),
    ('predict', ['PLACE', SEGMENTOR, 'good.pth', '--out', 'earlier'], IMAGES),
    ('predict', ['good.png', 'PLACE', 'good.pth', '--out', 'earlier'], CONFIGS),
    ('predict', ['good.png', SEGMENTOR, 'PLACE', '--out', 'earlier'], (*CHECKPOINTS, 'nan.pth')),
    ('predict', ['good.png', SEGMENTOR, 'good.pth', '--out', 'PLACE'], OUTPUTS),
    ('predict', ['good.png', 'PLACE', '--out', 'earlier'], ('folder', 'broken')),
    ('train', ['PLACE'], CONFIGS),
    ('test', ['PLACE', 'good.pth'], CONFIGS),
]


@pytest.fixture(scope='module')
def good(tmp_path_factory) -> Path:
    """A checkpoint, an image and a work directory in which nothing is wrong."""
    folder = tmp_path_factory.mktemp('good')
    config = Config.fromfile(SEGMENTOR)
    weights = build_quietly(config.model, 'mmseg').state_dict()
    torch.save(weights, folder / 'good.pth')
    torch.save({name: value * math.nan for name, value in weights.items()}, folder / 'nan.pth')
    cv2.imwrite(str(folder / 'good.png'), np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    config = Config.fromfile(task_backbones(COMPARED['segmentation'])['efficientmod-xxs'].config)
    make_run(folder / 'runs/efficientmod-xxs', '20260101_000000', config, '{"mIoU": 3}')
    return folder


def snapshot() -> dict[str, tuple]:
    """The kind of everything in the current folder, and of files when they were written."""
    names = [os.path.join(folder, name) for folder, *found in os.walk('.') for name in chain(*found)]
    found = {name: os.lstat(name) for name in names}
    return {name: (each.st_mode, stat.S_ISREG(each.st_mode) and each.st_mtime_ns) for name, each in found.items()}


@pytest.mark.parametrize(
    ('tool', 'line', 'kinds'), LINES, ids=[f'{tool} {" ".join(line)[:60]}' for tool, line, _ in LINES]
)
def test_places_of_another_kind_are_refused_in_one_line(tool, line, kinds, good, places, monkeypatch):
    """No traceback, no exit code 0, no wait for a pipe, and all that was there stays."""
    for path in good.iterdir():
        os.symlink(path, path.name)
    before = snapshot()
    monkeypatch.setattr(sys, 'argv', [tool])
    main = partial(launch, tool) if tool in ('train', 'test') else TOOLS[tool].main
    for place in kinds:
        argv = [word.replace('PLACE', place) for word in line]
        with time_limit(60), pytest.raises(SystemExit) as end:
            main(argv)
        code = end.value.code
        refused = code == 1 or (isinstance(code, str) and code.startswith('error: ') and '\n' not in code)
        assert refused, (argv, code)  # compare counts the backbones that failed, each with its reason
        assert snapshot() == before, argv
