"""The benchmark measures what it says, and a backbone that fails or takes too much memory does not stop the others."""

from __future__ import annotations

import csv
import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from mmengine.utils import digit_version
from torch import nn

from helpers import REPO, load_tool
from mmefficientmod.compare.plots import plot_cost
from mmefficientmod.measure import latency, machine, records
from mmefficientmod.measure.latency import Plan
from mmefficientmod.measure.models import build_part
from mmefficientmod.measure.records import IN_TORCH, Case, Measurement
from mmefficientmod.measure.reference import Reference
from mmefficientmod.utils import UserError

CPU = torch.device('cpu')
BACKBONES = ('efficientmod-xxs', 'mobilenetv2-1.0')

# An older torch knows autocast to bf16 alone on a CPU.
HALF = 'fp16' if digit_version(torch.__version__) >= digit_version('2.4') else 'bf16'


@pytest.mark.parametrize(
    'case',
    [
        Case('backbone', (64, 64)),
        Case('segmentor', (64, 64), 2, 'bf16'),
        Case('classifier', (64, 64), 2, mode='deploy'),
        *(
            pytest.param(Case('detector', (64, 70), mode=mode), marks=(pytest.mark.ops, pytest.mark.slow))
            for mode in ('eager', 'compiled')
        ),
        Case('training', (64, 64), 2),
    ],
    ids=str,
)
def test_measures_every_backbone(case, device):
    results = latency.measure([case], BACKBONES, Plan(device, 3, 1, BACKBONES[1], 'eager'))[case]
    assert [result.backbone for result in results] == list(BACKBONES)
    if device.type == 'cuda' and 'compiled without GPU operators' in str(results[0].error):
        pytest.skip(results[0].error)
    for result in results:
        assert result.error is None, result.error
        assert 0 < result.q25_ms <= result.median_ms <= result.q75_ms
        assert result.images_per_second == pytest.approx(1000 * case.batch / result.median_ms)
        assert result.speed_up_over_baseline == pytest.approx(results[1].median_ms / result.median_ms)
        assert result.peak_memory_mb > result.params * 4 / 2**20  # the weights are in it
        assert (result.kept_mb or 0) > 0 if case.part == 'training' else result.kept_mb is None
    assert results[1].speed_up_over_baseline == 1


@pytest.mark.slow
def test_modes_are_compared_with_their_like(device):
    """Without a compiler behind it: what is compiled is compared with the compiled reference alone."""
    cases = [Case('backbone', (64, 64), mode=mode) for mode in IN_TORCH]
    before = torch._dynamo.config.cache_size_limit, torch._inductor.config.freezing
    results = latency.measure(cases, BACKBONES, Plan(device, 2, 1, backend='eager'))
    assert (torch._dynamo.config.cache_size_limit, torch._inductor.config.freezing) == before
    times = {case.mode: found[0].median_ms for case, found in results.items()}
    for case, found in results.items():
        ours, *others = found
        reference = 'reference-compiled' if 'compiled' in case.mode else 'reference'
        assert ours.error is None and ours.difference <= 1e-5
        assert ours.speed_up_over_reference == pytest.approx(times[reference] / times[case.mode])
        # another family has no reference
        assert [other.speed_up_over_reference for other in others] == ([] if case.mode == reference else [None])


def test_an_interrupted_measurement_leaves_the_garbage_collector_as_before():
    def interrupt(text):
        if text == 'round 2/2':
            assert gc.get_freeze_count()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latency.measure([Case('backbone', (64, 64))], BACKBONES[:1], Plan(CPU, 2, 1), tick=interrupt)
    assert not gc.get_freeze_count()


def test_the_check_of_outputs_sees_a_wrong_branch(monkeypatch):
    """LayerScale starts at 1e-4: with it, what a block computes would hardly count."""
    right = Reference.context
    monkeypatch.setattr(Reference, 'context', lambda self, branch, x: right(self, branch, x) * 1.01)
    case = Case('backbone', (64, 64), mode='reference')
    (result,) = latency.measure([case], BACKBONES[:1], Plan(CPU, 1, 1))[case]
    assert result.median_ms is None and result.error.startswith('ArithmeticError: the output is off by')


def test_compiler_that_does_not_work_is_said_before_anything_is_measured():
    with pytest.raises(RuntimeError, match=r'^torch [\d.+a-z]+ cannot compile here \(.*no-such-backend'):
        latency.check_compiler('no-such-backend')


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_modes_with_the_compiler(device):
    latency.check_compiler()
    cases = [Case('backbone', (64, 64), mode=mode) for mode in ('reference-compiled', 'compiled', 'deploy-compiled')]
    for case, (result,) in latency.measure(cases, BACKBONES[:1], Plan(device, 1, 1)).items():
        assert result.error is None, (case, result.error)


def run_part(part: str, precision: str = 'fp32'):
    case = Case(part, (64, 70), precision=precision)
    return latency.forward_pass(build_part('efficientmod-xxs', part), case, CPU)()


def test_the_parts_are_what_they_say():
    assert [tuple(level.shape) for level in run_part('backbone')] == [  # 70 is padded to 96
        (1, 32, 16, 24),
        (1, 64, 8, 12),
        (1, 128, 4, 6),
        (1, 256, 2, 3),
    ]
    assert run_part('segmentor').shape == (1, 150, 16, 24)


@pytest.mark.ops
def test_a_detector_in_half_precision():
    """Once, as it takes 20 s on a CPU without bfloat16; MMCV's NMS and RoIAlign get float32."""
    ((classes, boxes, masks),) = run_part('detector', 'bf16')
    assert classes.shape[1] == 81 and boxes.shape[1] == 320 and masks.shape[1:] == (80, 28, 28)
    assert all(torch.isfinite(output).all() for output in (classes, boxes, masks))


def test_the_classifier_is_what_it_says():
    assert run_part('classifier').shape == (1, 1000)
    case = Case('classifier', (64, 64), mode='reference')
    (result,) = latency.measure([case], BACKBONES, Plan(CPU, 1, 1))[case]  # MobileNetV2 has no reference
    assert result.error is None and result.params == 4736264


def test_classifiers_are_measured_at_the_size_they_are_published_at():
    keys = ['efficientmod-s', 'mobilevitv2-1.0', 'mobilevit-xs', 'deit-t']
    settings = [cases[0] for cases in records.make_cases(['classifier', 'backbone'], None, [1], ['fp32'], ['eager'])]
    assert [(case.size[0], records.keys_at_own_size(case, keys)) for case in settings] == [
        (224, ['efficientmod-s', 'deit-t']),
        (256, ['mobilevitv2-1.0', 'mobilevit-xs']),
        (512, keys),
    ]


@pytest.mark.ops
def test_the_detector_is_what_it_says():
    ((scores, boxes, masks),) = run_part('detector')
    assert scores.shape[1] == 81 and boxes.shape == (len(scores), 320)
    assert masks.shape == (min(100, len(scores)), 80, 28, 28)


def test_peak_memory_on_the_cpu_is_exact():
    images = torch.zeros(3, 2**18)  # 3 MiB

    def two_temporaries():
        return (images + 1) * 2

    linear = nn.Linear(2**10, 2**8, bias=False)  # 1 MiB
    assert machine.peak_memory(nn.Identity(), two_temporaries, CPU) == pytest.approx(6, abs=1e-3)
    assert machine.peak_memory(linear, two_temporaries, CPU) == pytest.approx(7, abs=1e-3)


def test_a_backbone_that_fails_is_named_with_its_reason():
    case = Case('backbone', (64, 64), mode='compiled')
    for result in latency.measure([case], BACKBONES, Plan(CPU, 1, 1, backend='no-such-backend'))[case]:
        assert 'no-such-backend' in result.error and result.median_ms is None
        assert result.speed_up_over_baseline is None


def test_out_of_memory_is_said_and_the_rest_goes_on(tmp_path):
    """A real limit on a real process: the small image fits, the large one does not."""
    options = (
        '--backbones efficientmod-xxs --parts backbone --sizes 2048 64 --repeats 1 --warmup 1 --memory-limit 0.5 --out'
    )
    done = subprocess.run(
        [sys.executable, str(REPO / 'tools/benchmark.py'), *options.split(), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'error: not everything was measured: EfficientMod-xxs' in done.stderr
    assert 'EfficientMod-xxs, eager: out of memory' in done.stdout
    large, small = json.loads((tmp_path / 'benchmark.json').read_text())['measurements']
    assert large['error'].startswith('out of memory') and large['median_ms'] is None
    assert small['error'] is None and small['median_ms'] > 0
    with open(tmp_path / 'benchmark.csv') as file:
        assert [row['size'] for row in csv.DictReader(file)] == ['2048x2048', '64x64']


def test_output(tmp_path, capsys):
    benchmark = load_tool('benchmark')
    options = (
        '--backbones MobileNetV2_1.0 efficientmod-xxs --parts backbone --sizes 64 64x96 --batch-sizes 1 2 '
        '--repeats 2 --warmup 1 --baseline EfficientMod-xxs --out'
    )
    benchmark.main([*options.split(), str(tmp_path)])
    printed = capsys.readouterr().out
    assert 'backbone, 64 x 96, batch 2, fp32, eager' in printed and 'torch ' + torch.__version__ in printed
    content = json.loads((tmp_path / 'benchmark.json').read_text())
    assert content['machine']['threads'] == torch.get_num_threads()
    assert content['machine']['vector_extensions'] in printed and set(content['peaks']) == {'matmul', 'convolution'}
    assert content['settings']['baseline'] == 'efficientmod-xxs'
    cases, _ = records.read_benchmark(tmp_path / 'benchmark.json')
    assert len(cases) == 4 and list(records.records(cases)) == [
        {**record, 'size': tuple(record['size'])} for record in content['measurements']
    ]
    assert '| EfficientMod-xxs | ' in (tmp_path / 'benchmark.md').read_text()
    for name in ('backbone-resolution', 'backbone-batch'):
        assert (tmp_path / f'{name}.png').stat().st_size > 10000
        assert '<svg' in (tmp_path / f'{name}.svg').read_text()


def test_plots_leave_failed_backbones_out():
    measurements = [Measurement('a', 'A', 1, 1, 2.0, 1.0, 3.0, 500.0, 4.0), Measurement('b', 'B', error='failed')]
    cases = {Case('backbone', (side, side)): measurements for side in (64, 128)}
    ((name, figure),) = plot_cost(cases, dict(cpu='some', threads=1, torch='2'))
    assert name == 'backbone-resolution'
    assert figure.axes[0].get_legend_handles_labels()[1] == ['A']


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--backbones', 'resnet-19'], "there is no backbone 'resnet-19': did you mean resnet-18?"),
        (
            ['--backbones', 'resnet-18', '--baseline', 'pvt-tiny'],
            'the baseline pvt-tiny is not among the backbones resnet-18',
        ),
        (
            ['--parts', 'classifier', '--backbones', 'resnet-18'],
            "there is no backbone 'resnet-18'",
        ),
        (['--device', 'cuda:99'], '--device cuda:99 is not available'),
        (['--device', 'abacus'], '--device abacus is not the name of a device'),
        (['--device', 'meta'], '--device meta is not available'),
    ],
)
def test_bad_input(argv, message):
    with pytest.raises(SystemExit) as error:
        load_tool('benchmark').main(argv)
    assert error.value.code.startswith('error: ') and message in error.value.code and '\n' not in error.value.code


def test_every_part_has_its_own_backbones():
    tool = load_tool('benchmark')
    chosen, baseline, problems = tool.choose_backbones(tool.parse_args(['--parts', 'classifier', 'backbone']))
    assert 'deit-t' in chosen['classification'] and 'resnet-18' not in chosen['classification']
    assert 'resnet-18' in chosen['detection'] and 'deit-t' not in chosen['detection']
    assert baseline == 'efficientmod-s' and problems == []
    options = '--parts segmentor classifier --backbones resnet-18 efficientmod-s nothing'
    chosen, _, problems = tool.choose_backbones(tool.parse_args(options.split()))
    assert chosen == dict(segmentation=['resnet-18', 'efficientmod-s'], classification=['efficientmod-s'])
    assert problems[0] == 'resnet-18 has no config of classification' and len(problems) == 2
    assert problems[1].startswith("there is no backbone 'nothing': ")


def test_a_setting_without_measurements_leaves_the_files_as_they_are(tmp_path, capsys):
    """MobileNetV2 has no reference, and a training no deploy form."""
    tool, line = load_tool('benchmark'), 'no backbone here has these modes'
    options = ['--sizes', '64', '--repeats', '1', '--warmup', '1', '--out', str(tmp_path)]
    (tmp_path / 'benchmark.json').write_text('earlier')
    with pytest.raises(SystemExit, match=line):
        tool.main(['--backbones', 'mobilenetv2-1.0', '--parts', 'backbone', '--modes', 'reference', *options])
    assert 'written to' not in capsys.readouterr().out and (tmp_path / 'benchmark.json').read_text() == 'earlier'
    (tmp_path / 'benchmark.csv').write_text('earlier')
    os.link(tmp_path / 'benchmark.csv', tmp_path / 'earlier.csv')
    tool.main(['--backbones', BACKBONES[0], '--parts', 'training', 'backbone', '--modes', 'deploy', *options])
    assert f'training, 64 x 64, batch 1, fp32: {line}' in capsys.readouterr().out
    assert [str(case) for case in records.read_benchmark(tmp_path / 'benchmark.json')[0]] == [
        'backbone, 64 x 64, batch 1, fp32, deploy'
    ]
    assert (tmp_path / 'earlier.csv').read_text() == 'earlier'  # the table is replaced in one step


@pytest.mark.parametrize('end', ['failure', 'stop'])
def test_a_benchmark_that_measures_nothing_leaves_the_files_as_they_are(end, tmp_path, monkeypatch, capsys):
    tool = load_tool('benchmark')
    for name in ('benchmark.json', 'benchmark.csv', 'benchmark.md'):
        (tmp_path / name).write_text('earlier')
    options = [
        '--parts',
        'backbone',
        '--sizes',
        '64',
        '96',
        '--repeats',
        '1',
        '--warmup',
        '1',
        '--modes',
        'compiled',
        '--compile-backend',
    ]
    if end == 'stop':  # in the second of two settings

        def show_and_stop(cases, *args):
            if cases[0].size == (96, 96):
                raise KeyboardInterrupt

        monkeypatch.setattr(tool, 'show_setting', show_and_stop)
    with pytest.raises(SystemExit) as error:
        backend = 'eager' if end == 'stop' else 'no-such-backend'
        tool.main(['--backbones', BACKBONES[0], *options, backend, '--out', str(tmp_path)])
    assert all((tmp_path / f'benchmark.{suffix}').read_text() == 'earlier' for suffix in ('json', 'csv', 'md'))
    unfinished = tmp_path / 'benchmark-unfinished.json'
    if end == 'stop':
        assert error.value.code == 130 and str(unfinished) in capsys.readouterr().err
        assert [case.size for case in records.read_benchmark(unfinished)[0]] == [(64, 64)]
    else:
        assert 'not everything was measured' in error.value.code and 'no-such-backend' in error.value.code
        assert not unfinished.exists()


def test_options_change_the_config_and_are_noted(tmp_path):
    options = '--backbones efficientmod-s --parts backbone --sizes 128 --repeats 1 --warmup 1 --out'
    tool, changes = load_tool('benchmark').main, ['model.backbone.in_channels=4', 'model.backbone.drop_path_rate=0.3']
    with pytest.raises(SystemExit, match='EfficientMod-s'):  # images have three channels
        tool([*options.split(), str(tmp_path), '--cfg-options', *changes])
    tool([*options.split(), str(tmp_path), '--cfg-options', changes[1]])
    _, content = records.read_benchmark(tmp_path / 'benchmark.json')
    assert content['settings']['options'] == {'model.backbone.drop_path_rate': 0.3}
    for options, message in ((['x.y=1'], 'x.y=... changes nothing here'), (['x'], 'takes KEY=VALUE pairs')):
        with pytest.raises(SystemExit, match=f'^error: --cfg-options {message}'):
            tool(['--cfg-options', *options])


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match=r'^error: --out .*/file cannot be written: .*/file is not a folder'):
        load_tool('benchmark').main(['--backbones', BACKBONES[0], '--out', str(tmp_path / 'file')])


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no limit')
def test_the_memory_limit_stays_below_the_one_of_the_system():
    code = """
import resource
from mmefficientmod.measure.machine import memory_limit
resource.setrlimit(resource.RLIMIT_DATA, (2**38, 2**38))
with memory_limit(1000):
    assert resource.getrlimit(resource.RLIMIT_DATA) == (2**38, 2**38)
"""
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('argv', ['--sizes 16', '--sizes 512,512', '--repeats 0', '--precisions int8'])
def test_bad_numbers(argv, capsys):
    with pytest.raises(SystemExit) as error:
        load_tool('benchmark').main(argv.split())
    assert error.value.code == 2 and argv.split()[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('5', 'TypeError: it holds int, not measurements'),
        ('"x"', 'TypeError: it holds str, not measurements'),
        ('{"measurements": 5}', "TypeError: 'int' object is not iterable"),
        ('{"measurements": [1]}', 'TypeError: 1 is not a measurement'),
        (dict(size=[512]), r'TypeError: the size is \[512\]'),
        (dict(size='ab'), 'TypeError: the size is '),
        (dict(median_ms='x'), "TypeError: median_ms is 'x'"),
        (dict(error=1), 'TypeError: error is 1'),
        (dict(mode=5), 'TypeError: mode is 5'),
        (dict(name=None), 'TypeError: name is None'),
    ],
)
def test_files_of_another_content_are_refused_in_one_line(content, reason, tmp_path):
    if isinstance(content, dict):
        (record,) = records.records({Case('backbone', (64, 64)): [Measurement('resnet-18', 'ResNet-18')]})
        content = json.dumps(dict(machine=dict(torch='2'), measurements=[{**record, **content}]))
    (tmp_path / 'benchmark.json').write_text(content)
    with pytest.raises(UserError, match=rf'was not written by tools/benchmark.py \({reason}') as error:
        records.read_benchmark(tmp_path / 'benchmark.json')
    assert '\n' not in str(error.value)
