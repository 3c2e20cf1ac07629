"""The helpers of command lines: what ends a tool, what a folder and a file must be, which values are taken."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys

import pytest
from mmengine.logging import MMLogger, print_log

from helpers import REPO
from mmefficientmod import utils
from mmefficientmod.codebases.config import parse_options
from mmefficientmod.utils import UserError, check_output_folder, exit_in_one_line, quiet, read_json


@pytest.mark.parametrize(
    ('error', 'code'),
    [
        (UserError('no such thing'), 'error: no such thing'),
        (OSError(28, 'No space left on device', '/x'), 'error: /x: No space left on device'),
        (OSError(28, 'No space left on device'), 'error: No space left on device'),
        (MemoryError(), 'error: out of memory (MemoryError)'),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_errors_end_in_one_line(error, code, capsys):
    with pytest.raises(SystemExit) as end, exit_in_one_line('stopped; nothing is lost'):
        raise error
    assert end.value.code == code
    assert capsys.readouterr().err == ('stopped; nothing is lost\n' if code == 130 else '')


def test_programming_errors_keep_their_traceback():
    with pytest.raises(KeyError), exit_in_one_line():
        {}['key']


NOT_READ = 'from mmefficientmod.utils import run_tool; import os; read, write = os.pipe(); os.close(read); '


@pytest.mark.parametrize('buffered', [True, False], ids=['buffered', 'unbuffered'])
@pytest.mark.parametrize(
    ('command', 'output', 'code', 'said'),
    [
        (('tools/export.py', '--list'), 'closed', 141, ''),
        (('demo/make_data.py', 'OUT', '--images', '1', '--val-images', '1'), 'closed', 141, ''),
        (('demo/make_data.py', 'setup.py'), 'closed', 1, 'error: OUT setup.py cannot be written: '),
        (('tools/export.py', '--formats'), '/dev/full', 1, 'error: No space left on device'),
        (('-c', 'from mmefficientmod.utils import run_tool; run_tool(lambda: print(chr(0xDCFF)))'), os.devnull, 0, ''),
        (('-c', f'{NOT_READ}run_tool(lambda: os.write(write, b"x"))'), os.devnull, 1, 'error: Broken pipe'),
    ],
)
def test_a_tool_whose_output_is_not_taken(command, output, code, said, buffered, tmp_path):
    """As in ``tools/export.py --list | head -1``, and on a full disk; another pipe is an error."""
    if output == 'closed':
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(output, os.O_WRONLY)
    command = [str(tmp_path / 'out') if word == 'OUT' else word for word in command]
    env = dict(os.environ, PYTHONPATH=str(REPO), PYTHONUNBUFFERED='' if buffered else '1')
    done = subprocess.run(
        [sys.executable, *command], cwd=REPO, env=env, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == code
    assert done.stderr.startswith(said) and done.stderr.count('\n') == bool(said)


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_signals_end_in_one_line_and_what_was_set_comes_back(name, capsys):
    number = getattr(signal, name)
    given = signal.signal(number, signal.SIG_DFL)  # in the background, a shell has SIGINT ignored
    try:
        with pytest.raises(SystemExit) as end, exit_in_one_line('stopped here'):
            os.kill(os.getpid(), number)
            signal.pause()
        assert end.value.code == 128 + number and capsys.readouterr().err == 'stopped here\n'
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, given)


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_in_one_line():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_output_folder_is_tried_and_left_as_it_was(tmp_path):
    (tmp_path / 'there').mkdir()
    for folder in ('there', 'new', 'new/below'):
        check_output_folder(tmp_path / folder)
    assert [path.name for path in tmp_path.rglob('*')] == ['there']


@pytest.mark.parametrize(
    ('place', 'reason'),
    [
        ('file', 'PLACE/file is not a folder'),
        ('file/below', 'PLACE/file is not a folder'),
        ('loop', 'PLACE/loop is not a folder'),
        ('loop/below', 'PLACE/loop is not a folder'),
        ('dangling', 'PLACE/dangling is not a folder'),
        ('pipe', 'PLACE/pipe is not a folder'),
        (f'new/{"x" * 300}', 'File name too long'),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(place, reason, tmp_path):
    (tmp_path / 'file').touch()
    os.mkfifo(tmp_path / 'pipe')
    os.symlink('loop', tmp_path / 'loop')
    os.symlink('nowhere', tmp_path / 'dangling')
    before = sorted(tmp_path.iterdir())
    reason = reason.replace('PLACE', str(tmp_path))
    with pytest.raises(UserError, match=f'^--out {tmp_path / place} cannot be written: {reason}. Name another folder$'):
        check_output_folder(tmp_path / place)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (None, 'does not exist'),
        ('', 'is not a JSON file that can be read'),
        ('[' * 200_000, 'is not a JSON file that can be read'),
        (b'\xff\xfe', 'is not a JSON file that can be read'),
        ('pipe', 'is not a regular file'),
        ('folder', 'is not a regular file'),
    ],
    ids=['missing', 'empty', 'deep', 'bytes', 'pipe', 'folder'],
)
def test_json_that_cannot_be_read_is_refused_in_one_line(content, reason, tmp_path):
    path = tmp_path / 'file.json'
    if content == 'pipe':
        os.mkfifo(path)
    elif content == 'folder':
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f'^{path} {reason}') as error:
        read_json(path)
    assert '\n' not in str(error.value)


def test_json_is_read(tmp_path):
    (tmp_path / 'file.json').write_text(json.dumps(dict(name='é')), encoding='utf-8')
    assert read_json(tmp_path / 'file.json') == dict(name='é')


@pytest.mark.parametrize(
    ('kind', 'good', 'bad'),
    [
        (utils.parse_text, ['a', '-'], ['', ' ', 'a\0b']),
        (utils.parse_path, ['a/b'], ['', '\t']),
        (utils.parse_whole, ['0', '1000000'], ['-1', '1.5', '1000001', '9' * 5000, 'x', '', '²', '1_0']),
        (utils.parse_positive, ['1', '007'], ['0', '-3']),
        (utils.parse_share, ['0', '1', '0.5'], ['nan', 'inf', '-0.1', '1.1', 'x', '']),
        (utils.parse_amount, ['0.5', '1e300'], ['0', '-1', 'nan', 'inf', '1e999', '']),
        (utils.parse_size, ['32', '800x1333', '16384x32'], ['31', '32x31', '16385', '512,512', '9' * 5000, '', 'x']),
    ],
)
def test_types_of_arguments(kind, good, bad):
    for text in good:
        kind(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


@pytest.mark.parametrize('options', [['='], ['=1'], ['a..b=1'], ['a.=1'], ['a'], ['a=(1,2']])
def test_config_options_without_a_key_or_a_value_are_refused(options):
    assert parse_options(['a.b=1', 'c=x']) == {'a.b': 1, 'c': 'x'}
    with pytest.raises(UserError, match='--cfg-options takes KEY=VALUE pairs'):
        parse_options(options)


def test_quiet_leaves_the_log_of_mmengine_as_it_was(messages):
    print_log('before', 'current', logging.WARNING)
    with quiet():
        print_log('within', 'current', logging.WARNING)
    print_log('after', 'current', logging.WARNING)
    assert messages() == ['before', 'after']


def test_a_log_that_begins_quietly_is_heard_afterwards(capsys):
    """MMEngine's first logger writes for ever to what standard output was when it was made."""
    MMLogger._instance_dict = {}  # as in a new process; the fixture process_as_before sets it back
    with quiet():
        print_log('within', 'current', logging.WARNING)
    print_log('after', 'current', logging.WARNING)
    out = capsys.readouterr().out
    assert 'after' in out and 'within' not in out
