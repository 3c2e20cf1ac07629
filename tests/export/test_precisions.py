"""Files in bfloat16 and with float16 weights, ONNX of an older opset, and runtimes that cannot use them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmefficientmod.export import formats
from mmefficientmod.export.check import _patches
from mmefficientmod.export.description import read_description
from mmefficientmod.export.formats import Session
from mmefficientmod.export.model import ExportedModel
from mmefficientmod.export.plan import ExportOptions, check_options
from mmefficientmod.utils import UserError

pytestmark = pytest.mark.export
SIZE = 96, 64
IMAGE = _patches(1, *SIZE, 3)


@pytest.fixture
def bf16_cpu():
    if formats.precision_problem('openvino-bf16'):
        pytest.skip('this CPU has no instructions for bfloat16')


@pytest.fixture
def plain_cpu(monkeypatch):
    """As on a CPU without instructions for bfloat16."""
    monkeypatch.setattr(formats, '_has_bf16', lambda kind: False)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.fixture
def in_both(bf16_cpu, exported):
    """A segmentor's folder for CPUs with and without bfloat16, made on one with it."""
    return exported('segmentor', formats=('openvino',), precisions=('bf16', 'fp32'), sizes=(SIZE,))[1]


def test_openvino_in_bf16_is_the_float32_file_run_otherwise(in_both):
    folder = in_both
    described = read_description(folder)
    assert list(described.files) == ['openvino-bf16', 'openvino']  # the preferred one first
    assert described.files['openvino'] == described.files['openvino-bf16'] == ['model.xml']
    assert {path.name for path in folder.iterdir()} == {'model.xml', 'model.bin', 'export.json'}
    change = next(item for item in described.checks if item['form'] == 'openvino-bf16')
    assert 0 <= change['figure'] < 0.1 and change['limit'] is None
    assert set(described.latency_ms) == {'eager', 'openvino-bf16', 'openvino'}
    session = Session(folder)
    assert (session.format, session.notes) == ('openvino-bf16', [])
    off = difference(session.run(IMAGE)['logits'], Session(folder, 'openvino').run(IMAGE)['logits'])
    assert 1e-4 < off < 0.1


def test_only_bf16_is_checked_in_float32_as_well(bf16_cpu, exported):
    _, folder = exported('segmentor', formats=('openvino',), precisions=('bf16',), part='backbone', sizes=((64, 96),))
    described = read_description(folder)
    assert described.files == {'openvino-bf16': ['model.xml']}
    (check,) = [item for item in described.checks if item['form'] == 'openvino']
    assert check['passed'] and check['figure'] < 1e-4


def test_a_cpu_without_bf16_takes_float32_where_the_folder_has_it(in_both, plain_cpu):
    folder = in_both
    model = ExportedModel.open(folder)
    (note,) = model.notes
    assert note == 'openvino-bf16 cannot be used: this CPU has no instructions for bfloat16, so openvino is used'
    with pytest.raises(UserError, match=r'^openvino-bf16 cannot be used: this CPU has no instructions for bfloat16$'):
        Session(folder, 'openvino-bf16')
    content = json.loads((folder / 'export.json').read_text())
    del content['files']['openvino']
    kept = (folder / 'export.json').read_text()
    try:
        (folder / 'export.json').write_text(json.dumps(content))
        with pytest.raises(UserError, match='export with --precision bf16 fp32 for a folder that runs in float32'):
            Session(folder)
    finally:
        (folder / 'export.json').write_text(kept)


@pytest.mark.parametrize(
    ('precisions', 'name', 'reason'),
    [
        (['bf16'], 'onnx', 'no onnx-bf16, because ONNX Runtime computes in bfloat16 on Arm CPUs only'),
        (
            ['bf16'],
            'openvino',
            'no openvino-bf16, because this CPU has no instructions for bfloat16; with fp32',
        ),
        (['fp16-weights'], 'pt2', 'no pt2-fp16-weights, because a compiled file holds its weights as'),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused_or_replaced(precisions, name, reason, plain_cpu, tmp_path):
    options = ExportOptions(tmp_path / 'out', formats=[name], precisions=precisions)
    with pytest.raises(UserError, match=reason) as caught:
        check_options(options)
    assert '\n' not in str(caught.value)
    replaced = ExportOptions(tmp_path / 'out', formats=[name], precisions=[*precisions, 'fp32'])
    check_options(replaced)
    assert replaced.files == [name] and list(replaced.left_out) == [f'{name}-{precisions[0]}']


@pytest.mark.parametrize('name', ['onnx', 'openvino'])
def test_float16_weights_halve_the_file_and_compute_in_float32(name, exported):
    precisions = 'fp32', 'fp16-weights'
    network, folder = exported('segmentor', part='backbone', formats=(name,), precisions=precisions, sizes=(SIZE,))
    half = Session(folder, f'{name}-fp16-weights')
    sizes = [path.with_suffix('.bin' if name == 'openvino' else '.onnx').stat().st_size for path in half.paths]
    weights = sum(value.numel() for value in network.backbone.state_dict().values() if value.dim() > 1)
    whole = folder / ('model.bin' if name == 'openvino' else 'model.onnx')
    assert whole.stat().st_size - sizes[0] > 2 * weights * 0.8
    off = difference(half.run(IMAGE)['level3'], Session(folder, name).run(IMAGE)['level3'])
    assert 1e-6 < off < 5e-3
    change = next(item for item in read_description(folder).checks if item['form'] == f'{name}-fp16-weights')
    assert change['figure'] < 0.01


@pytest.mark.slow
@pytest.mark.compiled
def test_a_compiled_file_in_bf16(bf16_cpu, exported):
    options = dict(formats=('pt2',), precisions=('fp32', 'bf16'), sizes=(SIZE,))
    _, folder = exported('segmentor', part='backbone', **options)
    assert read_description(folder).files == {'pt2': ['model.pt2'], 'pt2-bf16': ['model-bf16.pt2']}
    one, other = (Session(folder, name).run(IMAGE)['level3'] for name in ('pt2-bf16', 'pt2'))
    assert one.dtype == np.float32 and 1e-4 < difference(one, other) < 0.1


@pytest.mark.parametrize('opset', [18, pytest.param(21, marks=pytest.mark.slow)])
def test_onnx_of_another_opset(opset, exported):
    import onnx

    model, folder = exported('segmentor', part='backbone', opset=opset, sizes=(SIZE,))
    file = onnx.load(folder / 'model.onnx')
    assert [item.version for item in file.opset_import if item.domain == ''] == [opset]
    assert file.ir_version == formats.OPSETS[opset].ir
    assert read_description(folder).opset == opset
    with torch.no_grad():
        expected = model.backbone(model.data_preprocessor(dict(inputs=list(torch.from_numpy(IMAGE))))['inputs'])
    assert difference(Session(folder).run(IMAGE)['level0'], expected[0].numpy()) < 1e-5


def test_a_runtime_that_is_too_old_is_told_the_version_that_it_needs(exported, monkeypatch, tmp_path):
    import onnxruntime

    path = tmp_path / 'model.onnx'
    path.write_bytes(b'no model')
    needed = formats.needed_version('onnx', read_description(exported('segmentor', part='backbone')[1]))
    assert needed == '1.17'
    with pytest.raises(UserError, match='cannot be opened: export again'):
        formats.open_file(path, 'onnx', [], needed=needed)
    monkeypatch.setattr(onnxruntime, '__version__', '1.16.3')
    with pytest.raises(UserError, match=r'it needs onnxruntime>=1\.17, and 1\.16\.3 is installed'):
        formats.open_file(path, 'onnx', [], needed=needed)


def test_the_tool_takes_precisions_and_opsets_by_name(capsys):
    from helpers import load_tool

    parse = load_tool('export').parse_args
    args = parse(['a.py', 'b.pth', '--precision', 'bf16', 'fp32', '--opset', '17'])
    assert (args.precision, args.opset) == (['bf16', 'fp32'], 17)
    for wrong in (['--opset', '16'], ['--opset', '22'], ['--precision', 'fp8']):
        with pytest.raises(SystemExit) as caught:
            parse(['a.py', 'b.pth', *wrong])
        assert caught.value.code == 2 and 'invalid choice' in capsys.readouterr().err
