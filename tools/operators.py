"""Puts MMCV's operators in place where MMCV came without its compiled part (mmcv-lite), or takes them away."""

from __future__ import annotations

from mmefficientmod.codebases.operators.__main__ import main

if __name__ == '__main__':
    main()
