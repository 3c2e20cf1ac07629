"""The benchmark's tables, made from its measurements: for the screen, and as Markdown and CSV; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..zoo.published import published
from .records import Case, Measurement, Results, records


def case_table(case: Case, measurements: Sequence[Measurement], baseline: str = '') -> pd.DataFrame:
    """All values of the backbones in one case."""
    columns = {
        'parameters (M)': lambda m: f'{m.params / 1e6:.1f}',
        'median (ms)': lambda m: f'{m.median_ms:.1f}',
        'quartiles (ms)': lambda m: f'{m.q25_ms:.1f} - {m.q75_ms:.1f}',
        'images/s': lambda m: f'{m.images_per_second:.1f}',
        'peak memory (MiB)': lambda m: _optional(m.peak_memory_mb, '.0f'),
        'difference': lambda m: f'{m.difference:.0e}',
        f'speed-up over {baseline}': lambda m: _speed_up(m.speed_up_over_baseline),
        f'speed-up over {case.like.mode}': lambda m: _speed_up(m.speed_up_over_reference),
    }
    if case.part == 'training':
        columns['kept for backward (MiB)'] = lambda m: _optional(m.kept_mb, '.0f')
    rows = {m.name: ['failed' if m.error else text(m) for text in columns.values()] for m in measurements}
    return _frame(pd.DataFrame.from_dict(rows, orient='index', columns=list(columns)))


def mode_table(results: Results, peak: float | None = None) -> pd.DataFrame:
    """The modes side by side: ms, and in brackets the speed-up over the reference that runs in the same way.

    Args:
        results (Mapping[Case, Sequence[Measurement]]): Cases that differ only in the mode.
        peak (float, optional): GFLOP/s of the machine, for the share of it that the fastest float32 mode reaches.
    """
    by_backbone: dict[str, dict[Case, Measurement]] = {}
    for case, found in results.items():
        for m in found:
            by_backbone.setdefault(m.name, {})[case] = m
    rows = {
        name: {
            **_times(measured, list(results)),
            **_kept_memory(measured),
            **_share_of_peak(measured, peak),
            **_differences(measured),
            **_published_accuracy(measured),
        }
        for name, measured in by_backbone.items()
    }
    return _frame(pd.DataFrame.from_dict(rows, orient='index').fillna('-'))


def _frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the backbones as its first column, without columns that have no value."""
    return frame.loc[:, (frame != '-').any()].rename_axis('backbone').reset_index()


# Columns of the table of modes: the measurements of one backbone by case -> text by heading ---------------------------


def _times(measured: Mapping[Case, Measurement], cases: Sequence[Case]) -> dict[str, str]:
    texts = {}
    for case in cases:
        m = measured.get(case)
        texts[case.mode] = '-' if m is None else _optional_ms(m.median_ms)
        if m and m.speed_up_over_reference and case != case.like:
            texts[case.mode] += f' ({_speed_up(m.speed_up_over_reference)})'
    return texts


def _kept_memory(measured: Mapping[Case, Measurement]) -> dict[str, str]:
    """In training: memory that is kept for the backward pass, in brackets as a share of the reference's."""
    kept = {case: m.kept_mb for case, m in measured.items() if m.kept_mb}
    texts = {}
    for case, size in kept.items():
        share = f' ({size / kept[case.like]:.0%})' if case.like in kept and case != case.like else ''
        texts[f'{case.mode} keeps (MiB)'] = f'{size:.0f}{share}'
    return texts


def _share_of_peak(measured: Mapping[Case, Measurement], peak: float | None) -> dict[str, str]:
    exact = _in_float(measured)
    case, first = next(iter(exact.items()), (None, None))
    if not (case and first and peak and first.macs) or case.part == 'training' or case.precision != 'fp32':
        return {}
    fastest = min(m.median_ms for m in exact.values() if m.median_ms)
    return {'share of peak': f'{2e-6 * first.macs * case.batch / fastest / peak:.0%}'}


def _differences(measured: Mapping[Case, Measurement]) -> dict[str, str]:
    exact = [m.difference for m in _in_float(measured).values() if m.difference is not None]
    known = {case: m.difference for case, m in measured.items() if m.difference is not None}
    bf16 = [difference for case, difference in known.items() if case.bf16]
    int8 = [difference for case, difference in known.items() if case.int8]
    return {
        **({'largest difference': f'{max(exact):.0e}'} if exact else {}),
        **({'largest difference of bf16': f'{max(bf16):.1%}'} if bf16 else {}),
        **({'largest difference of INT8': f'{max(int8):.1%}'} if int8 else {}),
    }


def _published_accuracy(measured: Mapping[Case, Measurement]) -> dict[str, str]:
    """Of a backbone that has any measurement that did not fail."""
    for case, m in measured.items():
        if not m.error:
            if case.part == 'classifier':
                table, heading, key = 'imagenet', 'published top-1', 'top1'
            else:
                table, heading, key = 'downstream', 'box AP', 'ap_box'
            return {heading: _optional(published(table).get(m.name, {}).get(key), '.1f')}
    return {}


def _in_float(measured: Mapping[Case, Measurement]) -> dict[Case, Measurement]:
    """The measurements that did not fail, without modes in INT8 and bfloat16."""
    return {case: m for case, m in measured.items() if not (m.error or case.int8 or case.bf16)}


def failures(results: Results) -> list[str]:
    """One line for each measurement that failed, with its reason."""
    return [f'{m.name}, {case.mode}: {m.error}' for case, found in results.items() for m in found if m.error]


def markdown_table(frame: pd.DataFrame) -> str:
    """A table in Markdown: numbers to the right; names, lists and remarks to the left."""
    texts = frame.astype(str)
    figures = [texts[name].str.match(r'(?!.*, )([-+]?\d|-$|failed)').all() for name in texts]
    lines = [list(texts), ['--:' if figure else '---' for figure in figures], *texts.values.tolist()]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def describe_machine(machine: Mapping) -> str:
    """The facts of a benchmark's machine in one line, without those that only a program reads."""
    return ', '.join(f'{name} {value}' for name, value in machine.items() if name not in ('host', 'cpu_flags'))


def report(results: Results, content: Mapping) -> str:
    """The benchmark in Markdown: the modes side by side where there are several, otherwise all values of each backbone.

    Args:
        results (Mapping[Case, Sequence[Measurement]]): The measurements.
        content (Mapping): The other facts in the JSON file.
    """
    peaks = content.get('peaks') or {}
    lines = [describe_machine(content['machine'])]
    if run := content.get('run'):
        lines += [', '.join(f'{name} {value}' for name, value in run.items())]
    lines += [', '.join(f'{name} {value:.0f} GFLOP/s' for name, value in peaks.items())] if peaks else []
    groups: dict[str, dict[Case, Sequence[Measurement]]] = {}
    for case, found in results.items():
        if found:
            groups.setdefault(case.setting, {})[case] = found
    for setting, group in groups.items():
        if len(group) > 1:
            lines += [f'{setting}:', markdown_table(mode_table(group, max(peaks.values(), default=None)))]
        else:
            ((case, found),) = group.items()
            lines += [f'{case}:', markdown_table(case_table(case, found, content['settings']['baseline']))]
        lines += failures(group)
    return '\n\n'.join(lines) + '\n'


def csv_table(results: Results) -> str:
    """All measurements as CSV, one line for each backbone in each case."""
    frame = pd.DataFrame(list(records(results)))
    return frame.assign(size=['{}x{}'.format(*size) for size in frame['size']]).to_csv(index=False)


def _speed_up(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}x'


def _optional_ms(value: float | None) -> str:
    return 'failed' if value is None else f'{value:.0f}' if value >= 10 else f'{value:.2f}'


def _optional(value: float | None, style: str) -> str:
    return '-' if value is None else format(value, style)
