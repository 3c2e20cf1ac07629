"""Trains a config of MMDetection, MMSegmentation or MMPreTrain with that codebase's own script; every argument is passed on."""
from mmefficientmod.launch import launch

if __name__ == '__main__':
    launch('train')
