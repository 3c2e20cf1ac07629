"""Makes an exported folder: forms, their checks, files, their checks, times; in place only if all checks pass."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..utils import UserError
from ..version import __version__
from .changes import measure_change
from .check import (
    ImageSamples,
    Run,
    Sample,
    compare,
    compare_predictions,
    fixed_batch,
    generated_batches,
    generated_images,
    library_result,
    usable_samples,
    with_noise,
    worst,
)
from .description import Description
from .environment import time_passes
from .files import write_file
from .formats import INPUT, SIZE_INPUT, Job, file_name, one_line, open_file, usable_cpus, weights_name
from .inputs import Size, round_up
from .library import LibraryModel
from .model import ExportedModel
from .plan import ExportOptions, check_options, make_form, plan
from .quantize import has_int8_instructions
from .sharing import share_weights
from .source import Source

MOST_SIZES = 8  # that are proposed; each is a file


def export(source: Source, options: ExportOptions) -> Description:
    """Writes an exported folder.

    Args:
        source (Source): The model.
        options (ExportOptions): What to export, and how.

    Raises:
        UserError: If something cannot be exported, or a check fails; nothing is left then.
    """
    check_options(options)
    for name, problem in options.left_out.items():
        options.log(f'no {name}, float32 takes its place: {problem}')
    description = plan(source, options)
    images = ImageSamples(options.check_images, description, '--check')
    calibration = ImageSamples(options.int8_images, description, '--int8')
    given = list(images)
    if note := describe_padding(given, description):
        options.log(note)
    for _ in calibration:  # so that a damaged one is refused before anything is written
        pass
    with draft_folder(options.out) as draft:
        for variant in range(max(len(description.sizes), 1)):
            work = Work(source, options, description, variant, given, calibration)
            work.check_form()
            work.write(draft)
            if variant == 0:
                work.measure()
        share_onnx_weights(description, draft)
        description.write(draft)
    return description


def describe_padding(samples: Sequence[Sample], description: Description) -> str:
    """What to do about images that a detector's sizes pad more than MMDetection does; empty where there are none."""
    if description.task != 'detection':
        return ''
    divisor = description.input.pad_divisor
    sizes = Counter(tuple(round_up(side, divisor) for side in sample.size) for sample in samples)
    more = sum(count for size, count in sizes.items() if list(size) not in description.sizes)
    if not more:
        return ''
    listed = ' '.join(f'--size {height} {width}' for (height, width), _ in sizes.most_common(MOST_SIZES))
    return (
        f'{more} of {len(samples)} --check images get more padding than MMDetection gives a single image, which '
        f'changes scores; without it: {listed}'
    )


def share_onnx_weights(description: Description, draft: Path) -> None:
    """Lets the ONNX files of several sizes share their weights, and opens each again."""
    for name, files in description.files.items():
        if name.partition('-')[0] == 'onnx' and len(files) > 1:
            share_weights([draft / file for file in files], draft / weights_name(name))
            for file in files:
                open_file(draft / file, name, description.outputs)


@contextlib.contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """A folder next to ``out``, which becomes it if nothing is raised, and is removed otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        yield draft
        os.chmod(draft, 0o755)
        os.rename(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


class Work:
    """The export of one size: its form, files and checks.

    Args:
        source (Source): The model.
        options (ExportOptions): What to export.
        description (Description): Gets the files and checks.
        variant (int): Which of its sizes.
        images (Sequence[Sample]): Of the user's images to check with; without any of this size, made-up ones are taken.
        calibration (ImageSamples): To calibrate INT8 files with.
    """

    def __init__(
        self,
        source: Source,
        options: ExportOptions,
        description: Description,
        variant: int,
        images: Sequence[Sample],
        calibration: ImageSamples,
    ) -> None:
        self.source, self.options, self.description, self.variant = source, options, description, variant
        self.size: Size | None = None
        if description.sizes:
            height, width = description.sizes[variant]
            self.size = (height, width)
        self.form = make_form(source, description.task, self.size)
        if not description.outputs:
            description.outputs = list(self.form.output_names)
            if not getattr(self.form, 'with_mask', True):
                description.mask_thr = None
        self.run_form = as_runner(self.form)
        self.calibration = calibration.for_size(self.size)
        self.is_generated = not any(sample.variant == variant for sample in images)
        given = [sample for sample in images if sample.variant == variant]
        self.samples = self._made_up() if self.is_generated else given
        self.expected: list[Mapping] = []  # of each sample, by the form
        self.runners: dict[str, Run] = {'eager': self.run_form}

    def _made_up(self) -> list[Sample]:
        description = self.description
        if description.task == 'backbone':
            return [fixed_batch(description, self.variant)] if description.sizes else generated_batches()
        samples = usable_samples(generated_images(description), description)
        found = [sample for sample in samples if sample.variant == self.variant]
        return found or [fixed_batch(description, self.variant)]

    def check_form(self) -> None:
        """Compares the form with the library's own result on each sample; drops those that near-ties decide.

        The library's results are not kept: its masks, of the image's size, are too large.
        """
        description = self.description
        size = f' at {self.size[0]} x {self.size[1]}' if self.size else ''
        self.options.log(f'checking the form against {self.source.codebase}{size} ({len(self.samples)} samples)')
        checks: list[dict] = []
        decided = []
        for sample in self.samples:
            with one_line(f'{self.source.codebase} itself cannot predict with these settings, on {sample.name}'):
                result = library_result(self.source.model, description.task, sample)
            found = self.run_form(feeds(description, sample))
            made = self._compare(result, found, sample)
            if not all(check['passed'] for check in made) and self._is_near_tie(sample, found):
                continue
            decided.append(sample)
            self.expected.append(found)
            checks += [dict(check, form='eager', sample=sample.name) for check in made]
        ties = len(self.samples) - len(decided)
        if ties:
            self.options.log(f'  {ties} samples decide nothing: noise of {1e-3} grey levels changes their detections')
        if not decided:
            raise UserError(
                'every sample has near-ties, in which the last digit decides: give photographs with --check, or train '
                'for longer; no file was left'
            )
        self.samples = decided
        self._note(checks)
        if description.task == 'detection' and not any((found['scores'] > 0).any() for found in self.expected):
            self.options.log('  nothing is detected, so no detection was compared: give photographs with --check')

    def _is_near_tie(self, sample: Sample, found: Mapping) -> bool:
        """Whether noise changes the form's own result as much: then no comparison says anything."""
        description = self.description
        if description.task != 'detection':
            return False
        noisy = with_noise(sample)
        other = self.run_form(feeds(description, noisy))
        return not all(check['passed'] for check in self._compare(found, other, noisy))

    def _compare(self, expected: Mapping, found: Mapping, sample: Sample) -> list[dict]:
        description = self.description
        return compare(description.task, expected, found, sample, description.mask_thr, description.align_corners)

    def write(self, draft: Path) -> None:
        """Writes the files of this size and checks each."""
        description = self.description
        folder = draft / f'.{self.variant}'
        folder.mkdir()
        job = Job(
            self.form,
            example_inputs(description, self.size),
            [INPUT, *([SIZE_INPUT] if description.size_input else [])],
            description.dynamic,
            dict(
                description.essentials(self.size), classes=json.dumps(description.classes), mmefficientmod=__version__
            ),
            self.calibration,
            partial(feeds, description),
            self.options.opset,
        )
        for name in self.options.files:
            note = f', calibrated with {len(self.calibration)} images' if 'int8' in name else ''
            self.options.log(f'writing {name}{note}')
            path = write_file(name, job, folder)
            run = self.runners[name] = open_file(path, name, description.outputs)
            if '-' not in name:
                self._check_file(name, run)
                continue
            if name == 'openvino-bf16' and 'openvino' not in self.options.files:
                self._check_file('openvino', open_file(path, 'openvino', description.outputs))
            self._measure_change(name, run)
        for name in self.options.files:
            self._keep(folder, name, draft)
        shutil.rmtree(folder)

    def _check_file(self, name: str, run: Run) -> None:
        """Compares a file with the form on each sample, and its predictions with those of the library."""
        description = self.description
        pairs = list(zip(self.samples, self.expected))
        if description.dynamic and description.task != 'backbone':
            pairs += [(sample, self.run_form(feeds(description, sample))) for sample in generated_batches()]
        checks = []
        for sample, expected in pairs:
            made = self._compare(expected, run(feeds(description, sample)), sample)
            checks += [dict(check, form=name, sample=sample.name) for check in made]
        self._note([*checks, *self._compare_predictions(name, run)])

    def _compare_predictions(self, name: str, run: Run) -> list[dict]:
        """The checks of predictions on images; what no size holds is left out, which the library would not reduce."""
        samples = [sample for sample in self.samples if sample.prepared and not sample.prepared.reduced]
        if not samples:
            return []
        description, checks = self.description, []
        library = LibraryModel(self.source, 'cpu', 0.0)
        model = ExportedModel(description, lambda image, size: run(_feeds(description, image, size)), 0.0)
        for sample in samples:
            pads = description.task != 'classification' and description.slide is None
            pad_to = (sample.image.shape[2], sample.image.shape[3]) if pads else None
            made = compare_predictions(model, run, feeds(description, sample), sample, library, pad_to)
            checks += [dict(check, form=name, sample=sample.name) for check in made]
        return checks

    def _measure_change(self, name: str, run: Run) -> None:
        description = self.description
        changed = [run(feeds(description, sample)) for sample in self.samples]
        change = dict(measure_change(description.task, self.expected, changed, self.samples), form=name, limit=None)
        description.checks.append(dict(change, passed=None, samples=len(self.samples)))
        self.options.log(f'  {name} against float32: {change["name"]}: {change["figure"]:.3g}')

    def _keep(self, folder: Path, name: str, draft: Path) -> None:
        """Moves a file, and the one with its weights, into place; with several sizes, the size is in its name."""
        mark = f'-{self.size[0]}x{self.size[1]}' if self.size and len(self.description.sizes) > 1 else ''
        path = folder / file_name(name)
        for part in (path, path.with_suffix('.bin')):
            if part.exists():
                part.rename(draft / f'model{mark}{part.name[len("model") :]}')
        self.description.files.setdefault(name, []).append(f'model{mark}{path.name[len("model") :]}')

    def _note(self, checks: Sequence[dict]) -> None:
        """Adds checks to the description and reports them.

        Raises:
            UserError: If one failed.
        """
        for check in worst(checks):
            self.description.checks.append(check)
            verdict = 'ok' if check['passed'] else 'FAILED'
            figures = f'{check["figure"]:.3g} (limit {check["limit"]:.3g})'
            self.options.log(f'  {verdict}: {check["form"]}: {check["name"]}: {figures}')
        failed = [check for check in checks if not check['passed']]
        if failed:
            first = failed[0]
            advice = '; made-up images can mislead: try photographs with --check' if self.is_generated else ''
            if math.isinf(first['figure']):
                advice = '; its results or those of the model itself are NaN or infinite'
            raise UserError(
                f'{first["form"]} does not agree: {first["name"]} is {first["figure"]:.3g}, above '
                f'{first["limit"]:.3g}, on {first["sample"]}{advice}; no file was left'
            )

    def measure(self) -> None:
        """Times the form and its files."""
        description, log = self.description, self.options.log
        example = timing_sample(description, self.samples)
        found = description.latency_ms = time_passes(self.runners, feeds(description, example))
        shown = ', '.join(f'{name} {value:.1f}' for name, value in found.items())
        log(f'latency of {" x ".join(map(str, example.image.shape))} in ms ({usable_cpus()} threads): {shown}')
        for name in (name for name in found if name.partition('-')[0] in set(found) - {name}):
            gain = found[name.partition('-')[0]] / found[name]
            lacks = name.endswith('-int8') and not has_int8_instructions()
            note_cpu = '; this CPU lacks VNNI: no gain is to be expected on it' if lacks else ''
            log(f'{name} is {gain:.2f} times as fast as float32 on this CPU{note_cpu}')


def example_inputs(description: Description, size: Size | None) -> tuple:
    """Inputs to trace with: where sizes are free, none of them equal to another or to 1."""
    shape = (description.batch or 1, 3, *size) if size else (2, 3, 96, 160)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255
    return (image, torch.tensor(shape[-2:]).float()) if description.size_input else (image,)


def feeds(description: Description, sample: Sample) -> dict[str, np.ndarray]:
    """A sample as inputs by name."""
    return _feeds(description, sample.image, sample.size)


def _feeds(description: Description, image: np.ndarray, size: Size) -> dict[str, np.ndarray]:
    found = {INPUT: image}
    if description.size_input:
        found[SIZE_INPUT] = np.array(size, np.float32)
    return found


def as_runner(form: nn.Module) -> Run:
    """The form, called as :func:`open_file` calls files."""

    def run(inputs: dict) -> dict:
        with torch.no_grad():
            found = form(*(torch.from_numpy(value) for value in inputs.values()))
        return {name: value.numpy() for name, value in zip(form.output_names, found)}

    return run


def timing_sample(description: Description, samples: Sequence[Sample]) -> Sample:
    """What is timed: the first sample where the size is fixed, else one of 512 x 512."""
    if not description.dynamic:
        return samples[0]
    image = np.random.default_rng(0).random((1, 3, 512, 512), np.float32) * 255
    return Sample('timing', image, (512, 512))
