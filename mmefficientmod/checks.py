"""Checks of a config before the start: each refuses what cannot work, in one line that says what to do."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from .annotations import check_classes, check_content, type_name
from .checkpoint import find_weights, is_deploy_form, read_checkpoint
from .classifier_checks import find_head_problem, find_label_problem, find_teacher_problem, is_classifier
from .codebases import LaunchError
from .resume import find_newest_whole

# What a neck's in_channels must be, given the channels of the backbone's levels. Necks with other rules are not judged.
LEVEL_NECKS = ('FPN', 'PAFPN', 'FPN_DropBlock', 'ChannelMapper', 'CSPNeXtPAFPN', 'YOLOXPAFPN', 'MultiLevelNeck')
NECKS = {
    **dict.fromkeys(LEVEL_NECKS, list),
    'YOLOV3Neck': lambda channels: channels[::-1],
    'CTResNetNeck': lambda channels: channels[-1],
    'DilatedEncoder': lambda channels: channels[-1],
}
IMAGE_PREFIXES = ('img', 'img_path', 'sub_data_root')  # read by every pipeline; other folders only by some
DOWNLOADED_DATASETS = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')
KNOWN_PACKAGES = ('mmcv', 'mmdet', 'mmefficientmod', 'mmengine', 'mmpretrain', 'mmseg')


def choose_checkpoint(config: Config) -> list[str]:
    """Names the checkpoint that ``--resume`` without a path stands for: the newest one that is whole.

    Args:
        config (Config): As the codebase's script hands it to the runner; changed in place.

    Returns:
        list[str]: One line for each checkpoint that was passed over and why, and one for the choice.

    Raises:
        CheckpointError: If there are checkpoints but none is whole.
    """
    if not config.get('resume') or config.get('load_from'):
        return []
    choice = find_newest_whole(config.work_dir)
    config.resume, config.load_from = choice.path is not None, choice.path
    return [*choice.notes, *([f'resuming from {choice.path}'] if choice.path else [])]


def drop_needless_pretrained(config: Config) -> list[str]:
    """Removes each ``init_cfg`` whose file is missing, if the training starts from a checkpoint anyway.

    Args:
        config (Config): As the codebase's script hands it to the runner; changed in place.

    Returns:
        list[str]: One line for each file that is not needed.
    """
    missing = [
        (node, path)
        for place, node in _pretrained_parts(config)
        for _, path in _pretrained_files(place, node)
        if not _exists(path)
    ]
    start = find_start(config) if missing else None
    if start is None or not _exists(start):
        return []
    lines = []
    for node, path in missing:
        lines.append(f'{path} is missing and not needed: the weights come from {start}')
        node['init_cfg'] = None
    return lines


def check_run(script: str, config: Config) -> None:
    """Checks the config of a training or a test.

    Args:
        script (str): ``'train'`` or ``'test'``.
        config (Config): As the codebase's script hands it to the runner.

    Raises:
        LaunchError, CheckpointError, FileNotFoundError: With one line, for what cannot work.
    """
    training = script == 'train'
    check_backbones(config, training)
    check_data(config, ('train', 'val') if training else ('test',))
    start = find_start(config)
    if start:
        check_checkpoint(start, config, training)
    if training:
        _refuse(find_teacher_problem(config.get('model') or {}))
        datasets = _datasets(config.get('train_dataloader'), 'train_dataloader')
        check_classes([item for item in datasets if _is_known(item[1])], _dicts(config.get('model'), 'model'))
        check_precision(config)
        for place, node in _pretrained_parts(config):
            check_pretrained(place, node)


def find_start(config: Config) -> str | None:
    """The checkpoint that the runner will load or resume from, None without one; after :func:`choose_checkpoint`."""
    return config.get('load_from')


def check_backbones(config: Config, training: bool) -> None:
    """Raises LaunchError for what EfficientMod refuses and for a neck that takes other channels."""
    from .models import EfficientMod
    from .registry import MODELS

    for place, model, backbone in _backbones(config):
        if not _is_efficientmod(backbone):
            continue
        parent = place.rpartition('.')[0]
        if model.get('pretrained') and type_name(model).endswith('EncoderDecoder'):  # which hands it to the backbone
            raise LaunchError(
                f"{parent}.pretrained is another backbone's: set {parent}.pretrained=None; EfficientMod takes weights "
                f"by {place}.init_cfg=dict(type='Pretrained', checkpoint=PATH)"
            )
        if training and backbone.get('deploy'):
            raise LaunchError(f'{place}.deploy=True is for inference alone: train without it')
        try:
            channels = MODELS.build({**backbone, 'type': EfficientMod, 'init_cfg': None}).out_channels
        except (ValueError, TypeError) as error:
            raise LaunchError(f'{place}: {error}') from error
        if not _has_own_code(config):
            check_neck(parent, model, list(channels))


def check_neck(place: str, model: Mapping, channels: list[int]) -> None:
    """Raises LaunchError where a neck whose rule is known takes other channels than the backbone gives."""
    neck = model.get('neck')
    if isinstance(neck, Sequence) and neck:
        neck = neck[0]
    if not isinstance(neck, Mapping) or type_name(neck) not in NECKS or not _is_known(neck, ('mmdet', 'mmseg')):
        return
    taken, needed = neck.get('in_channels'), NECKS[type_name(neck)](channels)
    if taken is None:
        return
    if isinstance(needed, list) and isinstance(taken, Sequence) and len(taken) == len(needed):
        start, end = neck.get('start_level', 0), neck.get('end_level', -1)
        levels = range(start, end if 0 <= end < len(needed) else len(needed))  # the others have no layer in the neck
        if all(taken[i] == needed[i] for i in levels):
            return
    elif taken == needed:
        return
    raise LaunchError(
        f'{place}.neck.in_channels is {taken}, but EfficientMod arch {model["backbone"].get("arch", "s")!r} '
        f'gives {channels}: set neck=dict(in_channels={needed})'
    )


def check_data(config: Config, splits: Iterable[str]) -> None:
    """Raises LaunchError where a data set's root, annotation file or image folder is missing on this machine.

    Data sets of the user's own code are not judged: they may download, or find their files in another way.
    """
    if _has_own_code(config):
        return
    for split in splits:
        for place, dataset in _datasets(config.get(f'{split}_dataloader'), f'{split}_dataloader'):
            _check_dataset(place, dataset, split == 'train')
        for place, metric in _dicts(config.get(f'{split}_evaluator'), f'{split}_evaluator'):
            if _is_known(metric) and _is_local(metric):
                _require('annotation file', metric.get('ann_file'), place, 'ann_file')


def _check_dataset(place: str, dataset: Mapping, training: bool) -> None:
    if not _is_known(dataset) or not _is_local(dataset) or type_name(dataset) in DOWNLOADED_DATASETS:
        return
    paths = {}  # option -> what it names and where that is
    if dataset.get('ann_file'):
        paths['ann_file'] = 'annotation file', dataset['ann_file']
    prefixes = dataset.get('data_prefix')
    if isinstance(prefixes, Mapping):
        loads_labels = any('LoadAnnotations' in type_name(node) for _, node in _dicts(dataset.get('pipeline')))
        needed = (*IMAGE_PREFIXES, 'seg_map_path') if loads_labels else IMAGE_PREFIXES
        paths.update({f'data_prefix.{key}': ('data folder', prefixes[key]) for key in needed if key in prefixes})
    else:
        paths['data_prefix'] = 'data folder', prefixes
    paths = {option: (kind, path) for option, (kind, path) in paths.items() if isinstance(path, str)}

    root = dataset.get('data_root')
    root = root if isinstance(root, str) else ''
    if type_name(dataset) == 'ImageNet' and dataset.get('split'):
        folder = osp.join(osp.expanduser(root), str(dataset.get('data_prefix') or dataset['split']))
        _refuse(find_label_problem(folder, root, dataset))
    if not paths or not all('://' in path or osp.isabs(osp.expanduser(path)) for _, path in paths.values()):
        _require('data root', root, place, 'data_root')
    for option, (kind, path) in paths.items():
        _require(kind, osp.join(root, osp.expanduser(path)), place, option)
    found = {option: osp.join(root, osp.expanduser(path)) for option, (_, path) in paths.items()}
    check_content(place, type_name(dataset), dataset, found, training)


def _refuse(problem: str | None) -> None:
    if problem:
        raise LaunchError(problem)


def _require(kind: str, path: object, place: str, option: str) -> None:
    if isinstance(path, str) and path and not _exists(path):
        raise LaunchError(
            f'{kind} {path} does not exist: put or link the data there, or point to it by '
            f'--cfg-options {place}.{option}=PATH'
        )


def check_checkpoint(path: str, config: Config, training: bool) -> None:
    """Opens a checkpoint safely, without reading its weights, before MMEngine, which may be less strict, loads it.

    Folders are left to MMEngine: a sharded training writes one in place of a file.

    Raises:
        LaunchError: If a training is to start from the inference form, or a classifier that is tested has another head.
        CheckpointError, FileNotFoundError: As :func:`read_checkpoint` and :func:`find_weights` do.
    """
    if '://' in path or osp.isdir(osp.expanduser(path)):
        return
    weights = find_weights(read_checkpoint(path, mmap=True), path)
    _refuse(None if training else find_head_problem(path, weights, config.get('model') or {}))
    if training and is_deploy_form(weights) and any(_is_efficientmod(backbone) for *_, backbone in _backbones(config)):
        raise LaunchError(f'{path} is in the inference form: train on from the one that it was made of')


def check_pretrained(place: str, node: Mapping) -> None:
    """Opens the files that ``init_cfg`` names; raises as :func:`check_checkpoint` does."""
    for option, path in _pretrained_files(place, node):
        if '://' in path:
            continue
        if not osp.isfile(osp.expanduser(path)):
            raise LaunchError(
                f'checkpoint {path} does not exist: download it (see the README) and name it by --cfg-options '
                f'{option}=PATH, or start from random weights with --cfg-options {place}.init_cfg=None'
            )
        ours = _is_efficientmod(node) or is_classifier(node)
        if ours and is_deploy_form(find_weights(read_checkpoint(path, mmap=True), path)):
            raise LaunchError(
                f'{path} is in the inference form, which cannot be trained: take the one that it was made of'
            )


def check_precision(config: Config) -> None:
    """Raises LaunchError for mixed precision where MMEngine has none."""
    device = get_device()
    wrappers = [type_name(node) for _, node in _dicts(config.get('optim_wrapper'))]
    if 'AmpOptimWrapper' in wrappers and device in ('cpu', 'mps'):
        raise LaunchError(
            f'MMEngine trains in mixed precision (--amp, AmpOptimWrapper) on a GPU or an NPU, not on {device}: '
            'leave out --amp, or set --cfg-options optim_wrapper.type=OptimWrapper if the config asks for it'
        )


def _backbones(config: Config) -> Iterator[tuple[str, ConfigDict, ConfigDict]]:
    """Every backbone of this package, with its dotted place and the model it stands in."""
    model = config.get('model') or {}
    for place, node in _dicts(model.get('module') or model, 'model'):  # test-time augmentation wraps the model
        backbone = node.get('backbone')
        if isinstance(backbone, Mapping) and _package(backbone) == 'mmefficientmod':
            yield f'{place}.backbone', node, backbone


def _is_efficientmod(backbone: Mapping) -> bool:
    return _package(backbone) == 'mmefficientmod' and type_name(backbone) == 'EfficientMod'


def _pretrained_parts(config: Config) -> Iterator[tuple[str, ConfigDict]]:
    """Every part of this package that may start from a file, with its dotted place: backbones and a classifier."""
    yield from ((place, backbone) for place, _, backbone in _backbones(config))
    model = config.get('model') or {}
    model = model.get('module') or model
    if is_classifier(model) and _package(model) == 'mmefficientmod':
        yield 'model', model


def _pretrained_files(place: str, node: Mapping) -> Iterator[tuple[str, str]]:
    """The files that ``init_cfg``, one or a list, names, each after the option that sets it."""
    init_cfg = node.get('init_cfg') or []
    listed = {f'.{i}': each for i, each in enumerate(init_cfg)} if isinstance(init_cfg, Sequence) else {'': init_cfg}
    for number, each in listed.items():
        if isinstance(each, Mapping) and type_name(each) in ('Pretrained', 'PretrainedInit') and each.get('checkpoint'):
            yield f'{place}.init_cfg{number}.checkpoint', each['checkpoint']


def _exists(path: str) -> bool:
    """Whether a file or folder exists; addresses count as existing."""
    return '://' in path or osp.exists(osp.expanduser(path))


def _is_local(node: Mapping) -> bool:
    return not any(part.get('backend_args') or part.get('file_client_args') for _, part in _dicts(node))


def _has_own_code(config: Config) -> bool:
    """Whether the config imports modules from elsewhere, whose classes may have rules of their own."""
    imports = (config.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else imports
    return any(name.partition('.')[0] not in KNOWN_PACKAGES for name in imports)


def _package(node: Mapping) -> str:
    """The package that a type is from, '' for one that is to be found in the config's default scope."""
    kind = node.get('type') or ''
    if isinstance(kind, str):
        return kind.partition('.')[0] if '.' in kind else ''
    return kind.__module__.partition('.')[0]


def _is_known(node: Mapping, packages: Sequence[str] = KNOWN_PACKAGES) -> bool:
    return _package(node) in ('', *packages)


def _datasets(node: object, place: str) -> Iterator[tuple[str, Mapping]]:
    """The data sets under a data loader, without those that wrap others."""
    if isinstance(node, Mapping):
        inner = [key for key in ('dataset', 'datasets') if key in node]
        if not inner:
            yield place, node
        for key in inner:
            yield from _datasets(node[key], f'{place}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from _datasets(child, f'{place}.{i}')


def _dicts(node: object, place: str = '') -> Iterator[tuple[str, Mapping]]:
    """Every dict in a part of a config, outermost first, with its dotted place."""
    if isinstance(node, Mapping):
        yield place, node
        children: Iterable = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from _dicts(child, f'{place}.{key}')
