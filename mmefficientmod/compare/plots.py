"""The plots: accuracy against cost, training curves, cost against resolution and batch size; no torch needed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ..measure.records import Results, records
from ..utils import replace_file
from ..zoo.backbones import NAMES

RED, *COLORS = (matplotlib.colormaps['tab10'].colors[i] for i in (3, 0, 1, 2, 4, 5, 6, 7, 8, 9))
MARKERS = 'osD^vP'
LINES = '--', '-', ':', '-.'  # of EfficientMod
OTHER_LINES = '-', '--', ':', '-.'
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
PLACES = (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)  # of a name next to its point: right, up


@dataclass(frozen=True)
class Point:
    """One backbone in a scatter plot: its name and position; ``published`` points are hollow."""

    name: str
    x: float
    y: float
    published: bool = False


def styles(shown: Iterable[str]) -> dict[str, dict]:
    """Name -> colour, marker and line of the backbones in a figure; EfficientMod is red and bold.

    Backbones that the package knows look the same in every figure. The others are numbered within the figure.
    """
    names = dict.fromkeys([*NAMES, *shown])
    ours, others = ([name for name in names if is_ours(name) == kind] for kind in (True, False))
    looks = {}
    for i, name in enumerate(ours):
        line = LINES[i % len(LINES)]
        looks[name] = dict(color=RED, marker=MARKERS[i % len(MARKERS)], linestyle=line, linewidth=2.2)
    for i, name in enumerate(others):
        turn, color = divmod(i, len(COLORS))  # a colour that repeats has another marker and another line
        marker, line = MARKERS[(turn + color) % len(MARKERS)], OTHER_LINES[turn % len(OTHER_LINES)]
        looks[name] = dict(color=COLORS[color], marker=marker, linestyle=line, linewidth=1.3)
    return looks


def is_ours(name: str) -> bool:
    """Whether a backbone is one of EfficientMod."""
    return name.startswith('EfficientMod')


def plot_accuracy(
    points: Sequence[Point], x_label: str, y_label: str, note: str | None = None, log_cost: bool = False
) -> Figure:
    """Accuracy (%) against a cost, one labelled point per backbone; many points need a logarithmic cost and room."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9, 6.4) if log_cost else (6.4, 4.6), layout='constrained')
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        looks = styles(point.name for point in points)
        for point in points:
            look = looks[point.name]
            color, fill = look['color'], 'none' if point.published else look['color']
            marker = dict(s=55, marker=look['marker'], edgecolors=color, linewidths=1.4, color=fill)
            axes.scatter(point.x, point.y, **marker, zorder=3, clip_on=False)
        axes.margins(0.14, 0.12)
        if log_cost:
            axes.set(xscale='log')
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter('{x:g}')
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
        if any(point.published for point in points):
            note = 'filled: measured, hollow: published'
        axes.set_title(note or '', fontsize=9, loc='left', color='0.35')
        _label(figure, axes, points)
    return figure


def _label(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Writes each name next to its point, at the position that covers the least of other points and names."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    taken = []
    for point in points:
        x, y = axes.transData.transform((point.x, point.y))
        taken.append(matplotlib.transforms.Bbox.from_bounds(x - 5, y - 5, 10, 10))
    area = axes.get_window_extent(renderer)

    def annotate(point: Point, right: int, up: int) -> Annotation:
        return axes.annotate(
            point.name,
            (point.x, point.y),
            (7 * right, (9 if right else 7) * up),
            textcoords='offset points',
            ha={1: 'left', 0: 'center', -1: 'right'}[right],
            va={1: 'bottom', 0: 'center', -1: 'top'}[up],
            fontsize=8.5,
            fontweight='bold' if is_ours(point.name) else 'normal',
        )

    def cost(label: Annotation) -> float:
        box = label.get_window_extent(renderer)
        outside = box.width * box.height - _overlap(box, area)
        return outside + sum(_overlap(box, other) for other in taken)

    for point in points:
        if point.published and any(p.name == point.name and not p.published for p in points):
            continue  # the measured point carries the name
        labels = [annotate(point, right, up) for right, up in PLACES]
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
        looks = styles([*losses, *validations])
        right.set(xlabel='epoch' if by_epoch else 'iteration', ylabel=f'validation {metric} (%)')
        for axes, curves in ((left, losses), (right, validations)):
            for name, values in curves.items():
                curve = pd.Series(values).sort_index()
                if axes is left and smoothed:
                    curve = curve.rolling(2 * max(2, len(curve) // 40) + 1, center=True, min_periods=1).mean()
                markers = dict(markersize=4, markevery=max(1, len(curve) // 12))
                axes.plot(curve.index, curve, label=name, **markers, **looks[name])
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _add_legend(figure)
    return figure


def _add_legend(figure: Figure) -> None:
    """One legend for all panels."""
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc='outside right upper', fontsize=8.5, handlelength=3)


def plot_cost(results: Results, machine: Mapping) -> list[tuple[str, Figure]]:
    """Latency against resolution and against batch size, for every part that was measured at several.

    Returns:
        list[tuple[str, Figure]]: File name without suffix, and figure.
    """
    frame = pd.DataFrame(list(records(results)))
    frame = frame[frame['error'].isna()]
    places = {case.size: case.input_size[0] * case.input_size[1] for case in results}
    frame = frame.assign(resolution=frame['size'].map(places))
    figures = []
    for part, group in frame.groupby('part', sort=False):
        for kind, fixed in (('resolution', 'batch'), ('batch', 'size')):
            groups = group.groupby([fixed, 'precision', 'mode'], sort=False)
            panels = [(held, panel) for held, panel in groups if panel.groupby('name')[kind].nunique().max() > 1]
            if panels:
                figures.append((f'{part}-{kind}', _cost_figure(part, kind, panels, machine)))
    return figures


def _cost_figure(part: str, kind: str, panels: Sequence[tuple[tuple, pd.DataFrame]], machine: Mapping) -> Figure:
    with matplotlib.rc_context(RC):
        wide = min(len(panels), 3)
        high = math.ceil(len(panels) / wide)
        figure = Figure(figsize=(1.8 + 4.6 * wide, 4.2 * high), layout='constrained')
        grid = list(figure.subplots(high, wide, squeeze=False).flat)
        for axes in grid[len(panels) :]:
            axes.remove()
        looks = styles(name for _, panel in panels for name in panel['name'])
        for axes, ((fixed, precision, mode), panel) in zip(grid, panels):
            held = f'batch {fixed}' if kind == 'resolution' else '{} x {}'.format(*fixed)
            axes.set_title(f'{part}, {held}, {precision}, {mode}', fontsize=9, loc='left')
            for name, line in panel.sort_values(kind).groupby('name', sort=False):
                look = looks[name]
                axes.plot(line[kind], line['median_ms'], label=name, markersize=4, **look)
                axes.fill_between(line[kind], line['q25_ms'], line['q75_ms'], color=look['color'], alpha=0.15)
            names = {place: 'x'.join(map(str, dict.fromkeys(size))) for place, size in zip(panel[kind], panel['size'])}
            side = 'side of the image (pixels)'
            axes.set(
                xscale='log', yscale='log', ylabel='ms a batch', xlabel=side if kind == 'resolution' else 'batch size'
            )
            axes.set_xticks(list(names), list(names.values() if kind == 'resolution' else names))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter('{x:g}')
            axes.yaxis.set_minor_locator(NullLocator())
        _add_legend(figure)
        where = machine.get('gpu') or f'{machine["cpu"]}, threads: {machine["threads"]}'
        figure.supxlabel(f'{where}, torch {machine["torch"]}; median, band: quartiles', fontsize=8, color='0.35')
    return figure


def save_figure(figure: Figure, path: Path) -> str:
    """Writes ``path`` as PNG and as SVG; returns the SVG as an element for an HTML page."""
    buffer, image = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format='svg', metadata=dict(Date=None))
    replace_file(path.with_name(f'{path.name}.svg'), buffer.getvalue())
    figure.savefig(image, format='png', dpi=150)
    replace_file(path.with_name(f'{path.name}.png'), image.getvalue())
    return buffer.getvalue()[buffer.getvalue().index('<svg') :]
