"""``export.json``: what an exported folder holds and how its files are used; needs neither torch nor numpy.

The folder holds the model files (``model.onnx``; ``model.xml`` and ``model.bin``; ``model.pt2``) and ``export.json``,
whose keys are the fields of :class:`Description`. All files take the same inputs and return the same outputs:

- ``image`` (B, 3, H, W) float32: the picture's own values, 0 to 255, in the order of ``input['color']``. Mean and
  deviation are inside the file. A picture that is smaller than a fixed size is padded at its right and bottom with
  ``input['fill']``.
- ``image_size`` (2,) float32, for detection alone: height and width in ``image`` that are picture, not padding.

Outputs by task:

- ``backbone``: ``level0`` ... ``level3``, maps (B, C, H / stride, W / stride) float32.
- ``segmentation``: ``classes`` (B, H, W) int64 at the size of ``image``; ``logits`` (B, classes, H / 4, W / 4) float32.
  For the classes at another size, ``logits`` are resized (bilinear, half-pixel centres) to (H, W), cut to the
  part that is no padding, resized to that size, and the largest is taken, as MMSegmentation does.
- ``classification``: ``scores`` (B, classes) float32, the probability of each class.
- ``detection``, of one picture: ``boxes`` (N, 4) float32, x1, y1, x2, y2 in pixels of ``image``, by falling score;
  ``scores`` (N,) float32, 0 in rows that are not used; ``labels`` (N,) int64; ``masks`` (N, 28, 28) float32, the chance
  of each cell of the box to be object; ``left_out`` () int64: candidates that the file did not look at though they
  could have mattered, 0 unless a picture is extremely crowded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..utils import UserError, replace_file

FILE_LIMIT = 1e-4  # how far an exported file's level may be off from eager float32, as a share of its largest value


FILE = 'export.json'
TASKS = ('detection', 'segmentation', 'classification', 'backbone')


@dataclass
class Description:
    """The content of ``export.json``."""

    task: str  # one of TASKS
    part: str  # 'model' or 'backbone'
    classes: list[str]
    palette: list[list[int]]  # RGB, one a class; may be empty
    files: dict[str, str]  # format -> name in the folder: 'onnx', 'openvino', 'torch', 'onnx-int8', 'openvino-int8'
    input: dict  # name, layout 'NCHW', color 'BGR' or 'RGB', dtype 'float32', range [0, 255], fill (three values)
    size_input: str | None  # name of the second input, None without one
    size: dict  # dynamic, height and width (None where dynamic), batch (None where dynamic), min, divisor
    resize: dict  # of the test pipeline: scale [width, height] or None, keep_ratio, multiple (of each side); of
    # classifiers: short (side in pixels) or None, crop (side of the square in the centre) or None
    outputs: list[str]
    score_thr: float | None = None  # detections below it are not in the outputs
    mask_thr: float | None = None  # a cell is object from this chance on
    max_per_img: int | None = None  # rows of the outputs
    align_corners: bool = False  # of the resizing of logits
    source: dict = field(default_factory=dict)  # config, checkpoint
    versions: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, str] = field(default_factory=dict)  # what it was made on: name, vector_extensions
    checks: list[dict] = field(default_factory=list)  # name, form, figure, limit, passed
    latency_ms: dict[str, float] = field(default_factory=dict)  # form -> median of one pass

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that a picture is resized to, before it is padded to a fixed size.

        As the test pipeline resizes it; smaller where that would not fit into the fixed size.
        """
        fixed = None if self.size['dynamic'] else (self.size['height'], self.size['width'])
        scale = self.resize.get('scale')
        if self.resize.get('short'):  # what follows is a cut, not a padding
            factor = self.resize['short'] / min(height, width)
            return int(height * factor + 0.5), int(width * factor + 0.5)
        multiple = self.resize.get('multiple', 1)
        if not self.resize.get('keep_ratio', True):
            if fixed:
                return fixed
            new = [scale[1], scale[0]] if scale else [height, width]
            return _up(new[0], multiple), _up(new[1], multiple)
        factors = []
        if scale:
            factors.append(min(max(scale) / max(height, width), min(scale) / min(height, width)))
        if fixed:
            factors.append(min(fixed[0] / height, fixed[1] / width))
        factor = min(factors, default=1.0)
        new = [_up(max(int(side * factor + 0.5), 1), multiple) for side in (height, width)]
        if fixed:
            new = [min(side, bound) for side, bound in zip(new, fixed)]
        return new[0], new[1]

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size of ``image`` for a picture that was resized to this size."""
        if not self.size['dynamic']:
            return self.size['height'], self.size['width']
        divisor, least = self.size['divisor'], self.size['min']
        return _up(max(height, least), divisor), _up(max(width, least), divisor)

    def write(self, folder: Path) -> None:
        """Writes ``export.json`` into the folder."""
        replace_file(folder / FILE, json.dumps(asdict(self), indent=1))


def _up(side: int, multiple: int) -> int:
    """The next multiple from ``side`` on."""
    return -(-side // multiple) * multiple


def read_description(folder: str | Path) -> Description:
    """The description in an exported folder.

    Raises:
        UserError: If the folder has none, or one of another version.
    """
    path = Path(folder, FILE)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError:
        raise UserError(f'{folder} is no exported folder: it has no {FILE}; tools/export.py makes one') from None
    except ValueError as error:
        raise UserError(f'{path} is no JSON ({error}): export again') from None
    known = {item.name for item in fields(Description)}
    try:
        if not isinstance(content, dict) or content['task'] not in TASKS:
            raise ValueError('an unknown task')
        description = Description(**{name: value for name, value in content.items() if name in known})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path} is not what this version of mmefficientmod reads ({error}): export again') from None
    for name in description.files.values():
        if not Path(folder, name).is_file():
            raise UserError(f'{folder} lacks {name}, which its {FILE} names: copy the whole folder, or export again')
    return description
