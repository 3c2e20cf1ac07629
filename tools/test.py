"""Tests a checkpoint with the script of the codebase that the config belongs to; every argument is passed on."""

from mmefficientmod.launch import launch

if __name__ == '__main__':
    launch('test')
