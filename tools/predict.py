"""Predicts on pictures and videos: by a config and a checkpoint, or by the folder that tools/export.py wrote."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone is enough for an exported folder

from mmefficientmod.predict.run import Model, run
from mmefficientmod.predict.sources import find_sources
from mmefficientmod.utils import UserError, parse_positive


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage='%(prog)s INPUT ... CONFIG CHECKPOINT [options]\n       %(prog)s INPUT ... EXPORTED_FOLDER [options]',
    )
    parser.add_argument(
        'paths',
        nargs='+',
        metavar='PATH',
        help='INPUT: pictures, videos, folders (with their subfolders) or patterns; then CONFIG and CHECKPOINT, or '
        'EXPORTED_FOLDER, the one with export.json, which needs neither torch nor an MM library',
    )
    parser.add_argument('--out', type=Path, default=Path('predictions'), help='folder to write; default predictions')
    parser.add_argument('--score-thr', type=parse_share, help='least score of an object; default 0.3')
    parser.add_argument(
        '--annotations',
        type=Path,
        metavar='FILE',
        help='COCO JSON that gives images and categories their ids, for an evaluation; --score-thr is 0 then',
    )
    parser.add_argument('--device', help='such as cpu or cuda:0; default: the best there is, with a file the CPU')
    parser.add_argument('--batch-size', type=parse_positive, default=1, help='pictures at a time; default 1')
    parser.add_argument('--no-images', action='store_true', help='write predictions only, no drawings')
    parser.add_argument('--format', help='which of the exported files to use, such as openvino or onnx-int8')
    args = parser.parse_args(argv)
    if args.score_thr is None:
        args.score_thr = 0.0 if args.annotations else 0.3
    args.exported = is_exported(args.paths[-1])
    operands = 1 if args.exported else 2
    args.inputs, args.model = args.paths[:-operands], args.paths[-operands:]
    if not args.inputs and len(args.paths) == 2:
        parser.error(f'{args.paths[1]} is no exported folder; a checkpoint needs its config before it')
    if not args.inputs:
        parser.error('INPUT and CONFIG CHECKPOINT, or INPUT and EXPORTED_FOLDER, are needed')
    return args


def parse_share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no number from 0 to 1')
    return value


def is_exported(path: str) -> bool:
    return Path(path).is_dir() or Path(path).name == 'export.json'


def load(args: argparse.Namespace) -> Model:
    if args.exported:
        from mmefficientmod.predict.exported import ExportedModel

        return ExportedModel(Path(args.model[0]), args.device, args.score_thr, args.format)
    if args.format:
        raise UserError('--format chooses among exported files: give EXPORTED_FOLDER instead of CONFIG CHECKPOINT')
    try:
        from mmefficientmod.predict.inferencers import InferencerModel
    except ImportError as error:
        raise UserError(f'a checkpoint needs torch and an MM library ({error}); an exported folder does not') from None
    try:
        return InferencerModel(*args.model, args.device, args.score_thr)
    except UserError as error:
        raise UserError(str(error)) from error


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is done is kept
    try:
        sources = find_sources(args.inputs, args.out)
        summary = run(load(args), sources, args.out, args.batch_size, not args.no_images, args.annotations)
    except (UserError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit('error: stopped before the first prediction') from None
    print(f'{args.out}: {summary}')
    if summary.failures or summary.stopped:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
