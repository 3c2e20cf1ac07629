"""tools/export.py: one command from a checkpoint to a checked folder, and one line for what cannot work."""

from __future__ import annotations

import resource
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from helpers import REPO, load_tool
from mmefficientmod.export.check import _pictures
from mmefficientmod.export.description import read_description
from mmefficientmod.export.formats import Session


@pytest.fixture
def export(monkeypatch):
    """Runs the tool in this process with these arguments."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, arguments)])
        load_tool('export').main()

    return run


def refused(export, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        export(*arguments)
    message = str(caught.value)
    assert message.startswith('error: ')
    assert '\n' not in message
    return message


@pytest.mark.export
def test_from_a_checkpoint_to_float_and_int8_files(trained, export, tmp_path, capsys):
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for seed in range(3):
        picture = _pictures(1, 70, 90, seed)[0].transpose(1, 2, 0)
        cv2.imwrite(str(pictures / f'{seed}.png'), picture.astype(np.uint8))
    out = tmp_path / 'out'
    config, checkpoint = trained('segmentor')
    export(config, checkpoint, out, '--size', 64, 96, '--check', pictures / '0.png', '--int8', pictures)
    described = read_description(out)
    assert described.files == {'onnx': 'model.onnx', 'onnx-int8': 'model-int8.onnx'}
    assert set(described.latency_ms) == {'eager', 'onnx', 'onnx-int8'}
    assert described.size['batch'] == 1
    assert described.source['checkpoint'] == 'segmentor.pth'
    int8 = next(item for item in described.checks if item['form'] == 'onnx-int8')
    assert 0 < int8['figure'] < 0.3
    assert (out / 'model-int8.onnx').stat().st_size < (out / 'model.onnx').stat().st_size
    image = _pictures(1, 64, 96, 5)
    assert Session(out, 'onnx-int8').run(image)['classes'].shape == (1, 64, 96)
    assert 'times as fast as float32 on this CPU' in capsys.readouterr().out


@pytest.mark.export
def test_a_full_disk_leaves_nothing(trained, tmp_path):
    """Writing fails by a limit on the size of files, which is as real as a full disk and needs no mount."""
    tool = [sys.executable, str(REPO / 'tools/export.py'), *map(str, trained('segmentor')), str(tmp_path / 'out')]
    done = subprocess.run(
        [*tool, '--part', 'backbone', '--size', '64', '64'],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and 'writing onnx' in done.stdout and not list(tmp_path.iterdir())
    assert last.startswith('error: ') and 'File too large' in last and 'Traceback' not in done.stderr


def test_formats_are_listed(export, capsys):
    with pytest.raises(SystemExit) as caught:
        export('--formats')
    assert not caught.value.code
    listed = capsys.readouterr().out
    assert all(word in listed for word in ('model.onnx', 'model.xml', 'model.pt2', '99.99 %', 'IoU >= 0.99'))


def test_sizes_below_32_are_refused(export, capsys):
    with pytest.raises(SystemExit) as caught:
        export('config.py', 'checkpoint.pth', '--size', 31, 64)
    assert caught.value.code == 2
    assert '32 pixels or more' in capsys.readouterr().err


@pytest.mark.export
def test_what_does_not_fit_the_model_is_refused(trained, export, tmp_path):
    config, checkpoint = trained('segmentor')
    out = tmp_path / 'out'
    assert 'the torch format is compiled for one size' in refused(export, config, checkpoint, out, '--format', 'torch')
    assert '--batch-size is for fixed sizes' in refused(export, config, checkpoint, out, '--batch-size', 2)
    assert 'does not exist' in refused(export, config, tmp_path / 'none.pth', out)
    assert 'there is no picture' in refused(export, config, checkpoint, out, '--check', tmp_path / 'none')
    whole = torch.load(checkpoint)['state_dict']
    backbone = {name[9:]: value for name, value in whole.items() if name.startswith('backbone.')}
    torch.save(dict(state_dict=backbone), tmp_path / 'backbone.pth')
    assert 'holds a backbone alone' in refused(export, config, tmp_path / 'backbone.pth', out)
    whole.pop('decode_head.conv_seg.bias')
    torch.save(dict(state_dict=whole), tmp_path / 'cut.pth')
    assert '1 missing: decode_head.conv_seg.bias' in refused(export, config, tmp_path / 'cut.pth', out)
    xxs = REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'  # another arch
    assert 'does not fit' in refused(export, xxs, checkpoint, out)
    bounded = tmp_path / 'bounded.py'
    bounded.write_text(f'_base_ = {str(config)!r}\nmodel = dict(backbone=dict(attn_max_keys=16))\n')
    assert 'attn_max_keys has no form for free sizes' in refused(export, bounded, checkpoint, out)
    other = tmp_path / 'other.py'
    other.write_text("default_scope = 'mmpose'\nmodel = dict(type='TopdownPoseEstimator')\n")
    assert 'belongs to mmpose' in refused(export, other, checkpoint, out)
    assert not out.exists()
    out.mkdir()
    assert 'exists' in refused(export, config, checkpoint, out)


@pytest.mark.ops
@pytest.mark.export
def test_what_a_detector_cannot_have_is_refused(trained, export, tmp_path):
    config, checkpoint = trained('detector')
    out = tmp_path / 'out'
    assert 'at a fixed size' in refused(export, config, checkpoint, out, '--dynamic')
    assert 'multiples of 32' in refused(export, config, checkpoint, out, '--size', 100, 128)
    assert '--int8 is for backbones' in refused(export, config, checkpoint, out, '--int8', REPO / 'docs/images')
    soft = tmp_path / 'soft.py'
    nms = "nms=dict(type='soft_nms', iou_threshold=0.5)"
    soft.write_text(f'_base_ = {str(config)!r}\nmodel = dict(test_cfg=dict(rcnn=dict({nms})))\n')
    assert 'has to be plain nms' in refused(export, soft, checkpoint, out)
    assert not out.exists()


@pytest.mark.export
def test_a_missing_package_is_named_with_the_pip_command(trained, export, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)  # an import of it fails, as without it
    config, checkpoint = trained('segmentor')
    message = refused(export, config, checkpoint, tmp_path / 'out', '--format', 'openvino')
    assert 'pip install openvino' in message
    assert 'mmefficientmod[export]' in message
