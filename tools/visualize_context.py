"""Draws the context that EfficientMod sees in images: maps of every block, and value, context and products."""

from __future__ import annotations

import argparse
import importlib
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from mmengine.visualization import LocalVisBackend, Visualizer
from torch import Tensor, nn

from mmefficientmod.checkpoints.reading import read_checkpoint
from mmefficientmod.checkpoints.weights import COPY, pick_weights
from mmefficientmod.codebases.building import build_quietly, check_device
from mmefficientmod.codebases.config import find_codebase, find_config, find_test_pipeline, load_config, parse_options
from mmefficientmod.data.canvas import label_tile, sheet
from mmefficientmod.data.files import is_image
from mmefficientmod.models.context import context_maps, context_rows, find_backbone, product_rows
from mmefficientmod.training.checks.run import check_weights
from mmefficientmod.utils import (
    HelpFormatter,
    UserError,
    check_output_folder,
    describe_error,
    exit_in_one_line,
    parse_path,
    parse_text,
)

EPILOG = """\
examples:
  python tools/visualize_context.py street.jpg fpn_efficientmod-s_8xb4-40k_ade20k-512x512 iter_40000.pth
  python tools/visualize_context.py images/ CONFIG CHECKPOINT --single --out-dir work_dirs/context"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=HelpFormatter)
    parser.add_argument('images', type=parse_path, help='an image, or a folder of images')
    parser.add_argument('config', type=parse_text, help='config of a model with an EfficientMod backbone')
    parser.add_argument(
        'checkpoint', nargs='?', type=parse_text, help="weights (default: those that the config's init_cfg names)"
    )
    parser.add_argument(
        '--out-dir',
        type=parse_path,
        default=Path('work_dirs/context'),
        help='output folder (default: work_dirs/context)',
    )
    parser.add_argument('--ema', action='store_true', help='take the moving average of the weights')
    parser.add_argument('--single', action='store_true', help='also write every map as its own file')
    parser.add_argument('--device', type=parse_text, default='cpu', help='cpu (default), cuda or cuda:N')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=parse_text,
        default=[],
        metavar='KEY=VALUE',
        help='changes of the config; vis_backends of its visualizer choose the output, e.g. TensorBoard',
    )
    return parser.parse_args(argv)


def find_images(path: Path) -> list[Path]:
    """The image, or the images of a folder in order.

    Raises:
        UserError: If there is none.
    """
    found = sorted(file for file in path.glob('*') if is_image(file.name)) if path.is_dir() else [path]
    if not found:
        raise UserError(f'{path} holds no image')
    if not found[0].is_file():
        raise UserError(f'{path} ' + ('is not a regular file' if path.exists() else 'does not exist'))
    return found


def load_model(args: argparse.Namespace, config: Config, device: torch.device) -> nn.Module:
    """The config's model in evaluation mode, with the weights of the checkpoint or of its ``init_cfg``.

    Raises:
        UserError: If it cannot be built, if the weights do not fit, or if it has no EfficientMod.
    """
    if not args.checkpoint:
        model = build(args.config, config)
        model.init_weights()
    else:
        weights, is_average = pick_weights(read_checkpoint(args.checkpoint), args.checkpoint, args.ema)
        check_weights(args.checkpoint, weights, config, training=False)
        for part in (config.model, config.model.backbone):
            if isinstance(part, Mapping):  # else the model says what it needs
                part.pop('init_cfg', None)
        model = build(args.config, config)
        load_state_dict(model, weights, logger='current')
        print(f'{args.checkpoint}: {COPY[is_average]}')
    try:
        find_backbone(model)
    except ValueError as error:
        raise UserError(f'{args.config}: {error}') from None
    return model.to(device).eval()


def build(path: str, config: Config) -> nn.Module:
    """The model of the config at a path; any error is about the config."""
    try:
        return build_quietly(config.model, config.get('default_scope'))
    except Exception as error:
        raise UserError(f'{path}: its model cannot be built ({describe_error(error)})') from error


def make_visualizer(path: str, config: Config, out: Path) -> Visualizer:
    """The visualizer of the config at a path, which writes into a folder."""
    try:
        backends = (config.get('visualizer') or {}).get('vis_backends') or [dict(type='LocalVisBackend')]
        return Visualizer(vis_backends=backends, save_dir=str(out), name='context')
    except Exception as error:
        raise UserError(f'{path}: its visualizer cannot be built ({describe_error(error)})') from error


def make_pipeline(path: str, config: Config) -> Compose:
    """The transforms of a test, without those that load annotations."""
    try:
        steps = find_test_pipeline(config)
        return Compose([step for step in steps if 'LoadAnnotations' not in str(step['type'])])
    except Exception as error:
        raise UserError(f'{path}: its test pipeline cannot be built ({describe_error(error)})') from error


def read_image(path: Path, pipeline: Compose, model: nn.Module) -> tuple[np.ndarray, Tensor]:
    """The image as the network sees it, (H, W, 3) in RGB, and normalised and padded, (1, 3, H', W').

    Raises:
        UserError: If it cannot be read or prepared.
    """
    if cv2.imread(str(path)) is None:
        raise UserError(f'{path} is not an image that OpenCV reads')
    try:
        sample = pipeline(dict(img_path=str(path), img_id=0, reduce_zero_label=False, seg_fields=[]))
        image = np.ascontiguousarray(sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
        return image, model.data_preprocessor(pseudo_collate([sample]), False)['inputs']
    except Exception as error:  # e.g. a height of one pixel, which the resize makes zero
        raise UserError(f"{path} does not pass the config's test pipeline ({describe_error(error)})") from error


def name_images(images: Sequence[Path]) -> dict[Path, str]:
    """Image -> name of its sheets: that of the file, with the suffix if two names differ only in it."""
    stems = Counter(path.stem for path in images)
    return {path: path.stem if stems[path.stem] == 1 else path.name for path in images}


def draw(path: Path, name: str, pipeline: Compose, model: nn.Module, visualizer: Visualizer, single: bool) -> None:
    """Draws the sheets of one image under a name, and with ``single`` every map of them."""
    image, inputs = read_image(path, pipeline, model)
    (maps,) = context_maps(find_backbone(model), inputs)
    side = inputs.shape[-2], inputs.shape[-1]
    for kind, rows in (('context', context_rows(image, maps, side)), ('products', product_rows(image, maps, side))):
        if rows:
            tiles = [[label_tile(tile, label) for label, tile in row] for row in rows]
            add_image(visualizer, f'{name}_{kind}', sheet(tiles, gap=4))
        for i, row in enumerate(rows if single else ()):
            for label, tile in row:
                add_image(visualizer, f'{name}_{kind}_{i + 1}_{label.replace(" ", "-")}', tile)


def add_image(visualizer: Visualizer, name: str, image: np.ndarray) -> None:
    """Gives an RGB image to the visualizer's backends; MMEngine's local one does not notice that a disk is full.

    Raises:
        UserError: If the file is not whole. It is removed.
    """
    visualizer.add_image(name, image)
    for backend in visualizer._vis_backends.values():
        if isinstance(backend, LocalVisBackend):
            path = Path(backend._img_save_dir) / f'{name}_0.png'
            whole = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
            if not path.is_file() or path.stat().st_size != len(whole):
                path.unlink(missing_ok=True)
                raise UserError(f'{path} cannot be written: is the disk full?')


def run(args: argparse.Namespace) -> None:
    images, device = find_images(args.images), check_device(args.device)
    check_output_folder(args.out_dir, '--out-dir')
    config = load_config(find_config(args.config), parse_options(args.cfg_options))
    codebase = find_codebase(config, args.config)
    importlib.import_module(f'{codebase}.datasets')
    with DefaultScope.overwrite_default_scope(codebase):
        model = load_model(args, config, device)
        pipeline = make_pipeline(args.config, config)
        visualizer = make_visualizer(args.config, config, args.out_dir)
        for path, name in name_images(images).items():
            draw(path, name, pipeline, model, visualizer, args.single)
        visualizer.close()
    print(f'{len(images)} images: written to {args.out_dir}')


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with exit_in_one_line(f'stopped; the sheets so far are in {args.out_dir}'):
        run(args)


if __name__ == '__main__':
    main()
