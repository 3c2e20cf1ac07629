"""Draws docs/images/network.png: the network's stages and one modulation block, with shapes read from the code.

The network is built on the meta device, which computes only shapes; forward hooks note what every part puts out.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from mmefficientmod.models import EfficientMod
from mmefficientmod.models.layers import AttentionBlock, ModulationBlock

ARCH, SIZE = 's', 512
OUT = Path(__file__).parent / 'images' / 'network.png'
TIMES, GAMMA = '\N{MULTIPLICATION SIGN}', '\N{GREEK SMALL LETTER GAMMA}'
COLOURS = dict(conv='#cfe2f3', context='#d9ead3', value='#fce5cd', other='#eeeeee')


def output_shapes(model: EfficientMod, size: int) -> dict[str, str]:
    """Name of a module -> what it puts out for one square image, as height, width, channels."""
    shapes = {}

    def note(name: str):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor) and output.ndim == 4:
                _, *rest = output.shape
                h, w, c = rest if not isinstance(module, nn.Conv2d) else (*rest[1:], rest[0])  # convolutions see NCHW
                shapes[name] = f'{h} {TIMES} {w} {TIMES} {c}'

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    model.eval()(torch.empty(1, 3, size, size, device='meta'))
    return shapes


def box(axis, x: float, y: float, text: str, kind: str, width: float = 1.5, height: float = 0.62) -> None:
    """Draws a box with text around its centre."""
    corner = x - width / 2, y - height / 2
    axis.add_patch(
        FancyBboxPatch(corner, width, height, 'round,pad=0.02,rounding_size=0.08', fc=COLOURS[kind], ec='#555555')
    )
    axis.text(x, y, text, ha='center', va='center', fontsize=9, linespacing=1.35)


def arrow(axis, start: tuple, end: tuple, text: str = '', above: float = 0.12) -> None:
    """Draws an arrow between two points and writes what flows along it."""
    axis.annotate('', end, start, arrowprops=dict(arrowstyle='-|>', color='#333333', shrinkA=0, shrinkB=0))
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above
        axis.text(x, y, text, ha='center', va='bottom', fontsize=8, color='#333333')


def draw_stages(axis, model: EfficientMod, shapes: dict[str, str]) -> None:
    axis.set_title(
        f'The backbone: EfficientMod-{ARCH}, an image of {SIZE} {TIMES} {SIZE}',
        loc='left',
        fontsize=11,
        fontweight='bold',
    )
    axis.set(xlim=(-0.2, 14.6), ylim=(-0.75, 1.35))
    axis.axis('off')
    axis.text(0.3, 0.55, f'image\n{SIZE} {TIMES} {SIZE} {TIMES} 3', ha='center', va='center', fontsize=9)
    right = 0.95
    for i, (patch_embed, blocks, stride) in enumerate(zip(model.patch_embeds, model.stages, model.out_strides)):
        conv = patch_embed.proj
        label = f'Conv {conv.kernel_size[0]}{TIMES}{conv.kernel_size[1]}\nstride {conv.stride[0]}\nLayerNorm'
        centre = 1.65 + 3.45 * i
        arrow(axis, (right, 0.55), (centre - 0.5, 0.55))
        box(axis, centre, 0.55, label, 'conv', 0.95, 0.95)
        arrow(axis, (centre + 0.5, 0.55), (centre + 0.78, 0.55))
        modulation = sum(isinstance(block, ModulationBlock) for block in blocks)
        attention = sum(isinstance(block, AttentionBlock) for block in blocks)
        text = f'stage {i + 1}\n{modulation} modulation' + (f'\n{attention} attention' if attention else '')
        box(axis, centre + 1.55, 0.55, text, 'value', 1.5, 0.95)
        arrow(axis, (centre + 1.55, 0.07), (centre + 1.55, -0.33))
        level = shapes[f'stages.{i}.{len(blocks) - 1}']
        axis.text(centre + 1.55, -0.37, f'{level}\nstride {stride}, to the neck', ha='center', va='top', fontsize=8)
        right = centre + 2.32


def draw_block(axis, model: EfficientMod, shapes: dict[str, str], name: str) -> None:
    block = model.get_submodule(name)
    kernel = block.context.dwconv.kernel_size
    ratio = block.fc1.out_features // block.fc1.in_features
    stage, index = (int(part) + 1 for part in name.split('.')[1:])
    title = f'A modulation block: stage {stage}, block {index}, ratio r = {ratio}'
    axis.set_title(title, loc='left', fontsize=11, fontweight='bold')
    axis.set(xlim=(-0.2, 14.6), ylim=(-0.9, 3.3))
    axis.axis('off')

    def shape(part: str) -> str:
        return shapes[f'{name}.{part}']

    top, middle, bottom = 2.3, 1.2, 0.35
    axis.text(0.3, middle, f'x\n{shape("norm")}', ha='center', va='center', fontsize=9)
    arrow(axis, (0.85, middle), (1.3, middle))
    box(axis, 1.9, middle, f'LayerNorm\n{shape("norm")}', 'other', 1.2)
    axis.text(2.68, middle + 0.06, 'u', ha='center', va='bottom', fontsize=10, style='italic')
    axis.plot((2.52, 2.85), (middle, middle), color='#333333', lw=1)
    axis.plot((2.85, 2.85), (bottom, top), color='#333333', lw=1)

    centre, right = 3.75, 2.85
    context = [
        (f'f: Linear\n{shape("context.f")}', 1.4),
        (f'DWConv {kernel[0]}{TIMES}{kernel[1]}\n{shape("context.dwconv")}', 1.4),
        (f'GELU\n{shape("context.dwconv")}', 1.3),
        (f'g: Linear\n{shape("context.g")}', 1.4),
    ]
    for text, width in context:
        arrow(axis, (right, top), (centre - width / 2, top))
        box(axis, centre, top, text, 'context', width)
        right, centre = centre + width / 2 + 0.02, centre + 1.65
    ctx = right
    arrow(axis, (2.85, bottom), (3.75, bottom))
    box(axis, 4.55, bottom, f'fc1: Linear\n{shape("fc1")}', 'value', 1.55)
    arrow(axis, (5.35, bottom), (6.55, bottom))
    box(axis, 7.3, bottom, f'GELU (if r > 1)\n{shape("fc1")}', 'value', 1.5)

    times = 10.6, middle
    for start, label, below in (((ctx, top), 'ctx', 0.05), ((8.07, bottom), 'v', 0.05)):
        axis.plot((start[0], times[0]), (start[1], start[1]), color='#333333', lw=1)
        axis.text(
            (start[0] + times[0]) / 2, start[1] + below, label, ha='center', va='bottom', fontsize=10, style='italic'
        )
        side = 0.2 if start[1] > middle else -0.2
        arrow(axis, (times[0], start[1]), (times[0], middle + side))
    axis.text(
        *times, TIMES, ha='center', va='center', fontsize=13, bbox=dict(boxstyle='circle', fc='white', ec='#555555')
    )
    axis.text(times[0] - 0.3, middle, f"each of v's\n{ratio} parts\ntimes ctx", ha='right', va='center', fontsize=8)
    arrow(axis, (times[0] + 0.2, middle), (11.05, middle))
    box(axis, 11.75, middle, f'fc2: Linear\n{shape("fc2")}', 'value', 1.35)
    arrow(axis, (12.45, middle), (12.72, middle))
    box(axis, 13.0, middle, f'{GAMMA} {TIMES}', 'other', 0.5)
    arrow(axis, (13.27, middle), (13.5, middle))
    axis.text(
        13.68,
        middle,
        '+',
        ha='center',
        va='center',
        fontsize=13,
        bbox=dict(boxstyle='circle', fc='white', ec='#555555'),
    )
    arrow(axis, (13.87, middle), (14.4, middle))
    # the shortcut
    axis.plot((0.3, 0.3, 13.68), (middle - 0.3, -0.5, -0.5), color='#333333', lw=1)
    arrow(axis, (13.68, -0.5), (13.68, middle - 0.2))
    axis.text(7, -0.46, 'shortcut', ha='center', va='bottom', fontsize=9)
    axis.text(6.2, top + 0.45, 'context: what surrounds a pixel', ha='center', fontsize=9, color='#38761d')
    axis.text(5.9, bottom + 0.42, 'value: what a pixel holds', ha='center', fontsize=9, color='#b45f06')


def main() -> None:
    with torch.device('meta'):
        model = EfficientMod(ARCH)
    shapes = output_shapes(model, SIZE)
    figure = Figure(figsize=(14, 6.2), layout='constrained')
    stages, block = figure.subplots(2, 1, height_ratios=(1, 1.9))
    draw_stages(stages, model, shapes)
    draw_block(block, model, shapes, 'stages.2.1')
    figure.savefig(OUT, dpi=100)


if __name__ == '__main__':
    main()
