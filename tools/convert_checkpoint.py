"""Converts a checkpoint: renames parameters, folds the backbone to its deploy form, or publishes the file."""

from __future__ import annotations

import argparse

from mmefficientmod.models.conversion import convert_checkpoint, publish
from mmefficientmod.utils import UserError


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint of a backbone, classifier, detector or segmentor')
    parser.add_argument('target', help='file to write; it must not exist')
    parser.add_argument('--to', choices=['project', 'released'], default='project', help='names to write')
    parser.add_argument('--ema', action='store_true', help='take the moving average of the weights')
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='write the deploy form of the backbone: fewer operations, the same outputs, no training; tests, '
        'inferencers and init_cfg load it as any other file',
    )
    parser.add_argument(
        '--publish',
        action='store_true',
        help="put the file's hash into its name, as the MM libraries' publish_model does: TARGET-1a2b3c4d.pth",
    )
    args = parser.parse_args(argv)
    try:
        done = convert_checkpoint(args.source, args.target, args.to, args.ema, args.deploy)
        path = publish(args.target) if args.publish else args.target
    except (UserError, OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    notes = [f'{done.changed} names changed to the {args.to} form']
    notes += ['backbone in the deploy form'] if done.form == 'deploy' else []
    notes += ['moving average of the weights (EMA)'] if done.is_average else []
    print(f'{path}: {"; ".join(notes)}')


if __name__ == '__main__':
    main()
