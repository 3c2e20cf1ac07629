"""The plots show every backbone, and each can be told from the others."""

from __future__ import annotations

from mmengine.config import Config

from helpers import make_run
from mmefficientmod.compare.plots import RED, styles
from mmefficientmod.compare.report import make_figures
from mmefficientmod.compare.table import compare
from mmefficientmod.zoo.backbones import NAMES, task_backbones
from mmefficientmod.zoo.tasks import TASKS


def test_plots(report):
    for name in ('accuracy-parameters', 'accuracy-cost', 'accuracy-latency', 'training'):
        assert (report / f'{name}.png').stat().st_size > 10000 and '<svg' in (report / f'{name}.svg').read_text()
        assert f'({name}.png)' in (report / 'comparison.md').read_text()


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
