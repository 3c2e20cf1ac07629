"""Measures the latency of rows of the comparison: backbone, whole detector, whole segmentor, on a CPU or a GPU."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mmefficientmod.compare.plots import plot_cost, save_figure
from mmefficientmod.measure import latency, records
from mmefficientmod.utils import RenamedOption, parse_positive, parse_size
from mmefficientmod.zoo.backbones import normalise, select_backbones
from mmefficientmod.zoo.tasks import TASKS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Lists combine: every part at every size, batch size, precision and mode. Backbones '
        'take turns within one run, so that a change of the machine meets all of them.',
    )
    parser.add_argument(
        '--backbones',
        nargs='+',
        default=['table7'],
        metavar='BACKBONE',
        help='names such as efficientmod-s, "table7" (the default) or "all"',
    )
    parser.add_argument('--rows', action=RenamedOption, const='--backbones')
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=records.PARTS,
        default=list(records.PARTS),
        metavar='PART',
        help=f'some of {", ".join(records.PARTS)}; default all',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=parse_size,
        metavar='HxW',
        help='height and width in pixels, padded to multiples of 32; default: 512x512, and 800x1333 for detectors',
    )
    parser.add_argument('--batch-sizes', nargs='+', type=parse_positive, default=[1], metavar='N', help='default 1')
    parser.add_argument(
        '--precisions',
        nargs='+',
        choices=latency.PRECISIONS,
        default=['fp32'],
        metavar='PRECISION',
        help='some of fp32, bf16, fp16 (the latter two by autocast); default fp32',
    )
    parser.add_argument(
        '--modes',
        nargs='+',
        choices=records.MODES,
        default=['eager'],
        metavar='MODE',
        help=f'some of {", ".join(records.MODES)}: with torch.compile, in the inference form of the rows that have '
        'one; default eager',
    )
    parser.add_argument('--device', default='cpu', help='cpu (default), cuda or cuda:N')
    parser.add_argument('--threads', type=parse_positive, help="CPU threads; default torch's")
    parser.add_argument('--repeats', type=parse_positive, default=20, help='measured passes of each row; default 20')
    parser.add_argument('--warmup', type=parse_positive, default=3, help='passes before; default 3')
    parser.add_argument(
        '--baseline', metavar='BACKBONE', help='backbone that ratios refer to; default efficientmod-s, else the first'
    )
    parser.add_argument(
        '--memory-limit', type=float, metavar='GB', help='on a CPU, memory the rows may take; default: all that is free'
    )
    parser.add_argument('--compile-backend', default='inductor', help='of torch.compile; default inductor')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), help='folder of JSON, CSV and plots')
    args = parser.parse_args(argv)
    if args.memory_limit is not None and args.memory_limit <= 0:
        parser.error('--memory-limit must be above 0')
    return args


def choose_rows(args: argparse.Namespace) -> tuple[list[str], str, list[str]]:
    """Keys of the rows, the baseline among them, and one line for every name that is none."""
    rows, problems = select_backbones(TASKS['detection'], args.backbones)
    keys = [row.key for row in rows]
    if not keys:
        raise SystemExit(f'error: {"; ".join(problems)}')
    if args.baseline is None:
        return keys, 'efficientmod-s' if 'efficientmod-s' in keys else keys[0], problems
    baseline = next((key for key in keys if normalise(key) == normalise(args.baseline)), None)
    if baseline is None:
        raise SystemExit(f'error: the baseline {args.baseline} is not among the backbones {", ".join(keys)}')
    return keys, baseline, problems


def show(case: records.Case, measurements: list[records.Measurement], baseline: str, console: Console) -> None:
    """Prints one case's table."""
    table = Table(title=str(case), title_justify='left')
    table.add_column('row')
    for heading in (
        'parameters (M)',
        'median (ms)',
        'quartiles (ms)',
        'images/s',
        'peak memory (MiB)',
        f'time / {baseline}',
    ):
        table.add_column(heading, justify='right')
    for m in measurements:
        if m.error:
            table.add_row(m.name, '', 'failed')
            continue
        table.add_row(
            m.name,
            f'{m.params / 1e6:.1f}',
            f'{m.median_ms:.1f}',
            f'{m.q25_ms:.1f} - {m.q75_ms:.1f}',
            f'{m.images_per_second:.1f}',
            '-' if m.peak_memory_mb is None else f'{m.peak_memory_mb:.0f}',
            f'{m.ratio:.2f}' if m.ratio else '-',
        )
    console.print(table)
    for m in measurements:
        if m.error:
            console.print(f'{m.name}: {m.error}', style='red', markup=False, soft_wrap=True)


def save(out: Path, content: dict) -> None:
    """Writes benchmark.json and benchmark.csv."""
    out.mkdir(parents=True, exist_ok=True)
    draft = out / '.benchmark.json'
    draft.write_text(json.dumps(content, indent=1))
    os.replace(draft, out / 'benchmark.json')
    with open(out / 'benchmark.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, content['measurements'][0])
        writer.writeheader()
        writer.writerows({**record, 'size': '{}x{}'.format(*record['size'])} for record in content['measurements'])


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        device = torch.device(args.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f'error: device {args.device} cannot be used: {str(error).splitlines()[0]}') from None
    keys, baseline, problems = choose_rows(args)
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    facts = latency.machine(device)
    console.print(', '.join(f'{name} {value}' for name, value in facts.items()), markup=False, soft_wrap=True)
    if facts['load'] > 0.5:
        print(f'warning: the machine is busy (load {facts["load"]}): do not trust these times', file=sys.stderr)

    with latency.memory_limit(args.memory_limit) if device.type == 'cpu' else contextlib.nullcontext():
        results = measure(args, keys, baseline, device, facts, console)
    for name, figure in plot_cost(results, facts):
        save_figure(figure, args.out / name)
    console.print(f'written to {args.out}', markup=False)
    failed = {m.name for measurements in results.values() for m in measurements if m.error}
    if failed or problems:
        raise SystemExit(f'error: not everything was measured: {", ".join([*sorted(failed), *problems])}')


def measure(
    args: argparse.Namespace, keys: list[str], baseline: str, device: torch.device, facts: dict, console: Console
) -> dict[records.Case, list[records.Measurement]]:
    """Measures every case, and shows and saves each as soon as it is there."""
    settings = dict(repeats=args.repeats, warmup=args.warmup, baseline=baseline, compile_backend=args.compile_backend)
    results = {}
    for case in records.make_cases(args.parts, args.sizes, args.batch_sizes, args.precisions, args.modes):
        with console.status(str(case)) as status:
            results[case] = latency.measure(
                case,
                keys,
                device,
                args.repeats,
                args.warmup,
                baseline,
                args.compile_backend,
                lambda text, case=case, status=status: status.update(f'{case}: {text}'),
            )
        show(case, results[case], baseline, console)
        save(args.out, dict(machine=facts, settings=settings, measurements=list(records.records(results))))
    return results


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit('stopped; the tables shown are written') from None
