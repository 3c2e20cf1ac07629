"""The exported modes of the benchmark: a backbone or a classifier as a file, run by the runtime of its format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..export import formats
from ..export.environment import versions
from ..export.files import write_file
from ..export.formats import FORMATS, INPUT, Job
from ..export.quantize import PACKAGES
from ..utils import UserError
from .records import Case


class NamedOutputs(nn.Module):
    """A backbone or a classifier without preprocessing, whose outputs have names.

    (B, 3, H, W) -> the maps (B, C, H / stride, W / stride) of a backbone, the logits (B, classes) of a classifier.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.model = model
        self.eval()
        with torch.no_grad():
            self.output_names = [f'output{i}' for i in range(len(self(images)))]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.model(image)
        return (found,) if isinstance(found, Tensor) else tuple(found)


def open_file(model: nn.Module, case: Case, images: Tensor, folder: Path) -> Callable[[], dict[str, np.ndarray]]:
    """Writes the file of a case, unless the folder has it, and opens it with as many threads as torch uses.

    Args:
        model (nn.Module): The backbone or classifier, in the form that the case asks for.
        case (Case): Its mode is one of ``EXPORTED`` of :mod:`mmefficientmod.measure.records`.
        images (Tensor): (B, 3, H, W) float32. INT8 is calibrated with them.
        folder (Path): For the files of this model.

    Returns:
        Callable: One pass over the images; returns the outputs by name.

    Raises:
        UserError: If the file cannot be written, with the reason in one line.
    """
    form = NamedOutputs(model, images)
    feeds = {INPUT: np.ascontiguousarray(images.numpy())}
    folder = folder / ('reference' if case.is_reference else 'deploy')
    folder.mkdir(exist_ok=True)
    name = case.file or ''
    path = write_file(name, Job(form, (images,), [INPUT], calibration=[feeds]), folder)
    run = formats.open_file(path, name, form.output_names, torch.get_num_threads())
    return lambda: run(feeds)


def packages(mode: str) -> tuple[str, ...]:
    """Import names of what an exported mode needs."""
    kind, _, precision = mode.rpartition('reference-')[2].partition('-')
    return FORMATS[kind].packages + (PACKAGES if precision == 'int8' else ())


def check_packages(modes: Iterable[str]) -> dict[str, str]:
    """The versions of what these exported modes need.

    Raises:
        UserError: If a package is missing, with the pip command, or the CPU lacks bfloat16.
    """
    for mode in modes:
        formats.require(packages(mode), f'--modes {mode}')
        if problem := formats.precision_problem(mode.rpartition('reference-')[2]):
            raise UserError(f'--modes {mode}: {problem}')
    needed = {name for mode in modes for name in packages(mode)}
    return {name: version for name, version in versions().items() if name in needed}
