"""Converts a checkpoint between the authors' released names and the project's own."""

from __future__ import annotations

import argparse

from mmefficientmod.checkpoint import CheckpointError
from mmefficientmod.conversion import convert_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint of a backbone, classifier, detector or segmentor')
    parser.add_argument('target', help='file to write; it must not exist')
    parser.add_argument('--to', choices=['project', 'released'], default='project', help='names to write')
    parser.add_argument('--ema', action='store_true', help='take the moving average of the weights')
    args = parser.parse_args()
    try:
        changed = convert_checkpoint(args.source, args.target, args.to, args.ema)
    except (CheckpointError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    print(f'{args.target}: {changed} names changed to the {args.to} form')


if __name__ == '__main__':
    main()
