"""Tests a checkpoint with the script of the codebase that the config belongs to; every argument is passed on."""

from __future__ import annotations

from mmefficientmod.training.launch import launch

if __name__ == '__main__':
    launch('test')
