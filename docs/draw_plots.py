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
from write_tables import conditions

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / 'docs/results'
PLOTS = REPO / 'docs/images/plots'
ONE_THREAD = 'deploy/backbone-512x512-1-thread-avx512'
BOTH_CORES = 'deploy/backbone-512x512-2-threads'
PRECISIONS = 'deploy/precisions-512x512-2-threads'
LARGE = 'deploy/backbone-800x1344-2-threads'
TRAINING = 'training/two-threads.json'
HEADLINE = 'headline/avx512-1-thread.json'
BOUNDED = {'exact': 'large-images/exact.json', 'attn_max_keys=1024': 'large-images/attn-max-keys-1024.json'}
LABELS = {
    'eager': 'PyTorch, eager',
    'deploy-compiled': 'PyTorch, compiled',
    'deploy-compiled-bf16': 'PyTorch, compiled, bf16',
    'onnx': 'ONNX Runtime',
    'openvino': 'OpenVINO',
    'openvino-bf16': 'OpenVINO, bf16',
    'openvino-int8': 'OpenVINO, INT8',
    'onnx-int8': 'ONNX Runtime, INT8',
    'pt2': 'AOTInductor',
}


def files(place: str) -> list[Path]:
    """A file below docs/results, or all files of a folder there."""
    path = RESULTS / place
    return sorted(path.glob('*.json')) if path.is_dir() else [path]


def measured_on(place: str) -> str:
    """Threads, processor and date of the runs in a place."""
    return conditions([read_benchmark(file)[1] for file in files(place)])


def measured(place: str) -> pd.DataFrame:
    """Every measurement of a file, or of all files of a folder, below docs/results."""
    frames = [pd.DataFrame(list(records(read_benchmark(file)[0]))) for file in files(place)]
    return pd.concat(frames, ignore_index=True)


def ap_against_latency() -> tuple[Figure, object]:
    """Published box AP against the latency of the exported backbone."""
    found = measured(LARGE)
    times = found[found['mode'] == 'openvino'].set_index('name')['median_ms']
    known = {**published('downstream'), **published('downstream_elsewhere')}
    points = [Point(name, round(times[name], 1), row['ap_box']) for name, row in known.items() if name in times]
    label = 'OpenVINO latency of the backbone at 800 x 1344, float32 (ms)'
    note = f'box AP: published, Mask R-CNN 1x, not re-run\nlatency: {measured_on(LARGE)}'
    return plot_accuracy(points, label, 'COCO box AP (published)', note), [vars(point) for point in points]


def runtimes() -> tuple[Figure, object]:
    """Latency of each backbone in each runtime."""
    modes = ['eager', 'deploy-compiled', 'onnx', 'openvino', 'openvino-bf16']
    table = measured(BOTH_CORES).pivot(index='name', columns='mode', values='median_ms')[modes].round(1)
    table = table.sort_values('openvino')
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(8.8, 4.8), layout='constrained')
        axes = figure.add_subplot(ylabel='ms per image')
        colors = matplotlib.colormaps['viridis']
        width = 0.84 / len(modes)
        for i, mode in enumerate(modes):
            places = [k + (i - (len(modes) - 1) / 2) * width for k in range(len(table))]
            axes.bar(places, table[mode], width, label=LABELS[mode], color=colors(i / len(modes)))
        axes.set_xticks(range(len(table)), table.index, rotation=25, ha='right')
        _bold_ours(axes)
        axes.legend(fontsize=8.5, ncols=2)
        _note(axes, f'512 x 512, one image, {measured_on(BOTH_CORES)}; lower is better')
    return figure, table.to_dict()


def gain_over_reference() -> tuple[Figure, object]:
    """Speed-up of our form over the authors' operations, like with like, per runtime."""
    found = measured(BOTH_CORES)
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
        _note(axes, f'512 x 512, {measured_on(BOTH_CORES)}; right of 1 is faster')
    return figure, table.fillna(0).to_dict()


def imagenet(column: str, label: str) -> tuple[Figure, object]:
    """ImageNet top-1 against latency, both the paper's."""
    rows = {name: row for name, row in published('imagenet').items() if row[column] is not None}
    points = [Point(name, row[column], row['top1'], published=True) for name, row in rows.items()]
    figure = plot_accuracy(points, label, 'ImageNet top-1 (%)', log_cost=True)
    _note(figure.axes[0], "all figures are the paper's, Table 1")
    return figure, [vars(point) for point in points]


def headline() -> tuple[Figure, object]:
    """EfficientMod-s and EfficientFormerV2-S2 in four runtimes."""
    table = measured(HEADLINE).pivot(index='mode', columns='name', values='median_ms').round(1)
    table = table.loc[[mode for mode in LABELS if mode in table.index]]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6.6, 3.2), layout='constrained')
        axes = figure.add_subplot(xlabel='ms per image of 224 x 224')
        for shift, name, color in ((-0.2, 'EfficientMod-s', RED), (0.2, 'EfficientFormerV2-S2', '0.55')):
            bars = axes.barh([k + shift for k in range(len(table))], table[name], 0.38, label=name, color=color)
            axes.bar_label(bars, fmt='%.1f', padding=3, fontsize=8)
        axes.set_yticks(range(len(table)), [LABELS[mode] for mode in table.index])
        axes.invert_yaxis()
        axes.legend(fontsize=8.5)
        _note(axes, measured_on(HEADLINE))
    return figure, table.to_dict()


def precision_gain() -> tuple[Figure, object]:
    """Speed-up of bfloat16 and INT8 over float32 in OpenVINO."""
    found = measured(PRECISIONS).pivot(index='name', columns='mode', values='median_ms')
    gains = {'bf16': 'openvino-bf16', 'INT8': 'openvino-int8'}
    table = pd.DataFrame({label: (found['openvino'] / found[mode]).round(2) for label, mode in gains.items()})
    table = table.sort_values('bf16')
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.2, 4.2), layout='constrained')
        axes = figure.add_subplot(xlabel='speed-up over float32 with OpenVINO')
        for shift, (name, values) in zip((-0.2, 0.2), table.items()):
            axes.barh([k + shift for k in range(len(table))], values, 0.38, label=name)
        axes.set_yticks(range(len(table)), table.index)
        axes.axvline(1, color='0.4', linewidth=1)
        _bold_ours(axes)
        axes.legend(fontsize=8.5, loc='lower right')
        _note(axes, f'512 x 512, {measured_on(PRECISIONS)}')
    return figure, table.to_dict()


def training() -> tuple[Figure, object]:
    """Time and memory of a training step, as shares of the authors' operations."""
    found = measured(TRAINING)
    found['side'] = found['size'].map(lambda size: size[0])
    ours, theirs = (found[found['mode'] == mode].set_index(['name', 'side']) for mode in ('eager', 'reference'))
    shares = {'time': 'median_ms', 'activations kept for the backward pass': 'kept_mb'}
    table = pd.DataFrame({label: (ours[column] / theirs[column]).round(3) for label, column in shares.items()})
    rows = [f'{name}, {side} x {side}' for name, side in table.index]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.2, 3.8), layout='constrained')
        axes = figure.add_subplot(xlabel="share of the authors' operations; left of 1 is less")
        for shift, (label, values) in zip((-0.2, 0.2), table.items()):
            axes.barh([k + shift for k in range(len(table))], values, 0.38, label=label)
        axes.set_yticks(range(len(table)), rows)
        axes.invert_yaxis()
        axes.axvline(1, color='0.4', linewidth=1)
        axes.legend(fontsize=8.5, loc='lower right')
        _note(axes, f'a training step of the backbone, 2 images, {measured_on(TRAINING)}')
    return figure, [rows, table.to_dict('list')]


def large_images() -> tuple[Figure, object]:
    """Time against the side of the image: EfficientMod-s exact and with bounded attention, and s-Conv."""
    numbers = {}
    for label, place in BOUNDED.items():
        found = measured(place)
        found['side'] = found['size'].map(lambda size: size[0])
        for name, rows in found.groupby('name'):
            if label == 'exact' or name == 'EfficientMod-s':
                numbers[f'{name}, {label}'] = rows.set_index('side')['median_ms'].round(1).sort_index()
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.2, 3.8), layout='constrained')
        axes = figure.add_subplot(xlabel='side of a square image (pixels)', ylabel='ms per image')
        for (label, times), line in zip(numbers.items(), ('-', ':', '--')):
            axes.plot(times.index, times, line, marker='o', markersize=4, label=label)
        axes.set_xticks(times.index)
        axes.legend(fontsize=8.5)
        _note(axes, f'PyTorch, deploy form, {measured_on(BOUNDED["exact"])}')
    return figure, {label: times.to_dict() for label, times in numbers.items()}


def _note(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=9, loc='left', color='0.35')


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
    'precision-gain': precision_gain,
    'training': training,
    'large-images': large_images,
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
