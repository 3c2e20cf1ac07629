"""Draws the context that EfficientMod sees in images: maps of every block, and value, context and products."""

from __future__ import annotations

import argparse
import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __name__ == '__main__':  # Ctrl-C during the imports below ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.visualization import LocalVisBackend, Visualizer
from torch import Tensor, nn

from mmefficientmod.codebases.building import check_device
from mmefficientmod.codebases.config import find_test_pipeline, parse_options
from mmefficientmod.data.canvas import label_tile, sheet
from mmefficientmod.export.images import find_images
from mmefficientmod.export.images import read_image as read_pixels
from mmefficientmod.export.source import Source, read_source
from mmefficientmod.models.context import context_maps, context_rows, find_backbone, product_rows
from mmefficientmod.utils import (
    HelpFormatter,
    UserError,
    check_output_folder,
    describe_error,
    exit_in_one_line,
    parse_path,
    parse_text,
    run_tool,
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


def load_source(args: argparse.Namespace) -> Source:
    """The config's model with the backbone of the checkpoint or of its ``init_cfg``.

    Raises:
        UserError: If it cannot be built, if the weights do not fit, or if it has no EfficientMod.
    """
    options = parse_options(args.cfg_options)
    source = read_source(args.config, args.checkpoint, 'backbone', options, for_export=False, ema=args.ema)
    try:
        find_backbone(source.model)
    except ValueError as error:
        raise UserError(f'{args.config}: {error}') from None
    return source


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
    try:
        read_pixels(path)
    except UserError as error:
        raise UserError(f'{path} {error}') from None
    try:
        sample = pipeline(dict(img_path=str(path), img_id=0, reduce_zero_label=False, seg_fields=[]))
        image = np.ascontiguousarray(sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
        return image, model.data_preprocessor(pseudo_collate([sample]), False)['inputs']
    except Exception as error:  # e.g. a height of one pixel, which the resize makes zero
        raise UserError(f"{path} does not pass the config's test pipeline ({describe_error(error)})") from error


def name_images(images: Sequence[Path]) -> dict[Path, str]:
    """Image -> name of its sheets: that of the file, with its subfolder, and the suffix if names differ only in it."""
    root = os.path.commonpath([path.parent for path in images])
    names = {path: path.relative_to(root).as_posix().replace('/', '_') for path in images}
    # OpenCV cannot write names that are not UTF-8.
    names = {path: name.encode(errors='backslashreplace').decode() for path, name in names.items()}
    stems = {path: os.path.splitext(name)[0] for path, name in names.items()}
    counts = Counter(stems.values())
    return {path: stem if counts[stem] == 1 else names[path] for path, stem in stems.items()}


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
    images, device = find_images([str(args.images)], 'images'), check_device(args.device)
    check_output_folder(args.out_dir, '--out-dir')
    source = load_source(args)
    model, config = source.model.to(device), source.config
    with DefaultScope.overwrite_default_scope(source.codebase):
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
    run_tool(main)
