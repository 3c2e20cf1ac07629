"""``export.json``: what an exported folder holds and how its files are used; needs neither torch nor numpy.

The folder holds the model files (``model.onnx``; ``model.xml`` and ``model.bin``; ``model.pt2``) and ``export.json``,
whose keys are the fields of :class:`Description`. A model of several sizes has one file for each, with the size in its
name. All files take the same inputs and return the same outputs:

- ``image`` (B, 3, H, W) float32: an image after ``input.steps``, the steps of the test pipeline, BGR. Mean and
  deviation of the model are inside the file. What is smaller than the file's size is padded at its right and bottom
  with ``input.fill``. :func:`mmefficientmod.export.inputs.prepare` does all of this.
- ``image_size`` (2,) float32, for detection only: height and width of what the steps returned, without that padding.

Outputs by task:

- ``backbone``: ``level0`` ... ``level3``, maps (B, C, H / stride, W / stride) float32.
- ``segmentation``: ``classes`` (B, H, W) int64 at the size of ``image``; ``logits`` (B, classes, H / 4, W / 4) float32.
  For the classes at another size, ``logits`` are resized (bilinear, half-pixel centres) to (H, W), cut to the
  part without padding, resized to that size, and the largest is taken, as MMSegmentation does.
- ``classification``: ``scores`` (B, classes) float32, the probability of each class.
- ``detection``, of one image: ``boxes`` (N, 4) float32, x1, y1, x2, y2 in pixels of ``image``, by falling score;
  ``scores`` (N,) float32, 0 in rows that are not used; ``labels`` (N,) int64; ``masks`` (N, 28, 28) float32, the chance
  of each cell of the box to be object, or ``image_masks`` (N, H / 8, W / 8) float32, logits of the whole input, which
  are resized (bilinear) to the input, then to the image; ``left_out`` () int64: candidates that the file did not look
  at though they could have mattered, 0 unless an image is extremely crowded. Transformers have no ``left_out``.

:mod:`mmefficientmod.export.results` turns the outputs into predictions on the image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Union

from ..utils import UserError, read_json, replace_file
from .fields import (
    anything,
    checked,
    flag,
    items,
    mapping,
    number,
    one_of,
    optional,
    read_record,
    record,
    show,
    text,
    whole,
)

FILE_LIMIT = 1e-4  # how far an exported file's level may be off from eager float32, as a share of its largest value
FILE = 'export.json'
TASKS = ('detection', 'segmentation', 'classification', 'backbone')
OUTPUTS = {  # that each task needs
    'detection': ('boxes', 'scores', 'labels'),
    'segmentation': ('classes', 'logits'),
    'classification': ('scores',),
    'backbone': (),
}
FORMATS = (  # keys of `files`
    'onnx',
    'openvino',
    'pt2',
    'openvino-bf16',  # the float32 file, which OpenVINO computes in bfloat16
    'pt2-bf16',
    'onnx-fp16-weights',  # half the size, computed in float32
    'openvino-fp16-weights',
    'onnx-int8',
    'openvino-int8',
)
SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'pt2': '.pt2'}
# What files repeat in their metadata, next to the parts of `input` and their size.
ESSENTIAL = (
    *('task', 'part', 'num_classes', 'batch', 'size_input', 'outputs', 'score_thr', 'mask_thr', 'max_per_img'),
    *('align_corners', 'slide'),
)
OPSET_BOUNDS = (17, 21)  # of ONNX files
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'area', 'box', 'lanczos', 'hamming')
BACKENDS = {  # which of them each library has
    'cv2': ('nearest', 'bilinear', 'bicubic', 'area', 'lanczos'),
    'pillow': ('nearest', 'bilinear', 'bicubic', 'box', 'lanczos', 'hamming'),
}
_side = whole(1, 65536)
_two_sides = items(_side, 2)


@dataclass(frozen=True)
class Resize:
    """Resizes an image to a size that a rule gives; ``size`` says of what:

    - ``scale``: width, height; ``factor``: of the width, of the height; ``multiple``: up to multiples, likewise.
    - ``short``, ``long``, ``width``, ``height``: that side; the other one follows the ratio.
    - ``shortest``: the short side, and what the long side must not exceed (0 without such a limit).
    - ``fit``: as large as possible within width, height.
    """

    kind: ClassVar[str] = 'resize'
    rule: str = checked(text('scale', 'factor', 'multiple', 'short', 'long', 'width', 'height', 'shortest', 'fit'))
    size: list[float] = checked(items(number(0, 65536), least=1))
    keep_ratio: bool = checked(flag)  # the size of the rule bounds the long and the short side
    round_down: bool = checked(flag)  # sizes that keep the ratio, else to the nearest
    interpolation: str = checked(text(*INTERPOLATIONS))
    backend: str = checked(text(*BACKENDS))


@dataclass(frozen=True)
class Pad:
    """Pads an image at its right and bottom: to a size, to multiples of a divisor, to a square, or to the last two."""

    kind: ClassVar[str] = 'pad'
    size: list[int] | None = checked(optional(_two_sides))  # width, height
    divisor: int | None = checked(optional(_side))
    square: bool = checked(flag)
    value: list[float] = checked(items(number(), 3))  # BGR
    mode: str = checked(text('constant', 'edge', 'reflect', 'symmetric'))


@dataclass(frozen=True)
class Crop:
    """Cuts width, height out of the centre, or what there is of them."""

    kind: ClassVar[str] = 'crop'
    size: list[int] = checked(_two_sides)


@dataclass(frozen=True)
class PaddedCrop:
    """Cuts the square in the centre whose side is the short side times size / (size + padding), and resizes it."""

    kind: ClassVar[str] = 'padded_crop'
    size: int = checked(_side)
    padding: int = checked(whole(0, 65536))
    interpolation: str = checked(text(*INTERPOLATIONS))
    backend: str = checked(text(*BACKENDS))


@dataclass(frozen=True)
class Normalize:
    """Subtracts means and divides by deviations, of the channels in the order that ``to_rgb`` leaves."""

    kind: ClassVar[str] = 'normalize'
    mean: list[float] = checked(items(number(), 3))
    std: list[float] = checked(items(number(1e-9), 3))
    to_rgb: bool = checked(flag)


@dataclass(frozen=True)
class ToFloat:
    """Turns the 8-bit values into float32, so that no later step rounds."""

    kind: ClassVar[str] = 'float'


Step = Union[Resize, Pad, Crop, PaddedCrop, Normalize, ToFloat]
STEPS = (Resize, Pad, Crop, PaddedCrop, Normalize, ToFloat)


@dataclass(frozen=True)
class Input:
    """The input ``image``, and how it is made from an image."""

    name: str = checked(text('image'))
    layout: str = checked(text('NCHW'))
    color: str = checked(text('BGR'))
    dtype: str = checked(text('float32'))
    steps: list[Step] = checked(items(one_of(STEPS)))
    pad_divisor: int = checked(_side)  # the model itself pads what the steps return to multiples
    pad_size: list[int] | None = checked(optional(_two_sides))  # ... and to at least this height, width
    fill: list[float] = checked(items(number(), 3))  # BGR; becomes the model's padding value inside the file


@dataclass(frozen=True)
class Slide:
    """Windows of a segmentor's ``slide`` mode in what the steps return, in height, width."""

    crop: list[int] = checked(_two_sides)
    stride: list[int] = checked(_two_sides)


def _file_name(value: object, name: str) -> str:
    """A name in the folder itself, on every system."""
    found = text()(value, name)
    if found in ('.', '..') or set(found) & set('/\\:\0'):
        raise UserError(f'{name} must be the name of a file in this folder, not {found!r}')
    return found


@dataclass
class Description:
    """The content of ``export.json``."""

    task: str = checked(text(*TASKS))
    part: str = checked(text('model', 'backbone'))
    num_classes: int = checked(whole(0, 2**20))  # 0 for a backbone
    classes: list[str] = checked(items(text()))  # their names; empty where the checkpoint and the config name none
    palette: list[list[int]] = checked(items(items(whole(0, 255), 3)))  # RGB, one a class; may be empty
    sizes: list[list[int]] = checked(items(_two_sides))  # height, width of each file of a format; empty where free
    batch: int | None = checked(optional(whole(1, 4096)))  # images at once; None where free
    min_size: int = checked(_side)  # the least height and width where free
    files: dict[str, list[str]] = checked(mapping(items(_file_name, least=1), *FORMATS))  # the preferred first
    opset: int = checked(whole(*OPSET_BOUNDS))  # of ONNX files, which says what runtime they need
    input: Input = checked(record(Input))
    size_input: str | None = checked(optional(text('image_size')))  # name of the second input, None without one
    outputs: list[str] = checked(items(text(), least=1))
    score_thr: float | None = checked(optional(number(0, 1)))  # detections below it are not in the outputs
    mask_thr: float | None = checked(optional(number(0, 1)))  # a cell is object from this chance on
    max_per_img: int | None = checked(optional(whole(1)))  # rows of the outputs
    align_corners: bool = checked(flag)  # of the resizing of logits
    slide: Slide | None = checked(optional(record(Slide)))
    source: dict[str, str] = checked(mapping(text()))  # config, checkpoint
    versions: dict[str, str] = checked(mapping(text()))
    cpu: dict[str, str] = checked(mapping(text()))  # what it was made on: name, vector_extensions
    checks: list[dict] = checked(items(mapping(anything)))  # name, form, figure, limit, passed
    latency_ms: dict[str, float] = checked(mapping(number(0)))  # form -> median of one pass

    @property
    def dynamic(self) -> bool:
        """Whether batch, height and width are free."""
        return not self.sizes

    def check_plan(self) -> None:
        """Raises UserError for a value of a config that ``export.json`` cannot hold; files and outputs come later."""
        content = self._content()
        try:
            for item in fields(self):
                if item.name not in ('files', 'outputs'):
                    item.metadata['rule'](content[item.name], item.name)
            _check_steps(self.input.steps)
        except UserError as error:
            raise UserError(f'the config cannot be exported: {error}') from None

    def write(self, folder: Path) -> None:
        """Writes ``export.json`` into the folder."""
        replace_file(folder / FILE, json.dumps(self._content(), indent=1))

    def _content(self) -> dict:
        content = asdict(self)
        content['input']['steps'] = [dict(kind=step.kind, **asdict(step)) for step in self.input.steps]
        return json.loads(json.dumps(content))  # lists in place of tuples

    def essentials(self, size: Sequence[int] | None) -> dict[str, str]:
        """What a file of a size repeats in its own metadata, as JSON: all that its predictions depend on."""
        content = self._content()
        found = {name: content[name] for name in ESSENTIAL}
        found.update({f'input.{name}': value for name, value in content['input'].items()}, size=size and list(size))
        return {name: json.dumps(value) for name, value in found.items()}

    def check_file(self, path: Path, size: Sequence[int] | None, metadata: Mapping[str, str]) -> None:
        """Raises UserError where a file's metadata say that it is of another export, or that this was edited."""
        for name, value in self.essentials(size).items():
            if name in metadata and json.loads(metadata[name]) != json.loads(value):
                raise UserError(
                    f'{path.with_name(FILE)}: {name} is {show(json.loads(value))}, but {path.name} was exported with '
                    f'{show(json.loads(metadata[name]))}: restore it, or export again'
                )


def read_description(folder: str | Path) -> Description:
    """Reads the description in an exported folder.

    Raises:
        UserError: In one line, if the folder has none, a field of it is missing or wrong, or a file is missing.
    """
    path = Path(folder, FILE)
    if not path.exists():
        raise UserError(f'{folder} is not an exported folder: it has no {FILE}; tools/export.py makes one')
    content = read_json(path)
    try:
        description = read_record(Description, content, '')
        _check_consistent(description)
    except UserError as error:
        raise UserError(f'{path}: {error}: export again with this version') from None
    for name in (name for names in description.files.values() for name in names):
        if not Path(folder, name).is_file():
            raise UserError(f'{folder} lacks {name}, which its {FILE} names: copy the whole folder, or export again')
    return description


def _check_consistent(found: Description) -> None:
    """Raises UserError where two fields contradict each other."""
    needed = OUTPUTS[found.task]
    absent = [name for name in needed if name not in found.outputs]
    expected = max(len(found.sizes), 1)
    uneven = next((key for key, names in found.files.items() if len(names) != expected), None)
    if absent:
        raise UserError(f'outputs lacks {", ".join(absent)}, which the task {found.task} has')
    if len(set(found.outputs)) != len(found.outputs):
        raise UserError('outputs names one output twice')
    if len(set(map(tuple, found.sizes))) != len(found.sizes):
        raise UserError('sizes names one size twice')
    if not found.files:
        raise UserError('files names no file')
    if uneven:
        raise UserError(f'files.{uneven} has to name one file for each of sizes ({expected})')
    for key, names in found.files.items():
        suffix = SUFFIXES[key.partition('-')[0]]
        if not all(name.endswith(suffix) for name in names):
            raise UserError(f'files.{key} must name {suffix} files, not {", ".join(names)}')
    if (found.batch is None) != found.dynamic:
        raise UserError('batch must be a number where sizes are fixed, and null where they are free')
    if found.classes and len(found.classes) != found.num_classes:
        raise UserError(f'classes has {len(found.classes)} names, but num_classes is {found.num_classes}')
    if (found.size_input is None) != (found.task != 'detection'):
        raise UserError('size_input must be image_size for detection, and null for other tasks')
    if (found.part == 'backbone') != (found.task == 'backbone'):
        raise UserError(f'part {found.part} does not fit the task {found.task}')
    _check_steps(found.input.steps)


def _check_steps(steps: Sequence[Step]) -> None:
    """Raises UserError for a step whose values contradict each other."""
    for i, step in enumerate(steps):
        if isinstance(step, (Resize, PaddedCrop)) and step.interpolation not in BACKENDS[step.backend]:
            raise UserError(f'input.steps[{i}].interpolation {step.interpolation} is unknown to {step.backend}')
        if isinstance(step, Resize) and len(step.size) != (1 if step.rule in _ONE_SIDE else 2):
            raise UserError(
                f'input.steps[{i}].size has {len(step.size)} values, which the rule {step.rule} does not take'
            )
        if isinstance(step, Resize) and (min(step.size) <= 0 if step.rule != 'shortest' else step.size[0] <= 0):
            raise UserError(f'input.steps[{i}].size must be above 0')


_ONE_SIDE = ('short', 'long', 'width', 'height')
