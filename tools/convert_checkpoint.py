"""Converts a checkpoint: renames its parameters, folds the backbone into its deploy form, or publishes it."""

from __future__ import annotations

import argparse

from mmefficientmod.models.conversion import convert_checkpoint, publish
from mmefficientmod.utils import exit_in_one_line, parse_text

EXAMPLES = """\
examples:
  python tools/convert_checkpoint.py efficientmod_s.pth efficientmod-s.pth
  python tools/convert_checkpoint.py work_dirs/run/epoch_12.pth model.pth --deploy --publish
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=parse_text, help='checkpoint of a backbone, classifier, detector or segmentor')
    parser.add_argument('target', type=parse_text, help='file to write; it must not exist')
    parser.add_argument(
        '--to',
        choices=['project', 'released'],
        default='project',
        help="parameter names: those of this package, or those of the authors' code (default: project)",
    )
    parser.add_argument(
        '--ema', action='store_true', help='take the moving average of the weights, if the file has one'
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='write the backbone in its deploy form: fewer operations, the same outputs, no training; tests, '
        'inferencers and init_cfg load it like any other file',
    )
    parser.add_argument(
        '--publish',
        action='store_true',
        help="put the file's hash into its name, as the MM libraries' publish_model does: TARGET-1a2b3c4d.pth",
    )
    args = parser.parse_args(argv)
    with exit_in_one_line():
        done = convert_checkpoint(args.source, args.target, args.to, args.ema, args.deploy)
        path = publish(args.target) if args.publish else args.target
    notes = [f'{done.changed} names changed to the {args.to} form']
    notes += ['backbone in the deploy form'] if done.form == 'deploy' else []
    notes += ['moving average of the weights (EMA)'] if done.is_average else []
    print(f'{path}: {"; ".join(notes)}')


if __name__ == '__main__':
    main()
