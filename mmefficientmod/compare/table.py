"""The comparison as a table: measured next to published values, and the settings behind them; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from mmengine.utils import import_modules_from_strings

from ..measure.records import Case, Measurement, read_benchmark
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
MAY_DIFFER = ('load', 'host')  # facts about a machine that do not make its times another machine's


@dataclass(frozen=True)
class Column:
    """The subject of a group of columns."""

    kind: str  # 'accuracy', 'parameters', 'cost' or 'latency'
    source: str = ''  # data set or machine of the published value if it differs from that of the measured one

    def label(self, part: str) -> str:
        """Heading of a part."""
        return f'{part}, {self.source}' if part == 'published' and self.source else part


@dataclass
class Comparison:
    """The content that the three formats show."""

    task: Task  # the task
    results: dict[str, Result]  # every backbone that was found in the work directories
    columns: dict[str, Column] = field(default_factory=dict)  # heading, with the unit -> subject of the values
    # a row for each backbone with metrics, by key; columns (heading, part): measured, and some published, difference
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    remarks: dict[str, str] = field(default_factory=dict)  # key -> origin of its accuracy
    # reason -> names of the backbones that have no metrics for it
    missing: dict[str, list[str]] = field(default_factory=dict)
    setting: list[tuple[str, str]] = field(default_factory=list)  # settings that all backbones share, as name and value
    warnings: list[str] = field(default_factory=list)  # lines that a reader must know before the values
    problems: list[str] = field(default_factory=list)  # the warnings that are about unusable input
    machine: dict | None = None  # machine of the latencies
    started_by: list[str] = field(default_factory=list)  # the commands that started the jobs: `compare run`
    # key -> the commands of its jobs, failed ones too
    commands: dict[str, list[str]] = field(default_factory=dict)
    # keys of the backbones whose accuracy was measured in the published setting, at its end
    comparable: set[str] = field(default_factory=set)

    @property
    def title(self) -> str:
        """Heading of the report."""
        return f'{self.task.model}: backbones compared'

    @property
    def measured(self) -> dict[str, Result]:
        """The results that have metrics."""
        return {key: result for key, result in self.results.items() if result.metrics}

    def name(self, key: str) -> str:
        """A backbone's name in the table."""
        return self.results[key].backbone.name

    def add(self, heading: str, column: Column, measured: Mapping, reference: str | None, difference: bool) -> None:
        """Adds the columns of a value: the measured one by key, and the published one of that name, if any."""
        self.columns[heading] = column
        parts = {'measured': pd.Series(measured, dtype=float)}
        if reference:
            known = published(self.task.table)
            values = {key: known.get(self.name(key), {}).get(reference) for key in measured}
            parts['published'] = pd.Series(values, dtype=float)
            if difference:
                parts['difference'] = parts['measured'] - parts['published']
        new = pd.concat({(heading, part): values for part, values in parts.items()}, axis=1)
        self.table = pd.concat([self.table, new], axis=1) if len(self.table.columns) else new


def compare(
    paths: Sequence[Path], benchmarks: Sequence[Path] = (), tick: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Collects the comparison from work directories and from the JSON files of tools/benchmark.py.

    Args:
        paths (Sequence[Path]): The work directories, or folders above them.
        benchmarks (Sequence[Path]): JSON files. Defaults to none.
        tick (Callable): Called with the step in words. Defaults to nothing.

    Raises:
        UserError: If there is nothing to compare, or if results do not belong into one table.
    """
    task, results, problems = collect(paths)
    comparison = Comparison(task, results, warnings=list(problems), problems=problems)
    cases, comparison.machine = _merge_benchmarks(benchmarks, task.part)  # first, because the costs take longer
    same_data = on_published_data(next(iter(comparison.measured.values())), task)
    _describe_setting(comparison, same_data)
    _add_accuracies(comparison, same_data, detail=False)
    _add_costs(comparison, same_data, tick)
    if benchmarks:
        _add_latencies(comparison, cases)
    _add_published_latencies(comparison)
    _add_accuracies(comparison, same_data, detail=True)
    _describe_commands(comparison, read_states(paths))
    return comparison


def _describe_setting(comparison: Comparison, same_data: bool) -> None:
    """Notes the setting that the backbones share, where they differ, and how far they are from the published one."""
    measured = comparison.measured
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
        hint = f'The published accuracy, on {comparison.task.dataset}, is shown only for orientation.'
        if same_data:
            hint = 'The differences from the published accuracy say nothing about the published values.'
        text = _with_names(apart, len(measured))
        comparison.warnings.append(f'This is not the published setting: {text}. {hint}')


def _group(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Text -> names of the backbones for which it is true."""
    groups: dict[str, list[str]] = {}
    for text, name in pairs:
        groups.setdefault(text, []).append(name)
    return groups


def _with_names(groups: Mapping[str, Sequence[str]], total: int | None = None) -> str:
    """The texts in one line, each with its backbones unless it is true for all of them."""
    total = sum(len(names) for names in groups.values()) if total is None else total
    return '; '.join(text if len(names) == total else f'{text} ({", ".join(names)})' for text, names in groups.items())


def _add_accuracies(comparison: Comparison, same_data: bool, detail: bool) -> None:
    """One column for every metric that any backbone has: the main ones, or the detailed ones."""
    task, measured = comparison.task, comparison.measured
    for metric in task.metrics:
        values = {key: result.metrics.get(metric.key) for key, result in measured.items()}
        if metric.detail == detail and any(value is not None for value in values.values()):
            percent = {key: None if value is None else value * metric.scale for key, value in values.items()}
            column = Column('accuracy', '' if same_data else task.dataset)
            comparison.add(metric.name, column, percent, metric.published, same_data)


def _add_costs(comparison: Comparison, same_data: bool, tick: Callable[[str], None]) -> None:
    """Parameters and multiply-accumulates, counted on the model that was measured."""
    task, measured = comparison.task, comparison.measured
    params: dict[str, float | None] = {}
    macs: dict[str, float | None] = {}
    failed = []
    for key, result in measured.items():
        tick(f'{key}: parameters and cost')
        try:
            params[key], macs[key] = _complexity(result, task)
        except Exception as error:  # e.g. the backbone's library is missing here; the rest of the table stands
            failed.append((describe_error(error), result.backbone.name))
            params[key] = macs[key] = None
    for reason, names in _group(failed).items():
        comparison.warnings.append(f'No parameters and cost of {", ".join(names)}: {reason}')
    source = '' if same_data else task.dataset
    comparison.add('parameters (M)', Column('parameters', source), params, task.params, same_data)
    sizes = {_cost_size(result, task) for result in measured.values()}
    size = '{} x {}'.format(*sizes.pop()) if len(sizes) == 1 else 'published size'
    comparison.add(f'MACs (G), {size}', Column('cost', source), macs, task.cost, same_data)


def _complexity(result: Result, task: Task) -> tuple[float, float]:
    """Parameters (M) and multiply-accumulates (G) of the model that was measured."""
    from ..measure.complexity import measure_config

    config = deepcopy(result.config)
    config.model.backbone.init_cfg = None
    import_modules_from_strings(**(config.get('custom_imports') or {'imports': []}))  # reading the results skipped them
    cost = measure_config(config, _cost_size(result, task))
    return cost.params / 1e6, cost.macs / 1e9


def _cost_size(result: Result, task: Task) -> tuple[int, int]:
    """Height and width in pixels at which the backbone's cost is published."""
    side = published(task.table).get(result.backbone.name, {}).get('input')
    return (side, side) if side else task.cost_size


def _add_latencies(comparison: Comparison, cases: Mapping[Case, Mapping[str, Measurement]]) -> None:
    """One column for every case of the complete model in the benchmark's files."""
    task = comparison.task
    if not cases:
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


def _merge_benchmarks(paths: Sequence[Path], part: str) -> tuple[dict[Case, dict[str, Measurement]], dict | None]:
    """The measurements of a part by case and backbone, and the machine that all files come from.

    Raises:
        UserError: If a file cannot be read, or if the files do not belong into one table.
    """
    cases: dict[Case, dict[str, Measurement]] = {}
    machine: dict | None = None
    for path in paths:
        results, content = read_benchmark(path)
        new = {name: value for name, value in content['machine'].items() if name not in MAY_DIFFER}
        known = machine or {}
        if any(known[name] != new[name] for name in known.keys() & new.keys()):
            raise UserError('the benchmark files come from different machines: report each machine by itself')
        machine = {**known, **new}  # only a file with exported modes has the runtimes' versions
        for case, measurements in results.items():
            if case.part == part:
                if case in cases:
                    raise UserError(f'two benchmark files hold {case}: backbones are only comparable within one run')
                cases[case] = {m.backbone: m for m in measurements}
    return cases, machine


def _add_published_latencies(comparison: Comparison) -> None:
    """The paper's latencies of exported files, for which the benchmark has no comparable mode."""
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


def _describe_commands(comparison: Comparison, states: Mapping[str, State]) -> None:
    """Notes the origin of each accuracy, the backbones without one, and the commands that ran."""
    comparison.remarks = {key: result.remark for key, result in comparison.measured.items()}
    comparison.missing = _missing(comparison.results, states, comparison.task)
    comparison.commands = {key: [entry['command'] for entry in state.commands] for key, state in states.items()}
    entries = [entry for state in states.values() for entry in state.commands]
    comparison.started_by = list(dict.fromkeys(entry['started_by'] for entry in entries if 'started_by' in entry))


def _missing(results: Mapping[str, Result], states: Mapping[str, State], task: Task) -> dict[str, list[str]]:
    """Reason -> names of the backbones that have no metrics for it."""
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
