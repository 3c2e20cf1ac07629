"""Plans an export: options, sizes, and the description of what is to be written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..utils import UserError, check_output_folder
from .description import Description, Input, Slide
from .environment import read_cpu, vector_extensions, versions
from .formats import FORMATS, INPUT, OPSET, PRECISIONS, SIZE_INPUT, precision_problem, require
from .forms import BackboneForm, ClassifierForm, SegmentorForm, check_segmentor, swaps_channels
from .inputs import Size
from .pipeline import natural_sizes, read_steps
from .quantize import PACKAGES
from .source import Source, detection_settings

LEAST_SIDE = 32  # pixels, where sizes are free


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how.

    Attributes:
        out (Path): The folder to make; it must not exist.
        formats (Sequence[str]): Of :data:`FORMATS`. Defaults to ONNX.
        part (str): ``'model'`` or ``'backbone'``. Defaults to the model.
        sizes (Sequence[tuple[int, int]]): Heights and widths, a file for each. By default free; for a detector those of
            its test pipeline.
        dynamic (bool): Batch, height and width are free. Defaults to False.
        batch (int): Images at once, where sizes are fixed. Defaults to 1.
        check_images (Sequence[Path]): Files to check with. Defaults to made-up images.
        precisions (Sequence[str]): ``'fp32'`` and those of :data:`PRECISIONS`, the preferred one first; INT8 is chosen
            by its images. Defaults to float32.
        opset (int): Of ONNX files. Defaults to :data:`OPSET`.
        int8_images (Sequence[Path]): Images to calibrate INT8 files with. Defaults to none: no such files.
        names (Mapping[str, str]): ``source`` of the description.
        log (Callable): Takes each line of the report. Defaults to printing.
    """

    out: Path
    formats: Sequence[str] = ('onnx',)
    part: str = 'model'
    sizes: Sequence[Size] = ()
    dynamic: bool = False
    batch: int = 1
    check_images: Sequence[Path] = ()
    precisions: Sequence[str] = ('fp32',)
    opset: int = OPSET
    int8_images: Sequence[Path] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    log: Callable[[str], None] = print

    @property
    def files(self) -> list[str]:
        """The files of a size, in the order of preference."""
        left_out = self.left_out
        int8 = [f'{name}-int8' for name in self.formats if self.int8_images and name in PRECISIONS['int8']]
        return [name for name in self._asked if name not in left_out] + int8

    @property
    def left_out(self) -> dict[str, str]:
        """The files that this CPU or the format cannot have -> why."""
        problems = {name: precision_problem(name) for name in self._asked}
        return {name: problem for name, problem in problems.items() if problem}

    @property
    def _asked(self) -> list[str]:
        return list(
            dict.fromkeys(
                name if precision == 'fp32' else f'{name}-{precision}'
                for precision in self.precisions
                for name in self.formats
            )
        )


def check_options(options: ExportOptions) -> None:
    """Raises UserError for options that exclude each other, or need a package that is missing."""
    if os.path.lexists(options.out):  # also a link that leads nowhere
        raise UserError(f'{options.out} exists: remove it or name another folder')
    for name in options.formats:
        require(FORMATS[name].packages, f'the {name} format')
    if options.int8_images:
        require(PACKAGES, '--int8')
    if options.sizes and options.dynamic:
        raise UserError('--size and --dynamic exclude each other')
    for name, problem in options.left_out.items():
        if 'fp32' not in options.precisions:
            raise UserError(f'--precision: no {name}, because {problem}; with fp32 as well, float32 takes its place')
    if options.int8_images and not set(options.formats) & set(PRECISIONS['int8']):
        raise UserError('--int8 is for the formats onnx and openvino')
    check_output_folder(options.out, 'OUT')


def plan(source: Source, options: ExportOptions) -> Description:
    """The description of what is to be written, without files and checks.

    Raises:
        UserError: If the model or its test pipeline cannot be exported so.
    """
    task = 'backbone' if options.part == 'backbone' else source.task
    preprocessor = source.model.data_preprocessor
    whole = task != 'backbone'
    steps = read_steps(source.config, source.codebase) if whole else []
    divisor, pad_size = input_padding(preprocessor) if whole else (1, None)
    entry = Input(INPUT, 'NCHW', 'BGR', 'float32', steps, divisor, pad_size, padding_values(preprocessor))
    sizes = choose_sizes(source, task, options, entry)
    test_cfg = detection_settings(source.model.test_cfg or {}) if task == 'detection' else {}
    found = Description(
        task=task,
        part=options.part,
        num_classes=source.num_classes if whole else 0,
        classes=source.classes if whole else [],
        palette=source.palette if whole else [],
        sizes=[list(size) for size in sizes],
        batch=options.batch if sizes else None,
        min_size=LEAST_SIDE,
        files={},
        opset=options.opset,
        input=entry,
        size_input=SIZE_INPUT if task == 'detection' else None,
        outputs=[],
        score_thr=test_cfg.get('score_thr'),
        mask_thr=test_cfg.get('mask_thr_binary'),
        max_per_img=test_cfg.get('max_per_img'),
        align_corners=bool(task == 'segmentation' and source.model.align_corners),
        slide=read_slide(source.model) if task == 'segmentation' else None,
        source=dict(options.names),
        versions=versions(),
        cpu=dict(name=read_cpu().name, vector_extensions=vector_extensions()),
        checks=[],
        latency_ms={},
    )
    found.check_plan()
    return found


def input_padding(preprocessor: nn.Module) -> tuple[int, list[int] | None]:
    """The multiples and the least height and width to which a model pads its input in a test."""
    test_cfg = getattr(preprocessor, 'test_cfg', None) or {}  # MMSegmentation's
    size = _two_sides(test_cfg, 'size')
    if test_cfg.get('size') and (size is None or test_cfg.get('size_divisor')):
        raise UserError(
            'data_preprocessor.test_cfg has either size, a height and a width, or size_divisor, but it is '
            f'{dict(test_cfg)}'
        )
    divisor = test_cfg.get('size_divisor') or getattr(preprocessor, 'pad_size_divisor', 1)
    return int(divisor or 1), size


def padding_values(preprocessor: nn.Module) -> list[float]:
    """The BGR values that become the padding value of a model, with which it pads after it has normalised."""
    value = float(getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0)))
    if not getattr(preprocessor, '_enable_normalize', False):
        return [value] * 3
    found = [round(float(each), 6) for each in (preprocessor.mean + value * preprocessor.std).flatten()]
    found = found if len(found) == 3 else [value] * 3  # the form refuses other numbers of channels
    return found[::-1] if swaps_channels(preprocessor) else found


def read_slide(model: nn.Module) -> Slide | None:
    """The windows of a segmentor that slides.

    Raises:
        UserError: If its ``test_cfg`` is not one that MMSegmentation takes.
    """
    cfg = model.test_cfg
    if cfg is not None and cfg.get('mode', 'whole') == 'whole':
        return None
    crop, stride = (_two_sides(cfg, name) for name in ('crop_size', 'stride'))
    if not cfg or cfg.get('mode') != 'slide' or not crop or not stride or stride[0] > crop[0] or stride[1] > crop[1]:
        raise UserError(
            "model.test_cfg of a segmentor is mode='whole', or mode='slide' with the heights and widths crop_size and "
            f'stride, of which stride is not larger, but it is {cfg}'
        )
    return Slide(crop, stride)


def _two_sides(cfg: Mapping | None, name: str) -> list[int] | None:
    found = (cfg or {}).get(name)
    return list(found) if isinstance(found, (tuple, list)) and len(found) == 2 else None


def choose_sizes(source: Source, task: str, options: ExportOptions, entry: Input) -> list[Size]:
    """The fixed heights and widths; none where they are free.

    Raises:
        UserError: If the part cannot have these sizes.
    """
    sizes = list(dict.fromkeys(options.sizes))
    if task == 'detection':
        sizes = _detector_sizes(options, sizes, entry)
    elif not sizes and uses_max_keys(source.model.backbone):
        raise UserError('a backbone with attn_max_keys has no form for free sizes: give --size HEIGHT WIDTH')
    elif not sizes and options.batch != 1:
        raise UserError('--batch is for fixed sizes: with free sizes the batch is free, too')
    elif sizes and task == 'classification':
        frames = natural_sizes(entry.steps, 1)
        wrong = [size for size in sizes if size not in frames]
        if wrong:
            known = ' or '.join(f'{height} {width}' for height, width in frames) or 'of the image itself'
            height, width = wrong[0]
            raise UserError(
                f'--size {height} {width}: the test pipeline makes images {known}, and no other size is right'
            )
    if not sizes and 'pt2' in options.formats:
        # torch.export tells maps of one pixel, which images of 32 have, from all others.
        raise UserError('the pt2 format is compiled for one size: give --size HEIGHT WIDTH, or leave it out')
    return sizes


def _detector_sizes(options: ExportOptions, sizes: list[Size], entry: Input) -> list[Size]:
    divisor = entry.pad_divisor
    if options.dynamic:
        raise UserError('a detector is exported at fixed sizes: give --size HEIGHT WIDTH in place of --dynamic')
    if options.batch != 1:
        raise UserError('a detector is exported for one image at a time: leave out --batch')
    sizes = sizes or natural_sizes(entry.steps, divisor)
    if not sizes:
        raise UserError('the test pipeline of the config bounds no size: give --size HEIGHT WIDTH')
    for height, width in sizes:
        if height % divisor or width % divisor:
            fitting = ' '.join(str(-(-side // divisor) * divisor) for side in (height, width))
            raise UserError(
                f'height and width of this detector must be multiples of {divisor} (its pad_size_divisor), not '
                f'{height} x {width}: take {fitting}'
            )
    return sizes


def uses_max_keys(backbone: nn.Module) -> bool:
    """Whether attention averages its keys on large images."""
    return any(getattr(module, 'max_keys', None) for module in backbone.modules())


def make_form(source: Source, task: str, size: Size | None) -> nn.Module:
    """The exportable module of a task."""
    if task == 'backbone':
        return BackboneForm(source.model).eval()
    if task == 'segmentation':
        from .mask_transformer import MaskSegmentorForm

        check_segmentor(source.model)
        is_mask = hasattr(source.model.decode_head, 'pixel_decoder')
        return (MaskSegmentorForm if is_mask else SegmentorForm)(source.model).eval()
    if task == 'classification':
        return ClassifierForm(source.model).eval()
    assert size  # chosen before
    return _detector_form(source.model)(source.model, size).eval()


def _detector_form(model: nn.Module) -> Callable[[nn.Module, Size], nn.Module]:
    from mmdet.models.detectors import DetectionTransformer, SingleStageDetector

    from .detector import DetectorForm
    from .one_stage import OneStageForm
    from .transformer import TransformerForm

    if isinstance(model, DetectionTransformer):
        return TransformerForm
    return OneStageForm if isinstance(model, SingleStageDetector) else DetectorForm
