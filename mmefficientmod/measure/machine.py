"""The machine that is measured on: its description, its peak, its memory."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault('KINETO_LOG_LEVEL', '10')  # the profiler that counts memory announces itself otherwise

import mmengine
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ..export.environment import read_cpu, vector_extensions, versions

CPU = torch.device('cpu')


def describe_machine(device: torch.device) -> dict:
    """Hardware, versions and settings that the times depend on."""
    cpu = read_cpu()
    facts = dict(
        device=device.type,
        cpu=cpu.name,
        cpu_family=cpu.family,
        cpu_model=cpu.model,
        cpu_stepping=cpu.stepping,
        vector_extensions=vector_extensions(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        mmengine=mmengine.__version__,
        system=platform.platform(),
        allocator=describe_allocator(),
        host=hashlib.sha256(platform.node().encode()).hexdigest()[:12],  # the same machine, without its name
        cpu_flags=' '.join(cpu.flags),
    )
    if device.type == 'cuda':
        facts.update(
            gpu=torch.cuda.get_device_name(device),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            tf32_convolutions=torch.backends.cudnn.allow_tf32,
            tf32_products=torch.backends.cuda.matmul.allow_tf32,
        )
    return facts


def describe_allocator() -> str:
    """The C library, whose ``malloc`` serves torch on a CPU, and the environment variables that change it."""
    names = ('LD_PRELOAD', 'GLIBC_TUNABLES', *sorted(name for name in os.environ if name.startswith('MALLOC_')))
    changed = [f'{name}={os.environ[name]}' for name in names if os.environ.get(name)]
    return ' '.join([*filter(None, platform.libc_ver()), *changed]) or 'unknown'


def describe_run() -> dict:
    """When the measurement begins, and with which version and commit of this package."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    return dict(date=date, version=versions()['mmefficientmod'], commit=read_commit())


def read_commit() -> str | None:
    """The commit of the repository that the package runs from, with ``-dirty`` after changes; None if it has none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / '.git').exists():
        return None
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # without git, or in somebody else's repository
        return None


class OtherLoad:
    """Cores that other processes keep busy, since this object was made.

    It is Linux's count of CPU time less that of this process and of its children that ended. Time that a hypervisor
    gave to other guests counts as well.
    """

    def __init__(self) -> None:
        self._begin = self._read()

    def cores(self) -> float | None:
        """The average; None on systems that do not tell."""
        if not (self._begin and (end := self._read())):
            return None
        seconds, busy, own = (b - a for a, b in zip(self._begin, end))
        return round(max(0.0, busy - own) / max(seconds, 1e-3), 2)

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Seconds: of the clock, of all processes, of this one."""
        path = Path('/proc/stat')
        if not path.exists():
            return None
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, path.read_text().split()[1:11])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
        return time.perf_counter(), busy, sum(os.times()[:4])


def time_once(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call: with events on a GPU, with the wall clock on a CPU."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(device)  # that of the current device may be another one
        torch.cuda.synchronize(device)
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end)
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def product_peaks() -> dict[str, float]:
    """The CPU's matrix products, float32, in GFLOP/s, with the two libraries behind torch.

    Returns:
        dict[str, float]: ``'matmul'``, as ``torch.mm`` computes it, and ``'convolution'``, as a 1x1 convolution.
    """
    n, batch, channels, side = 2048, 16, 1024, 16
    a, weight = torch.rand(n, n), torch.rand(channels, channels, 1, 1)
    # with one thread, torch gives a 1x1 convolution without a stride to oneDNN only from a batch of 16 on
    maps = torch.rand(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    work = {
        'matmul': (lambda: a @ a, 2 * n**3),
        'convolution': (lambda: F.conv2d(maps, weight), 2 * batch * side**2 * channels**2),
    }
    with torch.inference_mode():
        best = {name: min(time_once(run, CPU) for _ in range(5)) for name, (run, _) in work.items()}
    return {name: flop / best[name] / 1e6 for name, (_, flop) in work.items()}


@contextlib.contextmanager
def memory_limit(gigabytes: float | None = None) -> Iterator[None]:
    """Lets the process take so many GiB more, by default all that are free: what needs more fails.

    Without it Linux would end the whole process. Other systems are left as they are.
    """
    status, meminfo = Path('/proc/self/status'), Path('/proc/meminfo')
    if not (status.exists() and meminfo.exists()):
        yield
        return
    import resource  # not on Windows

    used, free = (
        int(next(line.split()[1] for line in file.read_text().splitlines() if line.startswith(key))) * 1024
        for file, key in ((status, 'VmData:'), (meminfo, 'MemAvailable:'))
    )
    bound = Path('/sys/fs/cgroup/memory.max')
    if bound.exists() and (text := bound.read_text().strip()) != 'max':
        free = min(free, int(text) - int(bound.with_name('memory.current').read_text()))
    more = int(free * 0.95) if gigabytes is None else min(int(gigabytes * 2**30), 2**62)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + more if before[1] == resource.RLIM_INFINITY else min(used + more, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


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
