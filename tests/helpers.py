"""What several tests share: the repository's folders, the released network, models of configs, batches, tools."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.utils import digit_version

from mmefficientmod.models import EfficientMod

ARCHS = ('xxs', 'xs', 's', 's_conv')
SMALL_ARCH = dict(
    embed_dims=(8, 16, 24, 32),
    depths=(1, 2, 1, 1),
    attn_depths=(0, 0, 0, 1),
    ratio=2,
    attn_ratios=(2, 2, 2, 2),
    drop_path_rate=0.0,
)
HALVES = [torch.bfloat16]
if digit_version(torch.__version__) >= digit_version('2.4'):  # before, a CPU has no autocast to float16
    HALVES.append(torch.float16)
REPO = Path(__file__).parents[1]
DATA = REPO / 'tests/data'
# Options of --cfg-options: data are loaded in the training's own process.
LOADERS = [
    f'{split}_dataloader.{key}'
    for split in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]
ON_CONTINUATION = any(distributions(name='onedl-mmengine'))


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def released_form() -> ModuleType:
    """The module ``tests/data/released_form.py``: the network as the authors released it."""
    return _load_module(DATA / 'released_form.py')


def load_tool(name: str) -> ModuleType:
    """The module ``tools/NAME.py``, whose ``main`` takes the command line's arguments."""
    return _load_module(REPO / f'tools/{name}.py')


def ended(main: Callable, *argv: object) -> object:
    """What a command that fails ends with: a line or an exit code; ``main`` takes its arguments as a list of texts."""
    with pytest.raises(SystemExit) as error:
        main([str(arg) for arg in argv])
    return error.value.code


def refused(main: Callable, *argv: object) -> str:
    """The one line with which a command ends, as :func:`ended`."""
    line = ended(main, *argv)
    assert isinstance(line, str), 'it must end with a line and a non-zero exit code'
    assert line.startswith('error: ') and '\n' not in line
    return line


ITERS = 8  # of each training of the comparison in tests/compare


def state_of(work_dir: Path, backbone: str) -> dict:
    """What `compare run` noted of a backbone."""
    return json.loads((work_dir / backbone / 'state.json').read_text())


def make_run(folder: Path, name: str, config: Config, metrics: str, log: str = '') -> None:
    """What MMEngine leaves of a run: a training if its metrics have steps, else a test."""
    run = folder / name
    (run / 'vis_data').mkdir(parents=True)
    config.dump(run / 'vis_data' / 'config.py')
    path = run / 'vis_data' / 'scalars.json' if '"step"' in metrics else run / f'{name}.json'
    path.write_text(metrics)
    (run / f'{name}.log').write_text(log)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The network with parameters that all matter, as after training."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float(name.endswith('weight') or 'gamma' in name), 0.1)
    return model


def trained(arch: str, **kwargs) -> EfficientMod:
    """A backbone whose every parameter matters, as after training, in evaluation mode."""
    torch.manual_seed(0)
    return randomised(EfficientMod(arch, **kwargs)).eval()


def build_model(config: Config) -> torch.nn.Module:
    """The model of a config, built in its codebase's scope."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


def trainer_file(weights, path, layout='state_dict', prefix='', ema=None):
    """A file as timm 0.6's trainer writes it: weights, their moving average, the optimiser and the arguments."""
    content = {layout: OrderedDict((prefix + name, value) for name, value in weights.items())}
    if ema:
        content['state_dict_ema'] = ema
    args = argparse.Namespace(
        model='efficientMod', lr=4e-3, aa='rand-m9-mstd0.5-inc1', opt_betas=None, mixup=0.8, local_rank=0
    )
    torch.save(
        dict(
            epoch=299,
            arch='efficientMod',
            version=2,
            args=args,
            metric=81.9,
            optimizer=dict(state={}, param_groups=[]),
            amp_scaler=dict(scale=65536.0),
            **content,
        ),
        path,
    )
    return str(path)


class Detector(BaseModule):
    """A backbone inside a model, as MMEngine loads it."""

    def __init__(self, arch, classes=3, **kwargs):
        super().__init__()
        self.backbone = EfficientMod(arch, **kwargs)
        self.head = torch.nn.Linear(self.backbone.out_channels[-1], classes)


def random_state(model):
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def classifier_config(classes: int = 2, root: Path | None = None, **backbone: object) -> Config:
    """A small classifier for MMPreTrain, which needs no operators.

    Args:
        classes (int): Number of classes.
        root (Path, optional): A folder with one folder of images a class, on which it is trained for two epochs.
        **backbone: Arguments of the backbone, such as ``arch``.
    """
    backbone = dict(dict(type='mmefficientmod.EfficientMod', arch='xxs', out_indices=(3,)), **backbone)
    head = dict(type='LinearClsHead', num_classes=classes, in_channels=256, topk=(1,))
    model = dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    imports = dict(imports=['mmefficientmod'], allow_failed_imports=False)
    config = dict(default_scope='mmpretrain', custom_imports=imports, model=model)
    config['data_preprocessor'] = dict(mean=[124, 116, 104], std=[58, 57, 57], to_rgb=True, num_classes=classes)
    if root:
        pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
        loader = dict(
            batch_size=4,
            num_workers=0,
            persistent_workers=False,
            dataset=dict(type='CustomDataset', data_root=str(root)),
        )
        loader['dataset'].update(pipeline=pipeline)
        for split in ('train', 'val', 'test'):
            sampler = dict(type='DefaultSampler', shuffle=split == 'train')
            config[f'{split}_dataloader'] = dict(loader, sampler=sampler)
        config.update(
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
            val_cfg=dict(),
            test_cfg=dict(),
            val_evaluator=dict(type='Accuracy', topk=1),
            test_evaluator=dict(type='Accuracy', topk=1),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1)
            ),
        )
    return Config(config)


def end_process(code: int = 0) -> None:
    """Ends one of several connected processes, at once: neither leaves while another one still needs it.

    Without freeing a data-parallel model behind its process group: torch may wait for ever there, for a thread of gloo
    that waits for Python's lock.
    """
    dist.barrier()
    dist.destroy_process_group()
    os._exit(code)


HEIGHT, WIDTH = 121, 157  # of a batch's images; no multiples of 32: padding is left to the model


def make_batch(transforms: Registry, pack: str, with_mask: bool) -> dict:
    """Two synthetic scenes with their truth, packed by the codebase's own last transform."""
    from mmdet.structures.mask import BitmapMasks  # needs MMCV's operators

    from scenes import THINGS, make_scene  # in demo/, which pytest alone has on its path

    samples = []
    for seed in range(2):
        scene = make_scene(np.random.default_rng(seed), WIDTH, HEIGHT)
        names, masks = zip(*scene.instances)
        masks = BitmapMasks(np.array(masks, np.uint8), HEIGHT, WIDTH)
        results = dict(
            img=scene.image[..., ::-1], scale_factor=(1.0, 1.0), img_shape=(HEIGHT, WIDTH), ori_shape=(HEIGHT, WIDTH)
        )
        if pack == 'PackDetInputs':
            results.update(
                gt_bboxes=masks.get_bboxes('hbox'),
                gt_bboxes_labels=np.array([list(THINGS).index(name) for name in names]),
                gt_ignore_flags=np.zeros(len(names), bool),
            )
            if with_mask:
                results['gt_masks'] = masks
        else:
            results['gt_seg_map'] = scene.semantic - np.uint8(1)  # unlabelled, 0, becomes 255
        samples.append(transforms.build(dict(type=pack))(results))
    return pseudo_collate(samples)
