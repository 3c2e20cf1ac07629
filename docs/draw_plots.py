"""Draws the plots of the pages as SVG from the files that hold the figures: docs/results and published.yml.

Each SVG notes a digest of the numbers that it shows. A test compares it with the files, so a plot cannot become stale.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmefficientmod.compare.plots import RC, RED, Point, is_ours, plot_accuracy, styles
from mmefficientmod.measure.records import read_benchmark, records
from mmefficientmod.utils import replace_file
from mmefficientmod.zoo.published import published

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / 'docs/results'
PLOTS = REPO / 'docs/images/plots'
ONE_THREAD = 'deploy/backbone-512x512-1-thread-avx512'
BOTH_CORES = 'deploy/backbone-512x512-2-threads'
LARGE = 'deploy/backbone-800x1344-2-threads'
LABELS = {
    'eager': 'PyTorch, eager',
    'deploy-compiled': 'PyTorch, compiled',
    'onnx': 'ONNX Runtime',
    'openvino': 'OpenVINO',
}
LABELS.update({'openvino-int8': 'OpenVINO, INT8', 'onnx-int8': 'ONNX Runtime, INT8', 'pt2': 'AOTInductor'})


def measured(place: str) -> pd.DataFrame:
    """Every measurement of a file, or of all files of a folder, below docs/results."""
    path = RESULTS / place
    files = sorted(path.glob('*.json')) if path.is_dir() else [path]
    frames = [pd.DataFrame(list(records(read_benchmark(file)[0]))) for file in files]
    return pd.concat(frames, ignore_index=True)


def ap_against_latency() -> tuple[Figure, object]:
    """Box AP of the paper against the latency of the exported backbone."""
    found = measured(LARGE)
    times = found[found['mode'] == 'openvino'].set_index('name')['median_ms']
    known = {name: row['ap_box'] for name, row in published('downstream').items() if name in times}
    points = [Point(name, round(times[name], 1), ap) for name, ap in known.items()]
    label = 'OpenVINO latency of the backbone at 800 x 1344, two cores (ms)'
    note = 'box AP: the paper, Mask R-CNN 1x, not re-run; latency: AMD EPYC, AVX-512, float32'
    return plot_accuracy(points, label, 'COCO box AP (published)', note), [vars(point) for point in points]


def runtimes() -> tuple[Figure, object]:
    """Latency of each backbone in each runtime."""
    modes = ['eager', 'deploy-compiled', 'onnx', 'openvino', 'openvino-int8']
    table = measured(ONE_THREAD).pivot(index='name', columns='mode', values='median_ms')[modes].round(1)
    table = table.sort_values('openvino')
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(8.4, 4.8), layout='constrained')
        axes = figure.add_subplot(ylabel='ms per image, one thread')
        colors = matplotlib.colormaps['viridis']
        width = 0.8 / len(modes)
        for i, mode in enumerate(modes):
            places = [k + (i - (len(modes) - 1) / 2) * width for k in range(len(table))]
            axes.bar(places, table[mode], width, label=LABELS[mode], color=colors(i / len(modes)))
        axes.set_xticks(range(len(table)), table.index, rotation=25, ha='right')
        _bold_ours(axes)
        axes.legend(fontsize=8.5, ncols=2)
        axes.set_title(
            '512 x 512, one image, AMD EPYC with AVX-512; lower is better', fontsize=9, loc='left', color='0.35'
        )
    return figure, table.to_dict()


def gain_over_reference() -> tuple[Figure, object]:
    """Speed-up of our form over the authors' operations, like with like, per runtime."""
    found = measured(ONE_THREAD)
    found = found[found['speed_up_over_reference'].notna() & found['name'].map(is_ours)]
    found = found[~found['mode'].str.startswith('reference')]
    table = found.pivot(index='mode', columns='name', values='speed_up_over_reference').round(3)
    table = table.loc[[mode for mode in LABELS if mode in table.index]]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.2, 3.4), layout='constrained')
        axes = figure.add_subplot(xlabel="speed-up over the authors' operations in the same runtime")
        looks = styles(table.columns)
        for name in table:
            marker = dict(marker=looks[name]['marker'], s=55, edgecolors=RED, color='none', linewidths=1.5)
            axes.scatter(table[name], range(len(table)), label=name, zorder=3, **marker)
        axes.axvline(1, color='0.4', linewidth=1)
        axes.set_yticks(range(len(table)), [LABELS[mode] for mode in table.index])
        axes.invert_yaxis()
        axes.legend(fontsize=8.5, loc='lower right')
        axes.set_title(
            '512 x 512, one thread, AMD EPYC with AVX-512; right of 1 is faster', fontsize=9, loc='left', color='0.35'
        )
    return figure, table.fillna(0).to_dict()


def imagenet(column: str, label: str) -> tuple[Figure, object]:
    """ImageNet top-1 against latency, both the paper's."""
    rows = {name: row for name, row in published('imagenet').items() if row[column] is not None}
    points = [Point(name, row[column], row['top1'], published=True) for name, row in rows.items()]
    figure = plot_accuracy(points, label, 'ImageNet top-1 (%)', log_cost=True)
    figure.axes[0].set_title("all figures are the paper's, Table 1", fontsize=9, loc='left', color='0.35')
    return figure, [vars(point) for point in points]


def headline() -> tuple[Figure, object]:
    """EfficientMod-s and EfficientFormerV2-S2 in four runtimes."""
    table = measured('headline/avx512-1-thread.json').pivot(index='mode', columns='name', values='median_ms').round(1)
    table = table.loc[[mode for mode in LABELS if mode in table.index]]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6.6, 3.2), layout='constrained')
        axes = figure.add_subplot(xlabel='ms per image, 224 x 224, one thread')
        for shift, name, color in ((-0.2, 'EfficientMod-s', RED), (0.2, 'EfficientFormerV2-S2', '0.55')):
            bars = axes.barh([k + shift for k in range(len(table))], table[name], 0.38, label=name, color=color)
            axes.bar_label(bars, fmt='%.1f', padding=3, fontsize=8)
        axes.set_yticks(range(len(table)), [LABELS[mode] for mode in table.index])
        axes.invert_yaxis()
        axes.legend(fontsize=8.5)
    return figure, table.to_dict()


def int8_gain() -> tuple[Figure, object]:
    """Speed-up of INT8 over float32 in OpenVINO."""
    gains = {}
    for label, place in (('one thread', ONE_THREAD), ('both cores', BOTH_CORES)):
        table = measured(place).pivot(index='name', columns='mode', values='median_ms')
        gains[label] = (table['openvino'] / table['openvino-int8']).round(2)
    table = pd.DataFrame(gains).sort_values('both cores')
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.2, 3.6), layout='constrained')
        axes = figure.add_subplot(xlabel='speed-up of INT8 over float32 with OpenVINO, 512 x 512')
        for shift, (name, values) in zip((-0.2, 0.2), table.items()):
            axes.barh([k + shift for k in range(len(table))], values, 0.38, label=name)
        axes.set_yticks(range(len(table)), table.index)
        axes.axvline(1, color='0.4', linewidth=1)
        _bold_ours(axes)
        axes.legend(fontsize=8.5, loc='lower right')
    return figure, table.to_dict()


def _bold_ours(axes: Axes) -> None:
    for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        if is_ours(text.get_text()):
            text.set_fontweight('bold')


PLOT: dict[str, Callable[[], tuple[Figure, object]]] = {
    'ap-latency': ap_against_latency,
    'runtimes': runtimes,
    'gain-over-reference': gain_over_reference,
    'imagenet-cpu': partial(imagenet, 'cpu_ms', 'ms per image, Xeon E5-2680, four threads'),
    'imagenet-gpu': partial(imagenet, 'gpu_p100_ms', 'ms per image, P100'),
    'headline': headline,
    'int8-gain': int8_gain,
}


def digest(numbers: object) -> str:
    """Sixteen hexadecimal digits that stand for the numbers of a plot."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


def draw(names: Sequence[str] = tuple(PLOT)) -> None:
    PLOTS.mkdir(exist_ok=True)
    for name in names:
        figure, numbers = PLOT[name]()
        buffer = io.StringIO()
        with matplotlib.rc_context({**RC, 'svg.fonttype': 'none'}):
            figure.savefig(buffer, format='svg', metadata=dict(Date=None, Description=f'numbers {digest(numbers)}'))
        replace_file(PLOTS / f'{name}.svg', buffer.getvalue())


if __name__ == '__main__':
    draw()
