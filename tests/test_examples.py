"""The configs in examples/: each loads as a user writes it, and its model predicts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

from helpers import HEIGHT, ON_CONTINUATION, REPO, WIDTH, build_model, make_batch

EXAMPLES = sorted(path.name for path in (REPO / 'examples').glob('*.py'))


@pytest.mark.both_stacks
@pytest.mark.ops  # the batch is made by MMDetection's structures
@pytest.mark.libraries
@pytest.mark.parametrize('name', EXAMPLES)
def test_example_predicts(name, tmp_path):
    path = REPO / 'examples' / name
    if ON_CONTINUATION:  # changed as the example says
        stock = Path(import_module('mmseg').__file__).parent / '.mim/configs'
        changed = path.read_text().replace("'mmseg::", f"'{stock}/")
        path = tmp_path / name
        path.write_text(changed)
    config = Config.fromfile(path)
    registry = import_module(f'{config.default_scope}.registry')
    model = revert_sync_batchnorm(build_model(config)).eval()
    with DefaultScope.overwrite_default_scope(config.default_scope):
        batch = make_batch(registry.TRANSFORMS, config.train_pipeline[-1].type, with_mask=False)
    with torch.no_grad():
        predictions = model.test_step(batch)
    assert len(predictions) == 2
    for prediction in predictions:
        if config.default_scope == 'mmseg':
            assert prediction.pred_sem_seg.data.shape == (1, HEIGHT, WIDTH)
        else:
            assert prediction.pred_instances.bboxes.isfinite().all()
