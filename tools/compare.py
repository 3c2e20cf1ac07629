"""Compares backbones: `run` trains and tests each of them, `report` shows the results next to the published values."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from rich.console import Console

from mmefficientmod.codebases.config import parse_options
from mmefficientmod.compare.settings import Settings, backbone_config
from mmefficientmod.utils import (
    HelpFormatter,
    UserError,
    check_output_folder,
    describe_error,
    exit_in_one_line,
    parse_path,
    parse_positive,
    parse_size,
    parse_text,
    parse_whole,
    run_tool,
)
from mmefficientmod.zoo.backbones import Backbone, select_backbones
from mmefficientmod.zoo.tasks import TASKS

if TYPE_CHECKING:  # running needs file locks, which not every system that can draw a report has
    from mmefficientmod.compare.runs import Job, Launcher

EPILOG = """\
examples:
  python tools/compare.py run segmentation --backbones efficientmod-s resnet-18 --data-root data/ADEChallengeData2016
  python tools/compare.py report work_dirs/compare-segmentation --benchmark work_dirs/benchmark/benchmark.json"""
RUN_EPILOG = """\
examples:
  python tools/compare.py run detection --launcher pytorch --gpus 8 --dry-run
  python tools/compare.py run segmentation --iters 4000 --pretrained none --overlay configs/_base_/overlays/camvid.py"""
REPORT_EPILOG = """\
examples:
  python tools/compare.py report work_dirs/compare-segmentation
  python tools/compare.py report first/efficientmod-s second/resnet-18 --out report --benchmark benchmark.json"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=HelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    add_run_parser(commands)
    add_report_parser(commands)
    args = parser.parse_args(argv)
    args.command_line = [sys.executable, str(Path(__file__).resolve()), *(sys.argv[1:] if argv is None else argv)]
    if args.command == 'run' and args.launcher == 'none' and (args.launcher_args or args.gpus > 1):
        parser.error('--gpus and --launcher-args need --launcher pytorch or slurm')
    return args


def add_run_parser(commands: argparse._SubParsersAction) -> None:
    """The options of `run`."""
    run = commands.add_parser(
        'run',
        allow_abbrev=False,  # a job array leaves --dry-run out of its command, and would not know --dry
        formatter_class=HelpFormatter,
        help='train and test backbones with tools/train.py and tools/test.py',
        description='Trains and tests the chosen backbones one after another. Started again after a stop, the same '
        'command skips finished steps and continues the rest from the last checkpoint.',
        epilog=RUN_EPILOG,
    )
    run.add_argument('task', choices=TASKS, help='task to compare: detection, segmentation or classification')
    run.add_argument(
        '--backbones',
        nargs='+',
        type=parse_text,
        metavar='BACKBONE',
        help='names (e.g. efficientmod-s) or groups: table7 (default; detection and segmentation), table1 (default of '
        'classification), efficientmod, all',
    )
    run.add_argument(
        '--work-dir',
        type=parse_path,
        help='folder that holds one folder for each backbone (default: work_dirs/compare-TASK)',
    )
    run.add_argument(
        '--dry-run',
        action='store_true',
        help='print the settings and commands, and with --launcher slurm a job array; start nothing',
    )
    add_data_options(run)
    add_weight_options(run)
    add_launch_options(run)


def add_data_options(run: argparse.ArgumentParser) -> None:
    data = run.add_argument_group("data and schedule (default: the config's settings, which are the published ones)")
    data.add_argument('--data-root', type=parse_text, help='root folder of the data set')
    data.add_argument(
        '--overlay',
        dest='overlays',
        nargs='+',
        type=parse_text,
        default=[],
        metavar='CONFIG',
        help="config files merged over every backbone's config, e.g. another data set",
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
        help='crop (segmentation, classification: square) or maximum image size (detection), in pixels',
    )
    data.add_argument('--batch-size', type=parse_positive, help='images for each GPU (process) in a step')
    data.add_argument('--workers', type=partial(parse_whole, most=1024), help='data loading processes')
    data.add_argument(
        '--seed',
        type=partial(parse_whole, most=2**32 - 1),
        default=0,
        help='random seed, the same for every backbone (default: 0)',
    )
    data.add_argument('--amp', action='store_true', help='train with mixed precision')


def add_weight_options(run: argparse.ArgumentParser) -> None:
    weights = run.add_argument_group('weights')
    weights.add_argument(
        '--pretrained',
        nargs='+',
        type=parse_text,
        default=[],
        metavar='WHERE',
        help='initial weights of the backbones: "none" (random), a folder with BACKBONE.pth, or BACKBONE=FILE '
        "(default: the config's)",
    )
    weights.add_argument(
        '--checkpoints',
        nargs='+',
        type=parse_text,
        default=[],
        metavar='WHERE',
        help='only test complete models, without a training: a folder with BACKBONE.pth, BACKBONE=FILE, or "published" '
        "(timm's weights of the classifiers; can be combined with the others)",
    )


def add_launch_options(run: argparse.ArgumentParser) -> None:
    launch = run.add_argument_group('launching')
    launch.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='how processes start (default: none)'
    )
    launch.add_argument(
        '--gpus',
        type=partial(parse_whole, least=1, most=65536),
        default=1,
        help='GPUs (processes) for --launcher pytorch or slurm (default: 1)',
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
        type=parse_text,
        default=[],
        metavar='KEY=VALUE',
        help='further settings of every config, applied last',
    )


def add_report_parser(commands: argparse._SubParsersAction) -> None:
    """The options of `report`."""
    report = commands.add_parser(
        'report',
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        help='write the comparison of work directories as Markdown, CSV and HTML',
        description='Reads the work directories of `compare run` or of any training and test of MMEngine, and writes '
        'comparison.md, .csv and .html with their plots.',
        epilog=REPORT_EPILOG,
    )
    report.add_argument(
        'folders', nargs='+', type=parse_path, metavar='FOLDER', help='work directories or folders above'
    )
    report.add_argument(
        '--benchmark',
        nargs='+',
        type=parse_path,
        default=[],
        metavar='JSON',
        help='files of tools/benchmark.py, for the latency',
    )
    report.add_argument('--out', type=parse_path, help='output folder (default: FOLDER/report of the first FOLDER)')


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
        name, named, file = place.partition('=')
        if named and not file:
            raise UserError(f'{place} names no file after the =')
        unknown = select_backbones(task, [name])[1]
        if named and unknown and not Path(place).is_dir():
            raise UserError(f'{place}: {unknown[0]}')
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    if not backbones:
        raise UserError('no backbone to run')
    options = {**vars(args), 'task': task, 'cfg_options': parse_options(args.cfg_options)}
    settings = Settings(**{field.name: options[field.name] for field in dataclasses.fields(Settings)})
    launcher = Launcher(args.launcher, args.gpus, args.launcher_args)
    work_dir = args.work_dir or Path('work_dirs', f'compare-{task.name}')
    if not args.dry_run:
        check_output_folder(work_dir, '--work-dir')
    plans, outcomes = plan(backbones, settings, launcher, work_dir)
    if args.dry_run:
        dry_run(plans)
        if launcher.kind == 'slurm' and plans:
            print(launcher.job_array(f'compare-{task.name}', [job.name for job, _ in plans], args.command_line))
    else:
        outcomes.update(run_jobs([job for job, _ in plans], Console()))
    failed = [f'{name}: {reason}' for name, reason in outcomes.items() if reason]
    if len(failed) < len(backbones) and not args.dry_run:
        print('see the results with:', shlex.join([sys.executable, sys.argv[0], 'report', str(work_dir)]))
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
        except Exception as error:  # any error concerns only this backbone
            refused[backbone.key] = str(error) if isinstance(error, UserError) else describe_error(error)
            continue
        checkpoint = options.get('load_from') if settings.checkpoints else None
        folder = work_dir / backbone.key
        plans.append((Job(backbone.key, folder, config, backbone.config.name, checkpoint, launcher), options))
    return plans, refused


def dry_run(plans: list[tuple[Job, dict]]) -> None:
    """Prints the settings and the commands."""
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

    out = args.out or args.folders[0] / 'report'
    if args.out or args.folders[0].is_dir():  # a missing folder has a clearer line
        check_output_folder(out)
    console = Console(stderr=True)
    with console.status('reading') as status:
        comparison = compare(args.folders, args.benchmark, status.update)
        files = write(comparison, out)
    print(*files, sep='\n')
    for warning in comparison.warnings:
        print('error' if warning in comparison.problems else 'note', warning, sep=': ', file=sys.stderr)
    if comparison.problems:
        raise SystemExit(1)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with exit_in_one_line('stopped; the same command continues'):
        dict(run=run, report=report)[args.command](args)


if __name__ == '__main__':
    run_tool(main)
