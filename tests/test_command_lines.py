"""Command lines that nobody means to write: every tool ends them in one line, before the work, and nothing is lost.

Hypothesis draws options of each parser with hostile values. What a parser cannot know, whether a path can be read or
written, is tried on the tools' ``main``.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import make_data  # in demo/, which pytest alone has on its path
import run as demo
from helpers import load_tool

pytestmark = pytest.mark.libraries
TOOLS = {name: load_tool(name) for name in ('benchmark', 'compare', 'convert_checkpoint', 'visualize_context')}
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
    actions = [action for action in parser._actions if action.dest != 'help']
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


def test_every_help_ends_with_two_examples(capsys):
    for name, command, parser in PARSERS:
        with pytest.raises(SystemExit) as end:
            TOOLS[name].parse_args([*command, '--help'])
        text = capsys.readouterr().out
        examples = text.rpartition('examples:\n')[2].splitlines()
        assert end.value.code == 0 and len(examples) == 2, (name, command)
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
    Path('folder').mkdir()
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
OUTPUTS = ('file', 'file/below', 'pipe', 'loop', 'loop/below', 'dangling', f'new/{"x" * 300}')
CONFIGS = (*INPUTS, 'pipe.py', 'exits.py', 'raises.py', 'wrong.py', 'number.py', 'deep.json')
CHECKPOINTS = (*INPUTS, 'empty.pth', 'pipe.pth')
JSONS = (*INPUTS, 'empty.json', 'pipe.json', 'deep.json')
