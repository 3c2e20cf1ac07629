"""The benchmark's tables, from its measurements alone: for the screen, and as Markdown for the docs; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..zoo.published import published
from .records import Case, Measurement, Results


def case_table(case: Case, measurements: Sequence[Measurement], baseline: str = '') -> pd.DataFrame:
    """Everything about the backbones in one case."""
    columns = {
        'parameters (M)': lambda m: f'{m.params / 1e6:.1f}',
        'median (ms)': lambda m: f'{m.median_ms:.1f}',
        'quartiles (ms)': lambda m: f'{m.q25_ms:.1f} - {m.q75_ms:.1f}',
        'images/s': lambda m: f'{m.images_per_second:.1f}',
        'peak memory (MiB)': lambda m: _optional(m.peak_memory_mb, '.0f'),
        'difference': lambda m: f'{m.difference:.0e}',
        f'speed-up over {baseline}': lambda m: _optional(m.speed_up_over_baseline, '.2f'),
        f'speed-up over {case.like.mode}': lambda m: _optional(m.speed_up_over_reference, '.2f'),
    }
    if case.part == 'training':
        columns['kept for backward (MiB)'] = lambda m: _optional(m.kept_mb, '.0f')
    rows = {m.name: ['failed' if m.error else text(m) for text in columns.values()] for m in measurements}
    frame = pd.DataFrame.from_dict(rows, orient='index', columns=list(columns)).rename_axis('backbone')
    return frame.loc[:, (frame != '-').any()].reset_index()


def mode_table(results: Results, peak: float | None = None) -> pd.DataFrame:
    """The modes side by side: ms, in brackets the speed-up over the reference, eager or compiled as the mode is.

    Args:
        results (Mapping[Case, Sequence[Measurement]]): Cases that differ in the mode alone.
        peak (float, optional): GFLOP/s of the machine, for the share of it that the fastest float32 mode reaches.
    """
    by_backbone: dict[str, dict[Case, Measurement]] = {}
    for case, found in results.items():
        for m in found:
            by_backbone.setdefault(m.name, {})[case] = m
    rows = {name: _mode_row(measured, list(results), peak) for name, measured in by_backbone.items()}
    frame = pd.DataFrame.from_dict(rows, orient='index').rename_axis('backbone').fillna('-')
    return frame.loc[:, (frame != '-').any()].reset_index()


def _mode_row(measured: Mapping[Case, Measurement], cases: Sequence[Case], peak: float | None) -> dict[str, str]:
    row, whole = {}, [m for m in measured.values() if not m.error]
    for case in cases:
        m = measured.get(case)
        row[case.mode] = '-' if m is None else _optional_ms(m.median_ms)
        if m and m.speed_up_over_reference and case != case.like:
            row[case.mode] += f' ({m.speed_up_over_reference:.2f})'
    kept = {case: m.kept_mb for case, m in measured.items() if m.kept_mb}
    for case, size in kept.items():
        share = size / kept[case.like] if case.like in kept and case != case.like else None
        row[f'{case.mode} keeps (MiB)'] = f'{size:.0f}' + (f' ({share:.2f})' if share else '')
    exact = [m for case, m in measured.items() if not (m.error or case.int8)]
    if cases[0].part != 'training' and cases[0].precision == 'fp32' and peak and exact and exact[0].macs:
        fastest = min(m.median_ms for m in exact if m.median_ms)
        row['share of peak'] = f'{2e-6 * exact[0].macs * cases[0].batch / fastest / peak:.0%}'
    if exact:
        row['largest difference'] = f'{max(m.difference for m in exact if m.difference is not None):.0e}'
    quantised = [m.difference for case, m in measured.items() if case.int8 and m.difference is not None]
    if quantised:
        row['largest difference of INT8'] = f'{max(quantised):.1%}'
    if whole:
        table, name, figure = ('downstream', 'box AP', 'ap_box')
        if cases[0].part == 'classifier':
            table, name, figure = ('imagenet', 'published top-1', 'top1')
        row[name] = _optional(published(table).get(whole[0].name, {}).get(figure), '.1f')
    return row


def failures(results: Results) -> list[str]:
    """One line for each measurement that failed: of what, and why."""
    return [f'{m.name}, {case.mode}: {m.error}' for case, found in results.items() for m in found if m.error]


def markdown_table(frame: pd.DataFrame) -> str:
    """A table in Markdown; figures stand on the right; names, lists and remarks on the left."""
    texts = frame.astype(str)
    figures = [texts[name].str.match(r'(?!.*, )([-+]?\d|-$|failed)').all() for name in texts]
    lines = [list(texts), ['--:' if figure else '---' for figure in figures], *texts.values.tolist()]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def report(results: Results, content: Mapping) -> str:
    """The whole benchmark in Markdown: modes side by side where there are several, else all about each backbone."""
    machine, peaks = content['machine'], content.get('peaks') or {}
    lines = [', '.join(f'{name} {value}' for name, value in machine.items())]
    lines += [', '.join(f'{name} {value:.0f} GFLOP/s' for name, value in peaks.items())] if peaks else []
    peak = max(peaks.values(), default=None)
    groups: dict[str, dict[Case, Sequence[Measurement]]] = {}
    for case, found in results.items():
        if found:
            groups.setdefault(case.setting, {})[case] = found
    for setting, group in groups.items():
        if len(group) > 1:
            lines += [f'{setting}:', markdown_table(mode_table(group, peak))]
        else:
            ((case, found),) = group.items()
            lines += [f'{case}:', markdown_table(case_table(case, found, content['settings']['baseline']))]
        lines += failures(group)
    return '\n\n'.join(lines) + '\n'


def _optional_ms(value: float | None) -> str:
    return 'failed' if value is None else f'{value:.0f}' if value >= 10 else f'{value:.2f}'


def _optional(value: float | None, style: str) -> str:
    return '-' if value is None else format(value, style)
