"""Behind `make gpu`. Runs the tests of the network on one GPU and times EfficientMod against the reference there.

It takes at most ten minutes. What does not fit in them is left out and named. One JSON and one Markdown file hold the
results.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from mmefficientmod.measure import latency, machine, records, tables
from mmefficientmod.measure.layouts import LayoutTimes, time_layouts
from mmefficientmod.utils import replace_file

REPO = Path(__file__).parents[1]
ARCHS = ['efficientmod-xxs', 'efficientmod-xs', 'efficientmod-s', 'efficientmod-s-conv']
EAGER, COMPILED = ('reference', 'eager', 'deploy'), ('reference-compiled', 'compiled', 'deploy-compiled')
# (part, size, precision, modes, backbones), each at batch 1 and 32; the first ones matter most
SETTINGS = [
    *(('backbone', 512, precision, EAGER, ARCHS) for precision in ('fp32', 'fp16')),
    *(('training', 224, precision, EAGER[:2], ARCHS) for precision in ('fp32', 'bf16')),
    *(('segmentor', 512, precision, EAGER, ARCHS) for precision in ('fp32', 'fp16')),
    *(('backbone', 512, precision, COMPILED, ARCHS[2:3]) for precision in ('fp32', 'fp16')),
    ('training', 224, 'fp32', COMPILED[:2], ARCHS[2:3]),
    *(('detector', 512, precision, EAGER, ARCHS) for precision in ('fp32', 'fp16')),
]


def run_tests(seconds: float) -> str:
    """The last line of pytest, after at most so many seconds."""
    command = [sys.executable, '-m', 'pytest', '-q', '--device', 'cuda', str(REPO / 'tests')]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=REPO, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        print((error.stdout or b'').decode())
        return f'failed: stopped after {seconds:.0f} s'
    print(done.stdout)
    return ('' if done.returncode == 0 else 'failed: ') + done.stdout.strip().splitlines()[-1]


def layout_table(times: list[LayoutTimes]) -> pd.DataFrame:
    """A line for each stage, shape, precision and work: both layouts, the rule, and what it should say here."""
    return pd.DataFrame(
        {
            'stage': found.stage,
            'B x C x H x W': ' x '.join(map(str, found.shape)),
            'precision': found.precision,
            'work': found.work,
            'NCHW (ms)': f'{found.nchw_ms:.3f}',
            'channels-last (ms)': f'{found.channels_last_ms:.3f}',
            'rule': found.rule,
            'the rule should say': found.faster,
        }
        for found in times
    )


def advise(times: list[LayoutTimes]) -> list[str]:
    """For each precision and kind of work, the layout with the lower sum of times, and whether the rule names it."""
    lines = []
    for precision, work in dict.fromkeys((found.precision, found.work) for found in times):
        some = [found for found in times if (found.precision, found.work) == (precision, work)]
        sums = {'NCHW': sum(t.nchw_ms for t in some), 'channels-last': sum(t.channels_last_ms for t in some)}
        best, rule = min(sums, key=lambda name: sums[name]), some[0].rule
        verdict = 'as the rule says' if best == rule else f'the rule says {rule}: change models/depthwise.py'
        lines.append(f'{precision}, {work}: {best} is {max(sums.values()) / min(sums.values()):.2f}x faster, {verdict}')
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=10, help='default 10')
    parser.add_argument('--out', type=Path, default=REPO / 'work_dirs/gpu', help='default work_dirs/gpu')
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit('error: make gpu needs a GPU that torch can use, and there is none')
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    device, tests = torch.device('cuda'), run_tests(0.5 * (end - time.monotonic()))
    measure_all(device, args.out, end, tests, list(time_layouts(device)))


def measure_all(
    device: torch.device,
    out: Path,
    end: float,
    tests: str,
    times: list[LayoutTimes],
    settings: list = SETTINGS,
    repeats: int = 20,
) -> None:
    """Times the settings until ``end``; writes ``gpu.json`` and ``gpu.md`` after each of them."""
    facts = dict(machine=machine.describe_machine(device), settings=dict(repeats=repeats, warmup=3, baseline=''))
    facts.update(tests=tests, layouts=[dict(dataclasses.asdict(found), faster=found.faster) for found in times])
    results: records.Results = {}
    left_out: list[str] = []
    longest = 0.0
    for part, side, precision, modes, backbones in settings:
        for batch in (1, 32):
            cases = [records.Case(part, (side, side), batch, precision, mode) for mode in modes]
            begin = time.monotonic()
            if begin + longest > end:
                left_out.append(f'{cases[0].setting}, {", ".join(modes)}')
                continue
            results.update(latency.measure(cases, backbones, latency.Plan(device, repeats)))
            longest = max(longest, time.monotonic() - begin)
            write(out, results, dict(facts, left_out=left_out), times)
    write(out, results, dict(facts, left_out=left_out), times)
    for line in (f'tests: {tests}', *advise(times), *(f'left out for want of time: {name}' for name in left_out)):
        print(line)
    print(f'written to {out}/gpu.json and {out}/gpu.md')
    failed = tables.failures(results)
    if failed or tests.startswith('failed'):
        raise SystemExit('\n'.join(['error: the tests or measurements failed', *failed]))


def write(out: Path, results: records.Results, facts: dict, times: list[LayoutTimes]) -> None:
    """One JSON file, which tools/compare.py reads as one of tools/benchmark.py, and one Markdown file."""
    records.write_benchmark(out / 'gpu.json', results, **facts)
    lines = [f'Tests: {facts["tests"]}', *advise(times), tables.markdown_table(layout_table(times))]
    replace_file(out / 'gpu.md', '\n\n'.join([*lines, tables.report(results, facts)]))


if __name__ == '__main__':
    main()
