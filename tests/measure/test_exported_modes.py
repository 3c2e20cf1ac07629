"""The benchmark runs exported files beside the modes in torch, and says of what cannot be exported why."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import pytest
import torch

from helpers import REPO, load_tool
from mmefficientmod.export import formats
from mmefficientmod.measure import latency, tables
from mmefficientmod.measure.models import build_part
from mmefficientmod.measure.records import EXPORTED, IN_TORCH, MODES, Case, Measurement
from mmefficientmod.measure.reference import Reference
from mmefficientmod.utils import UserError

OPTIONS = [
    '--backbones',
    'efficientmod-xxs',
    '--parts',
    'backbone',
    '--sizes',
    '64',
    '--repeats',
    '1',
    '--warmup',
    '1',
    '--out',
]
RUNTIMES = ('onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf')


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measures modes of the smallest backbone or classifier, and sees that no file is left."""

    def run(*modes: str, part: str = 'backbone') -> dict[str, Measurement]:
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
        cases = [Case(part, (64, 64), mode=mode) for mode in modes]
        results = latency.measure(cases, ['efficientmod-xxs'], latency.Plan(torch.device('cpu'), 2, 1))
        assert not [path for path in tmp_path.rglob('*') if path.is_file() and 'torchinductor' not in str(path)]
        return {case.mode: result for case, (result,) in results.items()}

    return run


def test_every_mode_is_compared_with_the_reference_run_the_same_way():
    likes = {mode: Case('backbone', (64, 64), mode=mode).like.mode for mode in MODES}
    assert len(likes) == 2 * len(IN_TORCH) + len(EXPORTED) == 26  # those of torch in bfloat16 as well
    assert likes['eager'] == likes['deploy'] == likes['reference'] == 'reference'
    assert likes['compiled'] == likes['deploy-compiled'] == 'reference-compiled'
    assert likes['eager-bf16'] == likes['deploy-bf16'] == likes['reference-bf16'] == 'reference-bf16'
    assert likes['compiled-bf16'] == likes['deploy-compiled-bf16'] == 'reference-compiled-bf16'
    for mode in EXPORTED:
        assert likes[mode] == f'reference-{mode.replace("reference-", "")}' and likes[mode] in EXPORTED


@pytest.mark.export
def test_files_compute_what_eager_computes(measure):
    found = measure('reference-onnx', 'onnx', 'openvino', 'openvino-int8')
    for mode, result in found.items():
        assert result.error is None and 0 < result.q25_ms <= result.median_ms, (mode, result.error)
        assert result.peak_memory_mb is None  # a runtime does not tell
        assert 0 < result.difference <= 1e-5 or mode.endswith('int8')
    assert 1e-4 < found['openvino-int8'].difference < 0.3
    expected = found['reference-onnx'].median_ms / found['onnx'].median_ms
    assert found['onnx'].speed_up_over_reference == pytest.approx(expected)
    assert found['openvino'].speed_up_over_reference is None  # its like was not measured


@pytest.mark.export
@pytest.mark.slow
def test_modes_in_bfloat16_stand_next_to_those_in_float32(measure):
    if formats.precision_problem('openvino-bf16'):
        pytest.skip('this CPU has no instructions for bfloat16')
    found = measure('reference', 'deploy', 'reference-bf16', 'deploy-bf16', 'openvino', 'openvino-bf16')
    for mode, result in found.items():
        assert result.error is None and result.median_ms > 0, (mode, result.error)
        assert 1e-3 < result.difference < 0.1 if mode.endswith('-bf16') else result.difference <= 1e-5
    expected = found['reference-bf16'].median_ms / found['deploy-bf16'].median_ms
    assert found['deploy-bf16'].speed_up_over_reference == pytest.approx(expected)


@pytest.mark.export
def test_files_of_a_classifier(measure):
    found = measure('reference', 'reference-onnx', 'onnx', part='classifier')
    assert not [result.error for result in found.values() if result.error]
    assert 0 < found['onnx'].difference <= 1e-5 and found['onnx'].median_ms > 0


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_file(measure):
    found = measure('reference', 'pt2')
    assert found['pt2'].error is None and 0 < found['pt2'].difference <= 1e-5
    assert found['pt2'].median_ms > 0 and found['pt2'].speed_up_over_reference is None


@pytest.mark.export
def test_what_cannot_be_exported_says_why_and_the_rest_goes_on(measure, monkeypatch):
    right = Reference.forward
    monkeypatch.setattr(Reference, 'forward', lambda self, x: right(self, x if x.sum() > 0 else -x))
    found = measure('reference', 'reference-onnx', 'onnx')
    error = found['reference-onnx'].error
    assert error.startswith('UserError: onnx: this model cannot be written (') and 'data-dependent' in error
    assert found['reference'].median_ms > 0 and found['onnx'].median_ms > 0
    results = {Case('backbone', (64, 64), mode=mode): [result] for mode, result in found.items()}
    assert tables.failures(results) == [f'EfficientMod-xxs, reference-onnx: {error}']


def test_int8_may_be_off_but_not_without_a_figure():
    limit = latency.tolerance(Case('backbone', (64, 64), mode='onnx-int8'), torch.device('cpu'))
    subject = latency.Subject(Case('backbone', (64, 64)), Measurement('a', 'A'))
    subject.check([torch.tensor([1.5])], [torch.tensor([1.0])], limit)
    assert subject.result.difference == 0.5
    for wrong in (torch.tensor([float('nan')]), torch.zeros(2)):
        with pytest.raises(ArithmeticError, match='the output is off by'):
            subject.check([wrong], [torch.tensor([1.0])], limit)


def test_linear_layers_keep_the_size_of_their_input():
    backbone = build_part('efficientmod-xxs', 'backbone')
    linear = [module for module in backbone.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) > 20
    for module in linear:
        assert module.weight.std().item() == pytest.approx(module.in_features**-0.5, rel=0.1)


def test_int8_and_bf16_count_neither_as_difference_nor_for_the_share_of_peak():
    def result(milliseconds: float, difference: float) -> list[Measurement]:
        return [Measurement('a', 'A', macs=10**9, median_ms=milliseconds, difference=difference)]

    results = {
        Case('backbone', (64, 64), mode='onnx'): result(40.0, 1e-6),
        Case('backbone', (64, 64), mode='onnx-int8'): result(10.0, 0.02),
        Case('backbone', (64, 64), mode='openvino-bf16'): result(9.0, 0.01),
    }
    row = tables.mode_table(results, peak=100.0).iloc[0]
    assert row['share of peak'] == '50%'
    assert row['largest difference'] == '1e-06' and row['largest difference of INT8'] == '2.0%'
    assert row['largest difference of bf16'] == '1.0%'


def test_files_are_of_backbones_and_classifiers_in_float32_alone():
    backbone = build_part('efficientmod-xxs', 'backbone')
    assert latency.has_mode(backbone, Case('backbone', (64, 64), mode='reference-onnx'))
    assert latency.has_mode(backbone, Case('classifier', (64, 64), mode='onnx'))
    assert not latency.has_mode(backbone, Case('detector', (64, 64), mode='onnx'))
    assert not latency.has_mode(backbone, Case('backbone', (64, 64), precision='bf16', mode='onnx'))
    assert not latency.has_mode(backbone, Case('backbone', (64, 64), precision='bf16', mode='deploy-bf16'))
    assert latency.has_mode(backbone, Case('backbone', (64, 64), mode='deploy-bf16'))
    assert not latency.has_mode(backbone, Case('training', (64, 64), mode='onnx'))
    assert not latency.has_mode(build_part('resnet-18', 'backbone'), Case('backbone', (64, 64), mode='reference-onnx'))


@pytest.mark.export
def test_the_tool_notes_the_versions_of_what_took_part(tmp_path):
    from importlib import metadata

    load_tool('benchmark').main([*OPTIONS, str(tmp_path), '--modes', 'openvino', '--threads', '1'])
    content = json.loads((tmp_path / 'benchmark.json').read_text())
    machine = content['machine']
    assert machine['openvino'] == metadata.version('openvino') and machine['onnx'] == metadata.version('onnx')
    assert 'nncf' not in machine and machine['threads'] == 1
    (measured,) = content['measurements']
    assert measured['mode'] == 'openvino' and measured['median_ms'] > 0
    assert f'openvino {machine["openvino"]}' in (tmp_path / 'benchmark.md').read_text()


def test_other_modes_import_no_runtime(tmp_path):
    """In a process of its own, in which none of them can be imported."""
    code = f'import sys; sys.modules.update(dict.fromkeys({RUNTIMES})); sys.path.insert(0, "tools"); import benchmark; '
    code += f'benchmark.main({[*OPTIONS, str(tmp_path)]}); assert "mmefficientmod.measure.exported" not in sys.modules'
    done = subprocess.run([sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(('mode', 'missing'), [('openvino', 'openvino'), ('reference-onnx', 'onnxruntime')])
def test_a_missing_package_is_named_with_the_pip_command(mode, missing, tmp_path, monkeypatch):
    for name in RUNTIMES:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails, as without it
    with pytest.raises(SystemExit) as error:
        load_tool('benchmark').main([*OPTIONS, str(tmp_path), '--modes', 'eager', mode])
    message = error.value.code
    assert message.startswith(f'error: --modes {mode} needs onnx, onnxscript, {missing}: pip install ')
    assert '\n' not in message and not list(tmp_path.iterdir())


def test_modes_in_bfloat16_are_refused_where_the_cpu_lacks_it(monkeypatch):
    monkeypatch.setattr(formats, '_has_bf16', lambda kind: False)
    with pytest.raises(UserError, match=r'^--modes reference-openvino-bf16: this CPU has no instructions'):
        load_tool('benchmark').find_runtimes(['openvino', 'reference-openvino-bf16'], torch.device('cpu'))


def test_files_are_not_for_another_device():
    with pytest.raises(UserError, match=r'^--modes pt2 is for a CPU: leave out --device cuda$'):
        load_tool('benchmark').find_runtimes(['eager', 'pt2'], torch.device('cuda'))
