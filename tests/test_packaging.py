"""The sdist and the wheel carry what `mim` needs, and `mim run` finds the tools in any install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from helpers import REPO
from mmefficientmod.version import __version__

pytestmark = pytest.mark.both_stacks

CONFIG = 'mask-rcnn_efficientmod-s_fpn_8xb4-1x_coco'
TOP_LEVEL = ('configs', 'demo', 'docs', 'examples', 'mmefficientmod', 'requirements', 'tests', 'tools')


# a PYTHONPATH to the sources would hide what is installed
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def mim_files() -> set[str]:
    """What belongs into .mim, as paths below the repository's top level."""
    configs = [path for suffix in ('py', 'yml') for path in REPO.glob(f'configs/**/*.{suffix}')]
    patterns = ('*.py', 'dist_*.sh', 'slurm_*.sh')
    tools = [path for pattern in patterns for path in REPO.glob(f'tools/{pattern}')]
    return {path.relative_to(REPO).as_posix() for path in [*configs, *tools]} | {'model-index.yml'}


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of the tree, so that no build leaves anything in the tree itself."""
    source = tmp_path_factory.mktemp('source')
    for path in REPO.iterdir():
        if path.name in TOP_LEVEL:
            shutil.copytree(path, source / path.name, symlinks=True)
        elif path.is_file():
            shutil.copy(path, source)
    return source


@pytest.fixture(scope='module')
def archives(source, tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp('dist')
    result = run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, cwd=source)
    assert result.returncode == 0, result.stdout
    return next(out.glob('*.tar.gz')), next(out.glob('*.whl'))


def test_wheel_holds_the_package_and_mim(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
        info = next(name for name in names if name.endswith('.dist-info/METADATA'))
        metadata = Parser().parsestr(wheel.read(info).decode())
    folder = info.rpartition('/')[0]
    package = {path.relative_to(REPO).as_posix() for path in REPO.glob('mmefficientmod/**/*') if path.is_file()}
    package = {name for name in package if '.mim' not in name and '__pycache__' not in name}
    assert 'mmefficientmod/py.typed' in package
    assert package == {name for name in names if name.startswith('mmefficientmod/') and '.mim' not in name}
    for mim in ('mmefficientmod/.mim', f'{folder}/.mim'):
        found = {name[len(mim) + 1 :] for name in names if name.startswith(f'{mim}/')}
        assert found == mim_files()
    assert {name.split('/')[0] for name in names} == {'mmefficientmod', folder}
    # an MM distribution, torch or torchvision among them could replace what the user has installed
    requires = metadata.get_all('Requires-Dist')
    assert [name for name in requires if 'extra ==' not in name] == ['numpy']
    extras = {'data': set(), 'docs': set(), 'export': set(), 'tools': set()}
    for line in requires:
        if 'extra ==' in line:
            extras[re.search(r'extra == ["\'](\w+)', line)[1]].add(re.match(r'[\w-]+', line)[0])
    assert extras['export'] == {'onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf'}
    site = {
        'griffelib',
        'mkdocs',
        'mkdocs-material',
        'mkdocstrings',
        'mkdocstrings-python',
        'nbconvert',
        'nbformat',
        'ruff',
    }
    assert extras['docs'] == site
    assert extras['data'] == {'supervision'}
    assert extras['tools'] == {'jinja2', 'matplotlib', 'pandas', 'rich', 'timm'}
    assert set(metadata.get_all('Provides-Extra')) == set(extras)
    assert metadata['Version'] == __version__


@pytest.mark.ops  # twine is in the full environments alone
def test_the_long_description_renders(archives):
    done = run(sys.executable, '-m', 'twine', '--no-color', 'check', '--strict', *archives, cwd=archives[0].parent)
    assert done.returncode == 0 and done.stdout.count('PASSED') == 2, done.stdout


def test_sdist_is_a_complete_working_tree(archives):
    with tarfile.open(archives[0]) as sdist:
        members = {member.name.partition('/')[2]: member for member in sdist}
    names = {name for name, member in members.items() if member.isfile()}
    assert mim_files() <= names
    mim = {name for name in names if name.startswith('mmefficientmod/.mim/')}
    assert mim == {f'mmefficientmod/.mim/{name}' for name in mim_files()}
    expected = {
        'LICENSE',
        'CITATION.cff',
        'Makefile',
        'README.md',
        'mkdocs.yml',
        'pyproject.toml',
        'setup.py',
        'requirements/openmmlab.txt',
        'requirements/onedl.txt',
        'requirements/export.txt',
        'requirements/tools.txt',
        'demo/run.py',
        'examples/faster-rcnn_efficientmod-s_fpn_1x_coco.py',
        'examples/swap_to_prediction.ipynb',
        'demo/configs/datasets/semantic.py',
        'tools/setup_env.sh',
        'tests/test_packaging.py',
    }
    assert expected <= names
    assert not [name for name in members if '__pycache__' in name or name.endswith('.pyc')]
    assert not [name for name in names if name.startswith(('.venv', '.git', 'build/', 'work_dirs'))]


@pytest.mark.parametrize('editable', [False, True], ids=['wheel', 'editable'])
def test_mim_run_finds_the_tools(editable, source, archives, tmp_path):
    # A fresh environment that sees every library of this one, and first of all its own install.
    run(sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv', cwd=tmp_path)
    python = tmp_path / 'venv' / 'bin' / 'python'
    site = next((tmp_path / 'venv' / 'lib').glob('python*')) / 'site-packages'
    (site / 'libraries.pth').write_text(sysconfig.get_path('purelib'))
    what = ['-e', source] if editable else [archives[1]]
    result = run(
        sys.executable,
        '-m',
        'pip',
        '--python',
        python,
        'install',
        '--no-deps',
        '--no-index',
        '--no-build-isolation',
        *what,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout

    # the package itself must not be hidden by what an editable install adds for mim
    where = run(python, '-c', 'import mmefficientmod; print(mmefficientmod.__file__)', cwd=tmp_path)
    home = source if editable else site
    assert where.stdout.splitlines()[-1] == str(home / 'mmefficientmod' / '__init__.py')

    # without arguments the tool answers with its usage; mim keeps --help to itself
    result = run(python, '-m', 'mim', 'run', 'mmefficientmod', 'convert_checkpoint', cwd=tmp_path)
    assert 'usage: convert_checkpoint.py' in result.stdout
    assert result.returncode != 0
    if not editable:  # mim search reads site-packages alone
        result = run(python, '-m', 'mim', 'search', 'mmefficientmod', '--config', CONFIG, cwd=tmp_path)
        assert f'config id: {CONFIG}' in result.stdout and result.returncode == 0, result.stdout
