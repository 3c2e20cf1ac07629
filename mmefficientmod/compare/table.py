"""The comparison as a table: measured figures beside the published ones, and what they depend on; no torch needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from mmengine.utils import import_modules_from_strings

from ..measure.records import Case, read_benchmark
from ..utils import UserError, describe_error
from ..zoo.backbones import task_backbones
from ..zoo.published import published
from ..zoo.tasks import Task
from .results import PUBLISHED_SETTINGS, Result, collect, deviations, on_published_data
from .state import State, read_states

SETTINGS = {  # name in Setting -> name in the report
    'dataset': 'data set',
    'val_images': 'validation images',
    'schedule': 'schedule',
    'learning_rate_schedule': 'learning rate schedule',
    'batch': 'images a step',
    'size': 'training size',
    'test_size': 'test size',
    'optimizer': 'optimizer',
    'weights': 'initial weights of the backbone',
    'seed': 'seed',
}


@dataclass(frozen=True)
class Column:
    """What a group of columns is about."""

    kind: str  # 'accuracy', 'parameters', 'cost' or 'latency'
    beside: str = ''  # data set or machine of the published figure where it is another one

    def label(self, part: str) -> str:
        """Heading of a part."""
        return f'{part}, {self.beside}' if part == 'published' and self.beside else part


@dataclass
class Comparison:
    """All that the three formats show."""

    task: Task  # the task
    results: dict[str, Result]  # every backbone that was found in the work directories
    columns: dict[str, Column] = field(default_factory=dict)  # heading, with the unit -> what the figures are about
    # a row for each backbone with metrics, by key; columns (heading, part): measured, and maybe published, difference
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    remarks: dict[str, str] = field(default_factory=dict)  # key -> what its accuracy comes from
    # why there are no metrics -> names of the backbones without
    missing: dict[str, list[str]] = field(default_factory=dict)
    setting: list[tuple[str, str]] = field(default_factory=list)  # what all backbones share, as name and value
    warnings: list[str] = field(default_factory=list)  # what a reader has to know before the figures
    problems: list[str] = field(default_factory=list)  # those of them that are about what could not be used
    machine: dict | None = None  # what latency was measured on
    started_by: list[str] = field(default_factory=list)  # the commands that started the jobs, `compare run` that is
    # key -> the commands that those started, failed ones too
    commands: dict[str, list[str]] = field(default_factory=dict)
    # keys of the backbones whose accuracy was measured in the published setting, at its end
    comparable: set[str] = field(default_factory=set)

    @property
    def title(self) -> str:
        """Heading of the report."""
        return f'{self.task.model}: backbones compared'

    def name(self, key: str) -> str:
        """A backbone's name in the table."""
        return self.results[key].backbone.name

    def add(self, heading: str, column: Column, measured: Mapping, reference: str | None, difference: bool) -> None:
        """Adds the columns of a figure: the measured one by key, and the published one of that name, if any."""
        self.columns[heading] = column
        parts = {'measured': pd.Series(measured, dtype=float)}
        if reference:
            known = published(self.task.table)
            figures = {key: known.get(self.name(key), {}).get(reference) for key in measured}
            parts['published'] = pd.Series(figures, dtype=float)
            if difference:
                parts['difference'] = parts['measured'] - parts['published']
        new = pd.concat({(heading, part): values for part, values in parts.items()}, axis=1)
        self.table = pd.concat([self.table, new], axis=1) if len(self.table.columns) else new


def compare(
    paths: Sequence[Path], benchmarks: Sequence[Path] = (), tick: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Collects the comparison from work directories and from the JSON files of tools/benchmark.py.

    Raises:
        UserError: If there is nothing to compare, or what is there does not belong into one table.
    """
    task, results, problems = collect(paths)
    comparison = Comparison(task, results, warnings=list(problems), problems=problems)
    measured = {key: result for key, result in results.items() if result.metrics}
    same_data = on_published_data(next(iter(measured.values())), task)
    beside = '' if same_data else task.dataset
    _describe_setting(comparison, measured, same_data)

    def add_accuracies(detail: bool) -> None:
        for metric in task.metrics:
            values = {key: result.metrics.get(metric.key) for key, result in measured.items()}
            if metric.detail == detail and any(value is not None for value in values.values()):
                figures = {key: None if value is None else value * metric.scale for key, value in values.items()}
                comparison.add(metric.name, Column('accuracy', beside), figures, metric.published, same_data)

    add_accuracies(detail=False)
    costs: dict[str, tuple[float | None, float | None]] = {}
    failed = []
    for key, result in measured.items():
        tick(f'{key}: parameters and cost')
        try:
            costs[key] = _complexity(result, task)
        except Exception as error:  # say, the backbone's library is not on this machine: the rest of the table stands
            failed.append((describe_error(error), result.backbone.name))
            costs[key] = None, None
    for reason, names in _group(failed).items():
        comparison.warnings.append(f'No parameters and cost of {", ".join(names)}: {reason}')
    params, macs = ({key: cost[i] for key, cost in costs.items()} for i in range(2))
    comparison.add('parameters (M)', Column('parameters', beside), params, task.params, same_data)
    sizes = {_cost_size(result, task) for result in measured.values()}
    heading = 'MACs (G), ' + ('{} x {}'.format(*sizes.pop()) if len(sizes) == 1 else 'published size')
    comparison.add(heading, Column('cost', beside), macs, task.cost, same_data)
    _add_latency(comparison, benchmarks)
    _add_published_latencies(comparison)
    add_accuracies(detail=True)

    states = read_states(paths)
    comparison.remarks = {key: result.remark for key, result in measured.items()}
    comparison.missing = _missing(results, states, task)
    comparison.commands = {key: [entry['command'] for entry in state.commands] for key, state in states.items()}
    entries = [entry for state in states.values() for entry in state.commands]
    comparison.started_by = list(dict.fromkeys(entry['started_by'] for entry in entries if 'started_by' in entry))
    return comparison


def _describe_setting(comparison: Comparison, measured: Mapping[str, Result], same_data: bool) -> None:
    """Says what setting the backbones share, where they differ, and how far they are from the published one."""
    trained = any(result.trained for result in measured.values())
    for name, label in SETTINGS.items():
        if not trained and name != 'test_size' and name in (*PUBLISHED_SETTINGS, 'seed'):
            continue
        values = _group((result.setting.words(name), result.backbone.name) for result in measured.values())
        comparison.setting.append((label, _with_names(values)))
        if len(values) > 1:
            comparison.warnings.append(f'The backbones were not run alike: see {label}.')
    unfinished = [f'{each.backbone.name} ({each.unfinished})' for each in measured.values() if each.unfinished]
    if unfinished:
        comparison.warnings.append(f'Not at the end of their training: {", ".join(unfinished)}.')
    found = {key: deviations(result, comparison.task) for key, result in measured.items()}
    comparison.comparable = {key for key, deviation in found.items() if not deviation and not measured[key].unfinished}
    apart = _group((text, comparison.name(key)) for key, deviation in found.items() for text in deviation)
    if apart:
        hint = f'The published accuracy, on {comparison.task.dataset}, stands beside it for orientation only.'
        if same_data:
            hint = 'The differences from the published accuracy tell nothing about the published figures.'
        text = _with_names(apart, len(measured))
        comparison.warnings.append(f'This is not the published setting: {text}. {hint}')


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


def _complexity(result: Result, task: Task) -> tuple[float, float]:
    """Parameters (M) and multiply-accumulates (G) of the very model that was measured."""
    from ..measure.complexity import measure_config

    config = deepcopy(result.config)
    config.model.backbone.init_cfg = None
    import_modules_from_strings(**(config.get('custom_imports') or {'imports': []}))  # the results were read without
    cost = measure_config(config, _cost_size(result, task))
    return cost.params / 1e6, cost.macs / 1e9


def _cost_size(result: Result, task: Task) -> tuple[int, int]:
    """Height and width in pixels that the backbone's cost is published at."""
    side = published(task.table).get(result.backbone.name, {}).get('input')
    return (side, side) if side else task.cost_size


def _add_latency(comparison: Comparison, benchmarks: Sequence[Path]) -> None:
    """One column for every case of the whole model in the benchmark's files."""
    task, cases = comparison.task, {}
    for path in benchmarks:
        try:
            results, content = read_benchmark(path)
        except FileNotFoundError:
            raise UserError(f'benchmark file {path} does not exist: make it by tools/benchmark.py') from None
        except ValueError as error:
            raise UserError(str(error)) from None
        machine = {name: value for name, value in content['machine'].items() if name != 'load'}
        known = comparison.machine or {}
        if any(known[name] != machine[name] for name in known.keys() & machine.keys()):
            raise UserError('the benchmark files come from different machines: report each machine by itself')
        comparison.machine = {**known, **machine}  # only a file with exported modes has the runtimes' versions
        for case, measurements in results.items():
            if case in cases:
                raise UserError(f'two benchmark files hold {case}: backbones are only comparable within one run')
            if case.part == task.part:
                cases[case] = {m.backbone: m for m in measurements}
    if benchmarks and not cases:
        comparison.problems.append(
            f'the benchmark holds no {task.part}: run tools/benchmark.py with --parts {task.part}'
        )
        comparison.warnings.append(comparison.problems[-1])
    for case, found in cases.items():
        reference = task.latencies.get(case.size) if case == Case(case.part, case.size) else None  # fp32, eager
        heading = 'ms, {} x {}, batch {}, {}, {}'.format(*case.size, case.batch, case.precision, case.mode)
        times = {key: found[key].median_ms if key in found else None for key in comparison.table.index}
        comparison.add(heading, Column('latency', 'A100'), times, reference, difference=False)
        for m in found.values():
            if m.error and m.backbone in times:
                comparison.warnings.append(f'{m.name} was not measured ({case}): {m.error}')


def _add_published_latencies(comparison: Comparison) -> None:
    """The paper's own latencies where they are of exported files, which no mode of the benchmark is beside."""
    machines, known = comparison.task.machines, published(comparison.task.table)
    if machines:
        heading = 'published ms, batch 1'
        rows = {key: known.get(comparison.name(key), {}) for key in comparison.table.index}
        parts = {
            (heading, machine): pd.Series({key: row.get(name) for key, row in rows.items()}, dtype=float)
            for machine, name in machines.items()
        }
        comparison.columns[heading] = Column('published latency')
        comparison.table = pd.concat([comparison.table, pd.concat(parts, axis=1)], axis=1)


def _missing(results: Mapping[str, Result], states: Mapping[str, State], task: Task) -> dict[str, list[str]]:
    """Why there are no metrics -> names of the backbones without."""
    backbones = {**task_backbones(task), **{key: result.backbone for key, result in results.items()}}
    missing = []
    for key, backbone in backbones.items():
        result = results.get(key)
        if not (result and result.metrics):
            reason = states[key].error if key in states else None
            if not reason and result:
                began = f'trained {result.trained}' if result.trained else 'began'
                reason = f'{began}, neither validated nor tested yet'
            missing.append((reason or 'not run', backbone.name))
    return _group(missing)
