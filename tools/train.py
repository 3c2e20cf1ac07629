"""Trains a config with the script of the codebase that it belongs to; every argument is passed on."""

from __future__ import annotations

import signal
from functools import partial

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mmefficientmod.training.launch import launch
from mmefficientmod.utils import run_tool

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_tool(partial(launch, 'train'))
