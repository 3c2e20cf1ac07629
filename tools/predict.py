"""Predict on images, videos and streams, with a config and a checkpoint or with a folder that tools/export.py wrote."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone is enough for an exported folder

from mmefficientmod.predict.run import Model, run
from mmefficientmod.predict.sources import find_sources
from mmefficientmod.utils import (
    HelpFormatter,
    UserError,
    check_output_folder,
    exit_in_one_line,
    keep_freed_memory,
    parse_path,
    parse_positive,
    parse_share,
    parse_text,
    run_tool,
)

EXAMPLES = """examples:
  python tools/predict.py photos/ my_config.py work_dirs/my_config/epoch_12.pth --score-thr 0.5
  python tools/predict.py 'photos/**/*.jpg' clip.mp4 exported/ --out predictions --format openvino
  python tools/predict.py 0 exported/ --max-frames 1000
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage='%(prog)s INPUT ... CONFIG CHECKPOINT [options]\n       %(prog)s INPUT ... EXPORTED_FOLDER [options]',
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        'paths',
        nargs='+',
        type=parse_text,
        metavar='PATH',
        help='INPUT: images, videos, folders (with their subfolders) or patterns, a camera (0) or a stream '
        '(rtsp://...); then CONFIG and CHECKPOINT, or EXPORTED_FOLDER, the one with export.json, which needs neither '
        'torch nor an MM library',
    )
    parser.add_argument(
        '--out', type=parse_path, default=Path('predictions'), help='folder to write; default predictions'
    )
    parser.add_argument('--score-thr', type=parse_share, help='minimum score of a detection; default 0.3')
    parser.add_argument(
        '--annotations',
        type=parse_path,
        metavar='FILE',
        help='COCO JSON that gives images and categories their ids, for an evaluation; --score-thr is 0 then',
    )
    parser.add_argument(
        '--max-per-img', type=parse_positive, help="most detections in an image; default: the model's own"
    )
    parser.add_argument(
        '--device',
        type=parse_text,
        help='cpu or cuda:0, for example; default: a GPU if available, CPU for exported files',
    )
    parser.add_argument('--batch-size', type=parse_positive, default=1, help='images at a time; default 1')
    parser.add_argument(
        '--max-frames', type=parse_positive, metavar='N', help='most frames of a video or a stream; default: all'
    )
    parser.add_argument('--no-images', action='store_true', help='write predictions.json only, no drawings')
    parser.add_argument('--format', type=parse_text, help='which exported file to use, such as openvino or onnx-int8')
    parser.add_argument(
        '--cfg-options', nargs='+', type=parse_text, default=[], metavar='KEY=VALUE', help='changes of CONFIG'
    )
    args = parser.parse_args(argv)
    args.exported = is_exported(args.paths[-1])
    operands = 1 if args.exported else 2
    args.inputs, args.model = args.paths[:-operands], args.paths[-operands:]
    if not args.inputs and len(args.paths) == 2:
        parser.error(f'{args.paths[1]} is not an exported folder; a checkpoint needs its config before it')
    if not args.inputs:
        parser.error('INPUT and CONFIG CHECKPOINT, or INPUT and EXPORTED_FOLDER, are needed')
    return args


def is_exported(path: str) -> bool:
    return os.path.isdir(path) or Path(path).name == 'export.json'  # Path.is_dir raises an error for a long name


def load(args: argparse.Namespace) -> Model:
    """The model that predicts.

    Raises:
        UserError: If it cannot be used, or an option is for another kind of model.
    """
    model = _load(args)
    for option, value in (('--score-thr', args.score_thr), ('--max-per-img', args.max_per_img)):
        if value is not None and model.task != 'detection':
            raise UserError(f'{option} chooses among objects, but the model is for {model.task}: leave it out')
    return model


def _load(args: argparse.Namespace) -> Model:
    score_thr = args.score_thr
    if score_thr is None:
        score_thr = 0.0 if args.annotations else 0.3
    if args.exported:
        from mmefficientmod.export.model import ExportedModel

        if args.device not in (None, 'cpu'):
            raise UserError(f'--device {args.device}: exported files run on the CPU here; leave the option out')
        if args.cfg_options:
            raise UserError('--cfg-options changes a config: an exported folder has none; give it to tools/export.py')
        return ExportedModel.open(Path(args.model[0]), score_thr, args.format, args.max_per_img)
    if args.format:
        raise UserError('--format chooses among exported files: give EXPORTED_FOLDER instead of CONFIG CHECKPOINT')
    try:
        from mmefficientmod.codebases.config import parse_options
        from mmefficientmod.export.library import LibraryModel
        from mmefficientmod.export.source import read_source
    except ImportError as error:
        raise UserError(f'a checkpoint needs torch and an MM library ({error}); an exported folder does not') from None
    config, checkpoint = args.model
    options = parse_options(args.cfg_options)
    source = read_source(config, checkpoint, 'model', options, for_export=False, max_per_img=args.max_per_img)
    return LibraryModel(source, args.device, score_thr)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    keep_freed_memory()
    with exit_in_one_line('error: stopped before the first prediction'):  # later, what is done is kept
        check_output_folder(args.out)
        sources = find_sources(args.inputs, args.out)
        model = load(args)
        summary = run(model, sources, args.out, args.batch_size, not args.no_images, args.annotations, args.max_frames)
    for note in summary.notes:
        print(f'note: {note}', file=sys.stderr)
    print(f'{args.out}: {summary}')
    if summary.failures or summary.stopped:
        raise SystemExit(1)


if __name__ == '__main__':
    run_tool(main)
