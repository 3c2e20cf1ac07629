"""Converts a checkpoint: renames parameters, folds the backbone to its deploy form, or publishes the file."""

from __future__ import annotations

import argparse
import signal

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mmefficientmod.models.conversion import convert_checkpoint, publish
from mmefficientmod.utils import HelpFormatter, exit_in_one_line, parse_text, run_tool

EPILOG = """\
examples:
  python tools/convert_checkpoint.py work_dirs/mine/iter_40000.pth efficientmod-s.pth --deploy
  python tools/convert_checkpoint.py efficientMod_s.pth efficientmod-s_in1k.pth --ema --publish"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=HelpFormatter)
    parser.add_argument('source', type=parse_text, help='checkpoint of a backbone, classifier, detector or segmentor')
    parser.add_argument('target', type=parse_text, help='file to write; must not exist')
    parser.add_argument(
        '--to',
        choices=['project', 'released'],
        default='project',
        help="parameter names: those of this package (project, the default) or of the authors' code (released)",
    )
    parser.add_argument('--ema', action='store_true', help='take the moving average of the weights, if there is one')
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='write the backbone in its deploy form: fewer operations, the same outputs, no training; tests, '
        'inferencers and init_cfg load it like any other file',
    )
    parser.add_argument(
        '--publish',
        action='store_true',
        help="add the file's hash to its name, as the MM libraries do: TARGET-1a2b3c4d.pth",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with exit_in_one_line(f'stopped; {args.target} was not written'):
        done = convert_checkpoint(args.source, args.target, args.to, args.ema, args.deploy)
        path = publish(args.target) if args.publish else args.target
        notes = [f'{done.changed} names changed to the {args.to} form']
        notes += ['backbone in the deploy form'] if done.form == 'deploy' else []
        notes += ['moving average of the weights (EMA)'] if done.is_average else []
        print(f'{path}: {"; ".join(notes)}')


if __name__ == '__main__':
    run_tool(main)
