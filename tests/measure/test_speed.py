"""The reference is the released sequence of operations, and the benchmark reports what it runs."""

from __future__ import annotations

import copy
import json
import platform

import pytest
import torch

from helpers import ARCHS, REPO, randomised, released_form
from interpreter import run_python
from mmefficientmod.measure.complexity import operations
from mmefficientmod.measure.latency import Subject, arrange, output_error, tolerance
from mmefficientmod.measure.records import IN_TORCH, Case, Measurement
from mmefficientmod.measure.reference import Reference
from mmefficientmod.measure.training import saved_bytes, training_step
from mmefficientmod.models import EfficientMod

OPTIONS = ['--backbones', 'efficientmod-xxs', '--sizes', '64', '--repeats', '2', '--warmup', '1']


@pytest.mark.parametrize('arch', ARCHS)
def test_reference_is_the_released_sequence(arch):
    released = randomised(released_form().build(arch)).eval()
    model = EfficientMod(arch).eval()
    model.load_state_dict(released.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        levels = Reference(model)(images)
        assert output_error(levels, released(images)) <= 1e-6
        assert all(level.is_contiguous() for level in levels)


def test_reference_keeps_as_much_for_the_backward_pass_as_the_released_one():
    images = torch.rand(1, 3, 64, 64)
    released, reference = released_form().build('xxs').train(), Reference(EfficientMod('xxs'))
    assert saved_bytes(reference, images) == saved_bytes(released, images)


def test_reference_trains_the_same_parameters():
    model, images = randomised(EfficientMod('xxs')).train(), torch.rand(2, 3, 64, 64)
    gradients = []
    for form in (Reference(model), model):
        model.zero_grad()
        training_step(form, images)()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-9, name


def test_modes_have_equal_outputs():
    model, images = randomised(EfficientMod('xxs')).eval(), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        deploy = arrange(copy.deepcopy(model), Case('backbone', (64, 64), mode='deploy'))
        for form in (Reference(model), deploy):
            assert output_error(form(images), expected) <= 1e-5
        expected[0].mul_(1.1)
        assert output_error(deploy(images), expected) == pytest.approx(0.1 / 1.1, rel=1e-3)


def test_an_output_that_is_not_finite_is_never_right():
    """Wherever it stands, and in INT8, where any finite output is."""
    ones, bad = torch.ones(1, 2), torch.tensor([[1.0, float('nan')]])
    for found in ([ones, bad], [bad, ones], [ones, ones / 0]):
        assert output_error(found, [ones, ones]) == float('inf')
    case = Case('backbone', (64, 64), mode='onnx-int8')
    with pytest.raises(ArithmeticError, match='the output is off by inf'):
        Subject(case, Measurement('a', 'A')).check([ones, bad], [ones, ones], tolerance(case, torch.device('cpu')))


def test_operations_count_attention():
    class Product(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    assert sum(operations(Product(), torch.rand(2, 3, 50, 8)).values()) == 2 * 2 * (2 * 3 * 50 * 50 * 8)


def run_tool(*args):
    return run_python(REPO / 'tools/benchmark.py', *args, cwd=REPO)


@pytest.mark.slow
@pytest.mark.compiled
def test_tool(tmp_path):
    result, inference = run_tool(*OPTIONS, '--parts', 'backbone', '--modes', 'all', '--out', tmp_path), {}
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'share of peak' in result.stdout and 'speed-up over the reference' in result.stdout
    for entry in json.loads((tmp_path / 'benchmark.json').read_text())['measurements']:
        inference[entry['mode']] = entry
    assert tuple(inference) == IN_TORCH
    for mode, entry in inference.items():
        reference = inference['reference-compiled' if 'compiled' in mode else 'reference']
        assert entry['speed_up_over_reference'] == pytest.approx(reference['median_ms'] / entry['median_ms'])
        assert entry['difference'] <= 1e-5
    assert 'vector_extensions AVX' in (tmp_path / 'benchmark.md').read_text() or platform.machine() != 'x86_64'


def test_training(tmp_path):
    result = run_tool(*OPTIONS, '--parts', 'training', '--modes', 'reference', 'eager', 'deploy', '--out', tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    reference, eager = json.loads((tmp_path / 'benchmark.json').read_text())['measurements']
    assert eager['speed_up_over_reference'] == pytest.approx(reference['median_ms'] / eager['median_ms'])
    assert max(reference['difference'], eager['difference']) <= 1e-3
    assert eager['kept_mb'] / reference['kept_mb'] < 0.6
    assert 'eager keeps (MiB)' in (tmp_path / 'benchmark.md').read_text()


def test_tool_refuses_an_unknown_backbone(tmp_path):
    result = run_tool('--backbones', 'efficientmod-xl', '--out', tmp_path)
    assert result.returncode == 1
    # the last line: an old torch may warn of itself before
    assert result.stderr.splitlines()[-1].startswith("error: there is no backbone 'efficientmod-xl': did you mean")
    assert not list(tmp_path.iterdir())
