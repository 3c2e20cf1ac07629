"""Data loaders of a run: workers and batches that torch would refuse, or that a model cannot be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.dist import get_world_size
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.utils.data import BatchSampler, DataLoader

from ...utils import UserError


def fit_workers(config: Config, parts: Sequence[str]) -> None:
    """Lets the options that need workers follow ``num_workers=0``.

    Args:
        config (Config): As the codebase's script hands it to the runner; changed in place.
        parts (Sequence[str]): Which of ``'train'``, ``'val'``, ``'test'``.

    Raises:
        UserError: For numbers that torch would refuse with a traceback.
    """
    for part in parts:
        loader = config.get(f'{part}_dataloader')
        if not isinstance(loader, dict):
            continue
        for option, least in (('num_workers', 0), ('batch_size', 1)):
            number = loader.get(option, least)
            if not isinstance(number, int) or number < least:
                raise UserError(f'{part}_dataloader.{option} is {number!r}: give a whole number of {least} or more')
        if loader.get('num_workers', 0) == 0:
            if loader.get('persistent_workers'):
                loader['persistent_workers'] = False
            loader.pop('prefetch_factor', None)


def check_single_images(loader: DataLoader, model: nn.Module) -> None:
    """Refuses batches of one image where a branch pools it to one pixel before BatchNorm, which then has one value.

    Args:
        loader (DataLoader): Of the training.
        model (nn.Module): Which it is for.

    Raises:
        UserError: With the size of the batch that works.
    """
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
    rest = 0
    if type(loader.batch_sampler) is BatchSampler and not loader.drop_last and hasattr(loader.sampler, '__len__'):
        rest = len(loader.sampler) % loader.batch_sampler.batch_size
        if type(loader.sampler).__name__ == 'InfiniteSampler':
            rest = 0
    if size != 1 and rest != 1:
        return
    names = list(find_pooled_norms(model))
    if not names:
        return
    if size == 1:
        problem, fix = 'train_dataloader.batch_size is 1', 'train_dataloader.batch_size=2'
    else:
        problem, fix = 'the last batch of an epoch has one image', 'train_dataloader.drop_last=True'
    raise UserError(
        f'{problem}, and {names[0]} normalises what is pooled to one pixel, which needs two images or more: add '
        f'--cfg-options {fix}'
    )


def find_pooled_norms(model: nn.Module) -> Iterator[str]:
    """Names of the layers in which BatchNorm follows a pooling to one pixel."""
    processes = get_world_size()
    for name, module in model.named_modules():
        children = list(module.children()) if isinstance(module, nn.Sequential) else []
        for first, second in zip(children, children[1:]):
            if not isinstance(first, nn.AdaptiveAvgPool2d) or first.output_size not in (1, (1, 1)):
                continue
            norms = [part for part in second.modules() if isinstance(part, _BatchNorm)]
            if any(not (isinstance(norm, SyncBatchNorm) and processes > 1) for norm in norms):
                yield name
