"""The ImageNet classifiers: released files load whole, trainings of MMPreTrain, and what comes out of them."""

from __future__ import annotations

import os
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.runner import Runner, load_checkpoint
from torch.testing import assert_close

from helpers import ARCHS, REPO, build_model, randomised, refused, trainer_file
from interpreter import run_python
from mmefficientmod.checkpoints.reading import read_checkpoint
from mmefficientmod.models import EfficientMod
from mmefficientmod.models.conversion import convert_checkpoint
from mmefficientmod.training.checks.run import check_checkpoint
from mmefficientmod.training.hooks import WeightCopyHook
from mmefficientmod.training.launch import launch
from mmefficientmod.utils import UserError

TRAIN, TEST = partial(launch, 'train'), partial(launch, 'test')

pytestmark = pytest.mark.libraries

CONFIG = str(REPO / 'configs/classification/efficientmod-{}_8xb256_in1k.py')
XXS = CONFIG.format('xxs')
# A training and a test on a few small pictures.
SMALL = f"""
_base_ = '{XXS}'
loader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline), **loader)
train_dataloader['dataset']['pipeline'][1]['scale'] = 64
pipeline = _base_.test_pipeline
pipeline[1]['scale'], pipeline[2]['crop_size'] = 72, 64
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=pipeline), **loader)
del loader, pipeline
train_cfg = dict(max_epochs=1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
env_cfg = dict(dist_cfg=dict(backend='gloo'))
"""
TWO_CLASSES = """
metainfo = dict(metainfo=dict(classes=('dark', 'light')))
for part in (train_dataloader, test_dataloader):
    part['dataset'].update(metainfo)
del metainfo, part
model = dict(head=dict(num_classes=2, topk=(1, )))
data_preprocessor = dict(num_classes=2)
val_evaluator = test_evaluator = dict(topk=(1, ))
"""


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """ImageNet's layout with four pictures a split in two classes, the one dark and the other light."""
    root = tmp_path_factory.mktemp('imagenet')
    for split, seed in (('train', 0), ('val', 1)):
        random = np.random.RandomState(seed)
        for i in range(4):
            image = random.randint(0, 128, (80, 90, 3)) + 127 * (i % 2)
            folder = root / split / ('dark', 'light')[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f'{i}.png'), image.astype(np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('IMAGENET_ROOT', str(root))
        patch.setenv('CUDA_VISIBLE_DEVICES', '')
        yield root


def list_pictures(pictures, root):
    """The same validation pictures in one folder, with MMPreTrain's annotation file."""
    (root / 'val').mkdir()
    (root / 'meta').mkdir()
    lines = []
    for path in pictures.glob('val/*/*.png'):
        (root / 'val' / path.name).write_bytes(path.read_bytes())
        lines.append(f'{path.name} {("dark", "light").index(path.parent.name)}\n')
    (root / 'meta/val.txt').write_text(''.join(lines))


def tool(name, *argv, cwd):
    done = run_python(REPO / f'tools/{name}.py', *argv, cwd=cwd)
    return done.returncode, done.stdout + done.stderr


def model_of_a_test(path, work_dir, copy=None):
    """The model as the runner of a test loads it, with the averaging of weights that the config asks for."""
    config = Config.fromfile(path[0])
    config.merge_from_dict(dict(load_from=path[1], work_dir=str(work_dir), launcher='none'))
    config.custom_hooks[0].load = copy
    config.experiment_name = config.visualizer.name = str(work_dir)  # MMEngine keeps one of each a name
    config.env_cfg.dist_cfg.backend = 'gloo'
    runner = Runner.from_cfg(config)
    runner.call_hook('before_run')
    runner.load_or_resume()
    runner.call_hook('before_test_epoch')  # the averaged weights take the place of the model's
    return runner.model.eval()


@pytest.mark.both_stacks
@pytest.mark.parametrize('way', ['load_from', 'init_cfg'])
@pytest.mark.parametrize('arch', ARCHS)
def test_released_files_give_the_logits_of_the_authors(arch, way, golden, pictures, tmp_path):
    weights, _, tensors = golden(arch)
    path = trainer_file(weights, tmp_path / 'released.pth', prefix='module.')
    config = CONFIG.format(arch.replace('_', '-'))
    if way == 'load_from':
        model = model_of_a_test((config, path), tmp_path)
    else:
        config = Config.fromfile(config)
        config.model.init_cfg = dict(type='Pretrained', checkpoint=path)
        model = build_model(config)
        model.init_weights()
    images = torch.from_numpy(np.random.RandomState(1).standard_normal((2, 3, 224, 224)).astype(np.float32))
    with torch.no_grad():
        logits = model.eval()(images)
        assert_close(logits, torch.from_numpy(tensors['logits']), rtol=0, atol=1e-4)
        model.backbone.switch_to_deploy()
        assert_close(model(images), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ('writer', 'copy'),
    [
        *(('timm', copy) for copy in (None, 'ema')),
        *(('timm, the average alone', copy) for copy in (None, 'plain')),
        *(('mmengine', copy) for copy in (None, 'plain')),
    ],
)
def test_either_copy_of_the_weights_and_which_of_them_it_was(writer, copy, golden, pictures, capsys, tmp_path):
    weights = golden('xxs')[0]
    average = {name: value + (name == 'head.bias') for name, value in weights.items()}
    path = str(tmp_path / 'file.pth')
    if writer == 'mmengine':
        model = build_model(Config.fromfile(XXS))
        model.load_state_dict(average)
        plain = {f'module.{name}': value.clone() for name, value in model.state_dict().items()}
        plain['module.head.fc.bias'] -= 1
        torch.save(
            dict(meta={}, state_dict=model.state_dict(), ema_state_dict=dict(plain, steps=torch.tensor(3))), path
        )
    else:
        with_plain = writer == 'timm'
        trainer_file(weights, path, ema=average) if with_plain else trainer_file(average, path, 'state_dict_ema')
    if (writer, copy) == ('timm, the average alone', 'plain'):
        with pytest.raises(UserError, match='holds no plain copy of the weights'):
            model_of_a_test((XXS, path), tmp_path, copy)
        return
    is_average = copy == 'ema' or (copy is None and writer != 'timm')
    bias = model_of_a_test((XXS, path), tmp_path, copy).head.fc.bias
    assert_close(bias.detach(), (average if is_average else weights)['head.bias'])
    assert f'tensors, {"moving average (EMA)" if is_average else "plain copy"}' in capsys.readouterr().out


def test_a_wrong_copy_is_refused():
    with pytest.raises(ValueError, match="load must be 'plain', 'ema' or None, got 'both'"):
        WeightCopyHook('both')


@pytest.mark.both_stacks
def test_command_of_the_test(golden, pictures, tmp_path, monkeypatch):
    list_pictures(pictures, tmp_path)  # folders of two classes would not do for 1000
    monkeypatch.setenv('IMAGENET_ROOT', str(tmp_path))
    average = {name: value.clone() for name, value in golden('xxs')[0].items()}
    average['head.bias'] += torch.arange(1000) / 100
    path = trainer_file(golden('xxs')[0], tmp_path / 'released.pth', ema=average)
    (tmp_path / 'small.py').write_text(SMALL)
    scores = {}
    for copy in ('plain', 'ema'):
        chosen = '--cfg-options', f'custom_hooks.0.load={copy}'
        code, log = tool('test', 'small.py', path, '--out', f'{copy}.pkl', *chosen, cwd=tmp_path)
        assert code == 0 and 'accuracy/top1' in log, log
        assert f'tensors, {"plain copy" if copy == "plain" else "moving average (EMA)"}' in log
        assert 'do not match' not in log
        scores[copy] = torch.stack([sample['pred_score'] for sample in load(tmp_path / f'{copy}.pkl')])
    ratio = (scores['ema'] / scores['plain']).log()
    assert_close(ratio - ratio[:, :1], (torch.arange(1000) / 100).expand(4, -1), rtol=0, atol=1e-3)


def test_bad_input_is_refused_in_one_line(golden, pictures, tmp_path, monkeypatch):
    path = trainer_file(golden('xxs')[0], tmp_path / 'released.pth')
    bare = tmp_path / 'bare.pth'
    torch.save(EfficientMod('xxs').state_dict(), bare)
    small, two = tmp_path / 'small.py', tmp_path / 'two.py'
    small.write_text(SMALL)
    two.write_text(SMALL + TWO_CLASSES)
    assert 'has a head for 1000 classes, the config one for 2: ' in refused(TEST, two, path)
    assert 'has no head, the config one for 1000: ' in refused(TEST, small, bare)
    (tmp_path / 'flat/val').mkdir(parents=True)
    (tmp_path / 'flat/val/a.jpg').touch()
    monkeypatch.setenv('IMAGENET_ROOT', str(tmp_path / 'flat'))
    assert f'the images of {tmp_path}/flat/val have no labels: ' in refused(TEST, small, path)


@pytest.mark.parametrize(
    'head',
    [
        dict(type='StackedLinearClsHead', mid_channels=[8]),
        dict(type='mmpretrain.ArcFaceClsHead'),
        dict(type='MultiTaskHead', task_heads=dict(a=dict(type='LinearClsHead', num_classes=3))),
        None,
    ],
    ids=lambda head: head and head['type'],
)
def test_a_classifier_with_another_head_takes_its_own_checkpoint(head, tmp_path):
    config = Config.fromfile(XXS)
    config.model.head = head and dict(head, in_channels=256, **({} if 'task_heads' in head else dict(num_classes=3)))
    torch.save(dict(state_dict=build_model(config).state_dict()), tmp_path / 'own.pth')
    check_checkpoint(str(tmp_path / 'own.pth'), config, training=False)
    config.model.head = dict(type='LinearClsHead', num_classes=7, in_channels=256)
    with pytest.raises(UserError, match=r'has (no head|a head for 3 classes), the config one for 7: '):
        check_checkpoint(str(tmp_path / 'own.pth'), config, training=False)


@pytest.fixture(scope='module')
def finetuned(pictures, tmp_path_factory):
    """The folder of a training with layer-wise decay that starts from a file of 1000 classes, and its log."""
    folder = tmp_path_factory.mktemp('finetuned')
    model = randomised(build_model(Config.fromfile(XXS)))
    torch.save(dict(meta={}, state_dict=model.state_dict()), folder / 'in1k.pth')
    decay = """
optim_wrapper.update(
    constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.5, _delete_=True),
)
load_from = 'in1k.pth'
"""
    (folder / 'finetune.py').write_text(SMALL + TWO_CLASSES + decay)
    code, log = tool('train', 'finetune.py', '--work-dir', folder, cwd=folder)
    assert code == 0, log
    return folder, log


def test_fine_tuning_leaves_the_head_out_with_one_line(finetuned):
    folder, log = finetuned
    lines = [line for line in log.splitlines() if "the checkpoint's head" in line]
    expected = "the checkpoint's head, for 1000 classes, is left out: this one, for 2, keeps its own weights"
    assert len(lines) == 1 and lines[0].endswith(expected), lines  # MMEngine shows no warning twice
    assert 'do not match' not in log and 'accuracy/top1' in log
    before = read_checkpoint(str(folder / 'in1k.pth'))['state_dict']
    after = read_checkpoint(str(folder / 'epoch_1.pth'))['ema_state_dict']
    # two steps of Adam move a weight by about its learning rate: the stem's is 2^-17 of the head's
    moved = {
        name: (after[f'module.{name}'] - before[name]).abs().max().item()
        for name in ('backbone.patch_embeds.0.proj.weight', 'backbone.stages.3.3.fc2.weight')
    }
    stem, last = moved.values()
    assert 0 <= stem < 1e-6 < 1e-5 < last


def test_a_trained_classifier_goes_on(finetuned, golden, messages, tmp_path):
    folder, _ = finetuned
    path = str(folder / 'epoch_1.pth')
    state = read_checkpoint(path)['state_dict']
    # into a detector or segmentor
    backbone = EfficientMod('xxs', init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    backbone.init_weights()
    assert_close(backbone.stages[3][3].fc2.weight.data, state['backbone.stages.3.3.fc2.weight'])
    # its backbone into a classifier
    torch.save(
        dict(state_dict={f'backbone.{name}': v for name, v in backbone.state_dict().items()}), tmp_path / 'd.pth'
    )
    config = Config.fromfile(XXS)
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'd.pth'), prefix='backbone.')
    model = build_model(config)
    model.init_weights()
    assert_close(model.backbone.state_dict(), backbone.state_dict())
    # into the authors' form, head included, and back into MMPreTrain
    convert_checkpoint(path, str(tmp_path / 'released.pth'), to='released')
    released = read_checkpoint(str(tmp_path / 'released.pth'))['state_dict']
    assert set(released) == set(golden('xxs')[0])
    config.model.head.num_classes = 2
    for to in ('released', 'project'):
        model = build_model(config)
        load_checkpoint(model, str(tmp_path / f'{to}.pth'), strict=True, logger='current')
        assert_close(model.state_dict(), {name: state[name] for name in model.state_dict()})
        if to == 'released':
            convert_checkpoint(str(tmp_path / 'released.pth'), str(tmp_path / 'project.pth'))
    assert not [message for message in messages() if 'not match' in message]


@pytest.mark.parametrize('change', ['deploy form', 'grey'])
def test_init_cfg_of_a_classifier_takes_what_the_backbones_does(change, golden, tmp_path):
    """A file in the deploy form switches it, and a stem for another number of channels is adapted."""
    config = Config.fromfile(XXS)
    path = trainer_file(golden('xxs')[0], tmp_path / 'released.pth')
    if change == 'grey':
        config.model.backbone.in_channels = 1
    else:
        path = str(tmp_path / 'deploy.pth')
        convert_checkpoint(str(tmp_path / 'released.pth'), path, deploy=True)
    config.model.init_cfg = dict(type='Pretrained', checkpoint=path)
    model = build_model(config)
    model.init_weights()
    assert model.backbone.deploy == (change == 'deploy form')
    whole = build_model(Config.fromfile(XXS))
    load_checkpoint(whole, str(tmp_path / 'released.pth'))
    images = torch.rand(1, 3, 64, 64)[:, : 1 if change == 'grey' else 3]
    with torch.no_grad():
        expected = whole.eval()(images.expand(1, 3, 64, 64))
        assert_close(model.eval()(images), expected, rtol=1e-3, atol=1e-4)


def test_a_file_that_does_not_fit_a_classifier_is_a_short_line(golden, tmp_path):
    path = trainer_file(golden('xxs')[0], tmp_path / 'released.pth')
    config = Config.fromfile(XXS)
    config.model.backbone.arch = 's'
    config.model.init_cfg = dict(type='Pretrained', checkpoint=path)
    with pytest.raises(UserError, match=r"does not fit EfficientMod arch 's'") as error:
        build_model(config).init_weights()
    assert len(str(error.value)) < 600


def test_torch_judges_a_head_of_other_classes_itself(golden):
    config = Config.fromfile(XXS)
    config.model.head.num_classes = 2
    with pytest.raises(RuntimeError, match=r'size mismatch for head\.fc\.weight'):
        build_model(config).load_state_dict(golden('xxs')[0])


def test_annotation_files_and_folders_give_the_same_pictures(pictures, tmp_path, monkeypatch):
    from mmengine.registry import DefaultScope
    from mmpretrain.datasets import build_dataset

    def read():
        settings = Config.fromfile(XXS).val_dataloader.dataset
        settings.metainfo = dict(classes=('dark', 'light'))
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            data = build_dataset(settings)
        infos = [data.get_data_info(i) for i in range(len(data))]
        return sorted((os.path.basename(info['img_path']), int(info['gt_label'])) for info in infos)

    folders = read()
    list_pictures(pictures, tmp_path)
    monkeypatch.setenv('IMAGENET_ROOT', str(tmp_path))
    assert read() == folders == [('0.png', 0), ('1.png', 1), ('2.png', 0), ('3.png', 1)]
