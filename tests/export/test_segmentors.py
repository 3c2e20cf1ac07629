"""Segmentors of every kind that ``--list`` names, after some training: each pixel has the library's class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectors import train
from segmentors import SEGMENTORS

from mmefficientmod.export import check, supported
from mmefficientmod.export.folder import as_runner, export
from mmefficientmod.export.formats import Session
from mmefficientmod.export.library import LibraryModel
from mmefficientmod.export.model import ExportedModel
from mmefficientmod.export.plan import ExportOptions, make_form, plan
from mmefficientmod.export.source import Source, read_source
from mmefficientmod.utils import UserError
from pages import table

pytestmark = [pytest.mark.ops, pytest.mark.export]
SHAPES = (96, 128), (128, 96), (50, 200), (64, 70), (240, 320)  # landscape, portrait, panorama, small, large


@pytest.fixture(scope='session')
def trained_segmentor(scenes, tmp_path_factory):
    """name -> its config and checkpoint, read."""
    made = {}

    def make(name: str) -> Source:
        if name not in made:
            made[name] = train(SEGMENTORS[name], scenes, tmp_path_factory.mktemp('trained'))
        return read_source(*map(str, made[name]))

    return make


@pytest.mark.parametrize('name', SEGMENTORS)
def test_predictions(name, trained_segmentor):
    source = trained_segmentor(name)
    description = plan(source, ExportOptions(Path('out')))
    run = as_runner(make_form(source, 'segmentation', None))
    library = LibraryModel(source, 'cpu')
    model = ExportedModel(description, lambda image, size: run(dict(image=image)))
    seen: set[int] = set()
    for seed, shape in enumerate(SHAPES):
        image = check._patches(1, *shape, seed)[0].transpose(1, 2, 0).astype(np.uint8)
        (found,), (expected,) = model.predict([image]), library.predict([image])
        seen |= set(expected.classes.flat)
        assert found.classes.shape == shape
        assert (found.classes != expected.classes).mean() <= check.CLASS_LIMIT
    assert len(seen) > 1


@pytest.mark.slow
@pytest.mark.parametrize('name', SEGMENTORS)
@pytest.mark.parametrize('sizes', [(), ((96, 128),)])
def test_files(name, sizes, trained_segmentor, tmp_path):
    """Each file is checked as it is written, also end to end; the inputs here are others."""
    source = trained_segmentor(name)
    out = tmp_path / 'out'
    description = export(source, ExportOptions(out, ('onnx', 'openvino'), sizes=sizes, log=lambda line: None))
    for form in ('onnx', 'openvino'):
        checks = [item for item in description.checks if item['form'] == form]
        assert all(item['passed'] for item in checks)
        assert [item for item in checks if item['name'].startswith('predictions')]
        session = Session(out, form)
        for size in [(1, 96, 128)] if sizes else [(1, 64, 224), (2, 160, 96)]:
            sample = check.Sample('new', check._patches(*size, 99), size[1:])
            found = session.run(sample.image)
            expected = check.library_result(source.model, 'segmentation', sample)
            assert all(item['passed'] for item in check.compare('segmentation', expected, found, sample))


def test_every_segmentor_of_the_list_is_trained_here_and_stands_in_the_docs():
    listed = [model for model in supported.MODELS if model.library == 'MMSegmentation']
    assert [model.name for model in listed] == list(SEGMENTORS)
    rows = dict(table('docs/deploy.md', 'segmentor', 'head'))
    assert rows == {model.name: ', '.join(model.heads) for model in listed}


def test_mask2former_in_windows_is_rejected(trained_segmentor):
    source = trained_segmentor('Mask2Former')
    source.model.test_cfg.update(mode='slide', crop_size=(64, 64), stride=(32, 32))
    with pytest.raises(UserError, match='whole'):
        make_form(source, 'segmentation', None)
