"""Compares backbones: `run` trains and tests each of them, `report` puts the results beside the published figures."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import DictAction
from rich.console import Console

from mmefficientmod.compare.settings import Settings, backbone_config
from mmefficientmod.utils import (
    UserError,
    describe_error,
    parse_positive,
    parse_size,
    parse_with_config_options,
)
from mmefficientmod.zoo.backbones import Backbone, select_backbones
from mmefficientmod.zoo.tasks import TASKS

if TYPE_CHECKING:  # running needs file locks, which not every system that can draw a report has
    from mmefficientmod.compare.runs import Job, Launcher


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    run = commands.add_parser(
        'run',
        allow_abbrev=False,  # a job array leaves --dry-run out of its command, and would not know --dry
        help='train and test backbones through tools/train.py and tools/test.py',
        description='Trains and tests the chosen backbones one after another. Started again after it was killed, the '
        'same command skips what is done and continues the rest from its last checkpoint.',
    )
    run.add_argument('task', choices=TASKS)
    run.add_argument(
        '--backbones',
        nargs='+',
        metavar='BACKBONE',
        help='names such as efficientmod-s, "table7" (the default), "table1" (that of classification) or "all"',
    )
    run.add_argument(
        '--work-dir', type=Path, help='each backbone works in WORK_DIR/BACKBONE; default work_dirs/compare-TASK'
    )
    run.add_argument(
        '--dry-run',
        action='store_true',
        help='print the settings and commands, with --launcher slurm a job array as well; start nothing',
    )

    data = run.add_argument_group('data and schedule (default: as the config says, which is the published setting)')
    data.add_argument('--data-root', help='root folder of the data set')
    data.add_argument(
        '--overlay',
        dest='overlays',
        nargs='+',
        default=[],
        metavar='CONFIG',
        help="config files merged over every backbone's, e.g. another data set",
    )
    data.add_argument(
        '--iters', type=parse_positive, help='iterations of segmentation; the schedule follows in proportion'
    )
    data.add_argument(
        '--epochs',
        type=parse_positive,
        help='epochs of detection or classification; the schedule follows in proportion',
    )
    data.add_argument(
        '--size',
        type=parse_size,
        metavar='HxW',
        help='crop of segmentation and classification, image bound of detection',
    )
    data.add_argument('--batch-size', type=parse_positive, help='images a step and process')
    data.add_argument('--workers', type=int, help='data loading processes')
    data.add_argument('--seed', type=int, default=0, help='of every backbone; default 0')
    data.add_argument('--amp', action='store_true', help='mixed precision in training')

    weights = run.add_argument_group('weights')
    weights.add_argument(
        '--pretrained',
        nargs='+',
        default=[],
        metavar='WHERE',
        help='weights the backbones start from: "none" (random), a folder of BACKBONE.pth, or BACKBONE=FILE; '
        'default: as the config says',
    )
    weights.add_argument(
        '--checkpoints',
        nargs='+',
        default=[],
        metavar='WHERE',
        help='test these whole models and train nothing: a folder of BACKBONE.pth, BACKBONE=FILE, or "published" for '
        'the weights of the classifiers that timm has; it may stand beside the others',
    )

    launch = run.add_argument_group('launching')
    launch.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    launch.add_argument(
        '--gpus', type=parse_positive, default=1, help='processes of the launchers pytorch and slurm; default 1'
    )
    launch.add_argument(
        '--launcher-args',
        type=parse_words,
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
        allow_abbrev=False,
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
    args = parse_with_config_options(parser, argv)
    args.command_line = [sys.executable, str(Path(__file__).resolve()), *(sys.argv[1:] if argv is None else argv)]
    if args.command == 'run' and args.launcher == 'none' and (args.launcher_args or args.gpus > 1):
        parser.error('--gpus and --launcher-args need --launcher pytorch or slurm')
    if args.command == 'run' and (args.workers or 0) < 0:
        parser.error('--workers must be 0 or more')
    return args


def parse_words(text: str) -> str:
    """A text that a shell could split into words, for argparse."""
    try:
        shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r} cannot be split into words ({error})') from None
    return text


def run(args: argparse.Namespace) -> None:
    """The sub-command of that name."""
    from mmefficientmod.compare.runs import Launcher, run_jobs

    task = TASKS[args.task]
    backbones, problems = select_backbones(task, args.backbones or [task.group])
    for place in (*args.pretrained, *args.checkpoints):
        name, named, _ = place.partition('=')
        unknown = select_backbones(task, [name])[1]
        if named and unknown and not Path(place).is_dir():
            raise SystemExit(f'error: {place}: {unknown[0]}')
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    if not backbones:
        raise SystemExit('error: no backbone to run')
    options = {**vars(args), 'task': task}
    settings = Settings(**{field.name: options[field.name] for field in dataclasses.fields(Settings)})
    launcher = Launcher(args.launcher, args.gpus, args.launcher_args)
    work_dir = args.work_dir or Path('work_dirs', f'compare-{task.name}')
    plans, outcomes = plan(backbones, settings, launcher, work_dir)
    if args.dry_run:
        dry_run(plans)
        if launcher.kind == 'slurm' and plans:
            print(launcher.job_array(f'compare-{task.name}', [job.name for job, _ in plans], args.command_line))
    else:
        outcomes.update(run_jobs([job for job, _ in plans], Console()))
    failed = [f'{name}: {reason}' for name, reason in outcomes.items() if reason]
    if len(failed) < len(backbones) and not args.dry_run:
        print('see the results by:', shlex.join([sys.executable, sys.argv[0], 'report', str(work_dir)]))
    if failed:
        head = f'{len(failed)} of {len(backbones)} backbones failed; the same command tries them again:'
        print(head, *failed, sep='\n  ', file=sys.stderr)
    if failed or problems:
        raise SystemExit(1)


def plan(
    backbones: list[Backbone], settings: Settings, launcher: Launcher, work_dir: Path
) -> tuple[list[tuple[Job, dict]], dict[str, str | None]]:
    """A job for each backbone with its settings, and the reasons why others cannot run."""
    from mmefficientmod.compare.runs import Job

    plans, refused = [], {}
    for backbone in backbones:
        try:
            config, options = backbone_config(backbone, settings)
        except Exception as error:  # whatever it is, it is about this backbone
            refused[backbone.key] = str(error) if isinstance(error, UserError) else describe_error(error)
            continue
        checkpoint = options.get('load_from') if settings.checkpoints else None
        folder = work_dir / backbone.key
        plans.append((Job(backbone.key, folder, config, backbone.config.name, checkpoint, launcher), options))
    return plans, refused


def dry_run(plans: list[tuple[Job, dict]]) -> None:
    """Prints what would be started."""
    lines = [[f'#   {name} = {value!r}' for name, value in options.items()] for _, options in plans]
    common = [line for line in (lines[0] if lines else ()) if all(line in other for other in lines)]
    print('# every backbone:', *common, sep='\n')
    for (job, _), own in zip(plans, lines):
        print(f'# {job.name}: {job.config_name}', *(line for line in own if line not in common), sep='\n')
        for step in job.steps:
            print(shlex.join(job.command(step)) + ('  # done already' if step in job.state.done else ''))


def report(args: argparse.Namespace) -> None:
    """The sub-command of that name."""
    from mmefficientmod.compare.report import write
    from mmefficientmod.compare.table import compare

    console = Console(stderr=True)
    with console.status('reading') as status:
        comparison = compare(args.folders, args.benchmark, status.update)
        files = write(comparison, args.out or args.folders[0] / 'report')
    print(*files, sep='\n')
    for warning in comparison.warnings:
        print('error' if warning in comparison.problems else 'note', warning, sep=': ', file=sys.stderr)
    if comparison.problems:
        raise SystemExit(1)


def end_by_signals() -> None:
    """Lets SIGTERM and SIGHUP, which Windows lacks, end the running step as well."""
    for name in ('SIGTERM', 'SIGHUP'):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is signal.SIG_DFL:  # nohup stays nohup
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        dict(run=run, report=report)[args.command](args)
    except (UserError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command continues') from None


if __name__ == '__main__':
    end_by_signals()
    main()
