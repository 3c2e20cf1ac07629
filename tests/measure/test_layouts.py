"""Both layouts of the depth-wise convolution are timed, and `make gpu` says what the rule should say."""

from __future__ import annotations

import json
import time

import pytest
import torch

import gpu
from mmefficientmod.measure.layouts import LayoutTimes, time_layouts


def test_every_stage_precision_and_batch_is_timed(device):
    found = list(time_layouts(device, ['fp32', 'bf16'], [1, 2], size=(64, 96), repeats=2, warmup=1))
    assert [times.shape for times in found[:4]] == [(1, 32, 16, 24), (1, 32, 16, 24), (2, 32, 16, 24), (2, 32, 16, 24)]
    assert len(found) == 4 * 2 * 2 * 2 and {times.stage for times in found} == {1, 2, 3, 4}
    assert all(times.nchw_ms > 0 and times.channels_last_ms > 0 for times in found)
    rules = {times.precision: times.rule for times in found}
    assert rules == dict(fp32='NCHW' if device.type == 'cuda' else 'channels-last', bf16='channels-last')


def test_the_advice_names_a_rule_that_is_wrong_on_this_device():
    def line(nchw: float, channels_last: float) -> str:
        shape = 1, 32, 128, 128
        (line,) = gpu.advise([LayoutTimes(1, shape, 'fp32', 'forward', nchw, channels_last, 'NCHW')])
        return line

    assert line(1.0, 1.5) == 'fp32, forward: NCHW is 1.50x faster, as the rule says'
    assert line(3.0, 1.5).startswith('fp32, forward: channels-last is 2.00x faster, the rule says NCHW: change ')


def test_a_machine_without_a_gpu_is_told_in_one_line():
    if torch.cuda.is_available():
        pytest.skip('this machine has a GPU')
    with pytest.raises(SystemExit, match=r'^error: make gpu needs a GPU that torch can use, and there is none$'):
        gpu.main([])


@pytest.mark.slow
def test_what_is_written(tmp_path, capsys):
    """On a CPU, at small sizes: the files, and that what does not fit into the time is named."""
    settings = [
        ('backbone', 64, 'fp32', ('reference', 'eager'), ['efficientmod-xxs']),
        ('training', 64, 'fp32', ('reference', 'eager'), ['efficientmod-xxs']),
    ]
    times = [LayoutTimes(1, (1, 32, 16, 16), 'fp32', 'forward', 1.0, 2.0, 'NCHW')]
    gpu.measure_all(torch.device('cpu'), tmp_path, time.monotonic() + 3600, '3 passed', times, settings, 2)
    text = (tmp_path / 'gpu.md').read_text()
    assert 'Tests: 3 passed' in text and 'NCHW is 2.00x faster' in text and 'backbone, 64 x 64, batch 32, fp32' in text
    content = json.loads((tmp_path / 'gpu.json').read_text())
    assert len(content['measurements']) == 8 and content['layouts'][0]['faster'] == 'NCHW' and not content['left_out']
    assert all(found['error'] is None for found in content['measurements'])
    gpu.measure_all(torch.device('cpu'), tmp_path, time.monotonic(), '3 passed', times, settings, 2)
    assert 'left out for want of time: ' in capsys.readouterr().out
