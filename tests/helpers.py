"""What several tests share: the repository's folders, the released network, models of configs, batches, tools."""

from __future__ import annotations

import importlib.util
import os
import resource
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope, Registry

from mmefficientmod.models import EfficientMod

ARCHS = ('xxs', 'xs', 's', 's_conv')
REPO = Path(__file__).parents[1]
DATA = REPO / 'tests/data'
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


def file_size_limit(size: int) -> Callable[[], None]:
    """For ``preexec_fn``: no file of the process gets larger, which is as real as a full disk and needs no mount."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


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
