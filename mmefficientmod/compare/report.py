"""Writes the comparison: a Markdown and a CSV table, plots, and an HTML page that opens offline; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from .. import __version__
from ..measure.tables import describe_machine, markdown_table
from ..utils import render_page, replace_file
from .plots import Point, plot_accuracy, plot_curves, save_figure
from .table import Comparison

PAPER_TABLES = {'downstream': '7 and 11', 'imagenet': '1 and 10'}  # table of published.yml -> tables of the paper


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Writes ``comparison.{md,csv,html}`` and the plots into a folder; returns the three files."""
    out.mkdir(parents=True, exist_ok=True)
    figures = make_figures(comparison)
    drawn = {name: (title, save_figure(figure, out / name)) for name, (title, figure) in figures.items()}
    texts = dict(
        md=markdown(comparison, figures),
        csv=csv_table(comparison).to_csv(index=False),
        html=html(comparison, drawn),
    )
    for suffix, text in texts.items():
        replace_file(out / f'comparison.{suffix}', text)
    return [out / f'comparison.{suffix}' for suffix in texts]


def make_figures(comparison: Comparison) -> dict[str, tuple[str, Figure]]:
    """File name -> title and figure, without plots that would be empty."""
    figures = {}
    accuracy = next(iter(comparison.columns))
    for heading, column in comparison.columns.items():
        points = list(_points(comparison, accuracy, heading))
        if column.kind != 'accuracy' and points and f'accuracy-{column.kind}' not in figures:
            machine = (comparison.machine if column.kind == 'latency' else None) or {}
            figure = plot_accuracy(points, heading, f'{accuracy} (%)', machine.get('gpu') or machine.get('cpu'))
            figures[f'accuracy-{column.kind}'] = f'{accuracy} against {column.kind}', figure
    metric, results = comparison.task.metrics[0], comparison.results.values()
    losses = {result.backbone.name: result.losses for result in results if result.losses}
    validations = {
        result.backbone.name: {step: found[metric.key] * metric.scale for step, found in result.validations.items()}
        for result in results
        if result.validations
    }
    if losses:
        by_epoch = any('epoch' in result.trained for result in results)  # '1/1 epoch' as well
        figure = plot_curves(losses, validations, metric.name, by_epoch)
        figures['training'] = 'Training of all backbones', figure
    return figures


def _points(comparison: Comparison, accuracy: str, heading: str) -> Iterator[Point]:
    """Measured points, and published ones for backbones whose accuracy was measured in the published setting."""
    for key, row in comparison.table.iterrows():
        for part in ('measured', 'published'):
            x, y = row.get((heading, part)), row.get((accuracy, part))
            other = part == 'published' and (key not in comparison.comparable or comparison.columns[heading].source)
            if pd.notna(x) and pd.notna(y) and not other:
                yield Point(comparison.name(key), x, y, part == 'published')


def number(value: float | None, sign: bool = False) -> str:
    """A value as the tables show it, ``-`` if there is none."""
    if value is None or pd.isna(value):
        return '-'
    value = round(value, 1) + 0.0  # turns -0.0 into 0.0
    return f'{value:{"+" if sign and value else ""}.1f}'


def tone(comparison: Comparison, key: str, heading: str, difference: float | None) -> str:
    """CSS class of a difference. A difference of accuracy has a colour if it was measured in the published setting."""
    kind, shown = comparison.columns[heading].kind, number(difference)
    if key not in comparison.comparable or kind != 'accuracy' or shown in ('-', '0.0'):
        return ''
    return ' worse' if shown.startswith('-') else ' better'


def csv_table(comparison: Comparison) -> pd.DataFrame:
    """The table with one value in each column. Missing values are empty, and the remark gives the reason."""
    frame = comparison.table.round(4)
    frame.columns = [f'{heading}, {comparison.columns[heading].label(part)}' for heading, part in frame.columns]
    frame.insert(0, 'backbone', [comparison.name(key) for key in frame.index])
    frame['remark'] = pd.Series(comparison.remarks)
    missing = [(name, f'no result: {reason}') for reason, names in comparison.missing.items() for name in names]
    return pd.concat([frame, pd.DataFrame(missing, columns=['backbone', 'remark'])])


def markdown(comparison: Comparison, figures: Mapping) -> str:
    """The report in Markdown; its plots are files in the same folder."""
    lines = [f'# {comparison.title}', '']
    lines += [line for warning in comparison.warnings for line in (f'> **Note:** {warning}', '')]
    lines += [f'- {name}: {value}' for name, value in comparison.setting]
    lines += [f'- latency: {_machine(comparison)}', ''] if comparison.machine else ['']
    frame = pd.DataFrame({'backbone': [comparison.name(key) for key in comparison.table.index]})
    for heading, column in comparison.columns.items():
        group = comparison.table[heading]
        title = f'{heading}: {" / ".join(column.label(part) for part in group)}'
        texts = [[number(value, part == 'difference') for value in group[part]] for part in group]
        frame[title] = [' / '.join(row) for row in zip(*texts)]
    frame['accuracy from'] = list(comparison.remarks.values())
    lines.append(markdown_table(frame))
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


def _machine(comparison: Comparison) -> str:
    return describe_machine(comparison.machine or {})


def html(comparison: Comparison, figures: Mapping) -> str:
    """The report as one page that needs no other file."""
    return render_page(
        Path(__file__).parent / 'templates' / 'report.html',
        comparison=comparison,
        figures=figures,
        number=number,
        tone=partial(tone, comparison),
        version=__version__,
        machine=_machine(comparison),
        tables=PAPER_TABLES[comparison.task.table],
        machines=', '.join(comparison.task.machines or ['A100']),
    )
