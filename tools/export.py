"""Exports a trained backbone, classifier, segmentor or detector as checked files: ONNX, OpenVINO, AOTInductor."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from mmefficientmod.export.description import Description
from mmefficientmod.export.formats import FORMATS, OPSET
from mmefficientmod.export.inputs import PICTURES, is_wanted
from mmefficientmod.utils import UserError

CHECKS = f"""
Checks, of the eager inference form against the MM library's own result, then of each file against it:
  backbone      each level within 1e-4 of its largest value
  segmentation  99.99 % of the pixels of the same class
  classification  each probability within 1e-4
  detection     each detection matched: label, IoU >= 0.99, score within 1e-3, IoU of masks >= 0.99
A check that fails leaves no file. ONNX files are of opset {OPSET}."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model: a path, or a name of an installed one')
    parser.add_argument('checkpoint', help='its weights; with --part backbone, those of a backbone alone as well')
    parser.add_argument('out', nargs='?', help='folder to make (default: CHECKPOINT without its ending, -export)')
    parser.add_argument(
        '--format', nargs='+', choices=list(FORMATS), default=['onnx'], help='formats to write (default: onnx)'
    )
    parser.add_argument(
        '--part', choices=['model', 'backbone'], default='model', help='what to export (default: model)'
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        '--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'), help='fixed size of the input in pixels'
    )
    size.add_argument(
        '--dynamic',
        action='store_true',
        help='free batch, height and width from 32 on (the default, but for detectors, whose default is the size of '
        'their test pipeline)',
    )
    parser.add_argument('--batch-size', type=int, default=1, help='pictures at once, with --size (default: 1)')
    parser.add_argument(
        '--check', nargs='+', default=[], metavar='IMAGE', help='pictures to check with (default: made up)'
    )
    parser.add_argument(
        '--int8', nargs='+', default=[], metavar='IMAGE', help='also write INT8 files, calibrated with these pictures'
    )
    parser.add_argument('--formats', action=ListFormats, help='list the formats and how they are checked')
    args = parser.parse_args()
    if args.size and min(args.size) < 32:
        parser.error(f'--size {args.size[0]} {args.size[1]}: height and width have to be 32 pixels or more')
    if args.batch_size < 1:
        parser.error('--batch-size has to be 1 or more')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, which removes what is half written
    out = Path(args.out or f'{Path(args.checkpoint).with_suffix("")}-export')
    try:
        description = write_folder(args, out)
    except KeyboardInterrupt:
        print('error: stopped; nothing was left', file=sys.stderr)
        raise SystemExit(130) from None
    print(f'{out}: {", ".join(description.files.values())}, export.json')


def write_folder(args: argparse.Namespace, out: Path) -> Description:
    """Exports what the command line asks for; ends the program with one line where that cannot work."""
    # Here, so that the help and the list of formats need no torch.
    from mmefficientmod.export.making import export
    from mmefficientmod.export.source import read_source

    try:
        if out.exists():
            raise UserError(f'{out} exists: remove it or name another folder')
        pictures, calibration = find_pictures(args.check, '--check'), find_pictures(args.int8, '--int8')
        source = read_source(args.config, args.checkpoint, args.part)
        return export(
            source,
            out,
            args.format,
            args.part,
            tuple(args.size) if args.size else None,
            args.dynamic,
            args.batch_size,
            pictures,
            calibration,
            dict(config=str(args.config), checkpoint=Path(args.checkpoint).name),
            lambda line: print(line, flush=True),
        )
    except (UserError, OSError) as error:
        place = f'{out}: ' if isinstance(error, OSError) and not error.filename else ''  # a full disk names no file
        raise SystemExit(f'error: {place}{error}') from None


def find_pictures(paths: list[str], option: str) -> list[str]:
    """The files named, and the pictures in the folders named and below, without hidden ones.

    Raises:
        UserError: If there is none under a name, with the command line's option.
    """
    found: list[str] = []
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(file for file in path.rglob('*') if is_wanted(file, path))
        if not files:
            raise UserError(f'{option} {path}: there is no picture; known are {", ".join(PICTURES)}')
        found += map(str, files)
    return found


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


if __name__ == '__main__':
    main()
