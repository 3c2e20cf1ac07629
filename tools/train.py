"""Trains a config with the script of the codebase that it belongs to; every argument is passed on."""

from __future__ import annotations

from mmefficientmod.training.launch import launch

if __name__ == '__main__':
    launch('train')
