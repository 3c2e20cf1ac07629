"""Checks a run's config before the start; each check rejects what cannot work in one line that says what to do."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping, Sequence

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import Tensor

from ...checkpoints.loading import read_checkpoint
from ...checkpoints.weights import find_weights, is_deploy_form
from ...codebases.nodes import (
    exists,
    find_backbones,
    find_dicts,
    has_own_code,
    is_classifier,
    is_efficientmod,
    is_known,
    missing_pretrained,
    pretrained_files,
    pretrained_parts,
    refuse,
    type_name,
)
from ...utils import UserError, first_line
from .classifier import find_head_problem, find_teacher_problem
from .schedule import check_best, check_metrics
from .settings import check_settings

# Class of a neck -> its in_channels for the channels of the backbone's levels. Necks with other rules are not judged.
LEVEL_NECKS = ('FPN', 'PAFPN', 'FPN_DropBlock', 'ChannelMapper', 'CSPNeXtPAFPN', 'YOLOXPAFPN', 'MultiLevelNeck')
NECKS = {
    **dict.fromkeys(LEVEL_NECKS, list),
    'YOLOV3Neck': lambda channels: channels[::-1],
    'CTResNetNeck': lambda channels: channels[-1],
    'DilatedEncoder': lambda channels: channels[-1],
}


NEEDED = dict(train=('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'), test=('model', 'test_dataloader'))
PARTS = dict(train=('train', 'val'), test=('test',))  # data sets that a script builds


def drop_needless_pretrained(config: Config) -> list[str]:
    """Removes each ``init_cfg`` whose file is missing, if the training starts from a checkpoint anyway.

    Args:
        config (Config): As the codebase's script passes it to the runner; changed in place.

    Returns:
        list[str]: One line for each file that is not needed.
    """
    missing = missing_pretrained(config)  # before any is removed: a part may name several
    start = config.get('load_from')
    if start is None or not exists(start):
        return []
    lines = []
    for _, node, path in missing:
        lines.append(f'{path} is missing and not needed: the weights come from {start}')
        node['init_cfg'] = None
    return lines


def check_run(script: str, config: Config, compared: str | None = None) -> None:
    """Checks the config of a training or a test.

    Args:
        script (str): ``'train'`` or ``'test'``.
        config (Config): As the codebase's script passes it to the runner.
        compared (str, optional): A checkpoint whose bytes were already compared with their check sums.

    Raises:
        UserError, FileNotFoundError: With one line, for what cannot work.
    """
    training = script == 'train'
    for line in check_settings(config, training):
        print(f'warning: {line}')
    check_metrics(config, PARTS[script][-1])
    try_backbones(config, training)
    start = config.get('load_from')
    if start:
        check_checkpoint(start, config, training, compare=start != compared)
    if training:
        refuse(find_teacher_problem(config.get('model') or {}))
        check_precision(config)
        check_best(config)
        for place, node in pretrained_parts(config):
            check_pretrained(place, node)


def check_parts(script: str, config: Config) -> None:
    """Raises UserError if a part that the script needs is missing, or if a length or rate is not a number above 0."""
    for name in NEEDED[script]:
        if not isinstance(config.get(name), Mapping):
            raise UserError(f'the config has no {name}: the script tools/{script}.py needs it')
    start = config.get('load_from')
    if start is not None and not (isinstance(start, str) and start.strip()):
        raise UserError(f'load_from is {start!r}: set it to the path of a checkpoint, or to None')
    if script == 'train':
        rate = (config.optim_wrapper.get('optimizer') or {}).get('lr')
        if rate is not None and not (isinstance(rate, (int, float)) and rate > 0):
            raise UserError(f'optim_wrapper.optimizer.lr is {rate!r}: set a number above 0')
        for name in ('max_epochs', 'max_iters', 'val_interval'):
            length = config.train_cfg.get(name)
            if length is not None and not (isinstance(length, int) and length > 0):
                raise UserError(f'train_cfg.{name} is {length!r}: set a whole number above 0')
        hooks = config.get('default_hooks')
        saving = hooks.get('checkpoint') if isinstance(hooks, Mapping) else None
        interval = saving.get('interval', -1) if isinstance(saving, Mapping) else -1
        if not isinstance(interval, int):
            raise UserError(f'default_hooks.checkpoint.interval is {interval!r}: set a whole number, -1 for never')


def try_backbones(config: Config, training: bool) -> None:
    """Builds each EfficientMod of a config; raises UserError if its settings are wrong, or its neck's channels."""
    from ...registry import MODELS

    for place, model, backbone in find_backbones(config):
        if not is_efficientmod(backbone):
            continue
        parent = place.rpartition('.')[0]
        if model.get('pretrained') and type_name(model).endswith('EncoderDecoder'):  # which passes it to the backbone
            raise UserError(
                f"{parent}.pretrained is another backbone's: set {parent}.pretrained=None; EfficientMod takes weights "
                f"from {place}.init_cfg=dict(type='Pretrained', checkpoint=PATH)"
            )
        if training and backbone.get('deploy'):
            raise UserError(f'{place}.deploy=True is only for inference: train without it')
        try:
            with torch.device('meta'):
                settings = {**backbone, 'type': 'mmefficientmod.EfficientMod', 'init_cfg': None}
                channels = MODELS.build(settings).out_channels
        except (ValueError, TypeError) as error:
            raise UserError(f'{place}: {first_line(error)}') from error
        if not has_own_code(config):
            check_neck(parent, model, list(channels))


def check_neck(place: str, model: Mapping, channels: list[int]) -> None:
    """Raises UserError if a neck whose rule is known takes other channels than the backbone gives."""
    neck = model.get('neck')
    if isinstance(neck, Sequence) and neck:
        neck = neck[0]
    if isinstance(neck, Mapping) and not neck.get('type'):
        raise UserError(
            f'{place}.neck has no type, so the model that is changed has no neck: leave out neck=..., and set '
            f'in_channels={channels} in the heads, such as {place}.decode_head'
        )
    if not isinstance(neck, Mapping) or type_name(neck) not in NECKS or not is_known(neck, ('mmdet', 'mmseg')):
        return
    taken, needed = neck.get('in_channels'), NECKS[type_name(neck)](channels)
    if taken is None:
        return
    if isinstance(needed, list) and isinstance(taken, Sequence) and len(taken) == len(needed):
        start, end = neck.get('start_level', 0), neck.get('end_level', -1)
        levels = range(
            start, end if 0 <= end < len(needed) else len(needed)
        )  # the neck has no layers for the other levels
        if all(taken[i] == needed[i] for i in levels):
            return
    elif taken == needed:
        return
    raise UserError(
        f'{place}.neck.in_channels is {taken}, but EfficientMod arch {model["backbone"].get("arch", "s")!r} '
        f'gives {channels}: set neck=dict(in_channels={needed})'
    )


def check_checkpoint(path: str, config: Config, training: bool, compare: bool = True) -> None:
    """Opens a checkpoint safely before MMEngine, which may be less strict, loads it; maps its weights only.

    Folders are left to MMEngine: a sharded training writes one in place of a file.

    Args:
        path (str): The checkpoint.
        config (Config): The run's config.
        training (bool): Whether it starts a training.
        compare (bool): Compare all bytes with their check sums. Defaults to True.

    Raises:
        UserError, FileNotFoundError: As :func:`read_checkpoint`, :func:`find_weights` and :func:`check_weights` do.
    """
    if '://' in path or osp.isdir(osp.expanduser(path)):
        return
    check_weights(path, find_weights(read_checkpoint(path, mmap=True, check=compare), path), config, training)


def check_weights(path: str, weights: dict[str, Tensor], config: Config, training: bool) -> None:
    """Raises UserError if a training starts from the deploy form, or a tested classifier has another head."""
    if not training:
        refuse(find_head_problem(path, weights, config.get('model') or {}))
    elif is_deploy_form(weights) and any(is_efficientmod(backbone) for *_, backbone in find_backbones(config)):
        raise UserError(f'{path} is in the deploy form: train on from the checkpoint that it was made of')


def check_pretrained(place: str, node: Mapping) -> None:
    """Opens the files that ``init_cfg`` names, without reading them: the network does that, and compares the bytes.

    Raises:
        UserError, FileNotFoundError: If one is missing, cannot be opened safely or is in the deploy form.
    """
    init_cfg = node.get('init_cfg')
    if isinstance(init_cfg, Mapping) and not init_cfg.get('type'):
        raise UserError(f'{place}.init_cfg has no type: add --cfg-options {place}.init_cfg.type=Pretrained')
    for option, path in pretrained_files(place, node):
        if '://' in path:
            continue
        if not osp.isfile(osp.expanduser(path)):
            raise UserError(
                f'checkpoint {path} does not exist: download it (docs/model-zoo.md has the names) and set it with '
                f'--cfg-options {option}=PATH, or start from random weights with --cfg-options {place}.init_cfg=None'
            )
        ours = is_efficientmod(node) or is_classifier(node)
        if ours and is_deploy_form(find_weights(read_checkpoint(path, mmap=True, check=False), path)):
            raise UserError(
                f'{path} is in the deploy form, which cannot be trained: set the checkpoint that it was made of'
            )


def check_precision(config: Config) -> None:
    """Raises UserError for mixed precision on a device for which MMEngine has none."""
    device = get_device()
    wrappers = [type_name(node) for _, node in find_dicts(config.get('optim_wrapper'))]
    if 'AmpOptimWrapper' in wrappers and device in ('cpu', 'mps'):
        raise UserError(
            f'MMEngine trains in mixed precision (--amp, AmpOptimWrapper) on a GPU or an NPU, not on {device}: '
            'leave out --amp, or set --cfg-options optim_wrapper.type=OptimWrapper if the config asks for it'
        )
