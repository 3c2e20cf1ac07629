"""The formats of an exported model: writing a file, loading it, running it.

Loading and running need numpy and the format's own runtime; torch is imported where a file is written.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils import UserError, describe_error, quiet
from .description import Description, read_description

if TYPE_CHECKING:
    from torch import nn

OPSET = 20
INPUT, SIZE_INPUT = 'image', 'image_size'
IN_MODULE = '/'  # in names of ONNX nodes, between a module and its operation; a form's own work has no module


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    name: str
    file: str  # its name in the folder
    packages: tuple[str, ...]  # import names, to write it
    runtime: str  # import name, to run it
    about: str  # what it takes


FORMATS = {
    item.name: item
    for item in (
        Format(
            'onnx',
            'model.onnx',
            ('onnx', 'onnxscript', 'onnxruntime'),
            'onnxruntime',
            f'one ONNX file, opset {OPSET}, for ONNX Runtime and whatever reads ONNX',
        ),
        Format(
            'openvino',
            'model.xml',
            ('onnx', 'onnxscript', 'openvino'),
            'openvino',
            "OpenVINO's model.xml and model.bin, made from the ONNX file",
        ),
        Format(
            'torch',
            'model.pt2',
            ('torch',),
            'torch',
            'compiled with AOTInductor for the CPU it is made on; needs a C++ compiler to make and torch to run',
        ),
    )
}
INT8 = {'onnx': 'model-int8.onnx', 'openvino': 'model-int8.xml'}
MADE_FROM = {'openvino': 'onnx', 'onnx-int8': 'onnx', 'openvino-int8': 'onnx-int8'}  # what a file is made from
EXTRA = 'pip install "mmefficientmod[export]"'


def file_name(name: str) -> str:
    """The name of a file: of a format or, with ``-int8``, of its INT8 form."""
    kind, _, int8 = name.partition('-')
    return INT8[kind] if int8 else FORMATS[kind].file


def require(packages: tuple[str, ...], what: str) -> None:
    """Raises UserError, with the pip command, where a package is missing."""
    missing = []
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(f'{what} needs {", ".join(missing)}: pip install {" ".join(missing)} (or all by {EXTRA})')


def write_form(
    name: str,
    form: nn.Module,
    inputs: tuple,
    names: list[str],
    folder: Path,
    dynamic: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes a form in one format; the arguments are those of :func:`write_onnx`.

    Args:
        name (str): Of :data:`FORMATS`. OpenVINO's is made from the ONNX file, which is in the folder then.

    Returns:
        Path: The file.

    Raises:
        UserError: In one line, if a package is missing or the exporter fails.
    """
    path = folder / FORMATS[name].file
    metadata = metadata or {}
    with one_line(f'{name}: this model cannot be written'), quiet():
        if name == 'onnx':
            write_onnx(form, inputs, names, path, dynamic, metadata)
        elif name == 'openvino':
            write_openvino(folder / FORMATS['onnx'].file, path, metadata)
        else:
            write_torch(form, inputs, path, metadata)
    return path


@contextmanager
def one_line(problem: str) -> Iterator[None]:
    """Turns what exporters and runtimes raise, which may be anything, into an UserError: ``problem`` and why."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__:  # what is raised in the end says in which step, not why
            cause = cause.__cause__
        raise UserError(f'{problem} ({describe_error(cause)})') from error


def write_onnx(
    form: nn.Module, inputs: tuple, names: list[str], path: Path, dynamic: bool, metadata: Mapping[str, str]
) -> None:
    """Writes a form as one ONNX file.

    Args:
        form (nn.Module): In evaluation mode; ``output_names`` are the names of its outputs.
        inputs (tuple[Tensor]): Examples. For dynamic sizes, a batch of 2 or more.
        names (list[str]): Of the inputs.
        path (Path): The file.
        dynamic (bool): Whether batch, height and width of the first input are free.
        metadata (Mapping[str, str]): Written into the file.
    """
    require(FORMATS['onnx'].packages, 'the onnx format')
    import torch

    program = torch.onnx.export(
        form,
        inputs,
        dynamo=True,
        opset_version=OPSET,
        input_names=names,
        output_names=form.output_names,
        dynamic_shapes=dynamic_shapes(names, dynamic),
        external_data=False,
        verbose=False,
    )
    program.model.metadata_props.update(metadata)
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


def write_openvino(onnx_file: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes OpenVINO's two files from an ONNX file, in float32."""
    require(FORMATS['openvino'].packages, 'the openvino format')
    import openvino

    model = openvino.convert_model(onnx_file)
    for key, value in metadata.items():
        model.set_rt_info(value, ['mmefficientmod', key])
    openvino.save_model(model, path, compress_to_fp16=False)


def write_torch(form: nn.Module, inputs: tuple, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a form compiled with AOTInductor for this CPU and the size of the inputs."""
    import torch

    inductor = importlib.import_module('torch._inductor')
    if not hasattr(inductor, 'aoti_load_package'):
        raise UserError(f'the torch format needs torch>=2.6, but torch {torch.__version__} is installed')
    from torch._inductor.utils import fresh_inductor_cache

    # Frozen weights are laid out for the kernels once. The cache would keep a copy of the weights for each file.
    settings = {'aot_inductor.metadata': dict(metadata), 'freezing': True}
    with torch.no_grad(), fresh_inductor_cache():
        program = torch.export.export(form, inputs, strict=False)
        inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


class Session:
    """A model's files, ready to run.

    Args:
        folder (str | Path): An exported folder.
        format (str, optional): One of its ``files``. Defaults to the first whose runtime is installed.
        threads (int, optional): Threads of a pass. Defaults to the runtime's own choice.

    Attributes:
        paths (list[Path]): Its files, one for each of the description's sizes; all but the first are opened when used.

    Raises:
        UserError: If the folder, the format or its runtime is missing.
    """

    def __init__(self, folder: str | Path, format: str | None = None, threads: int | None = None) -> None:
        self.description = read_description(folder)
        self.format = format or choose_format(self.description)
        if self.format not in self.description.files:
            raise UserError(f'{folder} has no {self.format} file; it has {", ".join(self.description.files)}')
        self.paths = [Path(folder, name) for name in self.description.files[self.format]]
        self._threads = threads
        self._runners: dict[Path, Any] = {}
        self._open(self.paths[0])

    def _open(self, path: Path) -> Any:
        if path not in self._runners:
            self._runners[path] = open_file(path, self.format, self.description.outputs, self._threads)
        return self._runners[path]

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


def choose_format(description: Description) -> str:
    """The first format of a folder whose runtime is installed."""
    for name in description.files:
        runtime = FORMATS[name.partition('-')[0]].runtime
        if importlib.util.find_spec(runtime):
            return name
    runtimes = [FORMATS[name.partition('-')[0]].runtime for name in description.files]
    raise UserError(f'none of {", ".join(runtimes)} is installed: pip install {runtimes[0]}')


def open_file(path: Path, format: str, outputs: list[str], threads: int | None = None) -> Any:
    """Loads a model file.

    Returns:
        Callable: Takes the inputs by name, in order, and returns the outputs by name.

    Raises:
        UserError: If the runtime is missing or refuses the file.
    """
    kind = format.partition('-')[0]
    require((FORMATS[kind].runtime,), f'running {path.name}')
    with one_line(f'{path} cannot be opened: export again'):
        return {'onnx': _open_onnx, 'openvino': _open_openvino, 'torch': _open_torch}[kind](path, outputs, threads)


def _open_onnx(path: Path, outputs: list[str], threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda feeds: dict(zip(outputs, session.run(outputs, feeds)))


def _open_openvino(path: Path, outputs: list[str], threads: int | None) -> Any:
    # On a CPU with bfloat16 instructions OpenVINO computes in bfloat16 unless told not to.
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    settings['INFERENCE_NUM_THREADS'] = str(threads or usable_cpus())
    request = _openvino_core().compile_model(path, 'CPU', settings).create_infer_request()

    def run(feeds: dict) -> dict:
        found = request.infer(list(feeds.values()), share_inputs=True)
        return {name: np.array(found[i]) for i, name in enumerate(outputs)}

    return run


@lru_cache(maxsize=None)
def _openvino_core() -> Any:
    """One for the whole process.

    A core's CPU plugin replaces the stack that signals are handled on. Two of them that end in the order they were made
    leave a stack that is freed, and the next signal ends the process (seen with OpenVINO 2026.4 on Linux).
    """
    import openvino

    return openvino.Core()


def _open_torch(path: Path, outputs: list[str], threads: int | None) -> Any:
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

    return run


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
