"""Hands a config to the training or testing script of its codebase, after checks that save a failed start."""

from __future__ import annotations

import argparse
import importlib.util
import os.path as osp
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction

from .checkpoint import CheckpointError, find_weights, read_checkpoint, read_pretrained

CODEBASES = ('mmdet', 'mmseg', 'mmpretrain')


class LaunchError(RuntimeError):
    """A run that cannot start; the message is one line that says why and what to do."""


def launch(script: str, argv: Sequence[str] | None = None) -> None:
    """Runs the training or testing script of the config's codebase in this process, with every argument passed on.

    Args:
        script (str): ``'train'`` or ``'test'``.
        argv (Sequence[str], optional): The command line without the program. Defaults to ``sys.argv[1:]``.

    Raises:
        SystemExit: With one line that names the fix, if the config, the data, a checkpoint or MMCV cannot be used.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help'):
        operands = 'CONFIG CHECKPOINT' if script == 'test' else 'CONFIG'
        print(
            f'usage: python tools/{script}.py {operands} [ARGUMENT ...]\n\n'
            f"Runs tools/{script}.py of the codebase that the config's default_scope names "
            f'({", ".join(CODEBASES)}) with these very arguments.\n'
            f'Its own help: python tools/{script}.py CONFIG --help'
        )
        raise SystemExit(0 if argv else 2)
    try:
        argv[0] = find_config(argv[0])
        path = _prepare(script, argv)
    except (LaunchError, CheckpointError, FileNotFoundError) as error:
        raise SystemExit(f'error: {error}') from None
    sys.argv = [path, *argv]
    sys.path[0] = osp.dirname(path)
    runpy.run_path(path, run_name='__main__')


def _prepare(script: str, argv: Sequence[str]) -> str:
    """Checks what can be known before the start and returns the path of the codebase's script."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('config')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_known_args(argv)[0]
    config = load_config(args.config, args.cfg_options)
    path = find_script(config.default_scope, script)
    if {'-h', '--help'} & set(argv):
        return path
    check_mmcv_ops()
    check_neck(config)
    if script == 'train':
        check_data(config, ('train', 'val'))
        if config.get('load_from'):
            check_checkpoint(config.load_from)
        pretrained = _pretrained(config)
        if pretrained and '://' not in pretrained:
            read_pretrained(pretrained)
    else:
        check_data(config, ('test',))
        if not args.checkpoint:
            raise LaunchError('tools/test.py needs a checkpoint after the config')
        check_checkpoint(args.checkpoint)
    return path


def find_config(name: str) -> str:
    """The path of a config: ``name`` itself, or the file of that name among those installed with the package.

    Raises:
        LaunchError: If there is neither.
    """
    if osp.isfile(name):
        return name
    installed = Path(__file__).parent / '.mim' / 'configs'
    found = next(installed.rglob(osp.basename(name)), None) if name.endswith('.py') else None
    if found is None:
        raise LaunchError(f'config {name} does not exist: the first argument is the path of a config file')
    return str(found)


def load_config(path: str, options: Mapping | None = None) -> Config:
    """Reads a config and the overrides of the command line.

    Raises:
        LaunchError: If it cannot be read or belongs to no supported codebase.
    """
    try:
        config = Config.fromfile(path)
        config.merge_from_dict(options or {})
    except Exception as error:  # a config is a program: whatever it raises is about the config
        reason = (str(error).splitlines() or [''])[0]
        raise LaunchError(f'config {path} cannot be read: {type(error).__name__}: {reason}') from error
    scope = config.get('default_scope')
    if scope not in CODEBASES:
        raise LaunchError(f'config {path} belongs to none of {", ".join(CODEBASES)}: its default_scope is {scope!r}')
    return config


def find_script(codebase: str, script: str) -> str:
    """The path of a script that an installed codebase ships.

    Raises:
        LaunchError: If the codebase is not installed, or without its scripts.
    """
    spec = importlib.util.find_spec(codebase)
    if spec is None:
        raise LaunchError(f'{codebase} is not installed; see "Install" in the README')
    root = osp.dirname(spec.origin)
    for place in (osp.join(root, '.mim'), osp.dirname(root)):  # a wheel, an editable checkout
        path = osp.join(place, 'tools', f'{script}.py')
        if osp.isfile(path):
            return path
    raise LaunchError(f'{codebase} in {root} came without tools/{script}.py: install its wheel, or it in editable mode')


def check_mmcv_ops() -> None:
    """Raises LaunchError where MMCV is missing or came without its compiled operators."""
    try:
        import mmcv.ops  # noqa: F401
    except ImportError as error:
        raise LaunchError(
            f'MMCV with compiled operators is needed ({error}): remove mmcv-lite if it is installed and '
            'build mmcv with MMCV_WITH_OPS=1; see "Install" in the README'
        ) from error


def check_neck(config: Config) -> None:
    """Raises LaunchError where the neck does not take the channels that an EfficientMod backbone gives."""
    from .models import EfficientMod
    from .registry import MODELS

    for model in _dicts(config.get('model')):
        backbone, neck = model.get('backbone'), model.get('neck')
        if not isinstance(backbone, Mapping) or backbone.get('type') != 'mmefficientmod.EfficientMod':
            continue
        try:
            given = MODELS.build({**backbone, 'type': EfficientMod}).out_channels
        except (ValueError, TypeError) as error:
            raise LaunchError(f'model.backbone: {error}') from error
        neck = neck[0] if isinstance(neck, Sequence) else neck
        taken = (neck or {}).get('in_channels')
        if taken is not None and tuple(taken if isinstance(taken, Sequence) else [taken]) != given:
            raise LaunchError(
                f'model.neck.in_channels is {taken}, but EfficientMod arch {backbone.get("arch", "s")!r} '
                f'gives {list(given)}: set neck=dict(in_channels={list(given)})'
            )


def check_data(config: Config, splits: Sequence[str]) -> None:
    """Raises LaunchError where a data set's root, annotation file or image folder is missing on this machine."""
    for split in splits:
        for part in (f'{split}_dataloader', f'{split}_evaluator'):
            for place, dataset in _dicts(config.get(part), part, with_place=True):
                _check_dataset(place, dataset)


def _check_dataset(place: str, dataset: Mapping) -> None:
    def require(path: str, kind: str, option: str) -> None:
        if '://' not in path and not osp.exists(path):
            raise LaunchError(
                f'{kind} {path} does not exist: put or link the data there, or point to it by '
                f'--cfg-options {place}.{option}=PATH'
            )

    if dataset.get('backend_args'):  # another place than this machine's files
        return
    root = dataset.get('data_root') or ''
    if root:
        require(root, 'data root', 'data_root')
    if isinstance(dataset.get('ann_file'), str) and dataset['ann_file']:
        require(osp.join(root, dataset['ann_file']), 'annotation file', 'ann_file')
    for key, prefix in (dataset.get('data_prefix') or {}).items():
        if isinstance(prefix, str) and root:
            require(osp.join(root, prefix), 'data folder', f'data_prefix.{key}')


def check_checkpoint(path: str) -> None:
    """Reads a checkpoint safely, so that a bad one is refused before MMEngine, which may be less strict, opens it."""
    if '://' not in path:
        find_weights(read_checkpoint(path), path)


def _pretrained(config: Config) -> str | None:
    for model in _dicts(config.get('model')):
        backbone = model.get('backbone')
        if isinstance(backbone, Mapping) and backbone.get('type') == 'mmefficientmod.EfficientMod':
            init_cfg = backbone.get('init_cfg')
            if isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained':
                return init_cfg['checkpoint']
    return None


def _dicts(node: object, place: str = '', with_place: bool = False) -> Iterator:
    """Every dict in a config's part, outermost first, with its dotted place if asked for."""
    if isinstance(node, (Mapping, ConfigDict)):
        yield (place, node) if with_place else node
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from _dicts(child, f'{place}.{key}', with_place)
