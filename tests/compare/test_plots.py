"""The plots show every backbone, and each can be told from the others."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from helpers import ITERS, make_run
from mmefficientmod.compare.plots import RED, styles
from mmefficientmod.compare.report import make_figures
from mmefficientmod.compare.table import compare
from mmefficientmod.zoo.backbones import NAMES, task_backbones
from mmefficientmod.zoo.tasks import TASKS


def test_plots(report, work_dir):
    """The backbone that was measured is drawn, in its colour, at its figures."""
    color = np.round(255 * np.array(styles(['ResNet-18'])['ResNet-18']['color'][::-1]))
    for name in ('accuracy-parameters', 'accuracy-cost', 'accuracy-latency', 'training'):
        image = cv2.imread(str(report / f'{name}.png')).astype(int)
        assert (abs(image - color).max(2) <= 1).sum() > 50, f'nothing of ResNet-18 in {name}.png'
        assert '<svg' in (report / f'{name}.svg').read_text()
        assert f'({name}.png)' in (report / 'comparison.md').read_text()
    comparison = compare([work_dir])
    figures = {name: figure for name, (_, figure) in make_figures(comparison).items()}
    (axes,) = figures['accuracy-parameters'].axes
    (place,) = [points.get_offsets()[0] for points in axes.collections]
    row = comparison.table.loc['resnet-18']
    assert tuple(place) == (row['parameters (M)', 'measured'], row['mIoU', 'measured'])
    assert [text.get_text() for text in axes.texts] == ['ResNet-18']
    loss, validation = (axes.lines[0] for axes in figures['training'].axes)
    assert list(loss.get_xdata()) == list(range(1, ITERS + 1)) and min(loss.get_ydata()) > 0
    assert validation.get_ydata()[-1] == pytest.approx(row['mIoU', 'measured'], abs=0.01)


def test_one_epoch_is_drawn_by_epoch(tmp_path):
    config = Config.fromfile(task_backbones(TASKS['classification'])['deit-t'].config)
    config.train_cfg.max_epochs = 1
    text = '{"loss": 2, "step": 100}\n{"accuracy/top1": 3, "step": 1}\n'
    make_run(tmp_path / 'deit-t', '20260101_000000', config, text)
    assert make_figures(compare([tmp_path]))['training'][1].axes[1].get_xlabel() == 'epoch'


def test_no_two_backbones_look_the_same():
    looks = styles(['one', 'another', 'EfficientMod-of-mine'])
    assert {'one', 'another', 'EfficientMod-of-mine', *NAMES} == set(looks)
    for parts in (('color', 'marker'), ('color', 'linestyle', 'marker')):
        assert len({tuple(look[part] for part in parts) for look in looks.values() if look['color'] != RED}) == len(
            [name for name in looks if not name.startswith('EfficientMod')]
        )
    lines = [(look['color'], look['linestyle']) for name, look in looks.items() if not name.startswith('Eff')]
    assert len(set(lines)) == len(lines)
