"""The formats of an exported model: writing a file, loading it, running it.

Loading and running need numpy and the format's own runtime; torch is imported where a file is written.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Tuple

import numpy as np

from ..utils import UserError, describe_error, is_utf8
from .description import FILE, SUFFIXES, Description, read_description

if TYPE_CHECKING:
    from torch import nn

OPSET = 20


@dataclass(frozen=True)
class Opset:
    """A version of ONNX's operators, with the version of the file that came with it and the runtime that has both."""

    ir: int
    runtime: str  # the first ONNX Runtime


OPSETS = {
    17: Opset(8, '1.12'),
    18: Opset(8, '1.14'),
    19: Opset(9, '1.15'),
    20: Opset(9, '1.17'),
    21: Opset(10, '1.18'),
}
INPUT, SIZE_INPUT = 'image', 'image_size'
Opened = Tuple[Callable[[dict], dict], Mapping[str, str]]  # a pass of a file, and the file's metadata
IN_MODULE = '/'  # in names of ONNX nodes, between a module and its operation; a form's own work has no module


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    name: str
    packages: tuple[str, ...]  # import names, to write it
    runtime: str  # import name, to run it
    about: str  # what it takes

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return f'model{SUFFIXES[self.name]}'


FORMATS = {
    item.name: item
    for item in (
        Format(
            'onnx',
            ('onnx', 'onnxscript', 'onnxruntime'),
            'onnxruntime',
            f'one ONNX file, opset {OPSET} or as --opset says, for ONNX Runtime and whatever reads ONNX',
        ),
        Format(
            'openvino',
            ('onnx', 'onnxscript', 'openvino'),
            'openvino',
            "OpenVINO's model.xml and model.bin, made from the ONNX file",
        ),
        Format(
            'pt2',
            ('torch',),
            'torch',
            'compiled with AOTInductor for the CPU it is made on; needs a C++ compiler to make and torch to run',
        ),
    )
}
# What is computed or stored otherwise than in float32 -> the formats that have it.
PRECISIONS = {'bf16': ('openvino', 'pt2'), 'fp16-weights': ('onnx', 'openvino'), 'int8': ('onnx', 'openvino')}
MADE_FROM = {  # what a file is made from
    'openvino': 'onnx',
    'openvino-bf16': 'onnx',
    'onnx-fp16-weights': 'onnx',
    'openvino-fp16-weights': 'onnx',
    'openvino-int8': 'onnx-int8',
}
BF16_FLAGS = {'avx512_bf16', 'amx_bf16', 'bf16'}
EXTRA = 'pip install "mmefficientmod[export]"'
# What runtimes say where the file is not at fault.
LACKS_MEMORY = re.compile('MemoryError|bad_alloc|[Aa]llocate|failed to map segment')
LACKS_PARTS = re.compile('is not registered|Cannot load library|cannot open shared object')


def file_name(name: str) -> str:
    """The name of a file: of a format or, with ``-int8`` and so on, of its form in that precision.

    OpenVINO computes the float32 file in bfloat16.
    """
    kind, _, precision = name.partition('-')
    file = Path(FORMATS[kind].file)
    return file.name if not precision or name == 'openvino-bf16' else f'{file.stem}-{precision}{file.suffix}'


def precision_problem(name: str) -> str | None:
    """Why a format cannot be had in a precision on this CPU; None if it can.

    Args:
        name (str): Such as ``'openvino-bf16'``.
    """
    kind, _, precision = name.partition('-')
    if precision == 'bf16' and kind == 'onnx':
        return 'ONNX Runtime computes in bfloat16 on Arm CPUs only: take openvino or pt2'
    if precision == 'fp16-weights' and kind == 'pt2':
        return 'a compiled file holds its weights as the kernels take them: take onnx or openvino'
    if precision == 'bf16' and not _has_bf16(kind):
        return 'this CPU has no instructions for bfloat16'
    return None


def _has_bf16(kind: str) -> bool:
    """Whether this CPU has instructions for bfloat16: as OpenVINO says, or, for torch, as Linux says."""
    if kind == 'openvino':
        return 'BF16' in _openvino_core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    from .environment import read_cpu

    return not BF16_FLAGS.isdisjoint(read_cpu().flags)


def require(packages: tuple[str, ...], what: str) -> None:
    """Raises UserError, with the pip command, where a package is missing or lacks a part."""
    missing = []
    for name in packages:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            if importlib.util.find_spec(name):
                raise UserError(
                    f'{what} needs {name}, which is installed, but cannot be imported ({describe_error(error)}): '
                    f'install what it lacks, or it again with pip install --force-reinstall {name}'
                ) from error
            missing.append(name)
    if missing:
        raise UserError(f'{what} needs {", ".join(missing)}: pip install {" ".join(missing)} (or all with {EXTRA})')


@contextmanager
def one_line(problem: str, advise: Callable[[str], str] | None = None) -> Iterator[None]:
    """Turns what exporters and runtimes raise, which may be anything, into an UserError: ``problem`` and why.

    Args:
        problem (str): What failed.
        advise (Callable, optional): What to do about it, given the reason.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__:  # what is raised in the end says in which step, not why
            cause = cause.__cause__
        reason = describe_error(cause)
        raise UserError(f'{problem}{f": {advise(reason)}" if advise else ""} ({reason})') from error


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
        opset (int): Of ONNX files, one of :data:`OPSETS`.
    """

    form: nn.Module
    inputs: tuple
    names: list[str]
    dynamic: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    calibration: Sequence = ()
    feeds: Callable[[Any], Mapping] = dict
    opset: int = OPSET


def write_onnx(job: Job, path: Path) -> None:
    """Writes a form as one ONNX file."""
    require(FORMATS['onnx'].packages, 'the onnx format')
    import torch

    program = torch.onnx.export(
        job.form,
        job.inputs,
        dynamo=True,
        opset_version=job.opset,
        input_names=job.names,
        output_names=job.form.output_names,
        dynamic_shapes=dynamic_shapes(job.names, job.dynamic),
        external_data=False,
        verbose=False,
    )
    opset = program.model.opset_imports['']
    if opset != job.opset:  # the exporter keeps its own where it cannot convert
        raise UserError(f'this model cannot be written in opset {job.opset}: give --opset {opset}')
    # The exporter writes its newest version of the file itself, which older runtimes refuse.
    program.model.ir_version = OPSETS[opset].ir
    program.model.metadata_props.update(job.metadata)
    # The exporter notes much of each node, paths of this machine among it; the module that it belongs to is of use.
    for node in program.model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get('pkg.torch.onnx.name_scopes', '[]'))  # '', modules, operation
        if len(scopes) > 2:
            node.name = f'{scopes[-2]}{IN_MODULE}{node.name}'
        node.metadata_props.clear()
    program.save(str(path))


def dynamic_shapes(names: list[str], dynamic: bool) -> tuple | None:
    """The free sizes of the inputs, as torch.export wants them."""
    if not dynamic:
        return None
    from torch.export import Dim

    free = {0: Dim('batch'), 2: Dim('height', min=32), 3: Dim('width', min=32)}
    return (free, *({} for _ in names[1:]))


def write_openvino(
    onnx_file: Path, path: Path, metadata: Mapping[str, str], change: Callable[[Any], None] | None = None
) -> None:
    """Writes OpenVINO's two files from an ONNX file, after a change of OpenVINO's model if one is given."""
    require(FORMATS['openvino'].packages, 'the openvino format')
    import openvino

    model = openvino.convert_model(onnx_file)
    for key, value in metadata.items():
        model.set_rt_info(value, ['mmefficientmod', key])
    if change:
        change(model)
    openvino.save_model(model, path, compress_to_fp16=False)


def write_pt2(form: nn.Module, job: Job, path: Path) -> None:
    """Writes a form compiled with AOTInductor for this CPU and the size of the job's inputs."""
    import torch

    inductor = importlib.import_module('torch._inductor')
    if not hasattr(inductor, 'aoti_load_package'):
        raise UserError(f'the pt2 format needs torch>=2.6, but torch {torch.__version__} is installed')
    from torch._inductor.utils import fresh_inductor_cache

    # Frozen weights are laid out for the kernels once. The cache would keep a copy of the weights for each file.
    settings = {'aot_inductor.metadata': dict(job.metadata), 'freezing': True}
    with torch.no_grad(), fresh_inductor_cache():
        program = torch.export.export(form, job.inputs, strict=False)
        inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


class Session:
    """A model's files, ready to run.

    Args:
        folder (str | Path): An exported folder.
        format (str, optional): One of its ``files``. Defaults to the first whose runtime is installed.
        threads (int, optional): Threads of a pass. Defaults to the runtime's own choice.

    Attributes:
        paths (list[Path]): Its files, one for each of the description's sizes; all but the first are opened when used.
        notes (list[str]): What a user should know of the choice of the format.

    Raises:
        UserError: If the folder, the format or its runtime is missing, or this CPU lacks the format's precision.
    """

    def __init__(self, folder: str | Path, format: str | None = None, threads: int | None = None) -> None:
        self.description = read_description(folder)
        self.format, self.notes = (format, []) if format else choose_format(self.description)
        if self.format not in self.description.files:
            raise UserError(f'{folder} has no {self.format} file; it has {", ".join(self.description.files)}')
        self.paths = [Path(folder, name) for name in self.description.files[self.format]]
        self._threads = threads
        self._runners: dict[Path, Any] = {}
        self._open(self.paths[0])

    def _open(self, path: Path) -> Any:
        if path not in self._runners:
            needed, check = needed_version(self.format, self.description), partial(self._check, path)
            self._runners[path] = open_file(path, self.format, self.description.outputs, self._threads, needed, check)
        return self._runners[path]

    def _check(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Raises UserError for a file that was not exported as what ``export.json`` says."""
        sizes, file = self.description.sizes, file_name(self.format)
        self.description.check_file(path, sizes[self.paths.index(path)] if sizes else None, metadata)
        if metadata.get('file', file) != file:
            raise UserError(
                f'{path.with_name(FILE)}: files.{self.format} names {path.name}, which was exported as '
                f'{metadata["file"]}: restore it, or export again'
            )

    def run(self, image: np.ndarray, image_size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """One pass of the file for the size of the input.

        Args:
            image (np.ndarray): (B, 3, H, W) float32, as :mod:`mmefficientmod.export.description` says.
            image_size (tuple[int, int], optional): Height and width in it without padding. Defaults to all of it.

        Returns:
            dict[str, np.ndarray]: The outputs by name.

        Raises:
            UserError: If the model has no file for that size, or its runtime fails.
        """
        description, size = self.description, list(image.shape[-2:])
        if description.sizes and size not in description.sizes:
            listed = ', '.join(f'{height} x {width}' for height, width in description.sizes)
            raise UserError(f'the input is {size[0]} x {size[1]}, but the model takes {listed}')
        path = self.paths[description.sizes.index(size) if description.sizes else 0]
        feeds = {description.input.name: np.ascontiguousarray(image, np.float32)}
        if description.size_input:
            feeds[description.size_input] = np.asarray(image_size or size, np.float32)
        run = self._open(path)
        with one_line(f'{path} cannot be run on an input of {" x ".join(map(str, image.shape))}'):
            return run(feeds)


def choose_format(description: Description) -> tuple[str, list[str]]:
    """The first format of a folder whose runtime is installed and whose precision this CPU has; and notes.

    Raises:
        UserError: If there is none.
    """
    runtimes = [FORMATS[name.partition('-')[0]].runtime for name in description.files]
    installed = [name for name, runtime in zip(description.files, runtimes) if importlib.util.find_spec(runtime)]
    if not installed:
        raise UserError(f'none of {", ".join(dict.fromkeys(runtimes))} is installed: pip install {runtimes[0]}')
    problems: list[str] = []
    for name in installed:
        problem = precision_problem(name)
        if not problem:
            return name, [f'{each}, so {name} is used' for each in problems]
        problems.append(f'{name} cannot be used: {problem}')
    raise UserError(f'{problems[0]}; export with --precision bf16 fp32 for a folder that runs in float32 on such a CPU')


def needed_version(format: str, description: Description) -> str | None:
    """The first version of the format's runtime that reads its files; None where that is not known."""
    kind = format.partition('-')[0]
    if kind == 'onnx':
        return OPSETS[description.opset].runtime
    return description.versions.get(FORMATS[kind].runtime, '').partition('+')[0] or None


def open_file(
    path: Path,
    format: str,
    outputs: list[str],
    threads: int | None = None,
    needed: str | None = None,
    check: Callable[[Mapping[str, str]], None] = lambda metadata: None,
) -> Any:
    """Loads a model file.

    Args:
        path (Path): The file.
        format (str): One of ``FORMATS`` of :mod:`mmefficientmod.export.description`.
        outputs (list[str]): Names of its outputs.
        threads (int, optional): Threads of a pass. Defaults to the CPUs that this process may use.
        needed (str, optional): The version of the runtime that is known to read the file.
        check (Callable): Raises UserError for the file's metadata, if they are not as they should be.

    Returns:
        Callable: Takes the inputs by name, in order, and returns the outputs by name.

    Raises:
        UserError: If the runtime is missing or refuses the file, or this CPU lacks the precision.
        OSError: If the file cannot be read.
    """
    kind, _, precision = format.partition('-')
    runtime = FORMATS[kind].runtime
    require((runtime,), f'running {path.name}')
    for part in _parts(path, format):
        with part.open('rb') as file:
            if not file.read(1):
                raise UserError(f'{part} is empty: copy the whole folder again, or export again')
    with one_line(f'{path} cannot be opened', partial(_advice, runtime, needed)):
        if problem := precision_problem(format):
            raise UserError(f'{format} cannot be used: {problem}')
        if kind == 'onnx':
            run, metadata = _open_onnx(path, outputs, threads)
        elif kind == 'openvino':
            run, metadata = _open_openvino(path, outputs, threads, precision)
        else:
            run, metadata = _open_pt2(path, outputs, threads)
        check(metadata)
        return run


def weights_name(name: str) -> str:
    """The name of the file in which the ONNX files of several sizes have their weights."""
    return f'{Path(file_name(name)).stem}-weights.data'


def _parts(path: Path, format: str) -> list[Path]:
    """A model file and the one with its weights, if there is one."""
    if path.suffix == '.xml':
        return [path, path.with_suffix('.bin')]
    weights = path.with_name(weights_name(format))
    return [path, weights] if path.suffix == '.onnx' and weights.exists() else [path]


def _advice(runtime: str, needed: str | None, reason: str) -> str:
    """What to do about a file that a runtime refuses for a reason."""
    installed = importlib.import_module(runtime).__version__
    if LACKS_MEMORY.search(reason):
        return 'there is too little memory for it'
    if LACKS_PARTS.search(reason):
        return f'{runtime} {installed} lacks a part: pip install --force-reinstall {runtime}'
    if needed and _numbers(installed) < _numbers(needed):
        return f'it needs {runtime}>={needed}, and {installed} is installed'
    return 'export again'


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (1, 16, 3) of ``'1.16.3'``."""
    return tuple(int(number) for number in re.findall(r'\d+', version.partition('+')[0].partition('-')[0]))


def _open_onnx(path: Path, outputs: list[str], threads: int | None) -> Opened:
    import onnxruntime

    if not is_utf8(path):
        raise UserError(f'{path}: ONNX Runtime opens paths in UTF-8 only: rename the folder')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.log_severity_level = 4  # it raises its errors as well
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda feeds: dict(zip(outputs, session.run(outputs, feeds))), metadata


def _open_openvino(path: Path, outputs: list[str], threads: int | None, precision: str) -> Opened:
    # On a CPU with bfloat16 instructions OpenVINO computes in bfloat16 unless told not to.
    hint = 'bf16' if precision == 'bf16' else 'f32'
    settings = {'INFERENCE_PRECISION_HINT': hint, 'PERFORMANCE_HINT': 'LATENCY'}
    settings['INFERENCE_NUM_THREADS'] = str(threads or usable_cpus())
    model = _openvino_core().read_model(path)
    request = _openvino_core().compile_model(model, 'CPU', settings).create_infer_request()
    metadata = model.get_rt_info('mmefficientmod').value if model.has_rt_info('mmefficientmod') else {}

    def run(feeds: dict) -> dict:
        found = request.infer(list(feeds.values()), share_inputs=True)
        return {name: np.array(found[i]) for i, name in enumerate(outputs)}

    return run, metadata


@lru_cache(maxsize=None)
def _openvino_core() -> Any:
    """One for the whole process.

    A core's CPU plugin replaces the stack that signals are handled on. Two of them that end in the order they were made
    leave a stack that is freed, and the next signal ends the process (seen with OpenVINO 2026.4 on Linux).
    """
    import openvino

    return openvino.Core()


def _open_pt2(path: Path, outputs: list[str], threads: int | None) -> Opened:
    import torch

    if importlib.util.find_spec('torchvision'):
        import torchvision  # noqa: F401  (a detector's file calls its operators)
    if threads:
        torch.set_num_threads(threads)
    model = torch._inductor.aoti_load_package(str(path))

    def run(feeds: dict) -> dict:
        with torch.no_grad():
            found = model(*(torch.from_numpy(value) for value in feeds.values()))
        found = found if isinstance(found, (tuple, list)) else (found,)
        return {name: value.numpy() for name, value in zip(outputs, found)}

    return run, model.get_metadata()


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
