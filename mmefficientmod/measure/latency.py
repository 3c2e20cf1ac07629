"""Measures the latency and memory of backbones, whole detectors and whole segmentors, which take turns in one run."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import platform
import random
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault('KINETO_LOG_LEVEL', '10')  # the profiler that counts memory announces itself otherwise

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile

from ..utils import describe_error, first_line
from ..zoo.backbones import Backbone, task_backbones
from ..zoo.tasks import TASKS
from .records import PARTS, Case, Measurement

PRECISIONS = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
COMPILED_PARTS = ('backbone', 'neck', 'rpn_head', 'decode_head')  # behind them, shapes depend on the proposals


def build(backbone: Backbone, part: str) -> nn.Module:
    """A backbone, its detector or segmentor in evaluation mode, with random weights: they do not change the work."""
    config = Config.fromfile(backbone.config)
    config.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(config.default_scope), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what the libraries say while a model is built
        model = MODELS.build(config.model.backbone if part == 'backbone' else config.model)
    model = revert_sync_batchnorm(model)
    model.eval()  # some backbones return nothing here
    return model


def _to_float32(output: Tensor | Sequence) -> Tensor | Sequence:
    return output.float() if isinstance(output, Tensor) else type(output)(_to_float32(item) for item in output)


def forward_pass(model: nn.Module, case: Case, device: torch.device, backend: str = 'inductor') -> Callable[[], object]:
    """The function to be timed: one forward pass over a fixed random batch.

    For a detector it is everything up to the second stage's outputs for the proposals of the first (1000 an image,
    100 of them through the mask head), for a segmentor everything up to the logits; what follows depends on the
    weights.
    """
    if case.mode.startswith('deploy'):
        backbone = model if case.part == 'backbone' else model.backbone
        getattr(backbone, 'switch_to_deploy', lambda: None)()
    if case.mode.endswith('compiled'):
        compiled = [model] if case.part == 'backbone' else [getattr(model, name, None) for name in COMPILED_PARTS]
        for module in filter(None, compiled):
            module.compile(dynamic=False, backend=backend)
    height, width = case.input_size
    images = torch.rand(case.batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    arguments: tuple = (images,)
    if case.part == 'detector':
        from mmdet.structures import DetDataSample

        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (height, width))
        arguments = images, [DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0))) for _ in range(case.batch)]
        for module in (model.neck, model.rpn_head):  # MMCV's NMS and RoIAlign take float32
            module.register_forward_hook(lambda module, inputs, output: _to_float32(output))
    keywords = {} if case.part == 'backbone' else dict(mode='tensor')
    dtype = PRECISIONS[case.precision]

    def run() -> object:
        autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        with torch.inference_mode(), autocast, inductor.patch(freezing=True):  # compiled: weights are constants
            return model(*arguments, **keywords)

    return run


def time_once(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call: by events on a GPU, by the wall clock on a CPU."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def peak_memory(model: nn.Module, run: Callable[[], object], device: torch.device) -> float:
    """MiB of the weights and buffers plus the peak of what torch's allocator hands out during one call.

    On a CPU that is counted by torch's profiler, because the size of the process hardly shows it: the C library keeps
    freed memory. Scratch memory that oneDNN takes past torch's allocator is not in it.
    """
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        working = torch.cuda.max_memory_allocated(device) - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            output = run()
        del output
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, 'trace.json')
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())['traceEvents']
        events = sorted((event for event in events if event.get('name') == '[memory]'), key=lambda event: event['ts'])
        working = max(itertools.accumulate((event['args']['Bytes'] for event in events), initial=0))
    return (weights + working) / 2**20


def measure(
    case: Case,
    backbones: Sequence[str],
    device: torch.device,
    repeats: int = 20,
    warmup: int = 3,
    baseline: str = '',
    backend: str = 'inductor',
    tick: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """Measures backbones in one case, one pass of each in turn, in a new random order every round.

    One that cannot be built, runs out of memory or fails otherwise is left out of the rounds, and the rest goes on.

    Args:
        case (Case): The setting.
        backbones (Sequence[str]): Keys of the backbones.
        device (torch.device): A CPU or a GPU.
        repeats (int): Rounds. Defaults to 20.
        warmup (int): Passes of each backbone that are not counted. Defaults to 3.
        baseline (str): Key of the backbone that ratios refer to. Defaults to none.
        backend (str): Of ``torch.compile``. Defaults to ``'inductor'``.
        tick (Callable): Called with what is being done.
    """
    torch.compiler.reset()  # backbones and cases share code, of which only so many compiled forms are kept
    torch._dynamo.config.cache_size_limit = 8 + len(backbones)
    results = {key: Measurement(key, task_backbones(TASKS[PARTS[case.part]])[key].name) for key in backbones}
    ready: dict[str, Callable] = {}

    def attempt(key: str, action: Callable[[], object]) -> object:
        try:
            return action()
        except Exception as error:  # whatever it is, it is about this backbone, and the others go on
            results[key].error = describe(error)
            ready.pop(key, None)
        gc.collect()
        if device.type == 'cuda':
            torch.cuda.empty_cache()
        return None

    def prepare(key: str) -> None:
        backbone = task_backbones(TASKS[PARTS[case.part]])[key]
        model = build(backbone, case.part).to(device)
        run = forward_pass(model, case, device, backend)
        for _ in range(warmup):
            run()
        results[key].params = sum(parameter.numel() for parameter in model.parameters())
        results[key].peak_memory_mb = peak_memory(model, run, device)
        ready[key] = run

    for key in backbones:
        tick(f'{key}: warm-up')
        attempt(key, lambda key=key: prepare(key))
    times: dict[str, list[float]] = {key: [] for key in backbones}
    order = random.Random(0)
    for i in range(repeats):
        tick(f'round {i + 1}/{repeats}')
        for key in order.sample(list(ready), len(ready)):
            passed = attempt(key, lambda key=key: time_once(ready[key], device))
            if passed is not None:
                times[key].append(passed)
    for key in ready:
        _summarise(results[key], times[key], case.batch)
    reference = results[baseline].median_ms if baseline in results else None
    for result in results.values():
        if reference and result.median_ms:
            result.ratio = result.median_ms / reference
    return list(results.values())


def quartiles(times: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return statistics.quantiles(times, n=4, method='inclusive') if len(times) > 1 else [*times] * 3


def _summarise(result: Measurement, times: Sequence[float], batch: int) -> None:
    result.q25_ms, result.median_ms, result.q75_ms = quartiles(times)
    result.images_per_second = 1000 * batch / result.median_ms


def describe(error: Exception) -> str:
    """One line on why a backbone was not measured."""
    text = first_line(error)
    out_of_memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
    if out_of_memory:
        return f'out of memory: {text}'
    if 'not compiled with' in text.lower() or 'not implemented on the GPU' in text:
        return f'{text} (MMCV was compiled without GPU operators: build it with nvcc, or leave detectors out)'
    return describe_error(error)


@contextlib.contextmanager
def memory_limit(gigabytes: float | None = None) -> Iterator[None]:
    """Lets the process take so many GiB more, by default all that are free: what needs more fails by itself.

    Without it Linux would end the whole process. Other systems are left as they are.
    """
    status, meminfo = Path('/proc/self/status'), Path('/proc/meminfo')
    if not (status.exists() and meminfo.exists()):
        yield
        return
    used, free = (
        int(next(line.split()[1] for line in file.read_text().splitlines() if line.startswith(key))) * 1024
        for file, key in ((status, 'VmData:'), (meminfo, 'MemAvailable:'))
    )
    bound = Path('/sys/fs/cgroup/memory.max')
    if bound.exists() and (text := bound.read_text().strip()) != 'max':
        free = min(free, int(text) - int(bound.with_name('memory.current').read_text()))
    more = int(free * 0.95) if gigabytes is None else int(gigabytes * 2**30)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def machine(device: torch.device) -> dict:
    """What the figures were measured on."""
    cpuinfo = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    model = next((line.partition(':')[2].strip() for line in cpuinfo.splitlines() if line.startswith('model name')), '')
    facts = dict(
        device=device.type,
        cpu=model or platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        system=platform.platform(),
        load=round(os.getloadavg()[0], 1),
    )
    if device.type == 'cuda':
        facts |= dict(
            gpu=torch.cuda.get_device_name(device),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            tf32_convolutions=torch.backends.cudnn.allow_tf32,
            tf32_products=torch.backends.cuda.matmul.allow_tf32,
        )
    return facts
