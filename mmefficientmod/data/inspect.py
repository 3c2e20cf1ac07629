"""Looks at the data sets of a config before a training or a test: from settings and files, then as they are built."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, starmap
from typing import Any

from mmengine.config import Config

from ..codebases.nodes import exists, find_dicts, has_own_code, is_known, is_local, type_name
from . import coco, folders, heads, masks, objects, voc
from .built import Budget, apply, choose_indices, find_built, is_remote, transforms_of
from .findings import Finding, check_in_turn, error, has_errors
from .images import check_files, find_shared, walk_images
from .sources import Source, check_names, find_sources

IMAGE_PREFIXES = ('img', 'img_path', 'sub_data_root')  # read by every pipeline; other folders by some
DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')  # that are fetched where they are missing
PARTS = ('train', 'val', 'test')
TRIED = 4  # entries that go through the whole pipeline


def inspect_config(config: Config, parts: Sequence[str] = PARTS) -> list[Finding]:
    """Looks at the data sets of a config before anything is built.

    Args:
        config (Config): A config of MMDetection, MMSegmentation or MMPreTrain.
        parts (Sequence[str]): Which of ``'train'``, ``'val'``, ``'test'``. Defaults to all.

    Returns:
        list[Finding]: What is wrong in the settings and in the files that they name. Data sets that code of the user's
        own loads, and those in a remote storage, are not judged.
    """
    sources = [source for part in parts for source in find_sources(config, part)]
    metrics = [metric for part in parts for metric in _find_metrics(config, part)]
    checks = (
        chain(
            *(_find_missing(source, config) for source in sources),
            (_missing(place, 'annotation file', path, 'ann_file') for place, path, _ in metrics if not exists(path)),
        ),
        chain.from_iterable(chain(map(_inspect_source, sources), starmap(coco.check_evaluation, metrics))),
        heads.check_model(config, [source for source in sources if is_known(source.settings)]),
    )
    return list(dict.fromkeys(check_in_turn(checks)))


def _find_metrics(config: Config, part: str) -> Iterator[tuple[str, str, Mapping]]:
    """The metrics of a part of a config that read a file on this machine, each with its place and that file."""
    for place, metric in find_dicts(config.get(f'{part}_evaluator'), f'{part}_evaluator'):
        path = metric.get('ann_file')
        if isinstance(path, str) and path and '://' not in path and is_known(metric) and is_local(metric):
            yield place, path, metric


def _inspect_source(source: Source) -> Iterator[Finding]:
    """The content of the files of a data set that a library's own code reads."""
    wrong = check_names(source)
    if wrong:
        yield wrong
    elif not source.is_known:
        return
    elif coco.is_coco(source):
        yield from coco.check_file(source)
    elif source.is_a('mmdet', 'XMLDataset'):
        yield from voc.check_before(source)
    elif source.is_a('mmseg', 'BaseSegDataset'):
        yield from masks.check_names(source)
        yield from _check_suffix(source)
    elif folders.is_folders(source.kind):
        yield from folders.check_before(source)


def _find_missing(source: Source, config: Config) -> Iterator[Finding]:
    """The data root, annotation file and folders that are not there."""
    settings = source.settings
    plain = source.kind is None and is_known(settings) and is_local(settings) and not has_own_code(config)
    if type_name(settings) in DOWNLOADED or not (source.is_known or plain):
        return
    needed = {'ann_file': 'annotation file'}
    prefix = settings.get('data_prefix')
    if isinstance(prefix, Mapping):
        labels = any('LoadAnnotations' in type_name(node) for _, node in find_dicts(settings.get('pipeline')))
        names = (*IMAGE_PREFIXES, 'seg_map_path') if labels else IMAGE_PREFIXES
        needed.update({f'data_prefix.{name}': 'data folder' for name in names if name in prefix})
    elif prefix:
        needed['data_prefix'] = 'data folder'
    paths = {option: source.path(option) for option in needed}
    found = {option: path for option, path in paths.items() if path is not None}
    root = settings.get('data_root')
    apart = found and all('://' in path or osp.isabs(_given(settings, option)) for option, path in found.items())
    if isinstance(root, str) and root and not apart and not exists(root):
        yield _missing(source.place, 'data root', root, 'data_root')
        return
    for option, path in found.items():
        if path and not exists(path):
            yield _missing(source.place, needed[option], path, option)


def _given(settings: Mapping, option: str) -> str:
    value: Any = settings
    for key in option.split('.'):
        value = value[key]
    return osp.expanduser(value)


def _missing(place: str, what: str, path: str, option: str) -> Finding:
    return error(
        place,
        f'{what} {path} does not exist: put or link the data there, or point to it with '
        f'--cfg-options {place}.{option}=PATH',
    )


def _check_suffix(source: Source) -> Iterator[Finding]:
    """A folder without any image that is read: some samplers would wait for ever."""
    folder, suffix = source.path('data_prefix.img_path'), source.option('img_suffix')
    if source.path('ann_file') or not folder or not osp.isdir(folder) or not isinstance(suffix, str):
        return
    names = list(walk_images(folder))
    if not any(name.endswith(suffix) for name in names):
        there = f', but {len(names)} other images, as {names[0]}' if names else ''
        yield error(
            source.place,
            f'{folder} holds no file that ends in {suffix}{there}: put the images there, or set img_suffix',
        )


def inspect_built(place: str, dataset: Any, config: Config) -> list[Finding]:
    """Compares what the files of a data set hold with what the built data set yields.

    Args:
        place (str): Its dotted path in the config, as ``'train_dataloader.dataset'``.
        dataset (Any): The built data set, which may wrap others.
        config (Config): The config that it was built from.

    Returns:
        list[Finding]: Objects, images and values that are dropped, shifted or never read.
    """
    findings: list[Finding] = []
    sources = {source.place: source for source in find_sources(config, place.partition('_')[0])}
    for where, inner in find_built(dataset, place):
        findings += _inspect_inner(where, inner, sources.get(where), config)
    return list(dict.fromkeys(findings))


def _inspect_inner(place: str, dataset: Any, source: Source | None, config: Config) -> list[Finding]:
    training = place.startswith('train')
    if not hasattr(dataset, 'get_data_info') or not len(dataset):
        return []
    entries = [dataset.get_data_info(index) for index in choose_indices(len(dataset))]
    if is_remote(dataset) or not all(isinstance(entry.get('img_path', ''), str) for entry in entries[:1]):
        return []
    findings = check_files(place, dataset, entries)
    if has_errors(findings):
        return findings
    names = {each.__name__ for each in type(dataset).__mro__}
    if source is not None and coco.is_coco(source):
        path = dataset.ann_file
        content = coco.read_annotations(path) if coco.is_small(path) else None
        findings += objects.compare(place, dataset, entries, content, path)
    elif 'XMLDataset' in names and source is not None and source.is_known:
        findings += voc.compare(place, dataset, entries, training)
        findings += objects.judge_boxes(place, entries, dataset.ann_file)
    elif 'BaseSegDataset' in names:
        findings += masks.compare(place, dataset, entries, training)
    elif folders.is_folders(type(dataset)) or 'MultiLabelDataset' in names:
        findings += folders.compare(place, dataset, entries, training)
        if source is not None and source.classes is None:  # the folders name them
            nodes = find_dicts(config.get('model'), 'model')
            number, named = folders.count_classes(dataset, entries)
            findings += heads.compare_heads(nodes, number, f'{place} has', training and named)
    if not has_errors(findings):
        findings += _try_pipeline(place, dataset, entries)
    if not findings and training and entries and 'instances' in entries[0] and 'width' in entries[0]:
        findings += objects.judge_scale(place, dataset, entries)
    return findings


def _try_pipeline(place: str, dataset: Any, entries: Sequence[Mapping]) -> Iterator[Finding]:
    """Sends some entries through the whole pipeline; the random numbers of the training stay as they are."""
    step = max(1, len(entries) // TRIED)
    for entry in Budget(0.7).within(entries[::step][:TRIED], least=1):
        try:
            apply(transforms_of(dataset), entry)
        except Exception as problem:  # whatever the libraries and the user's own transforms raise
            yield error(place, f'the pipeline fails on {entry.get("img_path", "an entry")}: {_all_of(problem)}')
            return


def inspect_together(built: Mapping[str, Any]) -> list[Finding]:
    """Compares the data sets of a training: their classes, and images that are trained on and evaluated with.

    Args:
        built (Mapping[str, Any]): Place in the config -> built data set, of a training.
    """
    paths = {}
    for place, dataset in built.items():
        inner = [each for _, each in find_built(dataset, place)]
        if any(not hasattr(each, 'get_data_info') or is_remote(each) for each in inner):
            return []
        infos = (each.get_data_info(index) for each in inner for index in choose_indices(len(each)))
        named = [info['img_path'] for info in infos if isinstance(info.get('img_path'), str)]
        paths[place] = [path for path in named if osp.isfile(path)]
    first = next((place for place in paths if place.startswith('train')), '')
    findings: list[Finding] = []
    for place in paths if first else ():
        if not place.startswith('train'):
            classes, trained = (getattr(built[each], 'metainfo', {}).get('classes') for each in (place, first))
            if classes and trained:
                findings += heads.compare_classes(place, classes, first, trained)
            findings += find_shared(place, paths[place], paths[first], first)
    return findings


def inspect_all(config: Config, parts: Sequence[str] = PARTS) -> list[Finding]:
    """Looks at a config and builds its data sets to look at these, too: for a tool that starts no training.

    Args:
        config (Config): A config of MMDetection, MMSegmentation or MMPreTrain.
        parts (Sequence[str]): Which of ``'train'``, ``'val'``, ``'test'``. Defaults to all.
    """
    from mmengine.registry import DATASETS, DefaultScope

    findings = inspect_config(config, parts)
    if has_errors(findings):
        return findings
    built = {}
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        for part in parts:
            settings = (config.get(f'{part}_dataloader') or {}).get('dataset')
            if not isinstance(settings, Mapping):
                continue
            place = f'{part}_dataloader.dataset'
            try:
                built[place] = DATASETS.build(settings)
                findings += inspect_built(place, built[place], config)
            except Exception as problem:  # whatever the libraries raise on data that nobody foresaw
                findings.append(describe_failure(place, problem))
    return [*findings, *inspect_together(built)]


def describe_failure(place: str, problem: BaseException) -> Finding:
    """A finding for an error that came up while a data set was built."""
    if isinstance(problem, ValueError) and 'at least one array' in str(problem):
        return error(place, 'no image remains: no object of the classes, or all images are below filter_cfg.min_size')
    return error(place, f'it cannot be built: {_all_of(problem)}')


def _all_of(problem: BaseException) -> str:
    """An error with its whole message in one line."""
    return f'{type(problem).__name__}: {" ".join(str(problem).split())}'
