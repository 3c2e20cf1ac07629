"""Times detectors with MMCV's compiled operators and with those of this package, in turns in one process.

It needs an MMCV with compiled operators (``make env STACK=compiled``). The weights are random, so a test pass filters
proposals but finds next to no objects. The ratio is the time with this package's operators over that with the compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from statistics import median
from types import ModuleType

import torch
from torch import nn

from ..codebases.building import build_quietly
from ..codebases.config import find_config, load_config
from ..codebases.operators import EXTENSION, our_spec
from ..codebases.packages import find_package
from ..utils import HelpFormatter, UserError, exit_in_one_line, parse_positive, parse_size, parse_text, run_tool
from .machine import time_once

MASK_RCNN = 'mask-rcnn_efficientmod-s_fpn_8xb4-1x_coco'
EPILOG = """\
examples:
  python -m mmefficientmod.measure.operators --repeats 20
  python -m mmefficientmod.measure.operators my_config.py --size 512x512"""
DEFORMABLE_DETR = '.mim/configs/deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'


def our_operators() -> ModuleType:
    """This package's operators as the module that stands in for ``mmcv._ext``, also where there is a compiled one."""
    spec = our_spec()
    module = module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


@contextlib.contextmanager
def operators_of(extension: ModuleType) -> Iterator[None]:
    """Lets all of ``mmcv.ops`` call the operators of a module."""
    importlib.import_module('mmcv.ops')
    users = [module for name, module in sys.modules.items() if name.startswith('mmcv.ops.')]
    before = {module: module.ext_module for module in users if hasattr(module, 'ext_module')}
    for module in before:
        module.ext_module = extension  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, former in before.items():
            module.ext_module = former  # type: ignore[attr-defined]


def steps(model: nn.Module, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """A training iteration without the optimizer, and a test pass, on two random images with random objects."""
    from mmdet.testing import demo_mm_inputs

    batch = demo_mm_inputs(2, [[3, *size]] * 2, num_classes=10, with_mask=True)

    def train() -> None:
        model.train().zero_grad(set_to_none=True)
        losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
        model.parse_losses(losses)[0].backward()

    def test() -> None:
        with torch.inference_mode():
            model.eval().test_step(batch)

    return {'training iteration': train, 'test pass': test}


def compare(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median milliseconds with the compiled operators and with this package's, after one call of each to warm up."""
    sets = (importlib.import_module(EXTENSION), our_operators())
    times: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for place in (0, 1) if turn % 2 else (1, 0):
            torch.manual_seed(turn)
            with operators_of(sets[place]):
                times[place].append(time_once(run, torch.device('cpu')))
    return median(times[0][1:]), median(times[1][1:])


def main(argv: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m mmefficientmod.measure.operators',
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        'configs',
        nargs='*',
        metavar='CONFIG',
        type=parse_text,
        help='of MMDetection; default: Mask R-CNN, Deformable DETR',
    )
    parser.add_argument('--repeats', type=parse_positive, default=10, help='turns of each')
    parser.add_argument('--size', type=parse_size, default=(800, 1344), help='of the two images')
    args = parser.parse_args(argv)
    with exit_in_one_line():
        library = Path(find_package('mmdet')).parent
        if not isinstance(importlib.import_module(EXTENSION).__loader__, ExtensionFileLoader):
            raise UserError('MMCV has no compiled operators to compare with: make env STACK=compiled')
        for name in args.configs or (MASK_RCNN, str(library / DEFORMABLE_DETR)):
            config = load_config(find_config(name))
            config.model.backbone.init_cfg = None
            importlib.import_module('mmdet.utils').register_all_modules(init_default_scope=False)
            torch.manual_seed(0)
            model = build_quietly(config.model, 'mmdet')
            model.init_weights()
            for step, run in steps(model, args.size).items():
                compiled, package = compare(run, args.repeats)
                times = f'{compiled:.0f} ms compiled, {package:.0f} ms of this package, ratio {package / compiled:.2f}'
                print(f'{Path(name).stem}, {step}: {times}', flush=True)


if __name__ == '__main__':
    run_tool(main)
