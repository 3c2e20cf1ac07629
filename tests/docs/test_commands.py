"""The pages' commands and Python blocks: all of them parsed by the tools' own parsers, those that need nothing run."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from helpers import REPO
from mmefficientmod import registry
from mmefficientmod.codebases.config import CODEBASES
from pages import NEEDS, PAGES, Block, blocks, read, spans

pytestmark = pytest.mark.ops  # the tools' parsers are the MM libraries' own
BLOCKS = [block for page in PAGES for block in blocks(page)]
IN_REPOSITORY = re.compile(r'(?:configs|demo|docs|mmefficientmod|requirements|tests|tools)/[\w./-]*')
PLACEHOLDERS = {'CONFIG', 'CONFIG.py'}
CONFIGS = (  # what they stand for: one of these
    'configs/detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py',
    'configs/segmentation/fpn_efficientmod-xxs_8xb4-40k_ade20k-512x512.py',
    'configs/classification/efficientmod-xxs_8xb256_in1k.py',
)
OPERANDS = {'dist_train': 'C1', 'dist_test': 'CK1', 'slurm_train': '11C', 'slurm_test': '11CK'}  # of tools/NAME.sh


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> Path:
    """A copy of the repository in which the pages' files are written."""
    root = tmp_path_factory.mktemp('clone') / 'mmefficientmod'
    unwanted = shutil.ignore_patterns('.git', '.venv', '.*_cache', '__pycache__', 'data', 'work_dirs', 'build', 'dist')
    shutil.copytree(REPO, root, symlinks=True, ignore=unwanted)
    for folder in ('mmefficientmod/data', 'tests/data'):  # the others of that name hold data sets
        shutil.copytree(REPO / folder, root / folder)
    for block in BLOCKS:
        if block.file:
            (root / block.file).write_text(block.code)
    return root


@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_needs_are_said_in_known_words(block: Block):
    assert block.needs is not None or block.language == 'python', f'{block}: say what it needs, <!-- needs: ... -->'
    assert block.needs is None or block.needs <= set(NEEDS), f'{block}: the words are {", ".join(NEEDS)}'
    assert all(f'| `{need}` |' in read('CONTRIBUTING.md') for need in block.needs or ())


# Shell ---------------------------------------------------------------------------------------------------------------


def commands(script: str, folder: Path) -> list[list[str]]:
    """The commands of a script as bash expands them in ``folder``: a restricted bash without programs runs none."""
    bash = shutil.which('bash')
    variables = dict(PATH='/nowhere', TOOLS='TOOLS')
    done = subprocess.run(
        [bash, '-r', '-x', '-c', script, 'said'],
        cwd=folder,
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert 'syntax error' not in done.stderr and 'unexpected EOF' not in done.stderr, done.stderr
    traced = re.findall(r'^\++ (.*?)(?=^\++ |^said: |\Z)', done.stderr, re.MULTILINE | re.DOTALL)
    return [shlex.split(command) for command in traced]


class Parsed(BaseException):
    """Ends a tool once its own parser has read the command line."""


def complaint(script: str, args: list[str]) -> str:
    """What a tool's parser has against a command line, or nothing. Keys of ``--cfg-options`` must be in the config."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_end(*args: object, **kwargs: object) -> None:
        raise Parsed(parse_args(*args, **kwargs))

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_end)
        patch.setattr(sys, 'argv', [script, *args])
        try:
            runpy.run_path(str(REPO / script), run_name='__main__')
            return ''  # has shown what was asked for
        except Parsed as parsed:
            options = vars(parsed.args[0])
            if str(options.get('config')).endswith('.py') and 'own_data' not in script:  # which writes that file
                config = Config.fromfile(options['config'])
                return '; '.join(
                    f'{key} is not in the config' for key in options.get('cfg_options') or () if not has(config, key)
                )
            return ''
        except SystemExit as end:
            if not end.code:
                return ''
            said.write(str(end.code))
    return f'{script} {shlex.join(args)}: {said.getvalue()}'


def has(config: Config, key: str) -> bool:
    """Whether a config has what holds ``key``: its last part may be new."""
    holder = config
    for part in key.split('.')[:-1]:
        try:
            holder = holder[int(part)] if part.isdigit() else holder[part]
        except (KeyError, IndexError):
            return False
    return True


def as_tool(words: list[str]) -> tuple[str, list[str]] | None:
    """The tool of this repository that a command comes down to, and its arguments."""
    program, *args = words
    if program in ('python', 'bash') and args:
        program, *args = [arg for i, arg in enumerate(args) if i or arg != '-u']
    if program == 'mim' and args[:2] == ['run', 'mmefficientmod'] and args[2].islower():
        return f'tools/{args[2]}.py', args[3:]
    if program == 'mim' and args and args[0] in ('train', 'test'):
        return f'tools/{args[0]}.py', args[2:]
    if program == 'make' and args[1:] and args[0] == 'bench':
        return 'tools/benchmark.py', shlex.split(args[1].partition('=')[2])
    if program.startswith('tools/') and program.endswith('.sh') and Path(program).stem in OPERANDS:
        roles = OPERANDS[Path(program).stem]
        operands = [arg for arg, role in zip(args, roles) if role != '1']
        return f'tools/{Path(program).stem.split("_")[1]}.py', [*operands, *args[len(roles) :]]
    return (program, args) if re.match(r'(tools|demo)/\w+\.py$', program) else None


def mistakes(words: list[str], whole: bool = True) -> Iterator[str]:
    """What is wrong with a command; the text's are not ``whole``, they may lack arguments."""
    words = [word.strip('[]') for word in words if word != '...']
    for word in words:
        for path in (part for part in word.split('=') if IN_REPOSITORY.fullmatch(part)):
            if not Path(path).exists():
                yield f'{path} does not exist'
    if words[0] == 'make':
        for target in (word for word in words[1:] if '=' not in word):
            if not re.search(rf'^{target}:', (REPO / 'Makefile').read_text(), re.MULTILINE):
                yield f'make knows no {target}'
    if words[0] == 'pip':
        for extra in re.findall(r'mmefficientmod\[([\w,]+)\]', ' '.join(words)):
            for name in set(extra.split(',')) - extras():
                yield f'no extra {name}'
    if words[:2] == ['python', '-c']:
        yield from wrong_names(words[2])
    for word in words[1:2]:
        if word.startswith('TOOLS/'):
            texts = [path.read_text() for path in in_libraries(word[len('TOOLS/') :])]
            options = [word for word in words if word.startswith('--')]
            if not any(all(f"'{option}'" in text for option in options) for text in texts):
                yield f'no library has {word} with {options}'
    tool = as_tool(words)
    if tool and (whole or tool[1]):
        script, args = tool
        if not (REPO / script).is_file():
            yield f'{script} does not exist'
            return
        configs = CONFIGS if PLACEHOLDERS & set(args) else CONFIGS[:1]
        answers = [complaint(script, [config if arg in PLACEHOLDERS else arg for arg in args]) for config in configs]
        if all(answers) and (whole or not re.search('arguments are required|no config is given', answers[0])):
            yield answers[0]


def extras() -> set[str]:
    return set(re.findall(r"'(\w+)'", re.search('extras_require=(.*)', (REPO / 'setup.py').read_text())[1]))


def in_libraries(script: str) -> list[Path]:
    """A script below ``tools`` of the MM libraries that have it."""
    places = [Path(find_spec(codebase).origin).parent / '.mim/tools' / script for codebase in CODEBASES]
    return [place for place in places if place.is_file()]


@pytest.mark.parametrize('block', [block for block in BLOCKS if block.language == 'shell'], ids=str)
def test_commands_are_understood(block: Block, clone: Path, monkeypatch):
    monkeypatch.chdir(clone)
    found = commands(block.code, clone)
    assert found and not [mistake for words in found for mistake in mistakes(words)]


@pytest.mark.parametrize('page', PAGES)
def test_commands_and_paths_in_the_text(page: str, clone: Path, monkeypatch):
    monkeypatch.chdir(clone)
    wrong = []
    for span in spans(page):
        if IN_REPOSITORY.fullmatch(span) and not re.search('[A-Z]{3}', span):
            wrong += mistakes([span], whole=False)
        elif re.match(r'(python|bash|make|mim|pip|(tools|demo)/\w+\.\w+) ', span) and '[--' not in span:
            for words in commands(span, clone):
                wrong += mistakes(words, whole=False)
    assert not wrong


LONG = 'CONTRIBUTING.md', 'docs/complexity.md'  # each command there takes a quarter of a minute


def to_run(language: str) -> list:
    """The blocks that a test runs; those that take long are run once a week."""
    found = [block for block in BLOCKS if block.language == language and block.run]
    return [pytest.param(block, marks=pytest.mark.slow if block.page in LONG else (), id=str(block)) for block in found]


@pytest.mark.parametrize('block', to_run('shell'))
def test_commands_that_need_nothing_run(block: Block, clone: Path):
    code = re.sub(r'\bCONFIG\b', CONFIGS[0], block.code)
    execute([shutil.which('bash'), '-e', '-u', '-o', 'pipefail', '-c', code], clone, clone)


# Python --------------------------------------------------------------------------------------------------------------


def wrong_names(code: str) -> Iterator[str]:
    """What a piece of Python imports and is not there; its paths in the repository; its types in no registry."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name) and not find_spec(f'{node.module}.{alias.name}'):
                    yield f'{node.module} has no {alias.name}'
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if IN_REPOSITORY.fullmatch(node.value) and not Path(node.value).exists():
                yield f'{node.value} does not exist'
            if re.fullmatch(r'mmefficientmod\.[A-Z]\w+', node.value) and not any(
                each.get(node.value) for each in vars(registry).values() if isinstance(each, registry.Registry)
            ):
                yield f'{node.value} is not registered'


@pytest.mark.parametrize('block', [block for block in BLOCKS if block.language == 'python'], ids=str)
def test_python_compiles_and_its_names_exist(block: Block, clone: Path, monkeypatch):
    monkeypatch.chdir(clone)
    compile(block.code, str(block), 'exec')
    assert not list(wrong_names(block.code))
    if block.file and block.file.startswith('configs/'):
        Config.fromfile(block.file)
    model = next((node.value for node in ast.parse(block.code).body if names(node) == ['model']), None)
    if isinstance(model, ast.Call) and {'backbone', 'neck'} <= {word.arg for word in model.keywords}:
        import torch

        model = eval(ast.unparse(model))
        backbone = MODELS.build({k: v for k, v in model['backbone'].items() if k not in ('_delete_', 'init_cfg')})
        assert [level.shape[1] for level in backbone(torch.zeros(1, 3, 64, 64))] == model['neck']['in_channels']


def names(node: ast.stmt) -> list[str]:
    """The plain names that a statement assigns to."""
    return [target.id for target in getattr(node, 'targets', ()) if isinstance(target, ast.Name)]


@pytest.mark.parametrize('block', to_run('python'))
def test_python_that_needs_nothing_runs(block: Block, tmp_path: Path):
    (tmp_path / 'block.py').write_text(block.code)
    execute([sys.executable, 'block.py'], tmp_path, REPO)


def execute(command: list[str], folder: Path, repository: Path) -> None:
    """Runs a command with the package of ``repository``; the environment's programs come first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    variables = dict(os.environ, PATH=path, PYTHONPATH=str(repository))
    done = subprocess.run(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout
