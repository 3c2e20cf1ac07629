"""Latency in a report comes from files of the benchmark that fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from helpers import load_tool, make_run, refused
from mmefficientmod.compare.table import compare
from mmefficientmod.measure.records import Case, Measurement, records
from mmefficientmod.utils import UserError
from mmefficientmod.zoo.backbones import task_backbones
from mmefficientmod.zoo.tasks import TASKS

COMPARE = load_tool('compare').main


def test_benchmark_files_of_one_machine_with_and_without_exported_modes(tmp_path):
    config = Config.fromfile(task_backbones(TASKS['segmentation'])['resnet-18'].config)
    make_run(tmp_path / 'resnet-18', '20260101_000000', config, '{"mIoU": 3}')
    files = []
    for i, runtimes in enumerate(({}, dict(onnx='1'), dict(onnx='2'))):
        found = records({Case('segmentor', (64 * (i + 1),) * 2): [Measurement('resnet-18', 'ResNet-18')]})
        content = dict(machine=dict(torch='2', **runtimes), measurements=list(found))
        files.append(tmp_path / f'{i}.json')
        files[-1].write_text(json.dumps(content))
    assert compare([tmp_path], files[:2]).machine == compare([tmp_path], files[1::-1]).machine
    with pytest.raises(UserError, match='different machines'):
        compare([tmp_path], files)


def test_benchmark_files(work_dir, tmp_path):
    def write(name: str, *cases: Case, **machine) -> Path:
        content = dict(
            machine={'torch': '2', 'cpu': 'x', **machine},
            measurements=list(records({case: [Measurement('resnet-18', 'ResNet-18', 1, 1, 2.0)] for case in cases})),
        )
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    case = Case('segmentor', (512, 512))
    one = write('one', case, Case('segmentor', (512, 512), precision='fp16'), load=1)
    other = write('other', Case('segmentor', (64, 64)), Case('detector', (64, 64)), load=2)
    comparison = compare([work_dir], [one, other])
    latencies = [heading for heading, column in comparison.columns.items() if column.kind == 'latency']
    parts = [tuple(comparison.table[heading]) for heading in latencies]
    assert parts == [('measured', 'published'), ('measured',), ('measured',)]
    with pytest.raises(UserError, match='two benchmark files hold segmentor, 512 x 512'):
        compare([work_dir], [one, write('again', case)])
    with pytest.raises(UserError, match='different machines'):
        compare([work_dir], [one, write('elsewhere', cpu='y')])
    assert compare([work_dir], [write('none')]).problems == [
        'the benchmark holds no segmentor: run tools/benchmark.py with --parts segmentor'
    ]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'does not exist'),
        ('{"measurements": [{}]}', 'was not written by tools/benchmark.py'),
        ('no json', 'is not a JSON file that can be read'),
    ],
)
def test_bad_benchmark_file(content, message, work_dir, tmp_path):
    path = tmp_path / 'benchmark.json'
    if content:
        path.write_text(content)
    assert message in refused(COMPARE, 'report', work_dir, '--benchmark', path)
