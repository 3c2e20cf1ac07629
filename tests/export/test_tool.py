"""tools/export.py: one command from a checkpoint to a checked folder, and one line for what cannot work."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from helpers import REPO, load_tool, refused
from interpreter import run_python
from mmefficientmod.export.check import _patches
from mmefficientmod.export.description import read_description
from mmefficientmod.export.formats import Session
from mmefficientmod.export.images import find_images
from mmefficientmod.utils import UserError

MAIN = load_tool('export').main


def export(*arguments: object) -> None:
    """Runs the tool in this process with these arguments."""
    MAIN([str(argument) for argument in arguments])


@pytest.mark.export
def test_from_a_checkpoint_to_float_and_int8_files(trained, tmp_path, capsys):
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for seed in range(3):
        picture = _patches(1, 70, 90, seed)[0].transpose(1, 2, 0)
        cv2.imwrite(str(pictures / f'{seed}.png'), picture.astype(np.uint8))
    out = tmp_path / 'out'
    config, checkpoint = trained('segmentor')
    export(config, checkpoint, out, '--size', 64, 96, '--check', pictures / '0.png', '--int8', pictures)
    described = read_description(out)
    assert described.files == {'onnx': ['model.onnx'], 'onnx-int8': ['model-int8.onnx']}
    assert set(described.latency_ms) == {'eager', 'onnx', 'onnx-int8'}
    assert described.batch == 1
    assert described.source['checkpoint'] == 'segmentor.pth'
    int8 = next(item for item in described.checks if item['form'] == 'onnx-int8')
    assert 0 < int8['figure'] < 0.3
    assert (out / 'model-int8.onnx').stat().st_size < (out / 'model.onnx').stat().st_size
    image = _patches(1, 64, 96, 5)
    assert Session(out, 'onnx-int8').run(image)['classes'].shape == (1, 64, 96)
    assert 'times as fast as float32 on this CPU' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.ops
@pytest.mark.export
def test_a_detector_in_int8_keeps_its_post_processing_in_float(trained, tmp_path):
    import onnx

    picture = tmp_path / 'picture.png'
    cv2.imwrite(str(picture), _patches(1, 96, 128, 0)[0].transpose(1, 2, 0).astype(np.uint8))
    out = tmp_path / 'out'
    arguments = [*trained('detector'), out, '--size', 96, 128, '--check', picture, '--int8', picture]
    export(*arguments, '--format', 'openvino')
    described = read_description(out)
    assert described.files == {'openvino': ['model.xml'], 'openvino-int8': ['model-int8.xml']}
    assert not list(out.glob('*.onnx')), 'what the files are made from is not left'
    change = next(item for item in described.checks if item['form'] == 'openvino-int8')
    assert 'detections (score >= 0.3) that the other lacks' in change['name'] and 0 <= change['figure'] <= 1

    shutil.rmtree(out)
    export(*arguments)
    nodes = onnx.load(str(out / 'model-int8.onnx')).graph.node
    quantized = {name for node in nodes if node.op_type == 'DequantizeLinear' for name in node.output}
    products = [node for node in nodes if node.op_type in ('Conv', 'Gemm', 'MatMul') and quantized & set(node.input)]
    modules = {node.name.split('.')[0].split('/')[0] for node in products}
    assert {'backbone', 'neck', 'rpn_head', 'roi_head'} <= modules
    outside = [node for node in nodes if not node.name.startswith(tuple(modules)) and 'Linear' not in node.op_type]
    assert any(node.op_type == 'NonMaxSuppression' for node in outside)
    assert not [node.name for node in outside if quantized & set(node.input)]


@pytest.mark.export
def test_a_full_disk_leaves_nothing(trained, tmp_path):
    options = ('--part', 'backbone', '--size', '64', '64')
    done = run_python(REPO / 'tools/export.py', *trained('segmentor'), tmp_path / 'out', *options, file_size=10_000)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and 'writing onnx' in done.stdout and not list(tmp_path.iterdir())
    assert last.startswith('error: ') and 'File too large' in last and 'Traceback' not in done.stderr


@pytest.mark.export
def test_ctrl_c_leaves_nothing_and_is_one_line(trained, tmp_path):
    tool = [sys.executable, str(REPO / 'tools/export.py'), *map(str, trained('segmentor')), str(tmp_path / 'out')]
    with subprocess.Popen(
        [*tool, '--part', 'backbone', '--size', '64', '64'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    ) as process:
        assert any('writing onnx' in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == 'error: stopped; nothing was left'
    assert 'Traceback' not in said and not list(tmp_path.iterdir())


def test_formats_are_listed(capsys):
    with pytest.raises(SystemExit) as caught:
        export('--formats')
    assert not caught.value.code
    listed = capsys.readouterr().out
    assert all(word in listed for word in ('model.onnx', 'model.xml', 'model.pt2', '99.99 %', 'IoU >= 0.99'))


def test_models_are_listed(capsys):
    with pytest.raises(SystemExit) as caught:
        export('--list')
    assert not caught.value.code
    listed = capsys.readouterr().out
    assert all(word in listed for word in ('RTMDet', 'DINO', 'Mask2FormerHead', 'ONNX Runtime, OpenVINO', 'NMS'))


def test_sizes_below_32_are_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        export('config.py', 'checkpoint.pth', '--size', 31, 64)
    assert caught.value.code == 2
    assert "'31' is not a whole number from 32 to 16384" in capsys.readouterr().err


@pytest.mark.export
def test_what_does_not_fit_the_model_is_refused(trained, tmp_path):
    config, checkpoint = trained('segmentor')
    out = tmp_path / 'out'
    assert 'the pt2 format is compiled for one size' in refused(MAIN, config, checkpoint, out, '--format', 'pt2')
    assert '--batch is for fixed sizes' in refused(MAIN, config, checkpoint, out, '--batch', 2)
    assert 'does not exist' in refused(MAIN, config, tmp_path / 'none.pth', out)
    assert 'does not exist' in refused(MAIN, config, checkpoint, out, '--check', tmp_path / 'none')
    whole = torch.load(checkpoint)['state_dict']
    backbone = {name[9:]: value for name, value in whole.items() if name.startswith('backbone.')}
    torch.save(dict(state_dict=backbone), tmp_path / 'backbone.pth')
    assert 'holds a backbone only' in refused(MAIN, config, tmp_path / 'backbone.pth', out)
    whole.pop('decode_head.conv_seg.bias')
    torch.save(dict(state_dict=whole), tmp_path / 'cut.pth')
    assert '1 missing: decode_head.conv_seg.bias' in refused(MAIN, config, tmp_path / 'cut.pth', out)
    xxs = REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'  # another arch
    assert 'does not fit' in refused(MAIN, xxs, checkpoint, out)
    bounded = tmp_path / 'bounded.py'
    bounded.write_text(f'_base_ = {str(config)!r}\nmodel = dict(backbone=dict(attn_max_keys=16))\n')
    assert 'attn_max_keys has no form for free sizes' in refused(MAIN, bounded, checkpoint, out)
    other = tmp_path / 'other.py'
    other.write_text("default_scope = 'mmpose'\nmodel = dict(type='TopdownPoseEstimator')\n")
    assert 'belongs to mmpose' in refused(MAIN, other, checkpoint, out)
    assert not out.exists()
    out.mkdir()
    assert 'exists' in refused(MAIN, config, checkpoint, out)


@pytest.mark.export
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('decode_head=dict(feature_strides=[8, 4, 16, 32])', 'its model cannot be built (AssertionError'),
        ('decode_head=dict(type="NoHead")', 'its model cannot be built (KeyError'),
        ('backbone=dict(in_channels=1)', 'its backbone has in_channels=1'),
        ('data_preprocessor=dict(mean=[128.0], std=[64.0])', 'the mean in data_preprocessor has the length 1'),
        ('backbone=None', 'its model has no backbone of its own'),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused(change, message, trained, tmp_path):
    config, checkpoint = trained('segmentor')
    changed = tmp_path / 'changed.py'
    changed.write_text(f'_base_ = {str(config)!r}\nmodel = dict({change})\n')
    assert message in refused(MAIN, changed, checkpoint, tmp_path / 'out', '--part', 'backbone')


@pytest.mark.export
def test_a_config_without_a_model_is_refused(trained, tmp_path):
    config = REPO / 'configs/_base_/default_runtime_seg.py'
    assert 'describes no model' in refused(MAIN, config, trained('segmentor')[1], tmp_path / 'out')


@pytest.mark.export
def test_a_missing_codebase_is_named_with_the_command(trained, tmp_path, monkeypatch):
    config, checkpoint = trained('segmentor')
    monkeypatch.setitem(sys.modules, 'mmseg', None)  # it is not found then
    message = refused(MAIN, config, checkpoint, tmp_path / 'out')
    assert 'mmseg is not installed: "mim install' in message and 'mmsegmentation' in message


@pytest.mark.ops
@pytest.mark.export
def test_what_a_detector_cannot_have_is_refused(trained, tmp_path):
    config, checkpoint = trained('detector')
    out = tmp_path / 'out'
    assert 'at fixed sizes' in refused(MAIN, config, checkpoint, out, '--dynamic')
    assert 'multiples of 32' in refused(MAIN, config, checkpoint, out, '--size', 100, 128)
    other = tmp_path / 'other.py'
    nms = "nms=dict(type='nms_match', iou_threshold=0.5)"
    other.write_text(f'_base_ = {str(config)!r}\nmodel = dict(test_cfg=dict(rcnn=dict({nms})))\n')
    assert 'its type must be nms' in refused(MAIN, other, checkpoint, out)
    assert not out.exists()


@pytest.fixture
def pictures(tmp_path):
    """A folder with two pictures, one of them below, among what is none."""
    folder = tmp_path / 'pictures'
    for name in ('a.png', 'below/b.JPG', '.hidden/c.png'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), _patches(1, 70, 90, 0)[0].transpose(1, 2, 0).astype(np.uint8))
    (folder / 'README.txt').write_text('Pictures to calibrate with.')
    return folder


def test_folders_are_searched_for_images(pictures):
    found = [pictures / name for name in ('a.png', 'below/b.JPG')]
    assert find_images([str(pictures), str(found[0])], '--int8') == [*found, found[0]]
    with pytest.raises(UserError, match=r'--int8 .*none does not exist'):
        find_images([str(pictures / '.hidden/none')], '--int8')
    (pictures / 'empty').mkdir()
    with pytest.raises(UserError, match=r'--check .*empty: no image is there; known are'):
        find_images([str(pictures / 'empty')], '--check')


@pytest.mark.export
@pytest.mark.parametrize('option', ['--check', '--int8'])
@pytest.mark.parametrize('damage', ['cut', 'text'])
def test_a_damaged_picture_is_refused_before_anything_is_written(damage, option, pictures, trained, tmp_path, capsys):
    path = pictures / 'below/b.JPG'
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3] if damage == 'cut' else b'no picture')
    message = refused(MAIN, *trained('segmentor'), tmp_path / 'out', option, pictures)
    assert 'b.JPG is ' in message and message.endswith(f': leave it out of {option}')
    assert not capsys.readouterr().out


@pytest.mark.export
def test_a_missing_nncf_is_named_before_anything_is_written(pictures, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'nncf', None)
    message = refused(MAIN, *trained('segmentor'), tmp_path / 'out', '--int8', pictures)
    assert '--int8 needs nncf: pip install nncf' in message
    assert not capsys.readouterr().out


@pytest.mark.export
def test_a_missing_package_is_named_with_the_pip_command(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)  # an import of it fails, as without it
    config, checkpoint = trained('segmentor')
    message = refused(MAIN, config, checkpoint, tmp_path / 'out', '--format', 'openvino')
    assert 'pip install openvino' in message
    assert 'mmefficientmod[export]' in message
