"""Writes a form as a file, with the files that it is made from."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..utils import quiet
from .formats import MADE_FROM, Job, file_name, one_line, write_onnx, write_openvino, write_pt2
from .precisions import InBf16, halve_weights, write_half_weights
from .quantize import quantize


def write_file(name: str, job: Job, folder: Path) -> Path:
    """Writes a file into a folder, unless it is there, and before it the one that it is made from.

    Args:
        name (str): One of ``FORMATS`` of :mod:`mmefficientmod.export.description`.
        job (Job): The form.
        folder (Path): The folder.

    Raises:
        UserError: In one line, if a package is missing or the exporter fails.
    """
    path = folder / file_name(name)
    if path.exists():
        return path
    job = replace(job, metadata=dict(job.metadata, file=path.name))
    origin = MADE_FROM.get(name)
    source = write_file(origin, job, folder) if origin else path
    kind, _, precision = name.partition('-')
    with one_line(f'{name}: this model cannot be written'), quiet():
        if kind == 'pt2':
            write_pt2(InBf16(job.form) if precision else job.form, job, path)
        elif kind == 'openvino':
            write_openvino(source, path, job.metadata, halve_weights if precision == 'fp16-weights' else None)
        elif precision == 'int8':
            source = path.with_name('channels-first.onnx')
            write_onnx(replace(job, form=channels_first(job.form)), source)
            quantize(source, path, job.calibration, job.feeds)
            source.unlink()
        elif precision == 'fp16-weights':
            write_half_weights(source, path, job.metadata)
        else:
            write_onnx(job, path)
    return path


def channels_first(form: nn.Module) -> nn.Module:
    """A copy of a form in which every EfficientMod in the deploy form has channels first."""
    form = copy.deepcopy(form)
    for module in list(form.modules()):
        for name, child in module.named_children():
            if hasattr(child, 'to_channels_first'):
                setattr(module, name, child.to_channels_first())
    return form.eval()
