"""Measures time and memory of backbones, detectors, segmentors, classifiers and training steps, on a CPU or a GPU."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from mmefficientmod.codebases.building import check_device
from mmefficientmod.codebases.config import parse_options
from mmefficientmod.compare.plots import plot_cost, save_figure
from mmefficientmod.measure import latency, machine, records, tables
from mmefficientmod.utils import (
    HelpFormatter,
    UserError,
    check_output_folder,
    exit_in_one_line,
    first_line,
    keep_freed_memory,
    parse_amount,
    parse_path,
    parse_positive,
    parse_size,
    parse_text,
    parse_whole,
    replace_file,
    run_tool,
)
from mmefficientmod.zoo.backbones import normalise, select_backbones
from mmefficientmod.zoo.tasks import TASKS

NO_MODE = 'no backbone here has these modes'
BUSY = 0.2  # cores that other processes keep busy, above which times are not to be trusted
LEAST_MEMORY = 0.1  # GB
UNFINISHED = 'benchmark-unfinished.json'
EPILOG = """\
Lists combine: every part at every size, batch size, precision and mode. All modes of all backbones take turns, so that
a change of the machine meets all of them. A speed-up compares with the reference that runs in the same way: eager,
compiled, or from a file of the same format. Above 1 is faster.

modes:
  eager              torch runs one operation after the other
  compiled           torch.compile
  deploy             the deploy form, for backbones that have one
  deploy-compiled    the deploy form with torch.compile
  reference          the sequence of operations of EfficientMod's authors
  reference-compiled the same with torch.compile
  onnx, openvino, pt2  the deploy form as a file in ONNX Runtime, OpenVINO, AOTInductor (backbones, classifiers; CPU)
  onnx-int8, openvino-int8  the same in INT8 with NNCF
  openvino-bf16, pt2-bf16  the same in bfloat16, on a CPU that has it
  reference-onnx, reference-openvino, ...  the reference as such a file
  eager-bf16, deploy-compiled-bf16, ...  a mode of torch under autocast in bfloat16, next to float32 in one table
  all, exported, bf16  all float32 modes without files, all modes with files, all modes in bfloat16

examples:
  python tools/benchmark.py --backbones efficientmod --parts backbone --modes all
  python tools/benchmark.py --parts detector --batch-sizes 1 8 --precisions fp16 --device cuda --out work_dirs/gpu"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=HelpFormatter)

    def add_list(name: str, metavar: str, default: list | None, **keywords: object) -> None:
        parser.add_argument(name, nargs='+', metavar=metavar, default=default, **keywords)

    add_list(
        '--backbones',
        'BACKBONE',
        None,
        type=parse_text,
        help='names (e.g. efficientmod-s) or groups: table7 (default; detection and segmentation), table1 (default of '
        'classifiers), efficientmod, all',
    )
    add_list(
        '--parts',
        'PART',
        ['backbone', 'detector', 'segmentor'],
        choices=tuple(records.PARTS),
        help=f'some of {", ".join(records.PARTS)} (default: backbone detector segmentor)',
    )
    add_list(
        '--sizes',
        'HxW',
        None,
        type=parse_size,
        help='height and width in pixels, padded to multiples of 32 (default: 512x512, for detectors also 800x1333, '
        'for classifiers 224x224 or 256x256 as in the paper)',
    )
    add_list('--batch-sizes', 'N', [1], type=partial(parse_whole, least=1, most=4096), help='batch sizes (default: 1)')
    add_list(
        '--precisions',
        'PRECISION',
        ['fp32'],
        choices=records.PRECISIONS,
        help=f'some of {", ".join(records.PRECISIONS)}, with autocast (default: fp32)',
    )
    add_list(
        '--modes',
        'MODE',
        ['eager'],
        choices=(*records.MODES, *records.MODE_GROUPS),
        help='modes to time, from the list below (default: eager)',
    )
    parser.add_argument('--device', type=parse_text, default='cpu', help='cpu (default), cuda or cuda:N')
    parser.add_argument(
        '--threads', type=partial(parse_whole, least=1, most=1024), help="CPU threads (default: torch's choice)"
    )
    parser.add_argument('--repeats', type=parse_positive, default=20, help='timed passes of each mode (default: 20)')
    parser.add_argument('--warmup', type=parse_positive, default=3, help='untimed passes of each mode (default: 3)')
    parser.add_argument(
        '--baseline',
        type=parse_text,
        metavar='BACKBONE',
        help='backbone of the second speed-up column (default: efficientmod-s if measured, otherwise the first one)',
    )
    parser.add_argument(
        '--memory-limit',
        type=parse_amount,
        metavar='GB',
        help='stop a model that needs more GB of RAM than this; CPU only (default: the free memory)',
    )
    parser.add_argument(
        '--compile-backend', type=parse_text, default='inductor', help='backend of torch.compile (default: inductor)'
    )
    note = 'changes of every config, e.g. model.backbone.attn_max_keys=1024'
    add_list('--cfg-options', 'KEY=VALUE', [], type=parse_text, help=note)
    parser.add_argument(
        '--out',
        type=parse_path,
        default=Path('work_dirs/benchmark'),
        help='folder for JSON, CSV, Markdown and plots (default: work_dirs/benchmark)',
    )
    args = parser.parse_args(argv)
    if args.memory_limit is not None and args.memory_limit < LEAST_MEMORY:
        parser.error(f'--memory-limit must be {LEAST_MEMORY} GB or more: threads and imports take some')
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
        raise UserError('; '.join(problems))
    if args.baseline is None:
        return chosen, 'efficientmod-s' if 'efficientmod-s' in keys else keys[0], problems
    baseline = next((key for key in keys if normalise(key) == normalise(args.baseline)), None)
    if baseline is None:
        raise UserError(f'the baseline {args.baseline} is not among the backbones {", ".join(keys)}')
    return chosen, baseline, problems


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device, after a look at whether it and the compiler can be used.

    Raises:
        UserError: If not.
    """
    device = check_device(args.device)
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device {args.device} cannot be timed: choose cpu, cuda or cuda:N')
    compiled = args.compile_backend == 'inductor' and any('compiled' in mode for mode in args.modes)
    if compiled or any('pt2' in mode for mode in args.modes):
        try:
            latency.check_compiler()
        except RuntimeError as error:
            raise UserError(f'the compiled modes cannot be used: {first_line(error)}') from None
    return device


def find_runtimes(modes: list[str], device: torch.device) -> dict[str, str]:
    """The versions of the packages that the exported modes need; imports nothing without such a mode."""
    exported = [mode for mode in modes if mode in records.EXPORTED]
    if not exported:
        return {}
    if device.type != 'cpu':
        raise UserError(f'--modes {exported[0]} is for a CPU: leave out --device {device}')
    from mmefficientmod.measure.exported import check_packages

    return check_packages(exported)


@contextlib.contextmanager
def torch_settings(args: argparse.Namespace) -> Iterator[None]:
    """Sets threads, memory and cuDNN's search for the fastest algorithm; restores them at the end."""
    threads, search = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(args.threads or threads)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = search


def warn_if_busy(load: float | None, when: str) -> None:
    if load is not None and load > BUSY:
        print(f'warning: other processes kept {load} cores busy {when}: do not trust these times', file=sys.stderr)


def describe(args: argparse.Namespace, baseline: str, device: torch.device) -> dict:
    """The facts that the JSON file holds with the measurements."""
    load = machine.OtherLoad()
    content = dict(
        machine=dict(machine.describe_machine(device), **find_runtimes(args.modes, device)),
        run=machine.describe_run(),
        peaks=machine.product_peaks() if device.type == 'cpu' else {},
        settings=dict(
            repeats=args.repeats,
            warmup=args.warmup,
            baseline=baseline,
            backend=args.compile_backend,
            options=args.options,
        ),
    )
    content['run']['load_before'] = load.cores()
    return content


def measure(
    args: argparse.Namespace, chosen: dict[str, list[str]], content: dict, plan: latency.Plan, console: Console
) -> records.Results:
    """Measures all cases. Shows those of a setting when they are complete, and notes them in an unfinished file."""
    results: dict[records.Case, list[records.Measurement]] = {}
    for cases in records.make_cases(args.parts, args.sizes, args.batch_sizes, args.precisions, args.modes):
        keys = chosen[records.PARTS[cases[0].part]]
        case_keys = keys if args.sizes else records.keys_at_own_size(cases[0], keys)
        if not case_keys:
            continue
        setting = cases[0].setting
        with console.status(setting) as status:

            def tick(text: str, setting: str = setting) -> None:
                status.update(f'{setting}: {text}')

            found = latency.measure(cases, case_keys, plan, tick)
        if not any(found.values()):
            console.print(f'{setting}: {NO_MODE}', markup=False, soft_wrap=True)
            continue
        results.update(found)
        show_setting(cases, found, content, console)
        warn_if_busy(max((m.other_load or 0 for each in found.values() for m in each), default=0), f'during {setting}')
        if any_measured(results):
            args.out.mkdir(parents=True, exist_ok=True)
            records.write_benchmark(args.out / UNFINISHED, results, **content)
    return results


def any_measured(results: records.Results) -> bool:
    return any(m.median_ms for found in results.values() for m in found)


def show_setting(cases: list[records.Case], found: records.Results, content: dict, console: Console) -> None:
    """Prints the tables of a setting."""
    for case in filter(found.get, cases):
        show(str(case), tables.case_table(case, found[case], content['settings']['baseline']), console)
    if len(cases) > 1:
        title = f'{cases[0].setting}: ms (speed-up over the reference)'
        show(title, tables.mode_table(found, max(content['peaks'].values(), default=None)), console)
    for line in tables.failures(found):
        console.print(line, style='red', markup=False, soft_wrap=True)


def show(title: str, frame: pd.DataFrame, console: Console) -> None:
    """Prints a table."""
    table = Table(title=title, title_justify='left')
    for i, heading in enumerate(frame.columns):
        table.add_column(heading, justify='right' if i else 'left', no_wrap=not i)
    for row in frame.astype(str).values.tolist():
        table.add_row(*row)
    console.print(table)


def write_all(out: Path, results: records.Results, content: dict) -> None:
    """Writes ``benchmark.{json,csv,md}`` and the plots, in place of those of an earlier benchmark."""
    records.write_benchmark(out / 'benchmark.json', results, **content)
    replace_file(out / 'benchmark.csv', tables.csv_table(results))
    replace_file(out / 'benchmark.md', tables.report(results, content))
    for name, figure in plot_cost(results, content['machine']):
        save_figure(figure, out / name)
    (out / UNFINISHED).unlink()


def run(args: argparse.Namespace) -> None:
    """Measures and writes. Files of an earlier benchmark stay unless this one measures something and ends."""
    kept = keep_freed_memory()
    args.options = parse_options(args.cfg_options)
    others = [key for key in args.options if not key.startswith('model.')]
    if others:
        raise UserError(f'--cfg-options {others[0]}=... changes nothing here: only a key that begins with model. does')
    device = choose_device(args)
    chosen, baseline, problems = choose_backbones(args)
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    find_runtimes(args.modes, device)
    check_output_folder(args.out)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with torch_settings(args):
        content = describe(args, baseline, device)
        if kept:
            content['machine']['allocator'] += ', freed memory kept'
        console.print(tables.describe_machine(content['machine']), markup=False, soft_wrap=True)
        warn_if_busy(content['run']['load_before'], 'before the first pass')
        plan = latency.Plan(device, args.repeats, args.warmup, baseline, args.compile_backend, args.options)
        limit = machine.memory_limit(args.memory_limit) if device.type == 'cpu' else contextlib.nullcontext()
        with limit:
            results = measure(args, chosen, content, plan, console)
    if any_measured(results):
        write_all(args.out, results, content)
        console.print(f'written to {args.out}', markup=False)
    failed = {m.name: m.error for found in results.values() for m in found if m.error}
    if failed or problems or not results:
        names = [f'{name} ({reason})' for name, reason in sorted(failed.items())]
        raise UserError(f'not everything was measured: {", ".join([*names, *problems]) or NO_MODE}')


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with exit_in_one_line(f'stopped; complete settings are in {args.out / UNFINISHED}, if there are any'):
        run(args)


if __name__ == '__main__':
    run_tool(main)
