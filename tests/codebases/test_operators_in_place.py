"""MMCV without compiled operators finds this package's, however a program starts; what does not fit is named."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import mmcv
import pytest

from helpers import REPO

pytestmark = pytest.mark.libraries
COMMAND = ('-m', 'mmefficientmod.codebases.operators')
NMS = 'import mmcv.ops, torch; print(mmcv.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5)[1].dtype)'
DETECTION = str(REPO / 'demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py')


@pytest.fixture
def lite(tmp_path) -> Path:
    """A folder with the files of this MMCV but for its compiled part, as mmcv-lite has them."""
    package = tmp_path / 'lite/mmcv'
    package.mkdir(parents=True)
    for entry in Path(mmcv.__file__).parent.iterdir():
        if not entry.name.startswith(('_ext', '__pycache__')):
            (package / entry.name).symlink_to(entry)
    return package.parent


def run(*command: str, path: Path, rc: int = 0) -> str:
    """Runs Python with a folder first on its path; the output, or the last line where it is to fail."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *command],
        env=dict(os.environ, PYTHONPATH=f'{path}{os.pathsep}{REPO}'),
        text=True,
        capture_output=True,
    )
    assert done.returncode == rc, done.stderr
    return done.stderr.strip().rpartition('\n')[2] if rc else done.stdout


def test_importing_this_package_is_enough(lite):
    quick = 'import sys, mmefficientmod; assert not {"mmcv.ops", "torchvision"} & set(sys.modules)'
    assert 'int64' in run('-c', f'{quick}; {NMS}', path=lite)
    quick = 'import sys, mmefficientmod, mmcv.ops; assert "torchvision" not in sys.modules'
    assert run('-c', quick, path=lite) == ''
    assert "No module named 'mmcv._ext'" in run('-c', NMS, path=lite, rc=1)


def test_install_status_uninstall(lite):
    file = lite / 'mmcv/_ext.py'
    assert 'in programs that import it before an MM library' in run(*COMMAND, '--status', path=lite)
    assert f'{file} is written' in run(*COMMAND, '--install', path=lite)
    assert 'in place already' in run(*COMMAND, '--install', path=lite)
    assert 'in every program' in run(*COMMAND, '--status', path=lite)
    assert 'int64' in run('-c', NMS, path=lite)
    text = file.read_text(encoding='utf-8')
    file.write_text(text.replace('find as', 'found as'), encoding='utf-8')
    assert 'needs mmefficientmod (cannot import name' in run('-c', NMS, path=lite, rc=1)
    assert 'is written' in run(*COMMAND, '--install', path=lite)  # by another version of this package
    assert f'{file} is removed' in run(str(REPO / 'tools/operators.py'), '--uninstall', path=lite)
    assert not file.exists() and not list(file.parent.glob('__pycache__/_ext.*'))
    assert 'nothing to remove' in run(*COMMAND, '--uninstall', path=lite)


@pytest.mark.slow
def test_a_file_of_someone_else_is_left(lite):
    file = lite / 'mmcv/_ext.py'
    file.write_text('nms = None\n')
    for action in ('--install', '--uninstall', '--status'):
        line = run(*COMMAND, action, path=lite, rc=1)
        assert line == f'error: {file} was not written by mmefficientmod, and is left as it is'
    assert file.read_text() == 'nms = None\n'


@pytest.mark.slow
def test_a_compiled_module_that_does_not_fit_is_named(lite):
    file = lite / f'mmcv/_ext{EXTENSION_SUFFIXES[0]}'
    file.write_bytes(b'not a library')
    for command in (
        (*COMMAND, '--status'),
        (*COMMAND, '--install'),
        (str(REPO / 'tools/train.py'), DETECTION),
        ('-c', 'import mmefficientmod, mmdet.models'),
    ):
        line = run(*command, path=lite, rc=1)
        assert 'the compiled operators of mmcv' in line and 'do not fit torch' in line and str(file) in line
        assert 'pip uninstall -y mmcv' in line and 'pip install mmcv-lite==' in line
    file.unlink()
    assert 'int64' in run('-c', f'import mmefficientmod; {NMS}', path=lite)


@pytest.mark.parametrize(
    ('torchvision', 'message'),
    [
        ("raise ModuleNotFoundError('No module named torchvision')", 'does not fit (No module named torchvision)'),
        ("raise RuntimeError('operator torchvision::nms does not exist')", 'operator torchvision::nms does not exist'),
    ],
)
@pytest.mark.slow
def test_a_torchvision_that_does_not_fit_is_named(lite, torchvision, message):
    (lite / 'torchvision.py').write_text(torchvision)
    for command in ((*COMMAND, '--status'), ('-c', f'import mmefficientmod; {NMS}')):
        line = run(*command, path=lite, rc=1)
        assert 'need a torchvision for torch' in line and message in line and 'install both from the same place' in line


def test_no_torchvision_at_all(lite):
    hidden = 'import sys, importlib.metadata as m; sys.modules["torchvision"] = None; find = m.version\n'
    hidden += 'def version(name):\n    if name == "torchvision":\n        raise m.PackageNotFoundError(name)\n'
    hidden += '    return find(name)\nm.version = version\nimport mmefficientmod\n'
    line = run('-c', hidden + NMS, path=lite, rc=1)
    assert 'need torchvision, which is not installed: install the release for torch' in line


def test_two_distributions_over_each_other(lite):
    for name in ('mmcv_lite', 'onedl_mmcv'):
        folder = lite / f'{name}-2.2.0.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name.replace("_", "-")}\nVersion: 2.2.0\n')
    check = 'from mmefficientmod.codebases.packages import check_mmcv_ops; check_mmcv_ops("mmdet"); sys.exit(3)'
    line = run('-c', f'import sys; {check}', path=lite, rc=3)
    assert 'mmcv-lite 2.2.0 and onedl-mmcv 2.2.0 are installed over each other' in line
    assert 'pip uninstall -y' in line and 'then install one of them' in line


def test_a_leftover_folder_is_no_mmcv(tmp_path):
    """pip leaves what it did not write, such as the file of ``--install``."""
    hidden = 'import sys; sys.path[:] = [p for p in sys.path if "site-packages" not in p] + [sys.argv[1]]\n'
    site = tmp_path / 'site'
    site.mkdir()
    for entry in Path(mmcv.__file__).parents[1].iterdir():
        if entry.name != 'mmcv' and not entry.name.startswith(('mmcv', '__editable__')):
            (site / entry.name).symlink_to(entry)
    (site / 'mmcv').mkdir()
    (site / 'mmcv/_ext.py').write_text('')
    code = f'{hidden}from mmefficientmod.codebases.packages import check_mmcv_ops; check_mmcv_ops("mmdet")'
    assert 'mmcv is not installed: "pip install mmcv-lite==' in run('-c', code, str(site), path=tmp_path, rc=1)
