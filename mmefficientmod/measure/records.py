"""Measurements, and the JSON that holds them; no torch, so that they can be read anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

PARTS = {'backbone': 'detection', 'detector': 'detection', 'segmentor': 'segmentation'}  # the task whose config it is
MODES = ('eager', 'compiled', 'deploy', 'deploy-compiled')
SIZE_DIVISOR = 32  # detectors and segmentors pad or resize to multiples of it


@dataclass(frozen=True)
class Case:
    """One setting that all backbones are measured in.

    Attributes:
        part (str): ``'backbone'``, ``'detector'`` or ``'segmentor'``.
        size (tuple[int, int]): Height and width of the image in pixels, before it is padded to multiples of 32.
        batch (int): Images at once.
        precision (str): ``'fp32'``, or ``'bf16'`` or ``'fp16'`` by autocast.
        mode (str): One of :data:`MODES`; ``'deploy'`` is the inference form, of the backbones that have one.
    """

    part: str
    size: tuple[int, int]
    batch: int = 1
    precision: str = 'fp32'
    mode: str = 'eager'

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that the network sees."""
        return tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in self.size)

    def __str__(self) -> str:
        padded = '' if self.input_size == self.size else f' (padded to {self.input_size[0]} x {self.input_size[1]})'
        size = f'{self.size[0]} x {self.size[1]}{padded}'
        return f'{self.part}, {size}, batch {self.batch}, {self.precision}, {self.mode}'


@dataclass
class Measurement:
    """One backbone in one case; the figures are None where ``error`` says why there are none.

    Attributes:
        row (str): Key of the row.
        name (str): Its name.
        params (int, optional): Parameters of the part.
        median_ms (float, optional): Median time of a forward pass over the batch in ms.
        q25_ms (float, optional): A quarter of the passes took at most this.
        q75_ms (float, optional): Three quarters of the passes took at most this.
        images_per_second (float, optional): Batch over median time.
        peak_memory_mb (float, optional): Weights and what a pass allocates at its peak in MiB.
        ratio (float, optional): Median time over that of the baseline; above 1 is slower.
        error (str, optional): Why it was not measured.
    """

    backbone: str
    name: str
    params: int | None = None
    median_ms: float | None = None
    q25_ms: float | None = None
    q75_ms: float | None = None
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    ratio: float | None = None
    error: str | None = None


def records(cases: Mapping[Case, Sequence[Measurement]]) -> Iterator[dict]:
    """Every measurement with its case, flat, as JSON and CSV hold it."""
    for case, measurements in cases.items():
        for measurement in measurements:
            yield {**asdict(case), **asdict(measurement)}


def read_records(content: Mapping) -> dict[Case, list[Measurement]]:
    """The inverse of :func:`records`, from the JSON file's ``measurements``."""
    cases: dict[Case, list[Measurement]] = {}
    for record in content['measurements']:
        if 'row' in record:
            raise ValueError("the key 'row' is now called 'backbone': measure again")
        record = dict(record, size=tuple(record['size']))
        case = Case(**{name: record.pop(name) for name in Case.__dataclass_fields__})
        cases.setdefault(case, []).append(Measurement(**record))
    return cases


def make_cases(
    parts: Iterable[str],
    sizes: Sequence[tuple[int, int]] | None,
    batches: Sequence[int],
    precisions: Sequence[str],
    modes: Sequence[str],
) -> list[Case]:
    """Every combination; without sizes, those of the paper's Table 11."""
    defaults = {'backbone': [(512, 512)], 'detector': [(512, 512), (800, 1333)], 'segmentor': [(512, 512)]}
    return [
        Case(part, size, batch, precision, mode)
        for part in parts
        for size in sizes or defaults[part]
        for batch in batches
        for precision in precisions
        for mode in modes
    ]
