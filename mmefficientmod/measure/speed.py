"""Measures how much faster and leaner EfficientMod's forms are than the plain one, beside its competitors."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ..zoo.backbones import normalise, task_backbones
from ..zoo.published import published
from ..zoo.tasks import TASKS
from .complexity import operations
from .latency import build, describe, quartiles, time_once
from .reference import (
    TOLERANCE,
    PlainForm,
    inference_forms,
    output_error,
    saved_bytes,
    training_step,
)

CPU = torch.device('cpu')


@dataclass
class Speed:
    """One form of one row at one image size, batch 1; the figures are None where ``error`` says why.

    Attributes:
        row (str): Key of the row, e.g. ``'efficientmod-s'``.
        name (str): Its name.
        size (tuple[int, int]): Height and width of the image in pixels.
        form (str): One of :data:`~mmefficientmod.measure.reference.FORMS`.
        median_ms (float, optional): Median time of a forward pass in ms.
        q25_ms (float, optional): A quarter of the passes took at most this.
        q75_ms (float, optional): Three quarters of the passes took at most this.
        ratio (float, optional): Median of the plain form over this one; above 1 is faster.
        difference (float, optional): Largest difference from the training form's output on any level, as a share of
            the level's largest value.
        gflop (float, optional): Floating-point operations of a pass in billions, 2 a multiply-add.
        error (str, optional): Why there are no figures.
    """

    row: str
    name: str
    size: tuple[int, int]
    form: str
    median_ms: float | None = None
    q25_ms: float | None = None
    q75_ms: float | None = None
    ratio: float | None = None
    difference: float | None = None
    gflop: float | None = None
    error: str | None = None


@dataclass
class Training:
    """One row's training step beside that of the plain form, two images.

    Attributes:
        row (str): Key of the row.
        name (str): Its name.
        size (tuple[int, int]): Height and width of the images in pixels.
        plain_ms (float): Median time of the plain form's forward and backward pass in ms.
        median_ms (float): The same of the training form.
        ratio (float): Plain over training form; above 1 is faster.
        plain_mib (float): What the plain form keeps for the backward pass in MiB.
        saved_mib (float): The same of the training form.
        saved_ratio (float): Training form over plain; below 1 is leaner.
    """

    row: str
    name: str
    size: tuple[int, int]
    plain_ms: float
    median_ms: float
    ratio: float
    plain_mib: float
    saved_mib: float
    saved_ratio: float


def measure_inference(
    rows: Sequence[str], size: tuple[int, int], repeats: int = 10, tick: Callable[[str], None] = lambda text: None
) -> list[Speed]:
    """Measures every form of every row at one size on the CPU, one pass of each in a new random order every round.

    EfficientMod has all forms; a row of another family has its inference form, compiled and in bfloat16 as well.

    Args:
        rows (Sequence[str]): Keys of the rows.
        size (tuple[int, int]): Height and width of the image in pixels.
        repeats (int): Rounds. Defaults to 10.
        tick (Callable): Called with what is being done.
    """
    torch.compiler.reset()
    torch._dynamo.config.cache_size_limit = 8 + 2 * len(rows)  # all rows' blocks share their code
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    results, ready = [], []
    for key in rows:
        row = task_backbones(TASKS['detection'])[key]
        try:
            backbone = build(row, 'backbone')
            forms, gflop = inference_forms(backbone), sum(operations(backbone, images).values()) / 1e9
            with torch.inference_mode():
                expected = backbone(images)
        except Exception as error:  # about this row; the others go on
            results.append(Speed(row.key, row.name, size, '', error=describe(error)))
            continue
        for form, run in forms.items():
            tick(f'{row.name}: {form}')
            result = Speed(row.key, row.name, size, form, gflop=gflop)
            results.append(result)
            try:
                with torch.inference_mode():
                    levels = run(images)
                    result.difference = output_error(levels, expected)
                    if result.difference > TOLERANCE[form]:
                        raise ArithmeticError(f'the output is off by {result.difference:.1e} of the largest value')
                    run(images)
                ready.append((result, run, []))
            except Exception as error:
                result.error = describe(error)
        gc.collect()
    order = random.Random(0)
    for i in range(repeats):
        tick(f'round {i + 1}/{repeats}')
        for _, run, times in order.sample(ready, len(ready)):
            with torch.inference_mode():
                times.append(time_once(partial(run, images), CPU))
    for result, _, times in ready:
        result.q25_ms, result.median_ms, result.q75_ms = quartiles(times)
    plain = {result.row: result.median_ms for result in results if result.form == 'plain'}
    for result in results:
        if result.median_ms and plain.get(result.row):
            result.ratio = plain[result.row] / result.median_ms
    return results


def measure_training(
    rows: Iterable[str],
    size: tuple[int, int],
    batch: int = 2,
    repeats: int = 5,
    tick: Callable[[str], None] = lambda text: None,
) -> list[Training]:
    """Measures a training step of EfficientMod's rows on the CPU, plain form and training form in turns.

    Args:
        rows (Iterable[str]): Keys of EfficientMod's rows.
        size (tuple[int, int]): Height and width of the images in pixels.
        batch (int): Images a step. Defaults to 2.
        repeats (int): Rounds. Defaults to 5.
        tick (Callable): Called with what is being done.
    """
    images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    results = []
    for key in rows:
        row = task_backbones(TASKS['detection'])[key]
        tick(f'{row.name}: training step')
        model = build(row, 'backbone').train()
        forms = PlainForm(model).train(), model
        saved = [saved_bytes(form, images) / 2**20 for form in forms]
        steps = [training_step(form, images) for form in forms]
        times: list[list[float]] = [[], []]
        for i in range(repeats + 1):  # the first round warms up
            for step, passed in zip(steps, times):
                milliseconds = time_once(step, CPU)
                if i:
                    passed.append(milliseconds)
        plain_ms, median_ms = map(statistics.median, times)
        ratios = plain_ms / median_ms, saved[1] / saved[0]
        results.append(Training(row.key, row.name, size, plain_ms, median_ms, ratios[0], *saved, saved_ratio=ratios[1]))
    return results


def product_peaks(repeats: int = 10) -> dict[str, float]:
    """The machine's own matrix products, float32, in GFLOP/s, by the two libraries behind torch on a CPU.

    Returns:
        dict[str, float]: ``'matmul'``, as ``torch.mm`` computes it, and ``'convolution'``, as a 1x1 convolution.
    """
    n, channels, side = 2048, 1024, 64
    a, weight = torch.rand(n, n), torch.rand(channels, channels, 1, 1)
    maps = torch.rand(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    work = {
        'matmul': (lambda: a @ a, 2 * n**3),
        'convolution': (lambda: F.conv2d(maps, weight), 2 * side**2 * channels**2),
    }
    with torch.inference_mode():
        best = {name: min(time_once(run, CPU) for _ in range(repeats)) for name, (run, _) in work.items()}
    return {name: flop / best[name] / 1e6 for name, (_, flop) in work.items()}


def published_ap(key: str) -> float | None:
    """The published box AP of a row with Mask R-CNN 1x on COCO, None if there is none."""
    figures = {normalise(name): row for name, row in published('downstream').items()}
    return figures.get(normalise(key), {}).get('ap_box')
