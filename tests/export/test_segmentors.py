"""Segmentors of every kind that ``--list`` names, after some training: each pixel has the library's class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectors import train
from segmentors import CLASSES, SEGMENTORS

from mmefficientmod.export import check, library, supported
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
    by_library = LibraryModel(source, 'cpu')
    model = ExportedModel(description, lambda image, size: run(dict(image=image)))
    seen: set[int] = set()
    for seed, shape in enumerate(SHAPES):
        image = check._patches(1, *shape, seed)[0].transpose(1, 2, 0).astype(np.uint8)
        (found,), (expected,) = model.predict([image]), by_library.predict([image])
        seen |= set(expected.classes.flat)
        assert found.classes.shape == shape
        assert (found.classes != expected.classes).mean() <= check.CLASS_LIMIT
    assert len(seen) > 1


@pytest.mark.parametrize('name', SEGMENTORS)
def test_the_lead_over_another_class(name, trained_segmentor, monkeypatch):
    """What near-ties are judged with: 0 over the class itself, above 0 over each other one, in parts as well."""
    source = trained_segmentor(name)
    model = LibraryModel(source, 'cpu')
    image = check._patches(1, 70, 90, 0)[0].transpose(1, 2, 0).astype(np.uint8)
    (found,) = model.predict([image])
    leads = np.stack([model.lead(image, np.full_like(found.classes, label)) for label in range(CLASSES)])
    assert (leads.argmin(0) == found.classes).all()
    assert (leads.min(0) == 0).all() and np.sort(leads, 0)[1].max() > check.CLASS_TIE and 0.3 < leads.max() <= 1
    monkeypatch.setattr(library, 'PART_ELEMENTS', 128 * 171 * 2)
    parts = np.stack([model.lead(image, np.full_like(found.classes, label)) for label in range(CLASSES)])
    assert parts == pytest.approx(leads, abs=1e-6)


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
            (item,) = check.compare('segmentation', expected, found, sample)
            assert item['passed'], item


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
