"""Trains a config with the script of the codebase that it belongs to; every argument is passed on."""

from __future__ import annotations

import signal

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mmefficientmod.training.launch import launch

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launch('train')
