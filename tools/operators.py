"""Puts MMCV's operators in place where MMCV came without its compiled part (mmcv-lite), or takes them away."""

from __future__ import annotations

from mmefficientmod.codebases.operators.__main__ import main
from mmefficientmod.utils import run_tool

if __name__ == '__main__':
    run_tool(main)
