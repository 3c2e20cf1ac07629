"""Puts the results of the backbones beside the published figures, with what they depend on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..measure.records import Case, Measurement, read_records
from ..utils import describe_error
from ..zoo.backbones import task_backbones
from ..zoo.published import published
from ..zoo.tasks import Metric, Task
from . import CompareError
from .results import Result, collect, deviations, on_published_data
from .state import State, read_states

if TYPE_CHECKING:
    from ..measure.complexity import Complexity

SETTINGS = {  # name in Setting -> name in the report
    'dataset': 'data set',
    'val_images': 'validation images',
    'schedule': 'schedule',
    'batch': 'images a step',
    'size': 'training size',
    'test_size': 'test size',
    'optimizer': 'optimizer',
    'weights': 'initial weights of the backbone',
    'seed': 'seed',
}


@dataclass(frozen=True)
class Cell:
    """A figure with the published one beside it, both in the table's unit; either may be missing."""

    measured: float | None
    published: float | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        return None if None in (self.measured, self.published) else self.measured - self.published


@dataclass(frozen=True)
class Column:
    """A figure that every backbone has.

    Attributes:
        name (str): Heading, with the unit.
        kind (str): ``'accuracy'``, ``'parameters'``, ``'cost'`` or ``'latency'``.
        parts (tuple[str]): What of a :class:`Cell` is shown.
        beside (str): Data set or machine of the published figure where it is another one.
    """

    name: str
    kind: str
    parts: tuple[str, ...] = ('measured',)
    beside: str = ''

    @property
    def labels(self) -> dict[str, str]:
        """Heading of each part."""
        published = ', '.join(filter(None, ['published', self.beside]))
        return dict(measured='measured', published=published, difference='difference')


@dataclass
class Comparison:
    """All that the three formats show.

    Attributes:
        task (Task): The task.
        results (dict[str, Result]): Every backbone that was found in the work directories.
        columns (list[Column]): Headings of the figures.
        table (dict[str, list[Cell]]): Key -> one cell a column, for the backbones that have metrics.
        remarks (dict[str, str]): Key -> what its accuracy comes from.
        missing (dict[str, list[str]]): Why there are no metrics -> names of the backbones without.
        setting (list[tuple[str, str]]): What all backbones share, as name and value.
        warnings (list[str]): What a reader has to know before the figures.
        problems (list[str]): Those of them that are about what could not be used.
        machine (dict, optional): What latency was measured on.
        started_by (list[str]): The commands that started the jobs, `compare run` that is.
        commands (dict[str, list[str]]): Key -> the commands that those started, failed ones too.
        comparable (set[str]): Keys of the backbones whose accuracy was measured in the published setting, at its end.
    """

    task: Task
    results: dict[str, Result]
    columns: list[Column] = field(default_factory=list)
    table: dict[str, list[Cell]] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    setting: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    machine: dict | None = None
    started_by: list[str] = field(default_factory=list)
    commands: dict[str, list[str]] = field(default_factory=dict)
    comparable: set[str] = field(default_factory=set)

    @property
    def title(self) -> str:
        """Heading of the report."""
        return f'{self.task.model}: backbones compared'

    def name(self, key: str) -> str:
        """A backbone's name in the table."""
        return self.results[key].backbone.name


def compare(
    paths: Sequence[Path], benchmarks: Sequence[Path] = (), tick: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Collects the comparison from work directories and from the JSON files of tools/benchmark.py.

    Raises:
        CompareError: If there is nothing to compare, or what is there does not belong into one table.
    """
    task, results, problems = collect(paths)
    comparison = Comparison(task, results, warnings=list(problems), problems=problems)
    measured = {key: result for key, result in results.items() if result.metrics}
    figures = published('downstream')
    same_data = on_published_data(next(iter(measured.values())), task)
    beside = ('measured', 'published', 'difference'), ''
    if not same_data:
        beside = ('measured', 'published'), task.dataset
    _describe_setting(comparison, measured, same_data)

    table: dict[str, list[Cell]] = {key: [] for key in measured}

    def add_accuracy(metric: Metric) -> None:
        if any(metric.key in result.metrics for result in measured.values()):
            comparison.columns.append(Column(metric.name, 'accuracy', *beside))
            for key, result in measured.items():
                value = result.metrics.get(metric.key)
                reference = figures.get(result.backbone.name, {}).get(metric.published)
                table[key].append(Cell(None if value is None else value * metric.scale, reference))

    for metric in task.metrics:
        if not metric.detail:
            add_accuracy(metric)
    height, width = task.cost_size
    comparison.columns.append(Column('parameters (M)', 'parameters', *beside))
    cost_column = Column(f'MACs (G), {height} x {width}', 'cost')
    comparison.columns.append(replace(cost_column, parts=beside[0], beside=beside[1]) if task.cost else cost_column)
    failed: dict[str, list[str]] = {}
    for key, result in measured.items():
        tick(f'{key}: parameters and cost')
        cost, error = _complexity(result, task)
        if error:
            failed.setdefault(error, []).append(result.backbone.name)
        reference = figures.get(result.backbone.name, {})
        table[key].append(Cell(cost and cost.params / 1e6, reference.get(task.params)))
        table[key].append(Cell(cost and cost.macs / 1e9, reference.get(task.cost)))
    for error, names in failed.items():
        comparison.warnings.append(f'No parameters and cost of {", ".join(names)}: {error}')
    _add_latency(comparison, table, benchmarks)
    for metric in task.metrics:
        if metric.detail:
            add_accuracy(metric)
    comparison.table = table
    comparison.remarks = {key: _remark(result) for key, result in measured.items()}
    states = read_states(paths)
    comparison.missing = _missing(results, states, task)
    comparison.commands = {key: [entry['command'] for entry in state.commands] for key, state in states.items()}
    comparison.started_by = list(
        dict.fromkeys(
            entry['started_by'] for state in states.values() for entry in state.commands if 'started_by' in entry
        )
    )
    return comparison


def _describe_setting(comparison: Comparison, measured: Mapping[str, Result], same_data: bool) -> None:
    """Says what setting the backbones share, where they differ, and how far they are from the published one."""
    trained = any(result.trained for result in measured.values())
    for name, label in SETTINGS.items():
        if not trained and name in ('schedule', 'batch', 'size', 'optimizer', 'weights', 'seed'):
            continue
        values = _group((_words(getattr(result.setting, name)), result.backbone.name) for result in measured.values())
        comparison.setting.append((label, _with_names(values)))
        if len(values) > 1:
            comparison.warnings.append(f'The backbones were not run alike: see {label}.')
    unfinished = [f'{result.backbone.name} ({result.trained})' for result in measured.values() if not result.finished]
    if unfinished:
        comparison.warnings.append(f'Not at the end of their training: {", ".join(unfinished)}.')
    found = {key: deviations(result, comparison.task) for key, result in measured.items()}
    comparison.comparable = {key for key, deviation in found.items() if not deviation and measured[key].finished}
    apart = _group((text, measured[key].backbone.name) for key, deviation in found.items() for text in deviation)
    if apart:
        comparison.warnings.append(
            f'This is not the published setting: {_with_names(apart, len(measured))}. '
            + (
                'The differences from the published accuracy tell nothing about the published figures.'
                if same_data
                else f'The published accuracy, on {comparison.task.dataset}, stands beside it for orientation only.'
            )
        )


def _group(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Text -> names of the backbones that it is true of."""
    groups: dict[str, list[str]] = {}
    for text, name in pairs:
        groups.setdefault(text, []).append(name)
    return groups


def _with_names(groups: Mapping[str, Sequence[str]], total: int | None = None) -> str:
    """The texts in one line, with the backbones where a text is not true of all of them."""
    total = sum(len(names) for names in groups.values()) if total is None else total
    return '; '.join(text if len(names) == total else f'{text} ({", ".join(names)})' for text, names in groups.items())


def _words(value: object) -> str:
    """A setting in words."""
    return 'unknown' if value is None else str(value)


def _complexity(result: Result, task: Task) -> tuple[Complexity | None, str]:
    """Parameters and multiply-accumulates of the very model that was measured, or why there are none."""
    config = deepcopy(result.config)
    config.model.backbone.init_cfg = None
    try:
        from ..measure.complexity import measure_config  # needs torch, which the rest of a report does not

        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # what the libraries say while a model is built
            return measure_config(config, task.cost_size), ''
    except Exception as error:  # say, the backbone's library is not on this machine: the rest of the table stands
        return None, describe_error(error)


def _add_latency(comparison: Comparison, table: dict[str, list[Cell]], benchmarks: Sequence[Path]) -> None:
    """One column for every case of the whole model in the benchmark's files."""
    task = comparison.task
    cases: dict[Case, dict[str, Measurement]] = {}
    for path in benchmarks:
        content = read_benchmark(path)
        machine = {name: value for name, value in content['machine'].items() if name != 'load'}
        if comparison.machine not in (None, machine):
            raise CompareError('the benchmark files come from different machines: report each machine by itself')
        comparison.machine = machine
        for case, measurements in read_records(content).items():
            if case in cases:
                raise CompareError(f'two benchmark files hold {case}: backbones are only comparable within one run')
            if case.part == task.part:
                cases[case] = {m.backbone: m for m in measurements}
    if benchmarks and not cases:
        part = task.part
        comparison.problems.append(f'the benchmark holds no {part}: run tools/benchmark.py with --parts {part}')
        comparison.warnings.append(comparison.problems[-1])
    for case, measurements in cases.items():
        published_case = case == Case(case.part, case.size)  # batch 1, fp32, eager
        reference = task.latencies.get(case.size) if published_case else None
        parts = ('measured', 'published') if reference else ('measured',)
        height, width = case.size
        name = f'ms, {height} x {width}, batch {case.batch}, {case.precision}, {case.mode}'
        comparison.columns.append(Column(name, 'latency', parts, 'A100'))
        for key, cells in table.items():
            found = measurements.get(key)
            if found and found.error:
                comparison.warnings.append(f'{found.name} was not measured ({case}): {found.error}')
            figure = published('downstream').get(comparison.name(key), {}).get(reference) if reference else None
            cells.append(Cell(found and found.median_ms, figure))


def read_benchmark(path: Path) -> dict:
    """The content of a JSON file of tools/benchmark.py.

    Raises:
        CompareError: If it is none.
    """
    try:
        content = json.loads(path.read_text())
        read_records(content)
        content['machine']['torch']
    except FileNotFoundError:
        raise CompareError(f'benchmark file {path} does not exist: make it by tools/benchmark.py') from None
    except (ValueError, KeyError, TypeError) as error:
        raise CompareError(f'{path} is no JSON file of tools/benchmark.py ({type(error).__name__}: {error})') from None
    return content


def _remark(result: Result) -> str:
    return '; '.join(filter(None, [result.source, result.trained and f'trained {result.trained}']))


def _missing(results: Mapping[str, Result], states: Mapping[str, State], task: Task) -> dict[str, list[str]]:
    missing: dict[str, list[str]] = {}
    backbones = {**task_backbones(task), **{key: result.backbone for key, result in results.items()}}
    for key, backbone in backbones.items():
        result = results.get(key)
        if result and result.metrics:
            continue
        reason = states[key].error if key in states else None
        if not reason and result:
            reason = f'{f"trained {result.trained}" if result.trained else "began"}, neither validated nor tested yet'
        missing.setdefault(reason or 'not run', []).append(backbone.name)
    return missing
