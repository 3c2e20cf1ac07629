"""Writes the demo's generated data set in COCO's and in ADE20K's own layout."""

from __future__ import annotations

import argparse

from scenes import make_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('out', help='folder to make; coco/ and ade/ADEChallengeData2016/ appear in it')
    parser.add_argument('--images', type=int, default=240, help='training images')
    parser.add_argument('--val-images', type=int, default=60, help='validation images')
    parser.add_argument('--size', type=int, nargs=2, default=(320, 240), metavar=('WIDTH', 'HEIGHT'), help='pixels')
    parser.add_argument('--seed', type=int, default=0, help='another seed, other scenes')
    args = parser.parse_args()
    try:
        made = make_dataset(args.out, args.images, args.val_images, tuple(args.size), args.seed)
    except (ValueError, OSError) as error:
        raise SystemExit(f'make_data: {error}') from None
    print(
        f'{args.out}: {args.images} training and {args.val_images} validation scenes '
        + ('written' if made else 'are there already')
    )


if __name__ == '__main__':
    main()
