"""Writes the comparison: a Markdown and a CSV table, plots, and one HTML page that opens offline."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from ..utils import replace_file
from ..version import __version__
from .plots import Point, plot_accuracy, plot_curves, save_figure
from .table import Column, Comparison


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Writes ``comparison.{md,csv,html}`` and the plots into a folder; returns the three files."""
    out.mkdir(parents=True, exist_ok=True)
    figures = make_figures(comparison)
    drawn = {name: (title, save_figure(figure, out / name)) for name, (title, figure) in figures.items()}
    write_csv(comparison, out / 'comparison.csv')
    replace_file(out / 'comparison.md', markdown(comparison, figures))
    replace_file(out / 'comparison.html', html(comparison, drawn))
    return [out / f'comparison.{suffix}' for suffix in ('md', 'csv', 'html')]


def make_figures(comparison: Comparison) -> dict[str, tuple[str, Figure]]:
    """File name -> title and figure. Plots that nothing is known for are left out."""
    figures = {}
    accuracy = comparison.columns[0].name
    for i, column in enumerate(comparison.columns):
        points = list(_points(comparison, i))
        if column.kind != 'accuracy' and points and f'accuracy-{column.kind}' not in figures:
            machine = comparison.machine if column.kind == 'latency' else {}
            figure = plot_accuracy(points, column.name, f'{accuracy} (%)', machine.get('gpu') or machine.get('cpu'))
            figures[f'accuracy-{column.kind}'] = f'{accuracy} against {column.kind}', figure
    losses = {result.backbone.name: result.losses for result in comparison.results.values() if result.losses}
    metric = comparison.task.metrics[0]
    validations = {
        result.backbone.name: {step: metrics[metric.key] * metric.scale for step, metrics in result.validations.items()}
        for result in comparison.results.values()
        if result.validations
    }
    if losses:
        by_epoch = any('epochs' in result.trained for result in comparison.results.values())
        figures['training'] = ('Training of all backbones', plot_curves(losses, validations, metric.name, by_epoch))
    return figures


def _points(comparison: Comparison, column: int) -> Iterator[Point]:
    """Measured points, and beside them the published ones where accuracy was measured in the published setting."""
    same_machine = comparison.columns[column].kind != 'latency'
    for key, cells in comparison.table.items():
        accuracy, cost = cells[0], cells[column]
        if None not in (accuracy.measured, cost.measured):
            yield Point(comparison.name(key), cost.measured, accuracy.measured)
        if same_machine and key in comparison.comparable and None not in (accuracy.published, cost.published):
            yield Point(comparison.name(key), cost.published, accuracy.published, published=True)


def number(value: float | None, sign: bool = False) -> str:
    """A figure as the tables show it, ``-`` if there is none."""
    if value is None:
        return '-'
    value = round(value, 1) + 0.0  # turns -0.0 into 0.0
    return f'{value:{"+" if sign and value else ""}.1f}'


def tone(comparison: Comparison, key: str, column: Column, difference: float | None) -> str:
    """CSS class of a difference: that of accuracy is coloured where it was measured in the published setting."""
    if key not in comparison.comparable or column.kind != 'accuracy' or number(difference) in ('-', '0.0'):
        return ''
    return ' better' if difference > 0 else ' worse'


def write_csv(comparison: Comparison, path: Path) -> None:
    """The table with one figure a column; what is missing is empty, and the remark says why."""
    wide = [(i, part) for i, column in enumerate(comparison.columns) for part in column.parts]
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        columns = comparison.columns
        writer.writerow(['backbone', *(f'{columns[i].name}, {columns[i].labels[part]}' for i, part in wide), 'remark'])
        for key, cells in comparison.table.items():
            figures = [getattr(cells[i], part) for i, part in wide]
            writer.writerow(
                [
                    comparison.name(key),
                    *('' if figure is None else round(figure, 4) for figure in figures),
                    comparison.remarks[key],
                ]
            )
        for reason, names in comparison.missing.items():
            writer.writerows([name, *[''] * len(wide), f'no result: {reason}'] for name in names)


def markdown(comparison: Comparison, figures: Mapping) -> str:
    """The report in Markdown; plots are linked as files beside it."""
    lines = [f'# {comparison.title}', '']
    lines += [line for warning in comparison.warnings for line in (f'> **Note:** {warning}', '')]
    lines += [f'- {name}: {value}' for name, value in comparison.setting]
    lines += [f'- latency: {_machine(comparison.machine)}', ''] if comparison.machine else ['']
    heads = [
        f'{column.name}: {" / ".join(column.labels[part] for part in column.parts)}' for column in comparison.columns
    ]
    lines += [f'| {" | ".join(["backbone", *heads, "accuracy from"])} |', f'|{"---|" + "--:|" * len(heads) + "---|"}']
    for key, cells in comparison.table.items():
        texts = [
            ' / '.join(number(getattr(cell, part), part == 'difference') for part in column.parts)
            for column, cell in zip(comparison.columns, cells)
        ]
        lines.append(f'| {" | ".join([comparison.name(key), *texts, comparison.remarks[key]])} |')
    if comparison.missing:
        lines += ['', 'Backbones without results:', '']
        lines += [f'- {", ".join(names)}: {reason}' for reason, names in comparison.missing.items()]
    for name, (text, _) in figures.items():
        lines += ['', f'![{text}]({name}.png)']
    if comparison.commands:
        commands = [line for commands in comparison.commands.values() for line in commands]
        lines += ['', '## Commands', '']
        if comparison.started_by:
            lines += [*(f'    {line}' for line in comparison.started_by), '', 'ran', '']
        lines += [f'    {line}' for line in commands]
    return '\n'.join(lines) + '\n'


def _machine(machine: Mapping) -> str:
    return ', '.join(f'{name} {value}' for name, value in machine.items())


def html(comparison: Comparison, figures: Mapping) -> str:
    """The report as one page that needs no other file."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / 'templates')
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template('report.html').render(
        comparison=comparison,
        figures=figures,
        number=number,
        tone=partial(tone, comparison),
        version=__version__,
        machine=_machine(comparison.machine) if comparison.machine else '',
    )
