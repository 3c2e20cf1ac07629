"""The plain form is the released sequence of operations, and the benchmark of the forms reports what it runs."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ARCHS, REPO, randomised, released_form

from mmefficientmod.measure import speed
from mmefficientmod.measure.complexity import operations
from mmefficientmod.measure.reference import FORMS, PlainForm, inference_forms, output_error, saved_bytes
from mmefficientmod.models import EfficientMod


@pytest.mark.parametrize('arch', ARCHS)
def test_plain_form_is_the_released_one(arch):
    released = randomised(released_form().build(arch)).eval()
    model = EfficientMod(arch).eval()
    model.load_state_dict(released.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        levels = PlainForm(model)(images)
        assert output_error(levels, released(images)) <= 1e-6
        assert all(level.is_contiguous() for level in levels)


def test_plain_form_keeps_as_much_for_the_backward_pass_as_the_released_one():
    images = torch.rand(1, 3, 64, 64)
    released, plain = released_form().build('xxs').train(), PlainForm(EfficientMod('xxs'))
    assert saved_bytes(plain, images) == saved_bytes(released, images)


def test_plain_form_trains_the_same_parameters():
    model, images = randomised(EfficientMod('xxs')).train(), torch.rand(2, 3, 64, 64)
    gradients = []
    for form in (PlainForm(model), model):
        model.zero_grad()
        speed.training_step(form, images)()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-9, name


def test_forms_have_equal_outputs():
    model, images = randomised(EfficientMod('xxs')), torch.rand(1, 3, 64, 64)
    forms = inference_forms(model)
    assert tuple(forms) == FORMS
    with torch.inference_mode():
        expected = forms['plain'](images)
        for form in ('training form', 'deploy'):
            assert output_error(forms[form](images), expected) <= 1e-5
        expected[0].mul_(1.1)
        assert output_error(forms['deploy'](images), expected) == pytest.approx(0.1 / 1.1, rel=1e-3)


def test_operations_count_attention():
    class Product(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    assert sum(operations(Product(), torch.rand(2, 3, 50, 8)).values()) == 2 * 2 * (2 * 3 * 50 * 50 * 8)


def test_a_form_with_another_output_is_an_error(monkeypatch):
    monkeypatch.setattr(speed, 'inference_forms', lambda model: {'deploy': lambda x: [2 * y for y in model.eval()(x)]})
    (result,) = speed.measure_inference(['efficientmod-xxs'], (64, 64), repeats=2)
    assert result.median_ms is None
    assert 'off by 1.0e+00' in result.error


def run_tool(*args):
    command = [sys.executable, str(REPO / 'tools/benchmark_forms.py'), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO)


def test_tool(tmp_path):
    result = run_tool(
        '--rows', 'efficientmod-xxs', '--sizes', 64, '--train-size', 64, '--repeats', 2, '--out', tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert 'share of peak' in result.stdout and 'times faster' in result.stdout
    content = json.loads((tmp_path / 'bench.json').read_text())
    assert [entry['form'] for entry in content['inference']] == list(FORMS)
    by_form = {entry['form']: entry for entry in content['inference']}
    for entry in by_form.values():
        assert entry['ratio'] == pytest.approx(by_form['plain']['median_ms'] / entry['median_ms'])
        assert entry['difference'] <= (2e-2 if entry['form'].startswith('bf16') else 1e-5)
    (training,) = content['training']
    assert training['saved_ratio'] == pytest.approx(training['saved_mib'] / training['plain_mib'])
    assert training['saved_ratio'] < 0.6


def test_tool_refuses_an_unknown_row(tmp_path):
    result = run_tool('--rows', 'efficientmod-xl', '--out', tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: there is no backbone 'efficientmod-xl': did you mean")
    assert not list(tmp_path.iterdir())
