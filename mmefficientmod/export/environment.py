"""What an export is made on - versions and processor - and the times of its forms there."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..version import __version__


def vector_extensions() -> str:
    """The vector instructions that torch's own CPU kernels use, e.g. ``'AVX2'`` or ``'AVX512'``."""
    import torch

    if hasattr(torch.backends, 'cpu'):
        return torch.backends.cpu.get_cpu_capability()
    found = re.search(r'CPU capability usage: (\S+)', torch.__config__.show())
    return found[1] if found else 'unknown'


LATENCY_SECONDS = 2.0  # of timing each form


def time_passes(runners: dict[str, Callable], inputs: dict[str, np.ndarray]) -> dict[str, float]:
    """The median time of a pass of each form in ms, in turns."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run(inputs)
    end = time.perf_counter() + LATENCY_SECONDS * len(runners)
    while time.perf_counter() < end or not times['eager']:
        for name, run in runners.items():
            start = time.perf_counter()
            run(inputs)
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: round(statistics.median(found), 3) for name, found in times.items()}


def versions() -> dict[str, str]:
    """The versions of what took part."""
    found = {'mmefficientmod': __version__, 'python': platform.python_version()}
    for name in ('torch', 'onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf'):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class Cpu(NamedTuple):
    """The processor as Linux describes it; elsewhere only its name is known."""

    name: str
    family: str = ''
    model: str = ''
    stepping: str = ''
    flags: tuple[str, ...] = ()  # instruction sets


def read_cpu() -> Cpu:
    """The first processor of ``/proc/cpuinfo``."""
    path = Path('/proc/cpuinfo')
    first = path.read_text().partition('\n\n')[0] if path.exists() else ''
    known = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in first.splitlines())}
    return Cpu(
        known.get('model name') or platform.processor() or platform.machine(),
        known.get('cpu family', known.get('CPU architecture', '')),  # the second names are those of Arm
        known.get('model', known.get('CPU part', '')),
        known.get('stepping', known.get('CPU revision', '')),
        tuple(known.get('flags', known.get('Features', '')).split()),
    )
