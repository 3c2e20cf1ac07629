"""Writes the demo's generated data set in the layouts of COCO and ADE20K."""

from __future__ import annotations

import argparse
import signal
from functools import partial

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mmefficientmod.utils import (
    LARGEST_SIDE,
    HelpFormatter,
    check_output_folder,
    exit_in_one_line,
    parse_path,
    parse_positive,
    parse_whole,
    run_tool,
)
from scenes import make_dataset

EPILOG = """\
examples:
  python demo/make_data.py data/demo
  python demo/make_data.py /tmp/small --images 4 --val-images 2 --size 128 96"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=HelpFormatter)
    parser.add_argument('out', type=parse_path, help='folder to make; it will hold coco/ and ade/ADEChallengeData2016/')
    parser.add_argument('--images', type=parse_positive, default=240, help='training images (default: 240)')
    parser.add_argument('--val-images', type=parse_positive, default=60, help='validation images (default: 60)')
    parser.add_argument(
        '--size',
        type=partial(parse_whole, least=64, most=LARGEST_SIDE),
        nargs=2,
        default=(320, 240),
        metavar=('WIDTH', 'HEIGHT'),
        help='pixels (default: 320 240)',
    )
    parser.add_argument(
        '--seed', type=partial(parse_whole, most=2**32 - 1), default=0, help='seed of the scenes (default: 0)'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with exit_in_one_line('stopped; nothing was written'):
        check_output_folder(args.out, 'OUT')
        made = make_dataset(args.out, args.images, args.val_images, tuple(args.size), args.seed)
        print(
            f'{args.out}: {args.images} training and {args.val_images} validation scenes '
            + ('written' if made else 'are there already')
        )


if __name__ == '__main__':
    run_tool(main)
