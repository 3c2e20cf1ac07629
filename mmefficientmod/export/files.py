"""Writes a form as a file, with the files that it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .formats import MADE_FROM, file_name, write_form
from .quantize import write_int8


@dataclass(frozen=True)
class Job:
    """What the files of a form are made of.

    Attributes:
        form (nn.Module): In evaluation mode; ``output_names`` are the names of its outputs.
        inputs (tuple[Tensor]): Examples. For dynamic sizes, a batch of 2 or more.
        names (list[str]): Of the inputs.
        dynamic (bool): Whether batch, height and width of the first input are free.
        metadata (Mapping[str, str]): Written into the files.
        calibration (Sequence): What INT8 files are calibrated with.
        feeds (Callable): Makes inputs by name of one of these.
    """

    form: nn.Module
    inputs: tuple
    names: list[str]
    dynamic: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    calibration: Sequence = ()
    feeds: Callable[[Any], Mapping] = dict


def write_file(name: str, job: Job, folder: Path) -> Path:
    """Writes a file into a folder, unless it is there, and before it the one that it is made from.

    Args:
        name (str): One of ``FORMATS`` of :mod:`mmefficientmod.export.description`.
        job (Job): The form.
        folder (Path): The folder.

    Raises:
        UserError: In one line, if it cannot be written.
    """
    path = folder / file_name(name)
    if path.exists():
        return path
    if name in MADE_FROM:
        write_file(MADE_FROM[name], job, folder)
    kind, _, int8 = name.partition('-')
    if int8:
        return write_int8(kind, folder, job.calibration, job.feeds, job.metadata)
    return write_form(kind, job.form, job.inputs, job.names, folder, job.dynamic, job.metadata)
