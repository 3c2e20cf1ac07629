"""Says what a folder of your own images holds and what is wrong with it, draws it, and writes a config for it."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import sys
import tempfile
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mmengine.config import Config

from mmefficientmod.codebases.nodes import missing_pretrained
from mmefficientmod.data.configs import MODELS, Plan, best_key, make_plan, write_config
from mmefficientmod.data.files import spread
from mmefficientmod.data.findings import Finding
from mmefficientmod.data.formats import FORMATS, recognise
from mmefficientmod.data.inspect import inspect_all
from mmefficientmod.data.parts import Masks, OwnData
from mmefficientmod.data.preview import draw_preview
from mmefficientmod.utils import (
    HelpFormatter,
    UserError,
    check_output_folder,
    exit_in_one_line,
    parse_path,
    parse_share,
    parse_text,
    parse_whole,
    replace_file,
    run_tool,
)

MOST_LISTED = 100  # classes
MOST_DECODED = 100  # label images a part that are converted for a look
NOTE = 'Written by tools/own_data.py from {}. The next run for the same data replaces what is here.\n'
README = 'README.txt'
EPILOG = """\
examples:
  python tools/own_data.py data/mine --preview preview
  python tools/own_data.py data/mine --config configs/mine.py --model mask-rcnn --backbone efficientmod-s"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=HelpFormatter)
    parser.add_argument('data', type=parse_path, metavar='DATA', help='folder of the data set, or a COCO JSON in it')
    parser.add_argument('--format', choices=FORMATS, help='which one to read, where the folder holds several')
    parser.add_argument('--classes', type=parse_names, default=[], help='NAME,NAME,... where no file names the classes')
    parser.add_argument('--preview', type=parse_path, metavar='FOLDER', help='draw a sheet for each class, and a page')
    parser.add_argument('--config', type=parse_path, metavar='FILE', help='config to write; it ends in .py')
    parser.add_argument('--overwrite', action='store_true', help='replace the config if it exists')
    parser.add_argument(
        '--prepared', type=parse_path, metavar='FOLDER', help='for what is added; default DATA_prepared'
    )
    group = parser.add_argument_group('for the config')
    group.add_argument('--model', choices=MODELS, help='default: what the annotations are for')
    group.add_argument('--backbone', type=parse_text, default='efficientmod-s', help='default efficientmod-s')
    group.add_argument('--gpus', type=lambda text: parse_whole(text, 0, 1024), default=1, help='0: a CPU; default 1')
    group.add_argument('--val-share', type=parse_share, default=0.2, help='of images, without val data; default 0.2')
    group.add_argument('--seed', type=parse_whole, default=0, help='of the choice of validation images; default 0')
    group.add_argument(
        '--group-by-prefix',
        nargs='?',
        const='_',
        type=parse_text,
        metavar='TEXT',
        help='keep images together whose names agree up to this text, such as frames of a video; default "_"',
    )
    args = parser.parse_args(argv)
    if not 0 < args.val_share < 1:
        parser.error('--val-share is above 0 and below 1')
    if args.config and args.config.suffix != '.py':
        parser.error(f'--config {args.config} does not end in .py')
    return args


def parse_names(text: str) -> list[str]:
    """Names of classes, separated by commas."""
    names = [name.strip() for name in text.split(',')]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f'{text!r} has an empty name or one twice')
    return names


def run(args: argparse.Namespace) -> bool:
    """Does what the command line asks for.

    Returns:
        bool: Whether the data can be trained on.
    """
    check_outputs(args)
    data = recognise(args.data, args.format, args.classes)
    print_summary(args.data, data)
    if any(finding.level == 'error' for finding in data.findings):
        return report(data.findings)
    try:
        data = divided = data.divide(args.val_share, args.seed, args.group_by_prefix)
    except UserError:
        for finding in data.findings:  # they say where the images are that it misses
            print(f'{finding.level}: {finding}')
        raise
    plan = make_plan(data, args.model, args.backbone, args.gpus)
    with ExitStack() as stack:
        if args.config:
            folder = (args.prepared or data.root.with_name(f'{data.root.name}_prepared')).resolve()
            data = write_prepared(data, folder)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            data = shorten(data).write(folder)
        text = write_config(data, plan, folder)
        config = Config.fromstring(text, '.py')
        with redirect_stdout(io.StringIO()):  # pycocotools tells of its index
            findings = [*data.findings, *inspect_all(config)]
        usable = report(findings)
        if args.preview:
            print(f'preview: {draw_preview(divided, args.preview, findings)}')
    if usable and args.config:
        args.config.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.config, text)
        print_commands(args, data, plan, config)
    return usable


def check_outputs(args: argparse.Namespace) -> None:
    """Raises UserError for outputs that exist, cannot be written or lie in the data."""
    if args.config:
        if args.config.exists() and not args.overwrite:
            raise UserError(f'{args.config} exists: choose another name, or add --overwrite')
        check_output_folder(args.config.resolve().parent, '--config')
    for option in ('preview', 'prepared'):
        path = getattr(args, option)
        if path:
            check_output_folder(path, f'--{option}')
            if args.data.resolve() in (path.resolve(), *path.resolve().parents):
                raise UserError(f'--{option} {path} lies in {args.data}: choose a folder outside of the data')


def write_prepared(data: OwnData, folder: Path) -> OwnData:
    """The data with the files that it lacks, in a folder that this tool may replace; no folder if it lacks none."""
    if all(part.is_complete for part in data.parts.values()):
        return data
    readme = folder / README
    if folder.exists() and any(folder.iterdir()) and not readme.is_file():
        raise UserError(f'{folder} exists and was not written by this tool: choose another one with --prepared')
    check_output_folder(folder, '--prepared')
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(readme, NOTE.format(data.root))  # first: the next run may replace what an interrupted one left
    written = data.write(folder)
    print(f'written: {folder}')
    return written


def shorten(data: OwnData) -> OwnData:
    """The data with a sample of the label images, where these must be converted for a look."""
    parts = {
        name: part.take(spread(len(part), MOST_DECODED)) if isinstance(part, Masks) and part.is_converted else part
        for name, part in data.parts.items()
    }
    return replace(data, parts=parts)


def print_summary(given: Path, data: OwnData) -> None:
    """What is there: the format, the parts, sizes, and the classes with their counts."""
    print(f'{given}: {data.format}, for {data.task}, {len(data.classes)} classes')
    for name, part in data.parts.items():
        sizes = part.sizes()
        text = ''
        if sizes:
            middle = sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2]
            least, most = (choose(sizes, key=lambda size: size[0] * size[1]) for choose in (min, max))
            text = f', {middle[0]} x {middle[1]} pixels'
            text += f' (from {least[0]} x {least[1]} to {most[0]} x {most[1]})' if least != most else ''
        print(f'  {"all" if name == "all" else name}: {len(part)} images{text}')
    counts = {name: part.counts() for name, part in data.parts.items()}
    unit = {'detection': 'objects', 'segmentation': 'images in a sample', 'classification': 'images'}[data.task]
    width = max(map(len, data.classes), default=0)
    print(f'  {"class".ljust(width)} ' + ' '.join(f'{name:>8}' for name in counts) + f'   {unit}')
    present = [i for i in range(len(data.classes)) if any(count[i] for count in counts.values())]
    for i in present[:MOST_LISTED]:
        print(f'  {data.classes[i].ljust(width)} ' + ' '.join(f'{count[i]:8}' for count in counts.values()))
    if len(present) > MOST_LISTED:
        print(f'  ... and {len(present) - MOST_LISTED} more')
    if len(present) < len(data.classes):
        print(f'  {len(data.classes) - len(present)} classes have none')


def report(findings: list[Finding]) -> bool:
    """Prints findings; whether none of them is an error."""
    for finding in findings:
        print(f'{finding.level}: {finding}')
    errors = sum(finding.level == 'error' for finding in findings)
    warnings = len(findings) - errors
    print(f'{errors} errors, {warnings} warnings')
    return not errors


def print_commands(args: argparse.Namespace, data: OwnData, plan: Plan, config: Config) -> None:
    """The commands that train, test and predict, and the weights that are missing."""
    file = shlex.quote(str(args.config))
    run_folder = f'work_dirs/{args.config.stem}'
    best = f'{shlex.quote(run_folder)}/best_{best_key(plan).replace("/", "_")}_*.pth'
    here = Path(sys.argv[0]).parent
    tool = 'mim run mmefficientmod ' if '.mim' in here.parts else f'python {shlex.quote(str(here))}/'
    ending = ' ' if '.mim' in here.parts else '.py '
    train = f'{tool}train{ending}{file}'
    if plan.gpus > 1:
        train = f'bash {shlex.quote(str(here))}/dist_train.sh {file} {plan.gpus}'
    part = data.parts['val']
    images = part.root / os.path.commonpath([os.path.dirname(name) for name in part.names()])
    print(f'{args.config}: {MODELS[plan.model].title} with {plan.backbone.name}, {plan.steps} iterations. Then:')
    print(f'  {train}')
    print(f'  {tool}test{ending}{file} {best}')
    print(f'  {tool}predict{ending}{shlex.quote(str(images))} {file} {best} --out predictions')
    for place, _, path in missing_pretrained(config):
        print(
            f'The training starts from {path}, which is not here: download it (docs/model-zoo.md), or start from '
            f'random weights with --cfg-options {place}.init_cfg=None'
        )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with exit_in_one_line():
        usable = run(args)
    if not usable:
        raise SystemExit(1)


if __name__ == '__main__':
    run_tool(main)
