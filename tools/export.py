"""Export a trained backbone, classifier, segmentor or detector as checked files: ONNX, OpenVINO, AOTInductor."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone is enough for the list of formats

from mmefficientmod.export.description import Description
from mmefficientmod.export.formats import FORMATS, OPSET, OPSETS
from mmefficientmod.export.supported import describe
from mmefficientmod.utils import (
    LARGEST_SIDE,
    HelpFormatter,
    UserError,
    exit_in_one_line,
    parse_path,
    parse_positive,
    parse_text,
    parse_whole,
    run_tool,
)

if TYPE_CHECKING:
    from mmefficientmod.predict.accuracy import Measure

CHECKS = f"""
The tool checks the exportable form against the MM library's own result, then each file against the form, then what
tools/predict.py predicts with the file against the library's own inferencer:
  backbone        each level within 1e-4 of its largest value
  segmentation    99.99 % of the pixels of the same class
  classification  each probability within 1e-4
  detection       each detection matched: label, IoU >= 0.99, score within 1e-3, IoU of masks >= 0.99
A check that fails leaves no file. What bf16, fp16-weights and INT8 change on the check images is measured and
printed. ONNX files are of opset {OPSET}, or of the one given with --opset."""

EXAMPLES = """examples:
  python tools/export.py my_config.py work_dirs/my_config/epoch_12.pth exported --format onnx openvino
  python tools/export.py my_config.py epoch_12.pth exported --size 800 1344 --size 1344 800 --check photos/
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=HelpFormatter)
    parser.add_argument('config', type=parse_text, help='config of the model: a path, or the name of an installed one')
    parser.add_argument(
        'checkpoint', type=parse_text, help='its weights; with --part backbone, also those of only a backbone'
    )
    parser.add_argument('out', nargs='?', type=parse_path, help='folder to make (default: the checkpoint + "-export")')
    parser.add_argument(
        '--format', nargs='+', choices=list(FORMATS), default=['onnx'], help='formats to write (default: onnx)'
    )
    parser.add_argument(
        '--precision',
        nargs='+',
        choices=['fp32', 'bf16', 'fp16-weights'],
        metavar='PRECISION',
        help='of each format, the preferred one first: fp32 (default), bf16 (openvino and pt2, on a CPU that has it; '
        'with fp32 as well, other CPUs take that), fp16-weights (onnx, openvino: half the size, computed in float32)',
    )
    parser.add_argument(
        '--opset',
        type=int,
        choices=list(OPSETS),
        default=OPSET,
        metavar='N',
        help=f'of ONNX files, from {min(OPSETS)} to {max(OPSETS)} (default: {OPSET}); older runtimes need a lower one',
    )
    parser.add_argument('--part', choices=['model', 'backbone'], default='model', help='default: model')
    side = partial(parse_whole, least=32, most=LARGEST_SIDE)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        '--size',
        nargs=2,
        type=side,
        action='append',
        metavar=('HEIGHT', 'WIDTH'),
        help='fixed size of the input in pixels; give it again for a file of another size. Default: free, and for '
        'detectors the sizes of the test pipeline, landscape and portrait',
    )
    size.add_argument(
        '--dynamic', action='store_true', help='free batch, height and width; the default except for detectors'
    )
    parser.add_argument('--batch', type=parse_positive, default=1, help='images at once, with --size (default: 1)')
    parser.add_argument(
        '--check',
        nargs='+',
        type=parse_text,
        default=[],
        metavar='IMAGE',
        help='images, folders or patterns to check with (default: made-up images)',
    )
    parser.add_argument(
        '--int8',
        nargs='+',
        type=parse_text,
        default=[],
        metavar='IMAGE',
        help='also write INT8 files, calibrated with these images, folders or patterns',
    )
    parser.add_argument(
        '--annotations',
        type=parse_path,
        metavar='FILE',
        help='of the --check images: COCO JSON for a detector, folder of label images for a segmentor; the tool prints '
        'the box AP or mIoU of each file',
    )
    parser.add_argument(
        '--within',
        type=parse_limit,
        metavar='LIMIT',
        help='name the fastest of fp32, bf16 and INT8 (with --int8) that loses at most LIMIT: points of AP or mIoU '
        'with --annotations, else the share of detections, pixels or images that changes',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', type=parse_text, default=[], metavar='KEY=VALUE', help='changes of the config'
    )
    parser.add_argument('--formats', action=ListFormats, help='list the formats and how they are checked')
    parser.add_argument('--list', action=ListModels, help='list the models that can be exported whole')
    args = parser.parse_args(argv)
    args.precision = args.precision or (['fp32'] if args.within is None else ['fp32', 'bf16'])
    if args.annotations and not args.check:
        parser.error('--annotations is for the images of --check: give them')
    if (args.annotations or args.within is not None) and 'fp32' not in args.precision:
        parser.error('--within and --annotations compare with float32: add fp32 to --precision')
    return args


def parse_limit(text: str) -> float:
    """A number from 0 to 100."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 100:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 100')


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    out = args.out or Path(f'{os.path.splitext(args.checkpoint)[0]}-export')
    with exit_in_one_line('error: stopped; nothing was left'):
        try:
            description = write_folder(args, out)
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename:
                raise
            raise UserError(f'{out}: {error.strerror}') from error  # a full disk names no file
    files = ', '.join(dict.fromkeys(name for names in description.files.values() for name in names))
    print(f'{out}: {files}, export.json')


def write_folder(args: argparse.Namespace, out: Path) -> Description:
    """Exports what the command line asks for."""
    # Here, so that the help and the list of formats need no torch.
    from mmefficientmod.codebases.config import parse_options
    from mmefficientmod.export.changes import recommend
    from mmefficientmod.export.folder import export
    from mmefficientmod.export.images import find_images
    from mmefficientmod.export.plan import ExportOptions, check_options
    from mmefficientmod.export.source import read_source

    options = ExportOptions(
        out,
        formats=args.format,
        part=args.part,
        sizes=[(height, width) for height, width in args.size or ()],
        dynamic=args.dynamic,
        batch=args.batch,
        check_images=find_images(args.check, '--check'),
        precisions=args.precision,
        opset=args.opset,
        int8_images=find_images(args.int8, '--int8'),
        names=dict(config=str(args.config), checkpoint=Path(args.checkpoint).name),
        log=partial(print, flush=True),
    )
    check_options(options)
    source = read_source(args.config, args.checkpoint, args.part, parse_options(args.cfg_options))
    measure = losses = None
    if args.annotations:
        from mmefficientmod.predict.accuracy import read_measure

        if args.part == 'backbone':
            raise UserError('--annotations is for whole models, not for --part backbone')
        measure = read_measure(source, options.check_images, args.annotations)
    description = export(source, options)
    if measure:
        losses = measure_losses(description, out, measure)
    if args.within is not None:
        options.log(recommend(description, args.within, losses))
    return description


def measure_losses(description: Description, out: Path, measure: Measure) -> dict[str, float]:
    """Prints the accuracy of each file, notes it in ``export.json``, and returns the points that it loses."""
    from mmefficientmod.export.model import ExportedModel

    found = {}
    for name in description.files:
        found[name] = measure.of(ExportedModel.open(out, 0.0, name))
        print(f'{measure.name} of {name}: {found[name]:.2f}', flush=True)
        check = dict(name=measure.name, figure=found[name], form=name, limit=None, passed=None)
        description.checks.append(dict(check, samples=measure.images))
    description.write(out)
    return {name: found[name.partition('-')[0]] - value for name, value in found.items()}


class ListFormats(argparse.Action):
    """Prints what the formats take, and ends."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: object) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, 0, help=str(kwargs['help']))

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        for item in FORMATS.values():
            print(f'{item.name:10} {item.file:12} {item.about}')
            print(f'{"":10} to write: {", ".join(item.packages)}; to run: {item.runtime}')
        print(CHECKS)
        parser.exit()


class ListModels(ListFormats):
    """Prints which models can be exported, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        print(describe())
        parser.exit()


if __name__ == '__main__':
    run_tool(main)
