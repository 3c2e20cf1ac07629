"""Measures EfficientMod's forms against the plain one on this CPU: time, outputs, memory of training."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mmefficientmod.measure import latency, speed
from mmefficientmod.measure.reference import FORMS
from mmefficientmod.utils import parse_positive, parse_size
from mmefficientmod.zoo.backbones import select_backbones
from mmefficientmod.zoo.tasks import TASKS

ARCHS = ('efficientmod-xxs', 'efficientmod-xs', 'efficientmod-s', 'efficientmod-s-conv')
RIVALS = ('pvtv2-b1', 'poolformer-s12', 'efficientformerv2-s2', 'repvit-m1.5')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The plain form is the sequence of operations of the authors' code. All forms of all rows take turns in "
        'one run; ratios are of medians, above 1 is faster than the plain form. Weights are random.',
    )
    parser.add_argument(
        '--rows',
        nargs='+',
        default=[*ARCHS, *RIVALS],
        metavar='ROW',
        help=f'default {" ".join([*ARCHS, *RIVALS])}',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=parse_size,
        default=[(512, 512), (800, 1344)],
        metavar='HxW',
        help='of the images, for inference; default 512x512 800x1344',
    )
    parser.add_argument(
        '--train-size', type=parse_size, default=(512, 512), metavar='HxW', help='for training; default 512x512'
    )
    parser.add_argument('--repeats', type=parse_positive, default=10, help='measured passes of each form; default 10')
    parser.add_argument('--threads', type=parse_positive, help="CPU threads; default torch's")
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/bench'), help='folder to write; default %(default)s'
    )
    return parser.parse_args(argv)


def show_inference(results: list[speed.Speed], peaks: dict[str, float], console: Console) -> None:
    """Prints one size's table."""
    size = results[0].size
    table = Table(
        title=f'inference, {size[0]} x {size[1]}, batch 1: ms (times faster than plain)', title_justify='left'
    )
    table.add_column('backbone', no_wrap=True)
    for form in FORMS:
        table.add_column(form, justify='right')
    for heading in ('share of peak', 'difference', 'box AP'):
        table.add_column(heading, justify='right')
    by_row: dict[str, dict[str, speed.Speed]] = {}
    for result in results:
        by_row.setdefault(result.row, {})[result.form] = result
    peak = max(peaks.values())
    for key, forms in by_row.items():
        cells = [_time(forms[form]) if form in forms else '' for form in FORMS]
        first = next(iter(forms.values()))
        exact = [r for r in forms.values() if r.median_ms and not r.form.startswith('bf16')]
        best = min((r.median_ms for r in exact), default=None)
        share = f'{first.gflop / best * 1e3 / peak:.0%}' if best else '-'
        difference = max((r.difference for r in exact), default=None)
        ap = speed.published_ap(key)
        cells += [share, '-' if difference is None else f'{difference:.0e}', '-' if ap is None else f'{ap}']
        table.add_row(first.name, *cells)
    console.print(table)
    for result in results:
        if result.error:
            text = f'{result.name}{", " if result.form else ""}{result.form}: {result.error}'
            console.print(text, style='red', markup=False, soft_wrap=True)


def _time(result: speed.Speed) -> str:
    if result.median_ms is None:
        return 'failed'
    return f'{result.median_ms:.0f}' + (f' ({result.ratio:.2f})' if result.ratio else '')


def show_training(results: list[speed.Training], batch: int, console: Console) -> None:
    """Prints the table of training steps."""
    size = results[0].size
    table = Table(title=f'training, {batch} images of {size[0]} x {size[1]}', title_justify='left')
    table.add_column('backbone', no_wrap=True)
    for heading in (
        'plain step (ms)',
        'step (ms)',
        'times faster',
        'plain saved (MiB)',
        'saved (MiB)',
        'saved / plain',
    ):
        table.add_column(heading, justify='right')
    for r in results:
        cells = f'{r.plain_ms:.0f}', f'{r.median_ms:.0f}', f'{r.ratio:.2f}'
        table.add_row(r.name, *cells, f'{r.plain_mib:.0f}', f'{r.saved_mib:.0f}', f'{r.saved_ratio:.2f}')
    console.print(table)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    rows, problems = select_backbones(TASKS['detection'], args.rows)
    if problems or not rows:
        raise SystemExit(f'error: {"; ".join(problems) or "no row to measure"}')
    keys = [row.key for row in rows]
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console(width=None if sys.stdout.isatty() else 140)
    facts = latency.machine(torch.device('cpu'))
    console.print(', '.join(f'{name} {value}' for name, value in facts.items()), markup=False, soft_wrap=True)
    if facts['load'] > 0.5:
        print(f'warning: the machine is busy (load {facts["load"]}): do not trust these times', file=sys.stderr)
    peaks = speed.product_peaks()
    text = ', '.join(f'{name} {gflops:.0f}' for name, gflops in peaks.items())
    console.print(f'matrix products, float32, GFLOP/s: {text}; the larger one is the peak below')

    content = dict(machine=facts, peaks=peaks, settings=dict(repeats=args.repeats), inference=[], training=[])
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'bench.json'
    for size in args.sizes:
        with console.status(f'{size[0]} x {size[1]}') as status:
            results = speed.measure_inference(keys, size, args.repeats, status.update)
        show_inference(results, peaks, console)
        content['inference'] += map(asdict, results)
        path.write_text(json.dumps(content, indent=1))
    archs = [key for key in keys if key in ARCHS]
    if archs:
        batch = 2
        with console.status('training') as status:
            steps = speed.measure_training(archs, args.train_size, batch, max(1, args.repeats // 2), status.update)
        show_training(steps, batch, console)
        content['training'] += map(asdict, steps)
        path.write_text(json.dumps(content, indent=1))
    console.print(f'written to {path}', markup=False)
    failed = [f'{r["name"]} {r["form"]}'.strip() for r in content['inference'] if r['error']]
    if failed:
        raise SystemExit(f'error: not everything was measured: {", ".join(failed)}')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit('stopped; the tables shown are written') from None
