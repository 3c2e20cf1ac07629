"""Measures time and memory of backbones, detectors, segmentors, classifiers and training steps, on a CPU or a GPU."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from mmefficientmod.compare.plots import plot_cost, save_figure
from mmefficientmod.measure import latency, machine, records, tables
from mmefficientmod.utils import UserError, first_line, parse_positive, parse_size, replace_file
from mmefficientmod.zoo.backbones import normalise, select_backbones
from mmefficientmod.zoo.tasks import TASKS

NO_MODE = 'no backbone here has these modes'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Lists combine: every part at every size, batch size, precision and mode. All modes of all backbones '
        'take turns, so that a change of the machine meets all of them. A speed-up above 1 is faster.',
    )

    def add_list(name: str, default: list, choices: tuple = (), **keywords: object) -> None:
        some = f'some of {", ".join(choices)}; ' if choices else ''
        keywords['help'] = f'{some}{keywords["help"]}'
        parser.add_argument(name, nargs='+', default=default, choices=choices or None, **keywords)

    add_list(
        '--backbones',
        None,
        metavar='BACKBONE',
        help='names such as efficientmod-s, "table7" (the default), "table1" (that of classifiers), "efficientmod" '
        '(its four) or "all"',
    )
    default = [part for part in records.PARTS if part not in ('training', 'classifier')]
    add_list('--parts', default, tuple(records.PARTS), metavar='PART', help='default all but classifier and training')
    add_list(
        '--sizes',
        None,
        type=parse_size,
        metavar='HxW',
        help='height and width in pixels, padded to multiples of 32; default: 512x512, and 800x1333 for detectors; '
        "for classifiers that of the paper's Table 1",
    )
    add_list('--batch-sizes', [1], type=parse_positive, metavar='N', help='default 1')
    add_list('--precisions', ['fp32'], records.PRECISIONS, metavar='PRECISION', help='by autocast; default fp32')
    add_list(
        '--modes',
        ['eager'],
        (*records.MODES, *records.MODE_GROUPS),
        metavar='MODE',
        help="reference is the sequence of operations of EfficientMod's authors, compiled is by torch.compile, deploy "
        'the inference form of the backbones that have one; onnx, openvino and pt2 (by AOTInductor) run a file of the '
        'inference form, reference-onnx and so on one of the reference, int8 is by NNCF, for backbones and classifiers '
        'on a CPU; all is all without files, exported all with; default eager',
    )
    parser.add_argument('--device', default='cpu', help='cpu (default), cuda or cuda:N')
    parser.add_argument('--threads', type=parse_positive, help="CPU threads; default torch's")
    parser.add_argument('--repeats', type=parse_positive, default=20, help='measured passes each; default 20')
    parser.add_argument('--warmup', type=parse_positive, default=3, help='passes before; default 3')
    parser.add_argument(
        '--baseline',
        metavar='BACKBONE',
        help='backbone that the others are compared with; default efficientmod-s, else the first',
    )
    parser.add_argument(
        '--memory-limit', type=float, metavar='GB', help='on a CPU, memory to take; default: all that is free'
    )
    parser.add_argument('--compile-backend', default='inductor', help='of torch.compile; default inductor')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/benchmark'), help='folder of JSON, CSV, Markdown and plots'
    )
    args = parser.parse_args(argv)
    if args.memory_limit is not None and args.memory_limit <= 0:
        parser.error('--memory-limit must be above 0')
    args.modes = list(dict.fromkeys(m for mode in args.modes for m in records.MODE_GROUPS.get(mode, [mode])))
    return args


def choose_backbones(args: argparse.Namespace) -> tuple[dict[str, list[str]], str, list[str]]:
    """Task -> keys of its backbones; the baseline among them; one line for every given name that is not measured."""
    tasks = [TASKS[name] for name in dict.fromkeys(records.PARTS[part] for part in args.parts)]
    chosen, problems = {}, []
    for task in tasks:
        backbones, _ = select_backbones(task, args.backbones or [task.group])
        chosen[task.name] = [backbone.key for backbone in backbones]
    for name in args.backbones or ():
        unknown = {task.name: reason for task in tasks for reason in select_backbones(task, [name])[1]}
        if len(unknown) < len(tasks):
            problems += [f'{name} has no config of {task}' for task in unknown]
        else:
            problems.append(unknown[tasks[0].name])
    keys = list(dict.fromkeys(key for some in chosen.values() for key in some))
    if not keys:
        raise SystemExit(f'error: {"; ".join(problems)}')
    if args.baseline is None:
        return chosen, 'efficientmod-s' if 'efficientmod-s' in keys else keys[0], problems
    baseline = next((key for key in keys if normalise(key) == normalise(args.baseline)), None)
    if baseline is None:
        raise SystemExit(f'error: the baseline {args.baseline} is not among the backbones {", ".join(keys)}')
    return chosen, baseline, problems


def find_runtimes(modes: list[str], device: torch.device) -> tuple[Callable | None, dict[str, str]]:
    """What opens the files of the exported modes, and the versions of what they need; imports nothing without any."""
    exported = [mode for mode in modes if mode in records.EXPORTED]
    if not exported:
        return None, {}
    if device.type != 'cpu':
        raise SystemExit(f'error: --modes {exported[0]} is for a CPU: leave out --device {device}')
    from mmefficientmod.measure.exported import check_packages, open_file

    try:
        return open_file, check_packages(exported)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None


def show(title: str, frame: pd.DataFrame, console: Console) -> None:
    """Prints a table."""
    table = Table(title=title, title_justify='left')
    for i, heading in enumerate(frame.columns):
        table.add_column(heading, justify='right' if i else 'left', no_wrap=not i)
    for row in frame.astype(str).values.tolist():
        table.add_row(*row)
    console.print(table)


@contextlib.contextmanager
def torch_settings(args: argparse.Namespace) -> Iterator[None]:
    """Threads, memory and cuDNN's search for the fastest algorithm; as before at the end."""
    threads, search = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(args.threads or threads)
    torch.backends.cudnn.benchmark = True
    try:
        with machine.memory_limit(args.memory_limit) if args.device == 'cpu' else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = search


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        device = torch.device(args.device)
        torch.zeros(1, device=device)
        compiled = args.compile_backend == 'inductor' and any(mode.endswith('compiled') for mode in args.modes)
        if compiled or any(mode.endswith('pt2') for mode in args.modes):
            latency.check_compiler()
    except (RuntimeError, AssertionError) as error:
        what = 'the compiled modes' if 'cannot compile' in str(error) else f'device {args.device}'
        raise SystemExit(f'error: {what} cannot be used: {first_line(error)}') from None
    chosen, baseline, problems = choose_backbones(args)
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    try:
        with torch_settings(args):
            results = measure(args, chosen, baseline, device)
    except OSError as error:
        raise SystemExit(f'error: {error}') from None
    failed = {m.name for found in results.values() for m in found if m.error}
    if failed or problems or not results:
        names = ', '.join([*sorted(failed), *problems]) or NO_MODE
        raise SystemExit(f'error: not everything was measured: {names}')


def measure(
    args: argparse.Namespace, chosen: dict[str, list[str]], baseline: str, device: torch.device
) -> records.Results:
    """Measures all cases; shows and writes those of a setting as soon as they are there."""
    open_file, runtimes = find_runtimes(args.modes, device)
    if device.type not in ('cpu', 'cuda'):
        raise SystemExit(f'error: device {args.device} cannot be used: only cpu, cuda and cuda:N are timed')
    console = Console(width=None if sys.stdout.isatty() else 140)
    content = dict(
        machine=dict(machine.describe_machine(device), **runtimes),
        peaks=machine.product_peaks() if device.type == 'cpu' else {},
        settings=dict(repeats=args.repeats, warmup=args.warmup, baseline=baseline, backend=args.compile_backend),
    )
    facts = content['machine']
    console.print(', '.join(f'{name} {value}' for name, value in facts.items()), markup=False, soft_wrap=True)
    if facts['load'] > 0.5:
        print(f'warning: the machine is busy (load {facts["load"]}): do not trust these times', file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[records.Case, list[records.Measurement]] = {}
    for cases in records.make_cases(args.parts, args.sizes, args.batch_sizes, args.precisions, args.modes):
        keys = chosen[records.PARTS[cases[0].part]]
        case_keys = keys if args.sizes else records.keys_at_own_size(cases[0], keys)
        if not case_keys:
            continue
        with console.status(cases[0].setting) as status:

            def tick(text: str, setting: str = cases[0].setting) -> None:
                status.update(f'{setting}: {text}')

            found = latency.measure(
                cases, case_keys, device, args.repeats, args.warmup, baseline, args.compile_backend, tick, open_file
            )
        if not any(found.values()):  # nothing to show, and nothing to put in place of an earlier file
            console.print(f'{cases[0].setting}: {NO_MODE}', markup=False, soft_wrap=True)
            continue
        results.update(found)
        for case in filter(found.get, cases):
            show(str(case), tables.case_table(case, found[case], baseline), console)
        if len(cases) > 1:
            title = f'{cases[0].setting}: ms (speed-up over the reference)'
            show(title, tables.mode_table(found, max(content['peaks'].values(), default=None)), console)
        for line in tables.failures(found):
            console.print(line, style='red', markup=False, soft_wrap=True)
        records.write_benchmark(args.out / 'benchmark.json', results, **content)
        frame = pd.DataFrame(list(records.records(results)))
        frame = frame.assign(size=['{}x{}'.format(*size) for size in frame['size']])
        replace_file(args.out / 'benchmark.csv', frame.to_csv(index=False))
        replace_file(args.out / 'benchmark.md', tables.report(results, content))
    if results:
        for name, figure in plot_cost(results, facts):
            save_figure(figure, args.out / name)
        console.print(f'written to {args.out}', markup=False)
    return results


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit('stopped; the tables shown are written') from None
