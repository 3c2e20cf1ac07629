"""Measurements and the JSON file that holds them; needs no torch, so that any machine can read them."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..utils import UserError, describe_error, read_json, replace_file
from ..zoo.published import published

# Part -> the task whose config it is built from.
PARTS = {
    'backbone': 'detection',
    'detector': 'detection',
    'segmentor': 'segmentation',
    'classifier': 'classification',
    'training': 'detection',
}
IN_TORCH = ('reference', 'eager', 'deploy', 'reference-compiled', 'compiled', 'deploy-compiled')
IN_TORCH_BF16 = tuple(f'{mode}-bf16' for mode in IN_TORCH)  # the same under autocast
# Modes that run an exported file, as mmefficientmod/export calls it. The file holds the deploy form, or, where the
# mode begins with "reference-", the reference.
FILES = ('onnx', 'openvino', 'pt2', 'openvino-bf16', 'pt2-bf16', 'onnx-int8', 'openvino-int8')
EXPORTED = tuple(f'{form}{file}' for file in FILES for form in ('reference-', ''))
MODES = IN_TORCH + IN_TORCH_BF16 + EXPORTED
MODE_GROUPS = {  # on the command line
    'all': IN_TORCH,
    'exported': EXPORTED,
    'bf16': tuple(mode for mode in MODES if mode.endswith('-bf16')),
}
PRECISIONS = ('fp32', 'bf16', 'fp16')
SIZE_DIVISOR = 32  # detectors and segmentors pad or resize to multiples of it
# The sizes of the paper's Tables 11 and 1. In Table 1 each backbone has one of the two.
DEFAULT_SIZES = {'detector': [(512, 512), (800, 1333)], 'classifier': [(224, 224), (256, 256)]}


@dataclass(frozen=True)
class Case:
    """The part of a backbone that is measured, with size, batch, precision and mode."""

    part: str  # one of PARTS; 'training' is a forward and a backward pass of the backbone
    size: tuple[int, int]  # height and width of the image in pixels, before it is padded to multiples of 32
    batch: int = 1  # images at once
    precision: str = 'fp32'  # 'fp32', or 'bf16' or 'fp16' with autocast
    mode: str = 'eager'  # one of MODES; 'reference': the operations of EfficientMod's authors; 'deploy': deploy form

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that the network sees."""
        height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in self.size)
        return height, width

    @property
    def compiled(self) -> bool:
        """Whether ``torch.compile`` is used."""
        return self.mode.endswith(('compiled', 'compiled-bf16'))

    @property
    def is_reference(self) -> bool:
        """Whether it is the sequence of operations of EfficientMod's authors, in whichever way it runs."""
        return self.mode.startswith('reference')

    @property
    def file(self) -> str | None:
        """One of :data:`FILES`, the exported file that is run; None for what torch runs itself."""
        name = self.mode.rpartition('reference-')[2]
        return name if name in FILES else None

    @property
    def int8(self) -> bool:
        """Whether products are computed in INT8: outputs are then not those of float32."""
        return self.mode.endswith('int8')

    @property
    def bf16(self) -> bool:
        """Whether the mode computes in bfloat16: outputs are then not those of float32."""
        return self.mode.endswith('-bf16')

    @property
    def computed_in(self) -> str:
        """The precision that torch computes in: that of the mode, else of the setting."""
        return 'bf16' if self.bf16 else self.precision

    @property
    def like(self) -> Case:
        """The reference that it is compared with, run in the same way: eager, compiled, or from such a file."""
        how = self.file or f'{"compiled" * self.compiled}{"-bf16" * self.bf16}'.strip('-')
        return replace(self, mode=f'reference-{how}' if how else 'reference')

    @property
    def setting(self) -> str:
        """All but the mode, in words."""
        padded = '' if self.input_size == self.size else f' (padded to {self.input_size[0]} x {self.input_size[1]})'
        return f'{self.part}, {self.size[0]} x {self.size[1]}{padded}, batch {self.batch}, {self.precision}'

    def __str__(self) -> str:
        return f'{self.setting}, {self.mode}'


@dataclass
class Measurement:
    """One backbone in one case. Where ``error`` gives the reason of a failure, the values are None."""

    backbone: str  # key of the backbone, e.g. 'efficientmod-s'
    name: str  # its name
    params: int | None = None  # number of parameters of the part
    macs: int | None = None  # multiply-accumulates of a forward pass over one image, not counted for detectors
    median_ms: float | None = None  # median time of a pass over the batch in ms
    q25_ms: float | None = None  # a quarter of the passes took at most this
    q75_ms: float | None = None  # three quarters of the passes took at most this
    images_per_second: float | None = None  # batch over median time
    peak_memory_mb: float | None = None  # weights plus the peak of a pass's allocations in MiB; not of exported files
    kept_mb: float | None = None  # memory kept from the forward for the backward pass in MiB, eager training only
    difference: float | None = None  # from the eager float32 outputs, as a share of the largest value
    speed_up_over_reference: float | None = None  # median time of the reference, run the same way, over this one
    speed_up_over_baseline: float | None = None  # median time of the baseline in the same case over this one
    other_load: float | None = None  # cores that other processes kept busy during the rounds, on Linux
    error: str | None = None  # why it was not measured


Results = typing.Mapping[Case, typing.Sequence[Measurement]]  # those of collections.abc need Python 3.9


def add_speed_ups(results: Results, baseline: str = '') -> None:
    """Sets the speed-ups; above 1 is faster.

    Args:
        results (Mapping[Case, Sequence[Measurement]]): Cases that were measured in one run.
        baseline (str): Key of the backbone that the others are compared with. Defaults to none.
    """
    times = {(case, m.backbone): m.median_ms for case, found in results.items() for m in found if m.median_ms}
    for case, found in results.items():
        for m in found:
            if m.median_ms:
                reference, other = times.get((case.like, m.backbone)), times.get((case, baseline))
                m.speed_up_over_reference = reference and reference / m.median_ms
                m.speed_up_over_baseline = other and other / m.median_ms


def make_cases(
    parts: Iterable[str],
    sizes: Sequence[tuple[int, int]] | None,
    batches: Sequence[int],
    precisions: Sequence[str],
    modes: Sequence[str],
) -> list[list[Case]]:
    """All combinations; the cases of one list differ only in the mode. Without sizes, DEFAULT_SIZES are taken."""
    return [
        [Case(part, size, batch, precision, mode) for mode in modes]
        for part in parts
        for size in sizes or DEFAULT_SIZES.get(part, [(512, 512)])
        for batch in batches
        for precision in precisions
    ]


def keys_at_own_size(case: Case, keys: Iterable[str]) -> list[str]:
    """The backbones whose default size the case has. A classifier's default is its size in the paper's Table 1."""
    sides = {name.lower(): figures['input'] for name, figures in published('imagenet').items()}
    return [key for key in keys if case.part != 'classifier' or case.size == (sides.get(key, 224),) * 2]


def records(results: Results) -> Iterator[dict]:
    """Every measurement with its case, flat, as JSON and CSV hold it."""
    for case, measurements in results.items():
        for measurement in measurements:
            yield {**asdict(case), **asdict(measurement)}


def write_benchmark(path: Path, results: Results, **facts: object) -> None:
    """Writes the measurements as JSON, together with other facts: ``machine``, ``run``, ``settings``."""
    replace_file(path, json.dumps(dict(facts, measurements=list(records(results))), indent=1) + '\n')


def read_benchmark(path: Path) -> tuple[dict[Case, list[Measurement]], dict]:
    """The measurements of a JSON file that tools/benchmark.py wrote, and the other facts in it, such as ``machine``.

    Raises:
        UserError: If the file does not exist or holds something else.
    """
    content = read_json(path)
    try:
        if not isinstance(content, dict):
            raise TypeError(f'it holds {type(content).__name__}, not measurements')
        results: dict[Case, list[Measurement]] = {}
        for record in content.pop('measurements'):
            if not isinstance(record, dict):
                raise TypeError(f'{record!r} is not a measurement')
            record['size'] = tuple(record['size'])
            case = Case(**{name: record.pop(name) for name in Case.__dataclass_fields__})
            measurement = Measurement(**record)
            _check_types(case, measurement)
            results.setdefault(case, []).append(measurement)
        content['machine']['torch']
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} was not written by tools/benchmark.py ({describe_error(error)})') from None
    return results, content


def _check_types(case: Case, measurement: Measurement) -> None:
    """Raises TypeError for a value whose type is not that of its field."""
    if len(case.size) != 2 or not all(isinstance(number, int) and number > 0 for number in (*case.size, case.batch)):
        raise TypeError(f'the size is {list(case.size)}, the batch {case.batch!r}')
    texts = {name: getattr(case, name) for name in ('part', 'precision', 'mode')}
    for name, value in {**texts, **asdict(measurement)}.items():
        is_text = name in texts or name in ('backbone', 'name', 'error')
        right = isinstance(value, str) if is_text else isinstance(value, (int, float))
        optional = name not in texts and name not in ('backbone', 'name')
        if not (right or (optional and value is None)):
            raise TypeError(f'{name} is {value!r}')
