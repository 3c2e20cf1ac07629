"""The comparison's plots: accuracy against cost, training curves, cost against resolution and batch."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..measure.records import Case, Measurement
from ..zoo.backbones import FURTHER, TABLE7

RED, *COLORS = (matplotlib.colormaps['tab10'].colors[i] for i in (3, 0, 1, 2, 4, 5, 6, 7, 8, 9))
MARKERS = 'osD^vP'
LINES = '--', '-', ':', '-.'
RC = {
    'svg.hashsalt': 'mmefficientmod',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'axes.axisbelow': True,
    'legend.frameon': False,
    'font.size': 10,
}


@dataclass(frozen=True)
class Point:
    """One backbone in a scatter plot: its name and place; ``published`` points are drawn hollow."""

    name: str
    x: float
    y: float
    published: bool = False


def style(name: str) -> dict:
    """Colour, marker and line of a backbone, the same in every plot: EfficientMod is red and bold."""
    ours = is_ours(name)
    names = [other for other in TABLE7 + FURTHER if is_ours(other) == ours]
    index = names.index(name) if name in names else len(names)
    return dict(
        color=RED if ours else COLORS[index % len(COLORS)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle=LINES[index % len(LINES)] if ours else '-',
        linewidth=2.2 if ours else 1.3,
    )


def is_ours(name: str) -> bool:
    """Whether a backbone is one of EfficientMod."""
    return name.startswith('EfficientMod')


def plot_accuracy(points: Sequence[Point], x_label: str, y_label: str, note: str | None = None) -> Figure:
    """Accuracy (%) against a cost, one labelled point a backbone."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6.4, 4.6), layout='constrained')
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        for point in points:
            look = style(point.name)
            axes.scatter(
                point.x,
                point.y,
                s=55,
                marker=look['marker'],
                edgecolors=look['color'],
                linewidths=1.4,
                color='none' if point.published else look['color'],
                zorder=3,
                clip_on=False,
            )
        axes.margins(0.14, 0.12)
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
        if any(point.published for point in points):
            axes.set_title('filled: measured, hollow: published', fontsize=9, loc='left', color='0.35')
        elif note:
            axes.set_title(note, fontsize=9, loc='left', color='0.35')
        _label(figure, axes, points)
    return figure


def _label(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Writes each name beside its point, where it covers no other point and no other name as far as possible."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    taken = []
    for point in points:
        x, y = axes.transData.transform((point.x, point.y))
        taken.append(matplotlib.transforms.Bbox.from_bounds(x - 5, y - 5, 10, 10))
    places = [
        ((7, 0), 'left', 'center'),
        ((-7, 0), 'right', 'center'),
        ((0, 7), 'center', 'bottom'),
        ((0, -7), 'center', 'top'),
        ((7, 9), 'left', 'bottom'),
        ((7, -9), 'left', 'top'),
        ((-7, 9), 'right', 'bottom'),
        ((-7, -9), 'right', 'top'),
    ]
    area = axes.get_window_extent(renderer)

    def cost(label: Annotation) -> float:
        box = label.get_window_extent(renderer)
        outside = box.width * box.height - _overlap(box, area)
        return outside + sum(_overlap(box, other) for other in taken)

    for point in points:
        if point.published and any(p.name == point.name and not p.published for p in points):
            continue  # the measured point carries the name
        weight = 'bold' if is_ours(point.name) else 'normal'
        labels = [
            axes.annotate(
                point.name,
                (point.x, point.y),
                offset,
                textcoords='offset points',
                ha=ha,
                va=va,
                fontsize=8.5,
                fontweight=weight,
            )
            for offset, ha, va in places
        ]
        best = min(labels, key=cost)
        for label in labels:
            if label is not best:
                label.remove()
        taken.append(best.get_window_extent(renderer))


def _overlap(a: matplotlib.transforms.Bbox, b: matplotlib.transforms.Bbox) -> float:
    common = matplotlib.transforms.Bbox.intersection(a, b)
    return common.width * common.height if common else 0.0


def plot_curves(
    losses: Mapping[str, Mapping[int, float]],
    validations: Mapping[str, Mapping[int, float]],
    metric: str,
    by_epoch: bool,
) -> Figure:
    """Training loss of all backbones, and their accuracy during training.

    Args:
        losses (Mapping): Name of a backbone -> loss by iteration.
        validations (Mapping): Name of a backbone -> accuracy (%) by iteration or epoch.
        metric (str): Name of the accuracy.
        by_epoch (bool): Whether accuracy is given by epoch.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(11, 4.4), layout='constrained')
        left, right = figure.subplots(1, 2)
        smoothed = max((len(values) for values in losses.values()), default=0) > 40
        left.set(xlabel='iteration', ylabel='training loss' + (' (moving average)' if smoothed else ''))
        right.set(xlabel='epoch' if by_epoch else 'iteration', ylabel=f'validation {metric} (%)')
        for axes, curves in ((left, losses), (right, validations)):
            for name, values in curves.items():
                steps, heights = zip(*sorted(values.items()))
                if axes is left and smoothed:
                    heights = _moving_average(heights, max(2, len(heights) // 40))
                axes.plot(steps, heights, markersize=4, markevery=max(1, len(steps) // 12), label=name, **style(name))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _add_legend(figure)
    return figure


def _add_legend(figure: Figure) -> None:
    """One legend of all that any panel shows."""
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc='outside right upper', fontsize=8.5, handlelength=3)


def _moving_average(values: Sequence[float], width: int) -> list[float]:
    """Mean over up to ``width`` values before and after each."""
    windows = (values[max(0, i - width) : i + width + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def plot_cost(results: Mapping[Case, Sequence[Measurement]], machine: Mapping) -> list[tuple[str, Figure]]:
    """Latency against resolution and against batch size, for every part that was measured at several.

    Returns:
        list[tuple[str, Figure]]: File name without suffix, and figure.
    """
    figures = []
    parts = dict.fromkeys(case.part for case in results)
    for part in parts:
        cases = [case for case in results if case.part == part and not all(m.error for m in results[case])]
        for kind in ('resolution', 'batch'):
            panels: dict[tuple, list[Case]] = {}
            for case in cases:
                fixed = case.batch if kind == 'resolution' else case.size
                panels.setdefault((fixed, case.precision, case.mode), []).append(case)
            panels = {panel: group for panel, group in panels.items() if len(group) > 1}
            if panels:
                figures.append((f'{part}-{kind}', _cost_figure(part, kind, panels, results, machine)))
    return figures


def _cost_figure(
    part: str,
    kind: str,
    panels: Mapping[tuple, Sequence[Case]],
    results: Mapping[Case, Sequence[Measurement]],
    machine: Mapping,
) -> Figure:
    with matplotlib.rc_context(RC):
        wide = min(len(panels), 3)
        high = math.ceil(len(panels) / wide)
        figure = Figure(figsize=(1.8 + 4.6 * wide, 4.2 * high), layout='constrained')
        grid = list(figure.subplots(high, wide, squeeze=False).flat)
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, ((fixed, precision, mode), cases) in zip(grid, panels.items()):
            held = f'batch {fixed}' if kind == 'resolution' else f'{fixed[0]} x {fixed[1]}'
            axes.set_title(f'{part}, {held}, {precision}, {mode}', fontsize=9, loc='left')
            lines: dict[str, list[tuple[int, Measurement]]] = {}
            for case in sorted(cases, key=lambda case: _place(case, kind)):
                for measured in results[case]:
                    if not measured.error:
                        lines.setdefault(measured.name, []).append((_place(case, kind), measured))
            for name, line in lines.items():
                look, x = style(name), [place for place, _ in line]
                axes.plot(x, [m.median_ms for _, m in line], label=name, markersize=4, **look)
                axes.fill_between(
                    x, [m.q25_ms for _, m in line], [m.q75_ms for _, m in line], color=look['color'], alpha=0.15
                )
            labels = {
                _place(case, kind): 'x'.join(map(str, dict.fromkeys(case.size))) if kind == 'resolution' else case.batch
                for case in cases
            }
            axes.set(
                xscale='log',
                yscale='log',
                ylabel='ms a batch',
                xlabel='side of the image (pixels)' if kind == 'resolution' else 'batch size',
            )
            axes.set_xticks(list(labels), labels.values())
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter('{x:g}')
            axes.yaxis.set_minor_locator(NullLocator())
        _add_legend(figure)
        where = machine.get('gpu') or f'{machine["cpu"]}, threads: {machine["threads"]}'
        figure.supxlabel(f'{where}, torch {machine["torch"]}; median, band: quartiles', fontsize=8, color='0.35')
    return figure


def _place(case: Case, kind: str) -> int:
    return case.input_size[0] * case.input_size[1] if kind == 'resolution' else case.batch


def save_figure(figure: Figure, path: Path) -> str:
    """Writes ``path`` as PNG and as SVG; returns the SVG as an element for an HTML page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format='svg', metadata=dict(Date=None))
    path.with_name(f'{path.name}.svg').write_text(buffer.getvalue())
    figure.savefig(path.with_name(f'{path.name}.png'), dpi=150)
    return buffer.getvalue()[buffer.getvalue().index('<svg') :]
