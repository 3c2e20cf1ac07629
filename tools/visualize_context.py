"""Draws what EfficientMod's context sees in pictures: maps of every block, and value, context and products."""

from __future__ import annotations

import argparse
import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from mmefficientmod.checkpoints.loading import read_checkpoint
from mmefficientmod.checkpoints.weights import COPY, pick_weights
from mmefficientmod.codebases.building import build_quietly
from mmefficientmod.codebases.config import find_codebase, find_config, load_config
from mmefficientmod.training.checks.run import check_checkpoint
from mmefficientmod.utils import UserError, first_line, parse_with_config_options
from mmefficientmod.visualization.context import context_maps, find_backbone
from mmefficientmod.visualization.sheets import context_rows, product_rows, sheet

SUFFIXES = '.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pictures', type=Path, help='a picture, or a folder of pictures')
    parser.add_argument('config', help='of a classifier, detector or segmentor with EfficientMod')
    parser.add_argument('checkpoint', nargs='?', help="default: the weights that the config's init_cfg names")
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/context'), help='default work_dirs/context')
    parser.add_argument('--ema', action='store_true', help='take the moving average of the weights')
    parser.add_argument('--single', action='store_true', help='write every map as a file of its own, too')
    parser.add_argument('--device', default='cpu', help='default cpu')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='changes of the config; vis_backends of its visualizer say where pictures go, TensorBoard for example',
    )
    return parse_with_config_options(parser, argv)


def find_pictures(path: Path) -> list[Path]:
    """The picture, or those of a folder in order.

    Raises:
        UserError: If there is none.
    """
    found = sorted(file for file in path.glob('*') if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if not found or not path.exists():
        raise UserError(f'{path} ' + ('holds no picture' if path.exists() else 'does not exist'))
    return found


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: If there is none.
    """
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {name} cannot be used: {first_line(error)}') from error


def load_model(config: Config, checkpoint: str | None, ema: bool, device: torch.device) -> nn.Module:
    """The config's model in evaluation mode, with the weights of the checkpoint or of its ``init_cfg``."""
    if not checkpoint:
        model = build_quietly(config.model, config.get('default_scope'))
        model.init_weights()
        return model.to(device).eval()
    check_checkpoint(checkpoint, config, training=False)
    for part in (config.model, config.model.backbone):
        part.pop('init_cfg', None)
    model = build_quietly(config.model, config.get('default_scope'))
    weights, is_average = pick_weights(read_checkpoint(checkpoint), checkpoint, ema)
    load_state_dict(model, weights, logger='current')
    print(f'{checkpoint}: {COPY[is_average]}')
    return model.to(device).eval()


def make_pipeline(config: Config) -> Compose:
    """The transforms of a test, without those that load the truth."""
    steps = config.test_dataloader.dataset.pipeline
    return Compose([step for step in steps if 'LoadAnnotations' not in str(step['type'])])


def read_picture(path: Path, pipeline: Compose, model: nn.Module) -> tuple[np.ndarray, Tensor]:
    """The picture as the network sees it, (H, W, 3) in RGB, and normalised and padded, (1, 3, H', W').

    Raises:
        UserError: If it cannot be read.
    """
    if cv2.imread(str(path)) is None:
        raise UserError(f'{path} is no picture that OpenCV reads')
    sample = pipeline(dict(img_path=str(path), img_id=0, reduce_zero_label=False, seg_fields=[]))
    image = np.ascontiguousarray(sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
    return image, model.data_preprocessor(pseudo_collate([sample]), False)['inputs']


def name_pictures(pictures: Sequence[Path]) -> dict[Path, str]:
    """How each picture's sheets are called: as its file, with the suffix where two differ in that alone."""
    stems = Counter(path.stem for path in pictures)
    return {path: path.stem if stems[path.stem] == 1 else path.name for path in pictures}


def draw(path: Path, name: str, pipeline: Compose, model: nn.Module, visualizer: Visualizer, single: bool) -> None:
    """Draws the sheets of one picture under a name, and with ``single`` every map of them."""
    image, inputs = read_picture(path, pipeline, model)
    (maps,) = context_maps(find_backbone(model), inputs)
    side = inputs.shape[-2], inputs.shape[-1]
    for kind, rows in (('context', context_rows(image, maps, side)), ('products', product_rows(image, maps, side))):
        if rows:
            visualizer.add_image(f'{name}_{kind}', sheet(rows))
        for i, row in enumerate(rows if single else ()):
            for label, tile in row:
                visualizer.add_image(f'{name}_{kind}_{i + 1}_{label.replace(" ", "-")}', tile)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        pictures, device = find_pictures(args.pictures), find_device(args.device)
        config = load_config(find_config(args.config), args.cfg_options)
        codebase = find_codebase(config, args.config)
        importlib.import_module(f'{codebase}.datasets')
        with DefaultScope.overwrite_default_scope(codebase):
            model = load_model(config, args.checkpoint, args.ema, device)
            find_backbone(model)
            backends = (config.get('visualizer') or {}).get('vis_backends') or [dict(type='LocalVisBackend')]
            visualizer = Visualizer(vis_backends=backends, save_dir=str(args.out_dir), name='context')
            pipeline = make_pipeline(config)
            for path, name in name_pictures(pictures).items():
                draw(path, name, pipeline, model, visualizer, args.single)
    except (UserError, OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    visualizer.close()
    print(f'{len(pictures)} pictures: written to {args.out_dir}')


if __name__ == '__main__':
    main()
