"""Checks of a config before the start: each refuses what cannot work, in one line that says what to do."""

from __future__ import annotations

import importlib
import os.path as osp
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from .annotations import check_classes, check_content
from .checkpoint import find_weights, is_deploy_form, read_checkpoint
from .classifier_checks import find_head_problem, find_label_problem, find_teacher_problem
from .lite import allow_missing_operators
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


class LaunchError(RuntimeError):
    """A run that cannot start; the message is one line that says why and what to do."""


def check_mmcv_ops(codebase: str) -> None:
    """Raises LaunchError where the codebase needs MMCV's compiled operators and they are missing or broken."""
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        try:
            _import_models(codebase)  # some codebases import the operators only where they use them
        except ImportError as error:
            raise LaunchError(
                f'MMCV with compiled operators is needed by {codebase} ({error}): remove mmcv-lite if it is installed '
                'and build mmcv with MMCV_WITH_OPS=1; see "Install" in the README'
            ) from error


def _import_models(codebase: str) -> None:
    try:
        importlib.import_module(f'{codebase}.models')
    except ImportError:
        if codebase != 'mmseg' or not allow_missing_operators():
            raise
        importlib.import_module('mmseg.models')
        print("MMCV has no compiled operators: a model that calls one ends with that operator's name", file=sys.stderr)


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
    """Removes ``init_cfg`` from backbones whose file is missing, if the training starts from a checkpoint anyway.

    Args:
        config (Config): As the codebase's script hands it to the runner; changed in place.

    Returns:
        list[str]: One line for each file that is not needed.
    """
    missing = [backbone for _, _, backbone in _backbones(config) if not _exists(_pretrained(backbone))]
    start = find_start(config) if missing else None
    if start is None or not _exists(start):
        return []
    lines = []
    for backbone in missing:
        lines.append(f'{_pretrained(backbone)} is missing and not needed: the weights come from {start}')
        backbone['init_cfg'] = None
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
        for place, _, backbone in _backbones(config):
            check_pretrained(place, backbone)


def find_start(config: Config) -> str | None:
    """The checkpoint that the runner will load or resume from, None without one; after :func:`choose_checkpoint`."""
    return config.get('load_from')


def check_backbones(config: Config, training: bool) -> None:
    """Raises LaunchError for arguments that EfficientMod refuses and for a neck that takes other channels."""
    from .models import EfficientMod
    from .registry import MODELS

    for place, model, backbone in _backbones(config):
        if not _is_efficientmod(backbone):
            continue
        if training and backbone.get('deploy'):
            raise LaunchError(f'{place}.deploy=True is for inference alone: train without it')
        try:
            channels = MODELS.build({**backbone, 'type': EfficientMod, 'init_cfg': None}).out_channels
        except (ValueError, TypeError) as error:
            raise LaunchError(f'{place}: {error}') from error
        if not _has_own_code(config):
            check_neck(place.rpartition('.')[0], model, list(channels))


def check_neck(place: str, model: Mapping, channels: list[int]) -> None:
    """Raises LaunchError where a neck whose rule is known takes other channels than the backbone gives."""
    neck = model.get('neck')
    if isinstance(neck, Sequence) and neck:
        neck = neck[0]
    if not isinstance(neck, Mapping) or _type_name(neck) not in NECKS or not _is_known(neck, ('mmdet', 'mmseg')):
        return
    taken, needed = neck.get('in_channels'), NECKS[_type_name(neck)](channels)
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
            _check_dataset(place, dataset)
        for place, metric in _dicts(config.get(f'{split}_evaluator'), f'{split}_evaluator'):
            if _is_known(metric) and _is_local(metric):
                _require('annotation file', metric.get('ann_file'), place, 'ann_file')


def _check_dataset(place: str, dataset: Mapping) -> None:
    if not _is_known(dataset) or not _is_local(dataset) or _type_name(dataset) in DOWNLOADED_DATASETS:
        return
    paths = {}  # option -> what it names and where that is
    if dataset.get('ann_file'):
        paths['ann_file'] = 'annotation file', dataset['ann_file']
    prefixes = dataset.get('data_prefix')
    if isinstance(prefixes, Mapping):
        loads_labels = any('LoadAnnotations' in _type_name(node) for _, node in _dicts(dataset.get('pipeline')))
        needed = (*IMAGE_PREFIXES, 'seg_map_path') if loads_labels else IMAGE_PREFIXES
        paths.update({f'data_prefix.{key}': ('data folder', prefixes[key]) for key in needed if key in prefixes})
    else:
        paths['data_prefix'] = 'data folder', prefixes
    paths = {option: (kind, path) for option, (kind, path) in paths.items() if isinstance(path, str)}

    root = dataset.get('data_root')
    root = root if isinstance(root, str) else ''
    if _type_name(dataset) == 'ImageNet' and dataset.get('split'):
        folder = osp.join(osp.expanduser(root), str(dataset.get('data_prefix') or dataset['split']))
        _refuse(find_label_problem(folder, root, dataset))
    if not paths or not all('://' in path or osp.isabs(osp.expanduser(path)) for _, path in paths.values()):
        _require('data root', root, place, 'data_root')
    for option, (kind, path) in paths.items():
        _require(kind, osp.join(root, osp.expanduser(path)), place, option)
    found = {option: osp.join(root, osp.expanduser(path)) for option, (_, path) in paths.items()}
    check_content(place, _type_name(dataset), dataset, found)


def _refuse(problem: str | None) -> None:
    if problem:
        raise LaunchError(problem)


def _require(kind: str, path: object, place: str, option: str) -> None:
    if isinstance(path, str) and path and not _exists(osp.expanduser(path)):
        raise LaunchError(
            f'{kind} {path} does not exist: put or link the data there, or point to it by '
            f'--cfg-options {place}.{option}=PATH'
        )


def check_checkpoint(path: str, config: Config, training: bool) -> None:
    """Opens a checkpoint safely, without reading its weights, before MMEngine, which may be less strict, loads it.

    Raises:
        LaunchError: If a training is to start from the inference form, or a classifier that is tested has another head.
        CheckpointError, FileNotFoundError: As :func:`read_checkpoint` and :func:`find_weights` do.
    """
    if '://' in path:
        return
    weights = find_weights(read_checkpoint(path, mmap=True), path)
    _refuse(None if training else find_head_problem(path, weights, config.get('model') or {}))
    if (
        training
        and is_deploy_form(weights)
        and any(_is_efficientmod(backbone) for _, _, backbone in _backbones(config))
    ):
        raise LaunchError(f'{path} is in the inference form: train on from the one that it was made of')


def check_pretrained(place: str, backbone: Mapping) -> None:
    """Opens the file that ``init_cfg`` names; raises as :func:`check_checkpoint` does."""
    path = _pretrained(backbone)
    if not path or '://' in path:
        return
    if not osp.isfile(path):
        raise LaunchError(
            f'checkpoint {path} does not exist: download it (see the README) and name it by --cfg-options '
            f'{place}.init_cfg.checkpoint=PATH, or start from random weights with --cfg-options {place}.init_cfg=None'
        )
    if _is_efficientmod(backbone) and is_deploy_form(find_weights(read_checkpoint(path, mmap=True), path)):
        raise LaunchError(f'{path} is in the inference form, which cannot be trained: take the one that it was made of')


def check_precision(config: Config) -> None:
    """Raises LaunchError for mixed precision where MMEngine has none."""
    device = get_device()
    wrappers = [_type_name(node) for _, node in _dicts(config.get('optim_wrapper'))]
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
    return _package(backbone) == 'mmefficientmod' and _type_name(backbone) == 'EfficientMod'


def _pretrained(backbone: Mapping) -> str:
    """The file that ``init_cfg`` names, '' without one."""
    init_cfg = backbone.get('init_cfg')
    return (
        init_cfg.get('checkpoint') or ''
        if isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained'
        else ''
    )


def _exists(path: str) -> bool:
    """Whether a file or folder exists; addresses and '' count as existing."""
    return not path or '://' in path or osp.exists(path)


def _is_local(node: Mapping) -> bool:
    return not any(part.get('backend_args') or part.get('file_client_args') for _, part in _dicts(node))


def _has_own_code(config: Config) -> bool:
    """Whether the config imports modules from elsewhere, whose classes may have rules of their own."""
    imports = (config.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else imports
    return any(name.partition('.')[0] not in KNOWN_PACKAGES for name in imports)


def _type_name(node: Mapping) -> str:
    kind = node.get('type') or ''
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


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
