"""Compares backbones: `run` trains and tests every row, `report` puts the results beside the published figures."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
from pathlib import Path

from mmengine.config import DictAction
from rich.console import Console

from mmefficientmod.analysis.rows import TASKS, CompareError, Row, parse_positive, parse_size, select_rows
from mmefficientmod.analysis.runs import RowRun, Settings, describe, run_rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    run = commands.add_parser(
        'run',
        help='train and test rows through tools/train.py and tools/test.py',
        description='Trains and tests the chosen rows one after another. Started again after it was killed, the same '
        'command skips what is done and continues the rest from its last checkpoint.',
    )
    run.add_argument('task', choices=TASKS)
    run.add_argument(
        '--rows',
        nargs='+',
        default=['table7'],
        metavar='ROW',
        help='names such as efficientmod-s, "table7" (the default) or "all"',
    )
    run.add_argument('--work-dir', type=Path, help='each row works in WORK_DIR/ROW; default work_dirs/compare-TASK')
    run.add_argument('--dry-run', action='store_true', help='print the settings and commands, start nothing')

    data = run.add_argument_group('data and schedule (default: as the config says, which is the published setting)')
    data.add_argument('--data-root', help='root folder of the data set')
    data.add_argument(
        '--overlay',
        dest='overlays',
        nargs='+',
        default=[],
        metavar='CONFIG',
        help="config files merged over every row's, e.g. another data set",
    )
    data.add_argument(
        '--iters', type=parse_positive, help='iterations of segmentation; the schedule follows in proportion'
    )
    data.add_argument('--epochs', type=parse_positive, help='epochs of detection; the schedule follows in proportion')
    data.add_argument('--size', type=parse_size, metavar='HxW', help='crop of segmentation, image bound of detection')
    data.add_argument('--batch-size', type=parse_positive, help='images a step and process')
    data.add_argument('--workers', type=int, help='data loading processes')
    data.add_argument('--seed', type=int, default=0, help='of every row; default 0')
    data.add_argument('--amp', action='store_true', help='mixed precision in training')

    weights = run.add_argument_group('weights')
    weights.add_argument(
        '--pretrained',
        nargs='+',
        default=[],
        metavar='WHERE',
        help='weights the backbones start from: "none" (random), a folder of ROW.pth, or ROW=FILE; '
        'default: as the config says',
    )
    weights.add_argument(
        '--checkpoints',
        nargs='+',
        default=[],
        metavar='WHERE',
        help='test these whole models and train nothing: a folder of ROW.pth, or ROW=FILE',
    )

    launch = run.add_argument_group('launching')
    launch.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    launch.add_argument(
        '--gpus', type=parse_positive, default=1, help='processes of the launchers pytorch and slurm; default 1'
    )
    launch.add_argument(
        '--launcher-args',
        default='',
        metavar='"ARG ..."',
        help='passed on to torch.distributed.run or srun, e.g. --launcher-args="-p gpu --gres=gpu:8"',
    )
    launch.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='further settings of every config, applied last',
    )

    report = commands.add_parser(
        'report',
        help='write the comparison of work directories as Markdown, CSV and HTML',
        description='Reads what MMEngine left in the work directories at or below the given folders, those of '
        '`compare run` or any others, and writes comparison.md, .csv and .html with their plots.',
    )
    report.add_argument('folders', nargs='+', type=Path, metavar='FOLDER')
    report.add_argument(
        '--benchmark',
        nargs='+',
        type=Path,
        default=[],
        metavar='JSON',
        help='files of tools/benchmark.py, for the latency',
    )
    report.add_argument('--out', type=Path, help='folder to write; default FOLDER/report of the first FOLDER')
    args = parser.parse_args(argv)
    if args.command == 'run' and args.launcher == 'none' and (args.launcher_args or args.gpus > 1):
        parser.error('--gpus and --launcher-args need --launcher pytorch or slurm')
    return args


def run(args: argparse.Namespace) -> None:
    """The sub-command of that name."""
    task = TASKS[args.task]
    rows, problems = select_rows(task, args.rows)
    for place in (*args.pretrained, *args.checkpoints):
        name, is_row, _ = place.partition('=')
        if is_row and (unknown := select_rows(task, [name])[1]):
            raise SystemExit(f'error: {place}: {unknown[0]}')
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    if not rows:
        raise SystemExit('error: no row to run')
    options = vars(args) | dict(task=task, work_dir=args.work_dir or Path('work_dirs', f'compare-{task.name}'))
    settings = Settings(**{field.name: options[field.name] for field in dataclasses.fields(Settings)})
    outcomes = dry_run(rows, settings) if args.dry_run else run_rows(rows, settings, Console())
    failed = [f'{key}: {reason}' for key, reason in outcomes.items() if reason]
    if len(failed) < len(rows) and not args.dry_run:
        print(f'see the results by: {sys.executable} {sys.argv[0]} report {settings.work_dir}')
    if failed:
        head = f'{len(failed)} of {len(rows)} rows failed; the same command tries them again:'
        print(head, *failed, sep='\n  ', file=sys.stderr)
    if failed or problems:
        raise SystemExit(1)


def dry_run(rows: list[Row], settings: Settings) -> dict[str, str | None]:
    """Prints what would be started."""
    outcomes, planned = {}, []
    for row in rows:
        try:
            planned.append(RowRun(row, settings))
            outcomes[row.key] = None
        except Exception as error:
            outcomes[row.key] = describe(error)
    lines = [{f'#   {name} = {value!r}': None for name, value in run.options.items()} for run in planned]
    common = [line for line in (lines[0] if lines else ()) if all(line in other for other in lines)]
    print('# every row:', *common, sep='\n')
    for run, own in zip(planned, lines):
        print(f'# {run.row.key}: {run.row.config}', *(line for line in own if line not in common), sep='\n')
        for step in run.steps:
            print(shlex.join(run.command(step)) + ('  # done already' if step in run.state['done'] else ''))
    return outcomes


def report(args: argparse.Namespace) -> None:
    """The sub-command of that name."""
    from mmefficientmod.analysis.comparison import compare
    from mmefficientmod.analysis.report import write

    console = Console(stderr=True)
    with console.status('reading') as status:
        comparison = compare(args.folders, args.benchmark, status.update)
        files = write(comparison, args.out or args.folders[0] / 'report')
    print(*files, sep='\n')
    for warning in comparison.warnings:
        print('error' if warning in comparison.problems else 'note', warning, sep=': ', file=sys.stderr)
    if comparison.problems:
        raise SystemExit(1)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        dict(run=run, report=report)[args.command](args)
    except (CompareError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command continues') from None


if __name__ == '__main__':
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the running step is ended as well
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup stays nohup
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    main()
