"""model-index.yml: every EfficientMod config is in it, with the published figures and the counted parameters."""

from __future__ import annotations

import pandas as pd
import pytest
from mmengine.fileio import load
from modelindex.load_model_index import load as load_index

from helpers import REPO
from mmefficientmod.zoo.published import published

NAMES = {f'efficientmod-{arch.lower()}': f'EfficientMod-{arch}' for arch in ('xxs', 'xs', 's', 's-Conv')}
MODELS = {
    model['Name']: model for part in load(REPO / 'model-index.yml')['Import'] for model in load(REPO / part)['Models']
}
COUNTED = pd.read_csv(REPO / 'docs/results/complexity.csv', index_col='backbone')


def test_every_config_of_ours_is_in_the_index():
    tasks = ('classification', 'detection', 'segmentation')
    configs = {path for task in tasks for path in REPO.glob(f'configs/{task}/*efficientmod*')}
    assert {REPO / model['Config'] for model in MODELS.values()} == configs
    assert all(name == (REPO / model['Config']).stem for name, model in MODELS.items())


def test_mim_reads_the_index():
    index = load_index(str(REPO / 'model-index.yml'))
    assert {model.name for model in index.models} == set(MODELS)
    assert {model.in_collection for model in index.models} == {collection.name for collection in index.collections}


@pytest.mark.parametrize('name', MODELS)
def test_figures_are_the_published_and_the_counted_ones(name):
    model = MODELS[name]
    backbone = next(NAMES[part] for part in name.split('_') if part in NAMES)
    found = {key: value for result in model.get('Results', ()) for key, value in result['Metrics'].items()}
    known = published('downstream').get(backbone)
    if 'coco' in name:
        assert model['Metadata']['Parameters'] == COUNTED.coco_params[backbone]
        assert found == ({'box AP': known['ap_box'], 'mask AP': known['ap_mask']} if known else {})
    elif 'ade20k' in name:
        assert model['Metadata']['Parameters'] == COUNTED.ade_params[backbone]
        assert found == ({'mIoU': known['miou']} if known else {})
    else:
        assert round(model['Metadata']['Parameters'] / 1e6, 1) == published('imagenet')[backbone]['params']
        assert found == {'Top 1 Accuracy': published('distillation')[backbone]['distill' in name]}
