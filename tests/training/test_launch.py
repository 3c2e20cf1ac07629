"""The launcher picks the codebase and refuses what cannot run, in one line that names the fix."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from helpers import REPO, classifier_config, refused
from interpreter import run_python
from mmefficientmod.checkpoints.loading import read_checkpoint
from mmefficientmod.checkpoints.weights import find_weights
from mmefficientmod.codebases.config import find_config
from mmefficientmod.codebases.packages import find_shipped
from mmefficientmod.models import EfficientMod
from mmefficientmod.training.checks.data import check_data
from mmefficientmod.training.checks.run import NECKS, check_run, drop_needless_pretrained, try_backbones
from mmefficientmod.training.launch import find_config_argument, is_main_process, launch
from mmefficientmod.utils import UserError

TRAIN, TEST = partial(launch, 'train'), partial(launch, 'test')

DETECTION = str(REPO / 'configs/detection/mask-rcnn_efficientmod-xxs_fpn_8xb4-1x_coco.py')
SEGMENTATION = str(REPO / 'configs/segmentation/fpn_efficientmod-xxs_8xb4-40k_ade20k-512x512.py')
FROM_SCRATCH = 'model.backbone.init_cfg=None'


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Data sets of one image in both layouts: enough for what is checked before the start."""
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
    annotations = dict(
        images=[dict(id=1, file_name='1.jpg', height=32, width=32)],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 9, 9], area=81, iscrowd=0)],
        categories=[dict(id=1, name='person')],
    )
    for split in ('train', 'val'):
        (tmp_path / f'coco/annotations/instances_{split}2017.json').write_text(json.dumps(annotations))
    for split in ('training', 'validation'):
        (tmp_path / f'ade/images/{split}/1.jpg').touch()
    monkeypatch.setenv('COCO_ROOT', str(tmp_path / 'coco'))
    monkeypatch.setenv('ADE20K_ROOT', str(tmp_path / 'ade'))
    return tmp_path


@pytest.fixture
def classification(tmp_path):
    """A config of MMPreTrain, which needs no operators, and the four pictures that it trains on."""
    import mmcv

    for i in range(4):
        image = np.random.RandomState(i).randint(0, 255, (32, 32, 3), np.uint8)
        mmcv.imwrite(image, str(tmp_path / f'train/{"ab"[i % 2]}/{i}.png'))
    start = dict(type='Pretrained', checkpoint='checkpoints/no-such-file.pth')
    config = classifier_config(2, tmp_path, init_cfg=start)
    settings = dict(type='ImageNet', data_prefix='train', metainfo=dict(classes=('a', 'b')))
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.update(settings)
    config.merge_from_dict({'train_cfg.max_epochs': 1, 'env_cfg.dist_cfg.backend': 'gloo'})
    config.dump(tmp_path / 'classifier.py')
    return tmp_path / 'classifier.py'


def run(script: str, *argv: object, **env: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')}
    return run_python(REPO / f'tools/{script}.py', *argv, env={**inherited, 'PYTHONPATH': str(REPO), **env})


@pytest.mark.both_stacks
@pytest.mark.parametrize('codebase', ['mmdet', 'mmseg', 'mmpretrain'])
@pytest.mark.parametrize('script', ['train', 'test'])
def test_finds_the_installed_script(codebase, script):
    assert 'Runner' in Path(find_shipped(codebase, f'tools/{script}.py')).read_text()


@pytest.mark.ops
@pytest.mark.both_stacks
@pytest.mark.parametrize(('config', 'own_argument'), [(DETECTION, '--auto-scale-lr'), (SEGMENTATION, '--amp')])
def test_help_is_the_codebases_own(config, own_argument):
    done = run('train', config, '--help')
    assert done.returncode == 0 and own_argument in done.stdout


def test_usage():
    done = run('test')
    assert done.returncode == 2 and 'usage: python tools/test.py CONFIG CHECKPOINT' in done.stdout


def test_the_command_ends_with_one_line_and_without_traceback():
    done = run('train', 'no/such.py')
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1]
        == 'error: config no/such.py does not exist: give the path of a config, or the name of one of this package'
    )
    assert 'Traceback' not in done.stderr


def test_config_of_no_supported_codebase(tmp_path):
    (tmp_path / 'other.py').write_text("default_scope = 'nowhere'\nmodel = dict()\n")
    assert "belongs to none of mmdet, mmseg, mmpretrain: its default_scope is 'nowhere'" in refused(
        TRAIN, str(tmp_path / 'other.py')
    )
    (tmp_path / 'broken.py').write_text('_base_ = "nowhere.py"\n')
    assert 'broken.py cannot be read' in refused(TRAIN, str(tmp_path / 'broken.py'))


@pytest.mark.ops
@pytest.mark.both_stacks
def test_bad_checkpoints_are_refused_before_mmengine_opens_them(roots):
    class Touch:
        def __reduce__(self):
            return os.system, (f'touch {roots}/witness',)

    torch.save(dict(meta=Touch(), state_dict=dict(a=torch.rand(1))), roots / 'evil.pth')
    (roots / 'cut.pth').write_bytes((roots / 'evil.pth').read_bytes()[:100])
    torch.save(dict(meta=dict(epoch=1)), roots / 'empty.pth')
    for name, message in [
        ('evil.pth', 'is refused: it asks for posix.system'),
        ('cut.pth', 'is truncated'),
        ('empty.pth', 'holds no weights; its entries are: meta'),
        ('none.pth', 'does not exist'),
    ]:
        assert message in refused(TEST, DETECTION, str(roots / name))
        assert message in refused(TRAIN, DETECTION, '--cfg-options', FROM_SCRATCH, f'load_from={roots / name}')
    assert 'needs a checkpoint' in refused(TEST, DETECTION)
    assert not (roots / 'witness').exists()


@pytest.mark.parametrize(
    ('name', 'version', 'message'),
    [
        ('mmcv', '1.7.2', 'needs mmcv>=2.0.1,<3.0.0, but mmcv 1.7.2 is installed: pip uninstall -y mmcv'),
        ('mmengine', '0.9.1', 'needs mmengine>=0.10.0,<1.0.0, but mmengine 0.9.1 is installed'),
    ],
)
def test_unsupported_versions(name, version, message, monkeypatch):
    import importlib

    import mmefficientmod

    monkeypatch.setattr(importlib.import_module(name), '__version__', version)
    with pytest.raises(ImportError) as error:
        mmefficientmod.check_dependencies()
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


@pytest.mark.both_stacks
def test_a_classifier_is_trained_resumed_and_tested(classification, tmp_path):
    """``data_prefix`` is a string, options come first, and only the start from nothing asks for pretrained weights."""
    out = tmp_path / 'out'
    argv = ['--work-dir', out, classification]
    done = run('train', *argv)
    assert done.returncode == 1 and 'no-such-file.pth does not exist' in done.stderr.splitlines()[-1]
    done = run('train', *argv, '--cfg-options', FROM_SCRATCH)
    assert done.returncode == 0, done.stderr
    assert (out / 'epoch_1.pth').is_file()

    done = run('train', *argv, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert done.returncode == 0, done.stderr
    note = f'no-such-file.pth is missing and not needed: the weights come from {out}/epoch_1.pth'
    assert done.stdout.count(note) == 1 and (out / 'epoch_2.pth').is_file()

    done = run('test', classification, '--work-dir', out, out / 'epoch_2.pth')
    assert done.returncode == 0 and 'accuracy/top1' in done.stdout + done.stderr


LOCK = 'import sys; from mmefficientmod.training.lock import lock_work_dir; lock_work_dir(sys.argv[1])'


@pytest.mark.parametrize('ending', ['the end', 'an error'])
def test_a_notebook_goes_on_after_a_training(ending, classification, tmp_path):
    """The process is as it was, and another one may train in the work directory."""
    before = [*sys.argv], [*sys.path]
    options = (FROM_SCRATCH, 'default_hooks.checkpoint.type=mmefficientmod.SafeCheckpointHook')
    argv = [str(classification), '--work-dir', str(tmp_path / 'out'), '--cfg-options', *options]
    if ending == 'the end':
        TRAIN(argv)
    else:
        line = refused(TRAIN, *argv, 'optim_wrapper.optimizer.type=Nope')  # after it was locked
        assert line.startswith('error: the config cannot be used: TypeError: ')
    assert (sys.argv, sys.path) == before
    assert (tmp_path / 'out/.training').exists()
    done = run_python('-c', LOCK, tmp_path / 'out', env={**os.environ, 'PYTHONPATH': str(REPO)})
    assert done.returncode == 0, done.stderr


def test_a_runner_leaves_its_work_directory_after_the_training(classification, tmp_path):
    config = Config.fromfile(classification)
    config.merge_from_dict(dict(work_dir=str(tmp_path / 'out'), launcher='none'))
    config.model.backbone.init_cfg = None
    config.default_hooks = dict(checkpoint=dict(type='mmefficientmod.SafeCheckpointHook'))
    Runner.from_cfg(config).train()
    assert (tmp_path / 'out/.training').exists()
    done = run_python('-c', LOCK, tmp_path / 'out', env={**os.environ, 'PYTHONPATH': str(REPO)})
    assert done.returncode == 0, done.stderr


def test_a_classifier_goes_on_from_its_work_directory(classification, tmp_path):
    """MMPreTrain's script removes the config's ``load_from`` with ``--resume``: a first start needs it."""
    out, first = tmp_path / 'out', tmp_path / 'first'
    argv = [classification, '--cfg-options', FROM_SCRATCH]
    assert run('train', *argv, '--work-dir', first).returncode == 0
    tuned = tmp_path / 'tuned.py'
    tuned.write_text(f"_base_ = '{classification}'\nload_from = '{first}/epoch_1.pth'\n")
    argv = [tuned, '--work-dir', out, '--resume', '--cfg-options', FROM_SCRATCH]
    done = run('train', *argv)
    assert done.returncode == 0 and 'resumed epoch' not in done.stdout + done.stderr, done.stderr[-3000:]
    assert f'starting at iteration 0 with the weights of {first}/epoch_1.pth' in done.stdout
    done = run('train', *argv, 'train_cfg.max_epochs=2')
    assert f'resuming from {out}/epoch_1.pth' in done.stdout and (out / 'epoch_2.pth').exists(), done.stderr[-3000:]


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('model.backbone=3', 'the config cannot be used: TypeError: '),
        ('optim_wrapper.optimizer.type=Nope', r'the config cannot be used: .* \(traceback in .*/traceback\.txt\)$'),
        ('custom_hooks=3', 'the config cannot be used: TypeError: '),
        ('train_dataloader.dataset.pipeline=[]', 'the config cannot be used: '),
        ('train_cfg.val_interval=0', r'train_cfg\.val_interval is 0: set a whole number above 0'),
        ('default_hooks.checkpoint.interval=abc', r"default_hooks\.checkpoint\.interval is 'abc': set a whole number"),
        ('load_from=', "load_from is '': set it to the path of a checkpoint"),
        ('model.backbone.drop_path_rate=7', r'model\.backbone: drop_path_rate must be at least 0 and below 1, got 7'),
        ('model.backbone.init_cfg.checkpoint=x.pth', r'model\.backbone\.init_cfg has no type: add --cfg-options '),
    ],
)
def test_settings_that_cannot_be_used_end_in_one_line(option, said, classification, tmp_path):
    config = Config.fromfile(classification)
    del config.model.backbone.init_cfg
    config.dump(classification)
    argv = [classification, '--work-dir', tmp_path / 'out', '--cfg-options', option]
    line = refused(TRAIN, *argv)
    assert re.match(f'error: {said}', line), line
    found = [path for path in (tmp_path / 'out').rglob('traceback.txt') if 'Traceback' in path.read_text()]
    assert len(found) == ('traceback in' in line)


def test_own_code_keeps_its_traceback(classification, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'own_hooks.py').write_text(
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n'
        '@HOOKS.register_module(force=True)\n'
        'class Own(Hook):\n'
        '    def before_train(self, runner):\n'
        "        raise ValueError('mine')\n"
    )
    own = "custom_imports = dict(imports=['own_hooks'])\ncustom_hooks = [dict(type='Own')]\n"
    classification.write_text(classification.read_text() + own)
    with pytest.raises(ValueError, match='mine'):
        TRAIN([str(classification), '--work-dir', str(tmp_path / 'out'), '--cfg-options', FROM_SCRATCH])


def test_empty_words_and_operands_in_the_wrong_order(classification, tmp_path):
    assert 'the config is an empty text' in refused(TEST, '', 'x.pth')
    assert 'the checkpoint is an empty text' in refused(TEST, classification, ' ')
    (tmp_path / 'x.pth').touch()
    assert 'x.pth is not a config: its name ends in none of .py, ' in refused(TEST, tmp_path / 'x.pth', classification)


def test_usage_errors_are_the_codebases_own(classification):
    done = run('test', '--work-dir', 'out', classification)
    assert done.returncode == 2 and 'the following arguments are required: checkpoint' in done.stderr
    message = refused(TRAIN, str(classification), '--cfg-options', 'model.backbone.arch')
    assert '--cfg-options takes KEY=VALUE pairs' in message
    message = refused(TRAIN, str(classification), '--cfg-options', 'model.backbone.arch.x=1')
    assert '--cfg-options do not fit config' in message and 'TypeError' in message


def test_the_first_process_checks_and_the_others_go_on(classification):
    """The processes are connected after the checks, which fails here without the other variables of Slurm."""
    bad = [classification, '--launcher', 'slurm', '--cfg-options', 'model.backbone.arch=m']
    first, second = (run('train', *bad, SLURM_PROCID=rank, SLURM_NODELIST='') for rank in '01')
    assert first.returncode == 1 and "error: model.backbone: unknown arch 'm'" in first.stderr.splitlines()[-1]
    assert second.returncode == 1 and 'unknown arch' not in second.stderr
    if not torch.cuda.is_available():  # else MMEngine connects them, and ends in a KeyError
        last = second.stderr.splitlines()[-1]
        assert last.startswith('error: --launcher slurm is for processes that srun starts')
        assert last.endswith(': SLURM_LOCALID, SLURM_NTASKS, SLURM_NODELIST not set')


@pytest.mark.parametrize(
    ('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')]
)
def test_main_process(launcher, variable, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    assert is_main_process(launcher)
    monkeypatch.setenv(variable, '1')
    assert not is_main_process(launcher) and is_main_process('none')


def test_only_a_bare_name_is_looked_up_among_the_installed_configs():
    name = Path(SEGMENTATION).name
    for bare in (name, name[:-3]):
        assert Path(find_config(bare)).samefile(SEGMENTATION)
    for mistyped in (f'configs/segmantation/{name}', f'./{name}', f'/{name}', 'default_runtime_seg.py'):
        with pytest.raises(UserError, match=f'config {mistyped} does not exist'):
            find_config(mistyped)


@pytest.mark.ops
def test_the_installed_config_that_was_taken_is_printed(roots, capsys):
    name = Path(DETECTION).stem
    refused(TRAIN, name)
    assert f'\nconfig {name} is /' in '\n' + capsys.readouterr().out  # MMEngine may log before it


def test_the_config_is_found_behind_options(classification):
    path, name = str(classification), Path(SEGMENTATION).stem
    assert find_config_argument([path, '--work-dir', name]) == 0
    assert find_config_argument(['--work-dir', name, path, 'x.pth']) == 2
    assert 'no config is given' in refused(TRAIN, '--work-dir', 'out', 'no/such.py')
    assert 'no config is given' in refused(TRAIN, '--amp')
    other = classification.with_name('other.py')
    other.write_text(classification.read_text())
    message = refused(TRAIN, '--work-dir', path, str(other))
    assert message == f'error: is {path} or {other} the config? Put it before the options'


@pytest.mark.parametrize('scope', ['mmpose', 'mmrotate', 'mmyolo', 'mmdet3d'])
def test_configs_of_other_codebases(scope, tmp_path):
    path = tmp_path / 'other.py'
    path.write_text(f'default_scope = {scope!r}\nmodel = dict()\n')
    message = refused(TRAIN, str(path))
    assert f'belongs to {scope}: run "mim train {scope} {path}"' in message
    assert f'"mim test {scope} {path}"' in refused(TEST, str(path), 'x.pth')


def test_config_in_pure_python(tmp_path):
    path = tmp_path / 'pure.py'
    path.write_text(
        'from mmpretrain.models import ImageClassifier\n'
        'from mmefficientmod.models import EfficientMod\n'
        "model = dict(type=ImageClassifier, backbone=dict(type=EfficientMod, arch='m'))\n"
        'default_scope = None\n'
        'train_cfg = dict(by_epoch=True, max_epochs=1)\n'
        'train_dataloader = optim_wrapper = dict()\n'
    )
    assert "model.backbone: unknown arch 'm'" in refused(TRAIN, str(path))


def config_of(**parts: object) -> Config:
    return Config(dict(default_scope='mmpretrain', **parts))


def data_config(**dataset: object) -> Config:
    return config_of(train_dataloader=dict(dataset={'type': 'CustomDataset', **dataset}))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with ``images/a/`` and ``list.txt``, which is the home directory too."""
    (tmp_path / 'images/a').mkdir(parents=True)
    (tmp_path / 'train/a').mkdir(parents=True)
    (tmp_path / 'val.json').write_text('{}')
    (tmp_path / 'list.txt').write_text('a/1.jpg 0\n')
    monkeypatch.setenv('HOME', str(tmp_path))
    return str(tmp_path)


@pytest.mark.parametrize(
    'dataset',
    [
        dict(data_root='{}', data_prefix='images', ann_file='list.txt'),
        dict(data_root='{}', data_prefix='', ann_file=''),
        dict(data_root='~', data_prefix='images', ann_file='list.txt'),
        dict(data_root=None, data_prefix='{}/images', ann_file='~/list.txt'),
        dict(data_root='/no', data_prefix=dict(img_path='{}/images'), ann_file='{}/list.txt'),
        dict(data_root='{}', split='train'),
        dict(data_root='{}', ann_file=['list.txt', 'more.txt'], data_prefix=dict(img_path=None)),
        dict(data_root='/no', data_prefix=dict(img='s3://bucket/images'), ann_file='https://host/list.txt'),
        dict(data_root='/no', ann_file='list.txt', backend_args=dict(backend='petrel')),
        dict(data_root='/no', pipeline=[dict(type='LoadImageFromFile', backend_args=dict(backend='lmdb'))]),
        dict(type='mmpretrain.CIFAR10', data_root='/no', split='train'),
        dict(type='MNIST', data_prefix='/no'),
        dict(
            data_root='{}',
            data_prefix=dict(img_path='images', seg_map_path='no'),
            pipeline=[dict(type='PackSegInputs')],
        ),
        dict(type='elsewhere.Pictures', data_root='/no'),
    ],
)
def test_data_sets_that_can_work(dataset, files):
    def filled(value: object) -> object:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return value.replace('{}', files) if isinstance(value, str) else value

    check_data(data_config(**filled(dataset)), ['train'])


@pytest.mark.parametrize(
    ('dataset', 'message'),
    [
        (dict(data_prefix='no'), 'data folder {}/no does not exist: .* train_dataloader.dataset.data_prefix=PATH'),
        (dict(data_prefix=dict(img_path='no')), 'data folder .*data_prefix.img_path=PATH'),
        (dict(ann_file='no.txt'), 'annotation file {}/no.txt'),
        (dict(data_root='/no', split='train'), 'data root /no does not exist'),
        (dict(data_root='/no', data_prefix='images'), 'data root /no does not exist'),
        (dict(data_root=None, data_prefix='/no/images'), 'data folder /no/images'),
    ],
)
def test_data_sets_that_cannot_work(dataset, message, files):
    with pytest.raises(UserError, match=message.format(files)):
        check_data(data_config(**{'data_root': files, **dataset}), ['train'])


def test_wrapped_data_sets_and_evaluators(files):
    missing, present = dict(type='A', data_root='/no'), dict(type='A', data_root=files, ann_file='list.txt')
    for wrap, place in [
        (lambda inner: dict(type='RepeatDataset', times=2, dataset=inner), 'dataset.dataset'),
        (lambda inner: dict(type='KFoldDataset', fold=0, num_splits=2, dataset=inner), 'dataset.dataset'),
        (lambda inner: dict(type='ConcatDataset', datasets=[present, inner]), 'dataset.datasets.1'),
        (lambda inner: dict(type='MultiImageMixDataset', dataset=inner, pipeline=[]), 'dataset.dataset'),
    ]:
        check_data(config_of(train_dataloader=dict(dataset=wrap(present))), ['train'])
        with pytest.raises(UserError, match=f'{place}.data_root=PATH'):
            check_data(config_of(train_dataloader=dict(dataset=wrap(missing))), ['train'])

    fine = [dict(type='IoUMetric'), dict(type='CocoMetric', ann_file=f'{files}/val.json')]
    for evaluator in (None, fine[0], fine, dict(type='Evaluator', metrics=fine)):
        check_data(config_of(test_dataloader=None, test_evaluator=evaluator), ['test', 'val'])
    with pytest.raises(UserError, match=r'test_evaluator\.1\.ann_file=PATH'):
        check_data(config_of(test_evaluator=[fine[0], dict(type='CocoMetric', ann_file='/no.json')]), ['test'])

    own = config_of(train_dataloader=dict(dataset=missing), custom_imports=dict(imports=['my_project.data']))
    check_data(own, ['train'])
    own.custom_imports.imports = ['mmpretrain.models']
    with pytest.raises(UserError):
        check_data(own, ['train'])


def test_a_metric_that_the_end_of_an_evaluation_would_refuse():
    metric = dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice'])
    check_run('train', config_of(val_evaluator=[metric]))
    metric['iou_metrics'].append('IoU')
    with pytest.raises(UserError, match=r"^val_evaluator\.iou_metrics has 'IoU', .* choose from mIoU, mDice, mFscore$"):
        check_run('train', config_of(val_evaluator=[metric]))


LEVELS = [32, 64, 144, 312]
EFFICIENTMOD = dict(type='mmefficientmod.EfficientMod', arch='s')


def neck_config(neck: object) -> Config:
    return config_of(model=dict(type='Detector', backbone=EFFICIENTMOD, neck=neck))


@pytest.mark.ops
@pytest.mark.both_stacks
@pytest.mark.parametrize(
    ('neck', 'wrong'),
    [
        (dict(type='FPN', in_channels=LEVELS, out_channels=8, num_outs=5), LEVELS[::-1]),
        (dict(type='FPN', in_channels=[1, *LEVELS[1:]], out_channels=8, num_outs=5, start_level=1), LEVELS[1:]),
        (dict(type='FPN', in_channels=[*LEVELS[:2], 1, 1], out_channels=8, num_outs=2, end_level=1), [1] * 4),
        (dict(type='mmseg.FPN', in_channels=LEVELS, out_channels=8, num_outs=4), [40, 80, 160, 344]),
        (dict(type='PAFPN', in_channels=LEVELS, out_channels=8, num_outs=4), LEVELS[::-1]),
        (dict(type='FPN_DropBlock', in_channels=LEVELS, out_channels=8, num_outs=4), LEVELS[:3]),
        (dict(type='ChannelMapper', in_channels=LEVELS, out_channels=32, num_outs=4), LEVELS[::-1]),
        (dict(type='CSPNeXtPAFPN', in_channels=LEVELS, out_channels=8), LEVELS[1:]),
        (dict(type='YOLOXPAFPN', in_channels=LEVELS, out_channels=8), LEVELS[1:]),
        (dict(type='mmseg.MultiLevelNeck', in_channels=LEVELS, out_channels=8), LEVELS[::-1]),
        (dict(type='YOLOV3Neck', num_scales=4, in_channels=LEVELS[::-1], out_channels=[64, 32, 16, 8]), LEVELS),
        (dict(type='CTResNetNeck', in_channels=312, num_deconv_filters=(8,), num_deconv_kernels=(4,)), 32),
        (
            dict(
                type='DilatedEncoder',
                in_channels=312,
                out_channels=8,
                block_mid_channels=4,
                num_residual_blocks=1,
                block_dilations=[2],
            ),
            LEVELS[0],
        ),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_a_neck_is_refused_where_it_fails_and_only_there(neck, wrong):
    """The rule of each neck, against the neck itself."""
    from mmdet.registry import MODELS

    levels = tuple(torch.rand(2, channels, 32 // 2**i, 32 // 2**i) for i, channels in enumerate(LEVELS))
    kwargs = dict(neck, use_dcn=False) if neck['type'] == 'CTResNetNeck' else neck
    with torch.no_grad():
        try_backbones(neck_config(neck), training=True)
        MODELS.build(kwargs)(levels)
        with pytest.raises(UserError, match='in_channels is'):
            try_backbones(neck_config(dict(neck, in_channels=wrong)), training=True)
        with pytest.raises((RuntimeError, AssertionError)):
            MODELS.build(dict(kwargs, in_channels=wrong))(levels)


@pytest.mark.parametrize(
    ('neck', 'judged'),
    [
        (None, dict(type='FPN', in_channels=[1, 2])),
        ([], [dict(type='FPN', in_channels=[1, 2])]),
        (dict(type='GlobalAveragePooling'), dict(type='ChannelMapper', in_channels=[1, 2])),
        (dict(type='FPN'), dict(type='FPN', in_channels=[1, 2])),  # its own default
        (dict(type='SSDNeck', in_channels=(512, 1024)), dict(type='FPN', in_channels=(512, 1024))),
        (dict(type='HRFPN', in_channels=[1, 2]), dict(type='FPN', in_channels=[1, 2])),
        (dict(type='mmyolo.YOLOXPAFPN', in_channels=[1, 2]), dict(type='mmdet.YOLOXPAFPN', in_channels=[1, 2])),
        (
            [dict(type='FPN', in_channels=LEVELS), dict(type='BFP', in_channels=256)],
            [dict(type='FPN', in_channels=LEVELS[:3]), dict(type='BFP', in_channels=256)],
        ),
    ],
)
def test_necks_that_are_not_judged(neck, judged):
    """Each next to one that is, which differs in one point and is wrong."""
    try_backbones(neck_config(neck), training=True)
    with pytest.raises(UserError, match=r'neck\.in_channels is '):
        try_backbones(neck_config(judged), training=True)


@pytest.mark.parametrize(
    'name',
    [
        'mmdet/yolo/yolov3_d53_8xb8-320-273e_coco.py',
        'mmdet/centernet/centernet_r18_8xb16-crop512-140e_coco.py',
        'mmdet/yolof/yolof_r50-c5_8xb8-1x_coco.py',
        'mmdet/ssd/ssd300_coco.py',
        'mmdet/atss/atss_r50_fpn_1x_coco.py',
        'mmdet/dino/dino-4scale_r50_8xb2-12e_coco.py',
        'mmdet/rtmdet/rtmdet_s_8xb32-300e_coco.py',
        'mmdet/yolox/yolox_s_8xb8-300e_coco.py',
        'mmdet/libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py',
        'mmdet/dyhead/atss_r50_fpn_dyhead_1x_coco.py',
        'mmdet/faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py',
        'mmseg/fastfcn/fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024.py',
        'mmseg/sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
        'mmpretrain/resnet/resnet50_8xb32_in1k.py',
    ],
)
@pytest.mark.both_stacks
def test_stock_configs_take_the_backbone(name):
    """Channels are written in the order in which the stock config has them: ascending, descending or the last alone."""
    codebase, _, path = name.partition('/')
    config = Config.fromfile(Path(find_shipped(codebase, 'tools/train.py')).parents[1] / 'configs' / path)
    neck = config.model.get('neck')
    first = neck[0] if isinstance(neck, list) else neck or {}
    levels = LEVELS
    if isinstance(first.get('in_channels'), (list, tuple)):
        stock = list(first.in_channels)
        levels = LEVELS[-len(stock) :]
        first.in_channels = levels if stock == sorted(stock) else levels[::-1]
    elif 'in_channels' in first:
        first.in_channels = LEVELS[-1]
    config.model.pretrained = None  # in MMSegmentation's, the weights of the stock backbone
    config.model.backbone = dict(EFFICIENTMOD, out_indices=tuple(range(4 - len(levels), 4)))
    try_backbones(config, training=True)
    if first.get('type') in NECKS and 'in_channels' in first:
        first.in_channels = 7 if isinstance(first.in_channels, int) else [*first.in_channels[:-1], 7]
        with pytest.raises(UserError, match=r'neck\.in_channels is '):
            try_backbones(config, training=True)


def test_weights_from_a_checkpoint_need_no_pretrained_file(tmp_path):
    (tmp_path / 'whole.pth').touch()

    def left(pretrained: str = 'no-such.pth', **parts: object) -> tuple:
        backbone = dict(EFFICIENTMOD, init_cfg=dict(type='Pretrained', checkpoint=pretrained))
        config = config_of(model=dict(detector=dict(backbone=backbone)), **parts)
        return drop_needless_pretrained(config), config.model.detector.backbone.init_cfg

    whole = str(tmp_path / 'whole.pth')
    for parts in (dict(load_from=whole), dict(resume=True, load_from=whole)):
        notes, init_cfg = left(**parts)
        assert notes == [f'no-such.pth is missing and not needed: the weights come from {whole}'] and init_cfg is None
    for parts in (
        dict(),
        dict(load_from=None),
        dict(load_from='/no/whole.pth'),
        dict(load_from=whole, pretrained=whole),
        dict(load_from=whole, pretrained='https://host/file.pth'),
    ):
        notes, init_cfg = left(**parts)
        assert not notes and init_cfg is not None


def test_a_missing_file_is_named_for_every_backbone_of_the_package():
    init_cfg = dict(type='Pretrained', checkpoint='no-such.pth')
    backbone = dict(type='mmefficientmod.TimmBackbone', model_name='resnet18', init_cfg=init_cfg)
    config = config_of(model=dict(detector=dict(backbone=backbone)))
    with pytest.raises(UserError, match=r'no-such\.pth does not exist: .*model\.detector\.backbone\.init_cfg=None'):
        check_run('train', config)
    check_run('test', config)


@pytest.mark.parametrize('part', ['model', 'model.backbone'])
@pytest.mark.parametrize('number', ['', '.0'])
def test_every_file_that_init_cfg_names_is_looked_for(part, number, tmp_path):
    """That of a whole classifier too, alone or in a list; none of them where the weights come from a checkpoint."""
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'whole.pth')

    def config(**parts: object) -> Config:
        init_cfg = dict(type='Pretrained', checkpoint='no-such.pth')
        init_cfg = dict(init_cfg=[init_cfg] if number else init_cfg)
        model = dict(type='mmefficientmod.EfficientModClassifier', backbone=EFFICIENTMOD)
        model = {**model, **init_cfg} if part == 'model' else {**model, 'backbone': {**EFFICIENTMOD, **init_cfg}}
        return config_of(model=model, **parts)

    with pytest.raises(UserError, match=rf'^checkpoint no-such\.pth .* {part}\.init_cfg{number}\.checkpoint=PATH'):
        check_run('train', config())
    check_run('test', config())
    started = config(load_from=str(tmp_path / 'whole.pth'))
    assert len(drop_needless_pretrained(started)) == 1
    check_run('train', started)


def test_files_in_the_home_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(EfficientMod('s').state_dict(), tmp_path / 'w.pth')
    backbone = dict(EFFICIENTMOD, init_cfg=dict(type='Pretrained', checkpoint='~/w.pth'))
    check_run('train', config_of(model=dict(backbone=backbone), load_from='~/w.pth'))
    backbone['init_cfg']['checkpoint'] = '~/no-such.pth'
    assert drop_needless_pretrained(config_of(model=dict(backbone=backbone), load_from='~/w.pth'))


@pytest.mark.both_stacks
@pytest.mark.parametrize('workers', [0, 1])
def test_a_picture_that_is_missing_ends_in_one_line(workers, classification, tmp_path):
    """From a process that loads data it comes with that one's traceback."""
    (tmp_path / 'list.txt').write_text('a/none.png 0\na/gone.png 0\n')
    options = (FROM_SCRATCH, 'train_dataloader.dataset.ann_file=list.txt', f'train_dataloader.num_workers={workers}')
    out = ('--no-data-checks', '--work-dir', tmp_path / 'out')
    done = run('train', classification, *out, '--cfg-options', *options)
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    assert re.fullmatch(r'error: .*No such file or directory: .*\.png.*', done.stderr.strip().splitlines()[-1])


def test_the_inference_form_is_not_trained(tmp_path):
    model = EfficientMod('xxs')
    plain, deployed = str(tmp_path / 'plain.pth'), str(tmp_path / 'deployed.pth')
    for path in (plain, deployed):
        torch.save(dict(state_dict={f'backbone.{name}': value for name, value in model.state_dict().items()}), path)
        model.switch_to_deploy()

    def check(script: str, load_from: str | None = None, **backbone: object) -> None:
        check_run(script, config_of(model=dict(backbone=dict(EFFICIENTMOD, **backbone)), load_from=load_from))

    check('train')
    check('test', deploy=True)
    check('train', plain)
    check('test', deployed, deploy=True)
    check('test', deployed)
    with pytest.raises(UserError, match=r'model\.backbone\.deploy=True is only for inference'):
        check('train', deploy=True)
    with pytest.raises(UserError, match='is in the deploy form: train on from'):
        check('train', deployed)
    with pytest.raises(UserError, match='is in the deploy form, which cannot be trained'):
        check('train', init_cfg=dict(type='Pretrained', checkpoint=deployed))


def test_checkpoints_are_mapped_where_their_format_allows(tmp_path):
    weights = dict(a=torch.rand(3))
    for zipped in (True, False):
        torch.save(weights, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
        assert torch.equal(find_weights(read_checkpoint(tmp_path / 'w.pth', mmap=True), '')['a'], weights['a'])


@pytest.mark.skipif(torch.cuda.is_available(), reason='mixed precision works on a GPU')
@pytest.mark.both_stacks
def test_mixed_precision_on_a_cpu(classification):
    options = ['--cfg-options', FROM_SCRATCH]
    message = refused(TRAIN, str(classification), '--amp', *options)
    assert 'in mixed precision (--amp, AmpOptimWrapper) on a GPU or an NPU, not on cpu' in message
    assert message == refused(TRAIN, str(classification), *options, 'optim_wrapper.type=AmpOptimWrapper')


@pytest.mark.ops
@pytest.mark.parametrize('option', ['--work-dir', '--show-dir', '--out'])
@pytest.mark.parametrize(
    'value, reason', [('', 'is empty'), ('{file}', 'is not a folder'), ('{file}/below', 'is not a folder')]
)
def test_results_that_cannot_be_written_are_refused_before_the_work(option, value, reason, tmp_path):
    file = tmp_path / 'file'
    file.write_text('kept')
    script, operands = ('train', ['{seg}']) if option == '--work-dir' else ('test', ['{seg}', 'none.pth'])
    config = 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'
    operands = [operand.format(seg=REPO / config) for operand in operands]
    line = refused(partial(launch, script), *operands, option, value.format(file=file))
    assert line.startswith(f'error: {option} ') and reason in line
    assert file.read_text() == 'kept'
