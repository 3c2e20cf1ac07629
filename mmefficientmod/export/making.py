"""Makes an exported folder: form, its check, files, their checks, times; in place only if all checks pass."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..utils import UserError
from ..version import __version__
from .check import compare, generated_samples, library_result, worst
from .description import Description
from .environment import measure, read_cpu, vector_extensions, versions
from .formats import FORMATS, INPUT, INT8, SIZE_INPUT, open_file, require, usable_cpus, write_form
from .forms import BackboneForm, ClassifierForm, SegmentorForm
from .inputs import PictureSamples, Sample
from .quantize import PACKAGES, compare_int8, has_int8_instructions, write_int8
from .source import Source, resize_rule


def export(
    source: Source,
    out: Path,
    formats: Sequence[str] = ('onnx',),
    part: str = 'model',
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    batch: int = 1,
    pictures: Sequence[str] = (),
    int8: Sequence[str] = (),
    names: dict | None = None,
    say: Callable[[str], None] = print,
) -> Description:
    """Writes the folder ``out``, which must not exist.

    Args:
        source (Source): The model.
        out (Path): The folder to make.
        formats (Sequence[str]): Of :data:`FORMATS`. Defaults to ONNX.
        part (str): ``'model'`` or ``'backbone'``.
        size (tuple[int, int], optional): Height and width; by default free, for a detector that of its test pipeline.
        dynamic (bool): Batch, height and width are free.
        batch (int): Pictures at once, where sizes are fixed. Defaults to 1.
        pictures (Sequence[str]): Files to check with. Defaults to generated pictures.
        int8 (Sequence[str]): Pictures to calibrate INT8 files with. Defaults to none: no such files.
        names (dict, optional): ``source`` of the description.
        say (Callable): Takes each line of the report.

    Raises:
        UserError: If something cannot be exported, or a check fails; nothing is left then.
    """
    if out.exists():
        raise UserError(f'{out} exists: remove it or name another folder')
    for name in formats:
        require(FORMATS[name].packages, f'the {name} format')
    if int8:
        require(PACKAGES, '--int8')
    task = 'backbone' if part == 'backbone' else source.task
    rule = resize_rule(source.config)
    size = choose_size(source, task, size, dynamic, batch, rule)
    if size is None and 'torch' in formats:
        # torch.export tells maps of one pixel, which pictures of 32 have, from all others.
        raise UserError('the torch format is compiled for one size: give --size HEIGHT WIDTH, or leave it out')
    if int8 and not set(formats) & set(INT8):
        raise UserError('--int8 is for the formats onnx and openvino')
    form = make_form(source, task, size)
    description = describe(source, form, part, size, batch, rule, names or {})
    fill = form.preprocess.fill
    samples = list(PictureSamples(pictures, description, fill, '--check')) or generated_samples(description, fill)
    calibration = PictureSamples(int8, description, fill, '--int8')
    for _ in calibration:  # so that a damaged one is refused before anything is written
        pass

    say(f'checking the inference form against {source.codebase} ({len(samples)} samples)')
    run_form, thr = as_runner(form), description.mask_thr
    checks: list[dict] = []
    expected = []  # by the form; the library's masks, of the picture's size, are too large to be kept
    for sample in samples:
        expected.append(run_form(feeds(description, sample)))
        found = compare(task, library_result(source.model, task, sample), expected[-1], sample, thr)
        checks += [dict(check, form='eager', sample=sample.name) for check in found]
    note(description, checks, say)

    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        runners = {'eager': run_form}
        for name in ordered(formats):
            say(f'writing {name}')
            path = draft / FORMATS[name].file
            write(name, form, description, draft)
            runners[name] = open_file(path, name, description.outputs)
            checks = [
                dict(check, form=name, sample=sample.name)
                for sample, reference in zip(samples, expected)
                for check in compare(task, reference, runners[name](feeds(description, sample)), sample, thr)
            ]
            if name in formats:
                description.files[name] = path.name
            note(description, checks, say)
        if int8:
            for name in INT8 if 'openvino' in formats else ['onnx']:  # OpenVINO's is made from the ONNX file
                say(f'writing {name}-int8, calibrated with {len(calibration)} pictures')
                path = write_int8(name, draft, calibration, partial(feeds, description), essentials(description))
                if name not in formats:
                    continue
                runner = runners[f'{name}-int8'] = open_file(path, name, description.outputs)
                changed = [runner(feeds(description, sample)) for sample in samples]
                change = dict(compare_int8(task, expected, changed, samples), form=f'{name}-int8', limit=None)
                description.files[f'{name}-int8'] = path.name
                description.checks.append(dict(change, passed=None, samples=len(samples)))
                say(f'  {name}-int8 against float32: {change["name"]}: {change["figure"]:.3g}')
        example = timing_sample(description, samples)
        description.latency_ms = measure(runners, feeds(description, example))
        shown = ', '.join(f'{name} {value:.1f}' for name, value in description.latency_ms.items())
        say(f'latency of {" x ".join(map(str, example.image.shape))} in ms ({usable_cpus()} threads): {shown}')
        for name in (name for name in description.latency_ms if name.endswith('-int8')):
            gain = description.latency_ms[name.partition('-')[0]] / description.latency_ms[name]
            note_cpu = '' if has_int8_instructions() else '; this CPU lacks VNNI: no gain is to be expected on it'
            say(f'{name} is {gain:.2f} times as fast as float32 on this CPU{note_cpu}')
        if 'onnx' not in formats:
            for file in (FORMATS['onnx'].file, INT8['onnx']):
                (draft / file).unlink(missing_ok=True)
        description.write(draft)
        os.chmod(draft, 0o755)
        os.rename(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return description


def ordered(formats: Sequence[str]) -> list[str]:
    """The formats to write: OpenVINO's is made from the ONNX file."""
    wanted = set(formats) | ({'onnx'} if 'openvino' in formats else set())
    return [name for name in FORMATS if name in wanted]


def choose_size(
    source: Source, task: str, size: tuple[int, int] | None, dynamic: bool, batch: int, rule: dict
) -> tuple[int, int] | None:
    """The fixed height and width, None where they are free.

    Raises:
        UserError: If the part cannot have this size.
    """
    if size and dynamic:
        raise UserError('--size and --dynamic exclude each other')
    if size is None and task != 'detection' and uses_max_keys(source.model.backbone):
        raise UserError('a backbone with attn_max_keys has no form for free sizes: give --size HEIGHT WIDTH')
    if task != 'detection':
        if size is None and batch != 1:
            raise UserError('--batch-size is for fixed sizes: with free sizes the batch is free, too')
        return size
    if dynamic:
        raise UserError('a detector is exported at a fixed size: give --size HEIGHT WIDTH in place of --dynamic')
    if batch != 1:
        raise UserError('a detector is exported for one picture at a time: leave out --batch-size')
    divisor = source.model.data_preprocessor.pad_size_divisor
    if size is None:
        if not rule['scale']:
            raise UserError('the test pipeline of the config names no scale: give --size HEIGHT WIDTH')
        width, height = rule['scale']
        size = -(-height // divisor) * divisor, -(-width // divisor) * divisor
    if size[0] % divisor or size[1] % divisor:
        raise UserError(
            f'height and width of this detector have to be multiples of {divisor} (its pad_size_divisor), not '
            f'{size[0]} x {size[1]}: take {" ".join(str(-(-side // divisor) * divisor) for side in size)}'
        )
    return size


def uses_max_keys(backbone: nn.Module) -> bool:
    """Whether attention averages its keys on large pictures."""
    return any(getattr(module, 'max_keys', None) for module in backbone.modules())


def make_form(source: Source, task: str, size: tuple[int, int] | None) -> nn.Module:
    """The exportable module of a task."""
    if task == 'backbone':
        return BackboneForm(source.model).eval()
    if task == 'segmentation':
        from .forms import check_segmentor

        check_segmentor(source.model)
        return SegmentorForm(source.model).eval()
    if task == 'classification':
        return ClassifierForm(source.model).eval()
    from mmdet.models.detectors import SingleStageDetector

    from .detector import DetectorForm
    from .one_stage import OneStageForm

    assert size  # chosen before
    kind = OneStageForm if isinstance(source.model, SingleStageDetector) else DetectorForm
    return kind(source.model, size).eval()


def describe(
    source: Source, form: nn.Module, part: str, size: tuple[int, int] | None, batch: int, rule: dict, names: dict
) -> Description:
    """The description of what is to be written, without files and checks."""
    detection = form.task == 'detection'
    test_cfg = source.model.test_cfg if detection else {}
    test_cfg = test_cfg.get('rcnn', test_cfg)
    return Description(
        task=form.task,
        part=part,
        classes=[] if form.task == 'backbone' else source.classes,
        palette=[] if form.task == 'backbone' else source.palette,
        files={},
        input=dict(
            name=INPUT,
            layout='NCHW',
            color='BGR',
            dtype='float32',
            range=[0, 255],
            fill=[round(value, 6) for value in form.preprocess.fill],
        ),
        size_input=SIZE_INPUT if detection else None,
        size=dict(
            dynamic=size is None,
            height=size and size[0],
            width=size and size[1],
            batch=batch if size else None,
            min=32,
            divisor=1,
        ),
        resize=rule,
        outputs=list(form.output_names),
        score_thr=test_cfg.get('score_thr'),
        mask_thr=test_cfg.get('mask_thr_binary') if detection and form.with_mask else None,
        max_per_img=test_cfg.get('max_per_img'),
        align_corners=bool(getattr(form, 'align_corners', False)),
        source=names,
        versions=versions(),
        cpu=dict(name=read_cpu().name, vector_extensions=vector_extensions()),
    )


def write(name: str, form: nn.Module, description: Description, folder: Path) -> None:
    """Writes one format; raises UserError in one line where the exporter fails."""
    dynamic = description.size['dynamic']
    inputs = example_inputs(description)
    names = [INPUT, *([SIZE_INPUT] if description.size_input else [])]
    write_form(name, form, inputs, names, folder, dynamic, essentials(description))


def essentials(description: Description) -> dict[str, str]:
    """What a file's own metadata say."""
    return dict(
        task=description.task,
        classes=json.dumps(description.classes),
        input=json.dumps(description.input),
        size=json.dumps(description.size),
        outputs=json.dumps(description.outputs),
        mmefficientmod=__version__,
    )


def example_inputs(description: Description) -> tuple:
    """Inputs to trace with: where sizes are free, none of them equal to another or to 1."""
    size = description.size
    shape = (2, 3, 96, 160) if size['dynamic'] else (size['batch'], 3, size['height'], size['width'])
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255
    return (image, torch.tensor(shape[-2:]).float()) if description.size_input else (image,)


def feeds(description: Description, sample: Sample) -> dict[str, np.ndarray]:
    """A sample as inputs by name."""
    found = {INPUT: sample.image}
    if description.size_input:
        found[SIZE_INPUT] = np.array(sample.picture, np.float32)
    return found


def as_runner(form: nn.Module) -> Callable:
    """The form, called as :func:`open_file` calls files."""

    def run(inputs: dict) -> dict:
        with torch.no_grad():
            found = form(*(torch.from_numpy(value) for value in inputs.values()))
        return {name: value.numpy() for name, value in zip(form.output_names, found)}

    return run


def note(description: Description, checks: Sequence[dict], say: Callable[[str], None]) -> None:
    """Adds checks to the description and reports them.

    Raises:
        UserError: If one failed.
    """
    for check in worst(checks):
        description.checks.append(check)
        verdict = 'ok' if check['passed'] else 'FAILED'
        say(f'  {verdict}: {check["form"]}: {check["name"]}: {check["figure"]:.3g} (limit {check["limit"]:.3g})')
    failed = [check for check in checks if not check['passed']]
    if failed:
        first = failed[0]
        raise UserError(
            f'{first["form"]} does not agree: {first["name"]} is {first["figure"]:.3g}, above {first["limit"]:.3g}, on '
            f'{first["sample"]}; no file was left'
        )


def timing_sample(description: Description, samples: Sequence[Sample]) -> Sample:
    """What is timed: the first sample where the size is fixed, else one of 512 x 512."""
    if not description.size['dynamic']:
        return samples[0]
    image = np.random.default_rng(0).random((1, 3, 512, 512), np.float32) * 255
    return Sample('timing', image, (512, 512))
