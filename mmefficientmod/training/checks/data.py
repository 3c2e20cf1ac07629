"""Data of a run: looked at before the start, and as the runner builds them; an error ends the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import os.path as osp
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...checkpoints.reading import read_checkpoint
from ...codebases.config import noted_meta
from ...data import coco
from ...data.built import choose_indices, find_built
from ...data.findings import ERROR, Finding
from ...data.heads import compare_trained, is_open_vocabulary
from ...data.inspect import describe_failure, inspect_built, inspect_config, inspect_together
from ...data.sources import find_sources
from ...utils import UserError, replace_file
from ...version import __version__
from .levels import check_levels
from .loaders import check_single_images
from .schedule import find_misfits

MEMORY = 'data_checks.json'  # in the work directory: what was found in data that have not changed since
MOST_REMEMBERED = 20


def check_data(config: Config, parts: Sequence[str]) -> None:
    """Looks at settings and files of the data sets, before anything is built.

    Args:
        config (Config): As the codebase's script hands it to the runner.
        parts (Sequence[str]): Which of ``'train'``, ``'val'``, ``'test'``.

    Raises:
        UserError: For data that cannot work, or from which the wrong thing would be learnt.
    """
    report(inspect_config(config, parts), lambda line: print(f'warning: {line}'))


def report(findings: Iterable[Finding], say: Callable[[str], None]) -> None:
    """Says the warnings; prints all errors but the first, which is raised.

    Raises:
        UserError: With the first error.
    """
    errors = [finding for finding in findings if finding.level == ERROR]
    for finding in findings:
        if finding.level != ERROR:
            say(str(finding))
    for finding in errors[1:]:
        print(f'error: {finding}', file=sys.stderr)
    if errors:
        raise UserError(str(errors[0]))


class WatchedLoaders:
    """Builds a runner's data loaders as before, and looks at each data set that comes out, before the first iteration.

    Args:
        runner (Runner): Its ``build_dataloader`` is replaced.
        config (Config): What it was built from.
        parts (Sequence[str]): Which of ``'train'``, ``'val'``, ``'test'`` will be built.
        data (bool): Whether to look at the data; if not, at the size of the batches and their number only.
    """

    def __init__(self, runner: Any, config: Config, parts: Sequence[str], data: bool = True) -> None:
        self.runner, self.config, self.parts, self.data = runner, config, parts, data
        self.build = runner.build_dataloader
        self.say = runner.logger.warning
        self.memory = Path(runner.work_dir, MEMORY)
        self.built: dict[str, Any] = {}
        runner.build_dataloader = self

    def __call__(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        part = next((part for part in self.parts if dataloader == self.config.get(f'{part}_dataloader')), None)
        if part is None or not isinstance(dataloader, Mapping):
            return self.build(dataloader, *args, **kwargs)
        place = f'{part}_dataloader.dataset'
        try:
            loader = self.build(dataloader, *args, **kwargs)
        except Exception as problem:
            if not self.data or isinstance(problem, (UserError, FileNotFoundError)) or not self._is_known(part):
                raise  # an error of the user's own code keeps its traceback
            report([describe_failure(place, problem)], self.say)
        if part == 'train':
            check_single_images(loader, self.runner.model)
            check_levels(self.runner.model)
            for line in find_misfits(self.config, len(loader)):
                self.say(line)
        if not self.data:
            return loader
        self.built[place] = loader.dataset
        report([*self._compare_checkpoint(part, loader.dataset), *self._look(place, loader.dataset)], self.say)
        if len(self.built) == len(self.parts):
            coco.forget_annotations()
            if len(self.built) > 1:
                report(inspect_together(self.built), self.say)
        return loader

    def _compare_checkpoint(self, part: str, dataset: Any) -> Iterator[Finding]:
        """Compares the classes with those of the checkpoint of a test or a resumed training; a new one may differ."""
        path = self.config.get('load_from')
        goes_on = part == 'test' or (part == 'train' and self.config.get('resume'))
        if not path or not goes_on or '://' in path or osp.isdir(osp.expanduser(path)):
            return
        classes = getattr(dataset, 'metainfo', {}).get('classes')
        trained = noted_meta(read_checkpoint(path, mmap=True, check=False)).get('classes')
        lists = all(isinstance(each, (list, tuple)) and each for each in (classes, trained))
        if lists and not is_open_vocabulary(self.config.get('model') or {}):
            yield from compare_trained(f'{part}_dataloader.dataset', classes, path, trained)  # type: ignore[arg-type]

    def _is_known(self, part: str) -> bool:
        return all(source.is_known for source in find_sources(self.config, part))

    def _look(self, place: str, dataset: Any) -> list[Finding]:
        """The findings of a built data set, from the work directory if nothing has changed since they were found."""
        stamps = [_stamp(path) for path in _paths_of(dataset, place)]
        settings = {key: self.config.get(key) for key in ('model', place.partition('.')[0])}
        key = hashlib.sha256(repr((__version__, place, settings, stamps)).encode()).hexdigest()
        remembered = read_memory(self.memory)
        if key in remembered:
            return [Finding(*each) for each in remembered[key]]
        findings = inspect_built(place, dataset, self.config)
        if not any(finding.level == ERROR for finding in findings):
            kept = dict(list(remembered.items())[1 - MOST_REMEMBERED :])
            kept[key] = [[each.level, each.place, each.message] for each in findings]
            with contextlib.suppress(OSError):  # a work directory that cannot be written is MMEngine's to tell
                replace_file(self.memory, json.dumps(kept, indent=1), durable=False)
        return findings


def read_memory(path: Path) -> dict[str, list]:
    """What was remembered, empty where there is nothing or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _paths_of(dataset: Any, place: str) -> Iterator[str]:
    """Files and folders that a look at a built data set depends on."""
    for _, each in find_built(dataset, place):
        prefixes = getattr(each, 'data_prefix', None)
        yield from (path for path in [getattr(each, 'ann_file', ''), *(prefixes or {}).values()] if path)
        if not hasattr(each, 'get_data_info'):
            continue
        for index in choose_indices(len(each)):
            entry = each.get_data_info(index)
            for name in ('img_path', 'seg_map_path', 'xml_path'):
                if isinstance(entry.get(name), str):
                    yield entry[name]


def _stamp(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(osp.expanduser(path))
    except OSError:
        return path, 0, 0
    return path, status.st_size, status.st_mtime_ns
