"""The benchmark: time and memory of backbones, detectors, segmentors, classifiers and training steps, in turns."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..export.description import FILE_LIMIT
from ..models import EfficientMod
from ..utils import describe_error, first_line
from ..zoo.backbones import task_backbones
from ..zoo.tasks import TASKS
from .complexity import measure_model
from .machine import OtherLoad, peak_memory, time_once
from .models import build_part, detection_samples, make_images
from .records import PARTS, Case, Measurement, add_speed_ups
from .reference import Reference
from .training import gradients, prepare_for_training, saved_bytes, training_step

DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
TOLERANCE = {'fp32': (1e-5, 1e-3), 'fp16': (2e-2, 2e-1), 'bf16': (1e-1, 5e-1)}  # for outputs, for gradients
SPIN = 0.05  # seconds to sleep between passes: idle ONNX Runtime threads spin for up to 0.033, libgomp's for 0.008
COMPILED_PARTS = ('backbone', 'neck', 'rpn_head', 'decode_head')  # after them, shapes depend on the proposals


@dataclass
class Subject:
    """A backbone in a case, the function that runs it, and the times so far."""

    case: Case
    result: Measurement
    run: Callable[[], object] | None = None
    times: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Notes any error: it concerns only this backbone, and the others go on."""
        try:
            yield
        except Exception as error:
            self.result.error, self.run = describe(error), None
            gc.unfreeze()  # so that the model that failed is collected
        gc.collect()
        torch.cuda.empty_cache()  # nothing where CUDA is not used

    def check(self, found: Sequence[Tensor], expected: Sequence[Tensor], limit: float) -> None:
        """Notes how far the outputs are off; raises ArithmeticError if that is too far."""
        error = self.result.difference = output_error(found, expected)
        if not error <= limit:
            raise ArithmeticError(f'the output is off by {error:.1e} of the largest value, more than {limit}')

    def time(self, device: torch.device) -> None:
        """Times one pass."""
        with self.guard():
            if self.run:
                self.times.append(time_once(self.run, device))
        if device.type == 'cpu':
            time.sleep(SPIN)

    def summarise(self) -> None:
        """Notes the median and the quartiles of the times."""
        if self.run:
            result, times = self.result, self.times
            quartiles = statistics.quantiles(times, n=4, method='inclusive') if len(times) > 1 else times * 3
            result.q25_ms, result.median_ms, result.q75_ms = quartiles
            result.images_per_second = 1000 * self.case.batch / result.median_ms


@dataclass(frozen=True)
class Plan:
    """How the cases are measured."""

    device: torch.device  # a CPU or a GPU
    repeats: int = 20  # rounds
    warmup: int = 3  # passes of each backbone that are not timed
    baseline: str = ''  # key of the backbone that the others are compared with; empty for none
    backend: str = 'inductor'  # backend of torch.compile
    options: Mapping = field(default_factory=dict)  # changes of each backbone's config, by dotted name


def measure(
    cases: Sequence[Case],
    backbones: Sequence[str],
    plan: Plan,
    tick: Callable[[str], None] = lambda text: None,
) -> dict[Case, list[Measurement]]:
    """Measures cases that differ only in the mode: one pass of each backbone in each, in a new random order a round.

    A mode that a backbone does not have is left out. One that fails has an error in place of a time, and so has one
    whose output is not that of eager float32. The weights are the same in all modes.

    Args:
        cases (Sequence[Case]): The cases.
        backbones (Sequence[str]): Keys of the backbones.
        plan (Plan): Device, repeats and the like.
        tick (Callable): Called with the step in words. Defaults to nothing.
    """
    with compiler_settings(len(cases) * len(backbones)):
        subjects: list[Subject] = []
        for key in backbones:
            tick(f'{key}: building')
            subjects += prepare(key, cases, plan, tick)
        take_turns(subjects, plan, tick)
    results: dict[Case, list[Measurement]] = {case: [] for case in cases}
    for subject in subjects:
        subject.summarise()
        results[subject.case].append(subject.result)
    add_speed_ups(results, plan.baseline)
    return results


def take_turns(subjects: Sequence[Subject], plan: Plan, tick: Callable[[str], None]) -> None:
    """Times one pass of each subject in every round, so that a change of the machine meets all of them."""
    order, load = random.Random(0), OtherLoad()
    gc.freeze()  # otherwise every gc.collect() searches the compilers' objects again, 0.3 s after each pass
    try:
        for i in range(plan.repeats):
            tick(f'round {i + 1}/{plan.repeats}')
            ready = [subject for subject in subjects if subject.run]
            for subject in order.sample(ready, len(ready)):
                subject.time(plan.device)
    finally:
        gc.unfreeze()
    for subject in subjects:
        subject.result.other_load = load.cores()


@contextlib.contextmanager
def compiler_settings(count: int) -> Iterator[None]:
    """Lets torch keep ``count`` compiled forms of the same code; restores its settings and empties its caches."""
    torch.compiler.reset()
    try:
        with torch._dynamo.config.patch(cache_size_limit=8 + count):
            yield
    finally:
        torch.compiler.reset()


def prepare(key: str, cases: Sequence[Case], plan: Plan, tick: Callable[[str], None]) -> Iterator[Subject]:
    """Builds a backbone once, and yields it in every case that it has, checked and warmed up; see :func:`measure`."""
    built = Subject(cases[0], Measurement(key, task_backbones(TASKS[PARTS[cases[0].part]])[key].name))
    with built.guard():
        model = build(built, plan)
        expected = eager_outputs(model, cases[0], plan.device)
    with tempfile.TemporaryDirectory() as folder:  # for exported files, which need not stay once they are open
        for case in cases:
            subject = Subject(case, copy.copy(built.result))
            if built.result.error:
                yield subject
            elif has_mode(model, case):
                tick(f'{key}, {case.mode}: warm-up')
                with subject.guard():
                    warm_up(subject, model, expected, plan, Path(folder))
                yield subject


def build(subject: Subject, plan: Plan) -> nn.Module:
    """The model of a subject on the plan's device; notes its parameters and multiply-accumulates."""
    case, result = subject.case, subject.result
    torch.manual_seed(0)
    model = build_part(result.backbone, case.part, plan.options)
    result.params = sum(parameter.numel() for parameter in model.parameters())
    if case.part != 'detector':  # its work depends on the weights
        arguments = dict(mode='tensor') if case.part == 'segmentor' else {}
        result.macs = measure_model(copy.deepcopy(model).to('meta'), case.input_size, **arguments).macs
    model = model.to(plan.device)
    return prepare_for_training(model) if case.part == 'training' else model


def warm_up(subject: Subject, model: nn.Module, expected: Sequence[Tensor], plan: Plan, folder: Path) -> None:
    """Brings a copy of the model into the subject's mode, checks its outputs, and notes its memory."""
    case, device = subject.case, plan.device
    form = arrange(copy.deepcopy(model), case, plan.backend)
    if case.file:
        from .exported import open_file  # here, because it imports the exporters

        run = subject.run = open_file(form, case, make_images(case, device), folder)
        found = [torch.from_numpy(output) for output in run().values()]
    else:
        subject.run = forward_pass(form, case, device)
        found = outputs(form, case, device)
    subject.check(found, expected, tolerance(case, device))
    for _ in range(plan.warmup):
        subject.run()
    if not case.file:
        subject.result.peak_memory_mb = peak_memory(form, subject.run, device)
    if case.part == 'training' and not case.compiled:
        subject.result.kept_mb = saved_bytes(form, make_images(case, device)) / 2**20


def eager_outputs(model: nn.Module, case: Case, device: torch.device) -> list[Tensor]:
    """The outputs that every mode is compared with: eager and in float32."""
    return outputs(copy.deepcopy(model), Case(case.part, case.size, case.batch), device)


def has_mode(model: nn.Module, case: Case) -> bool:
    """Whether there is such a mode. Only EfficientMod has a reference, and a training has no deploy form.

    Files are made from backbones and classifiers. They have a precision of their own, as modes in bfloat16 have.
    """
    if case.file and case.part not in ('backbone', 'classifier'):
        return False
    if (case.file or case.bf16) and case.precision != 'fp32':
        return False
    if case.is_reference:
        return isinstance(getattr(model, 'backbone', model), EfficientMod)
    return not (case.part == 'training' and case.mode.startswith('deploy'))


def arrange(model: nn.Module, case: Case, backend: str = 'inductor') -> nn.Module:
    """Brings a model into a case's mode; it compiles at its first call."""
    whole = hasattr(model, 'backbone')
    backbone = model.backbone if whole else model
    if case.is_reference:
        backbone = Reference(backbone)
    elif case.file or case.mode.startswith('deploy'):
        getattr(backbone, 'switch_to_deploy', lambda: None)()
    if whole:
        model.backbone = backbone
    else:
        model = backbone
    if case.compiled:
        parts = [getattr(model, name, None) for name in COMPILED_PARTS] if whole else [model]
        for module in parts:
            if module is not None:
                module.compile(dynamic=False, backend=backend)
    return model


def forward_pass(model: nn.Module, case: Case, device: torch.device) -> Callable[[], Any]:
    """The function to be timed: one pass over a fixed random batch, or a step of a training.

    A detector runs up to the second stage's outputs for the proposals of the first. These are 1000 for each image, of
    which 100 pass the mask head. A segmentor runs up to the logits. The work after that depends on the weights.
    """
    images, keywords = make_images(case, device), {}
    arguments = [images]
    if case.part == 'detector':
        arguments.append(detection_samples(case.batch, case.input_size))
        for module in (model.neck, model.rpn_head):  # MMCV's NMS and RoIAlign take float32
            module.register_forward_hook(lambda module, inputs, output: _to_float32(output))
    if case.part in ('detector', 'segmentor'):
        keywords['mode'] = 'tensor'
    step = training_step(model, images)

    def run() -> Any:
        with _autocast(case, device):
            if case.part == 'training':
                return step()
            with torch.inference_mode(), _constant_weights():
                return model(*arguments, **keywords)

    return run


def outputs(model: nn.Module, case: Case, device: torch.device) -> list[Tensor]:
    """The outputs that must be the same in every mode: a detector's maps before the proposals, logits, gradients."""
    if case.part == 'detector':
        with torch.inference_mode(), _autocast(case, device), _constant_weights():
            return list(model.extract_feat(make_images(case, device)))
    found = forward_pass(model, case, device)()
    if case.part == 'training':
        return [*(level.detach() for level in found), *gradients(model)]
    return [found] if isinstance(found, Tensor) else list(found)


def output_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference in any tensor, as a share of its largest value, or of 1e-3 of the largest of all.

    It is infinite where a shape differs or anything is not finite: ``max`` would overlook a NaN.
    """
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return math.inf
    scales = [tensor.float().abs().max().item() for tensor in expected]
    floor = max(scales) * 1e-3
    errors = [(a.float() - b.float()).abs().max().item() for a, b in zip(found, expected)]
    shares = [error / max(scale, floor) for error, scale in zip(errors, scales)]
    return max(shares) if all(map(math.isfinite, shares)) else math.inf


def tolerance(case: Case, device: torch.device) -> float:
    """Largest difference of an output: of rounding, more in TensorFloat-32 and in files, any finite one in INT8."""
    if case.int8:
        return sys.float_info.max
    if case.file and not case.bf16:
        return FILE_LIMIT
    training = case.part == 'training'  # gradients add up the differences of the levels
    if case.computed_in == 'fp32' and device.type == 'cuda' and torch.backends.cudnn.allow_tf32:
        return 1e-1 if training else 1e-2
    return TOLERANCE[case.computed_in][training]


def check_compiler(backend: str = 'inductor') -> None:
    """Raises RuntimeError with the reason in one line if this torch cannot compile on this machine."""
    try:
        module = nn.Linear(8, 8)
        module.compile(dynamic=False, backend=backend)
        with torch.inference_mode(), _constant_weights():
            module(torch.zeros(1, 8))
    except Exception as error:
        raise RuntimeError(f'torch {torch.__version__} cannot compile here ({describe_error(error)})') from error


def describe(error: Exception) -> str:
    """One line on why a backbone was not measured."""
    text = first_line(error)
    out_of_memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
    if out_of_memory:
        return f'out of memory: {text}'
    if 'not compiled with' in text.lower() or 'not implemented on the GPU' in text:
        return f'{text} (MMCV has no GPU operators here: build it with nvcc, or leave detectors out)'
    return describe_error(error)


def _autocast(case: Case, device: torch.device) -> torch.autocast:
    dtype = DTYPES[case.computed_in]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def _constant_weights() -> contextlib.AbstractContextManager:
    """Lets torch.compile lay out the weights once. It reads this while it compiles, when ``options=`` is too late."""
    from torch._inductor import config

    return config.patch(freezing=True)


def _to_float32(output: Any) -> Any:
    """A tensor, or a nest of sequences of them."""
    return output.float() if isinstance(output, Tensor) else type(output)(_to_float32(item) for item in output)
