"""The launcher picks the codebase and refuses what cannot run, in one line that names the fix."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO

from mmefficientmod.launch import find_script, launch

DETECTION = str(REPO / 'configs/detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py')
SEGMENTATION = str(REPO / 'configs/segmentation/fpn_efficientmod-xxs_8xb4-40k_ade20k-512x512.py')
FROM_SCRATCH = 'model.backbone.init_cfg=None'


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Empty data sets in both layouts: enough for what is checked before the start."""
    for folder in (
        'coco/annotations',
        'coco/train2017',
        'coco/val2017',
        'ade/images/training',
        'ade/images/validation',
        'ade/annotations/training',
        'ade/annotations/validation',
    ):
        (tmp_path / folder).mkdir(parents=True)
    for split in ('train', 'val'):
        (tmp_path / f'coco/annotations/instances_{split}2017.json').write_text('{}')
    monkeypatch.setenv('COCO_ROOT', str(tmp_path / 'coco'))
    monkeypatch.setenv('ADE20K_ROOT', str(tmp_path / 'ade'))
    return tmp_path


def refused(script: str, *argv: str) -> str:
    with pytest.raises(SystemExit) as error:
        launch(script, argv)
    assert isinstance(error.value.code, str), 'it must end with a line and a non-zero exit code'
    assert error.value.code.startswith('error: ') and '\n' not in error.value.code
    return error.value.code


@pytest.mark.both_stacks
@pytest.mark.parametrize('codebase', ['mmdet', 'mmseg', 'mmpretrain'])
@pytest.mark.parametrize('script', ['train', 'test'])
def test_finds_the_installed_script(codebase, script):
    assert 'Runner' in Path(find_script(codebase, script)).read_text()


@pytest.mark.both_stacks
@pytest.mark.parametrize(('config', 'own_argument'), [(DETECTION, '--auto-scale-lr'), (SEGMENTATION, '--amp')])
def test_help_is_the_codebases_own(config, own_argument):
    done = subprocess.run(
        [sys.executable, str(REPO / 'tools/train.py'), config, '--help'], capture_output=True, text=True
    )
    assert done.returncode == 0 and own_argument in done.stdout


def test_usage():
    done = subprocess.run([sys.executable, str(REPO / 'tools/test.py')], capture_output=True, text=True)
    assert done.returncode == 2 and 'usage: python tools/test.py CONFIG CHECKPOINT' in done.stdout


def test_the_command_ends_with_one_line_and_without_traceback():
    done = subprocess.run([sys.executable, str(REPO / 'tools/train.py'), 'no/such.py'], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1]
        == 'error: config no/such.py does not exist: the first argument is the path of a config file'
    )
    assert 'Traceback' not in done.stderr


def test_config_of_neither_codebase(tmp_path):
    (tmp_path / 'other.py').write_text("default_scope = 'mmrotate'\n")
    assert "belongs to none of mmdet, mmseg, mmpretrain: its default_scope is 'mmrotate'" in refused(
        'train', str(tmp_path / 'other.py')
    )
    (tmp_path / 'broken.py').write_text('_base_ = "nowhere.py"\n')
    assert 'broken.py cannot be read' in refused('train', str(tmp_path / 'broken.py'))


def test_wrong_channels_in_the_neck(roots):
    message = refused('train', DETECTION, '--cfg-options', FROM_SCRATCH, 'model.neck.in_channels=[40,80,160,344]')
    assert (
        "in_channels is [40, 80, 160, 344], but EfficientMod arch 'xxs' gives [32, 64, 128, 256]: set neck=" in message
    )


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.backbone.arch=m', "model.backbone: unknown arch 'm': choose one of xxs, xs, s, s_conv"),
        ('model.backbone.out_indices=(1,4)', 'model.backbone: out_indices must be ascending stages out of 0 to 3'),
        ('model.backbone.depth=50', 'model.backbone: '),
    ],
)
def test_bad_backbone(option, message, roots):
    assert message in refused('train', DETECTION, '--cfg-options', FROM_SCRATCH, option)


@pytest.mark.parametrize(
    ('missing', 'config', 'message'),
    [
        (
            'coco',
            DETECTION,
            'data root {}/coco/ does not exist: .* --cfg-options train_dataloader.dataset.data_root=PATH',
        ),
        (
            'coco/annotations/instances_train2017.json',
            DETECTION,
            'annotation file {}/coco/annotations/instances_train2017.json does not',
        ),
        (
            'coco/annotations/instances_val2017.json',
            DETECTION,
            'annotation file .*val_dataloader.dataset.ann_file=PATH',
        ),
        ('coco/val2017', DETECTION, 'data folder {}/coco/val2017/ does not exist'),
        ('ade', SEGMENTATION, 'data root {}/ade does not exist'),
        (
            'ade/annotations/validation',
            SEGMENTATION,
            'data folder .*val_dataloader.dataset.data_prefix.seg_map_path=PATH',
        ),
    ],
)
def test_missing_data(missing, config, message, roots):
    import re

    (roots / missing).rename(roots / 'away')
    assert re.search(message.format(re.escape(str(roots))), refused('train', config, '--cfg-options', FROM_SCRATCH))


def test_missing_evaluation_file(roots):
    message = refused('train', DETECTION, '--cfg-options', FROM_SCRATCH, 'val_evaluator.ann_file=/no/file.json')
    assert 'annotation file /no/file.json does not exist' in message and 'val_evaluator.ann_file=PATH' in message


def test_missing_pretrained_weights_are_no_silent_start_from_scratch(roots):
    message = refused('train', DETECTION)
    assert 'efficientmod_xxs.pth does not exist' in message
    assert 'model.backbone.init_cfg.checkpoint=PATH' in message and FROM_SCRATCH in message


@pytest.mark.both_stacks
def test_bad_checkpoints_are_refused_before_mmengine_opens_them(roots):
    import os

    class Touch:
        def __reduce__(self):
            return os.system, (f'touch {roots}/witness',)

    torch.save(dict(meta=Touch(), state_dict=dict(a=torch.rand(1))), roots / 'evil.pth')
    (roots / 'cut.pth').write_bytes((roots / 'evil.pth').read_bytes()[:100])
    torch.save(dict(meta=dict(epoch=1)), roots / 'empty.pth')
    for name, message in [
        ('evil.pth', 'is refused: to be read it asks for posix.system'),
        ('cut.pth', 'is truncated'),
        ('empty.pth', 'holds no weights; its entries are: meta'),
        ('none.pth', 'does not exist'),
    ]:
        assert message in refused('test', DETECTION, str(roots / name))
        assert message in refused('train', DETECTION, '--cfg-options', FROM_SCRATCH, f'load_from={roots / name}')
    assert 'needs a checkpoint' in refused('test', DETECTION)
    assert not (roots / 'witness').exists()


def test_mmcv_without_operators(tmp_path):
    """A real import of a package named mmcv that has no operators, as mmcv-lite has none."""
    import mmcv

    lite = tmp_path / 'mmcv'
    lite.mkdir()
    for entry in Path(mmcv.__file__).parent.iterdir():
        if not entry.name.startswith(('_ext', '__pycache__')):
            (lite / entry.name).symlink_to(entry)
    done = subprocess.run(
        [sys.executable, str(REPO / 'tools/train.py'), DETECTION],
        capture_output=True,
        text=True,
        env={'PATH': '/usr/bin', 'PYTHONPATH': f'{tmp_path}:{REPO}'},
    )
    assert done.returncode == 1
    assert (
        'error: MMCV with compiled operators is needed' in done.stderr.splitlines()[-1]
        and 'MMCV_WITH_OPS=1' in done.stderr
    )


@pytest.mark.parametrize(
    ('name', 'version', 'message'),
    [
        ('mmcv', '1.7.2', 'needs mmcv>=2.0.1,<3.0.0, but mmcv 1.7.2 is installed: pip install "mmcv>=2.0.1,<3.0.0"'),
        ('mmengine', '0.9.1', 'needs mmengine>=0.10.0,<1.0.0, but mmengine 0.9.1 is installed'),
    ],
)
def test_unsupported_versions(name, version, message, monkeypatch):
    import importlib

    import mmefficientmod

    monkeypatch.setattr(importlib.import_module(name), '__version__', version)
    with pytest.raises(ImportError) as error:
        mmefficientmod._check_dependencies()
    assert message in str(error.value)


def test_the_backbone_needs_no_mmcv():
    code = (
        'import sys; sys.modules["mmcv"] = sys.modules["mmdet"] = None\n'
        'import importlib.util; find = importlib.util.find_spec\n'
        'importlib.util.find_spec = lambda name, *rest: None if name == "mmcv" else find(name, *rest)\n'
        'import torch; from mmefficientmod.models import EfficientMod\n'
        'print(len(EfficientMod("xxs")(torch.rand(1, 3, 32, 32))))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout.strip() == '4', done.stderr


def test_shell_scripts_show_their_usage():
    for name in ('dist_train', 'dist_test', 'slurm_train', 'slurm_test'):
        done = subprocess.run(['bash', str(REPO / f'tools/{name}.sh')], capture_output=True, text=True)
        assert done.returncode == 2 and f'tools/{name}.sh' in done.stderr
