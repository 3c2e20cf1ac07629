"""Detectors of every kind that ``--list`` names, after some training: each detection is the library's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectors import MODELS, train
from mmdet.models.dense_heads import RTMDetSepBNHead
from mmdet.models.detectors import RTMDet
from mmengine.config import Config

from mmefficientmod.codebases.building import build_quietly
from mmefficientmod.export import check, supported, suppression
from mmefficientmod.export.folder import as_runner, export
from mmefficientmod.export.formats import Session
from mmefficientmod.export.library import LibraryModel
from mmefficientmod.export.model import ExportedModel
from mmefficientmod.export.plan import ExportOptions, make_form, plan
from mmefficientmod.export.source import Source, read_source
from mmefficientmod.utils import UserError
from pages import table

pytestmark = [pytest.mark.ops, pytest.mark.export]
SHAPES = (96, 128), (128, 96), (50, 200), (40, 48), (240, 320)  # landscape, portrait, panorama, tiny, large


@pytest.fixture(scope='session')
def trained_detector(scenes, tmp_path_factory):
    """name -> its config and checkpoint."""
    made = {}

    def make(name: str) -> Source:
        if name not in made:
            made[name] = train(MODELS[name], scenes, tmp_path_factory.mktemp('trained'))
        return read_source(*map(str, made[name]))

    return make


def images() -> list[np.ndarray]:
    return [check._patches(1, *shape, seed)[0].transpose(1, 2, 0).astype(np.uint8) for seed, shape in enumerate(SHAPES)]


def assert_predictions_agree(source: Source, least: int = 5) -> None:
    """Compares, on images of several sizes, the exportable form with MMDetection's inferencer."""
    description = plan(source, ExportOptions(Path('out')))
    forms = [as_runner(make_form(source, 'detection', (h, w))) for h, w in description.sizes]
    library, ties = LibraryModel(source, 'cpu', 0.0), 0
    for image in images():
        sample = check.make_sample('', image, description)
        run = forms[description.sizes.index(list(sample.image.shape[2:]))]
        model = ExportedModel(description, run, 0.0)
        feeds = dict(image=sample.image, image_size=np.array(sample.size, np.float32))
        pad_to = sample.image.shape[2:]
        (expected,) = library.predict([image], pad_to)
        assert len(expected.scores) >= least and np.ptp(expected.scores) > 0.001
        assert expected.masks is None or any(mask.bits.any() for mask in expected.masks)
        found = check.compare_predictions(model, run, feeds, sample, library, pad_to)
        if not all(item['passed'] for item in found):  # where noise changes as much, the last digit decides
            ties += 1
            noisy = run(dict(feeds, image=check.with_noise(sample).image))
            assert not all(item['passed'] for item in check.compare('detection', run(feeds), noisy, sample)), found
    assert ties <= 1


@pytest.mark.parametrize('name', MODELS)
def test_predictions(name, trained_detector):
    assert_predictions_agree(trained_detector(name))


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_files(name, trained_detector, tmp_path):
    """Each file is checked as it is written, also end to end; the images here are others."""
    source, log = trained_detector(name), []
    out = tmp_path / 'out'
    description = export(source, ExportOptions(out, ('onnx', 'openvino'), sizes=[(96, 128)], log=log.append))
    assert not [line for line in log if 'decide nothing' in line and f'{len(SHAPES)} samples' in line]
    for form in ('onnx', 'openvino'):
        checks = [item for item in description.checks if item['form'] == form]
        assert all(item['passed'] for item in checks)
        assert [item for item in checks if 'predictions: detections without their like' in item['name']]
        run = Session(out, form)
        image = check._patches(1, 90, 100, 99)
        sample = check.make_sample('', image[0].transpose(1, 2, 0).astype(np.uint8), description)
        found = run.run(sample.image, sample.size)
        expected = check.library_result(source.model, 'detection', sample)
        assert len(expected['scores']) >= 5
        assert all(item['passed'] for item in check.compare('detection', expected, found, sample))


def test_every_detector_of_the_list_is_trained_here_and_stands_in_the_docs():
    listed = [model for model in supported.MODELS if model.library == 'MMDetection']
    assert {name for model in listed for name in model.name.split(', ')} == set(MODELS)
    rows = {name: head for name, head, *_ in table('docs/deploy.md', 'detector', 'head')}
    assert list(rows) == [model.name for model in listed]
    for model in listed:
        assert all(head in rows[model.name] for head in model.heads) and model.note in rows[model.name]
        assert model.name in supported.describe()


def changed(source: Source, **test_cfg: object) -> Source:
    source.model.test_cfg.update(test_cfg)
    return source


@pytest.mark.parametrize('name', ['RTMDet', 'YOLOX'])
def test_nms_among_all_classes(name, trained_detector):
    source = trained_detector(name)
    settings = source.model.test_cfg

    def most_overlap() -> float:
        (found,) = LibraryModel(source, 'cpu', 0.0).predict(images()[:1])
        return max(np.sort(check.box_ious(box, found.boxes))[-2] for box in found.boxes)

    settings.nms.update(iou_threshold=0.3)
    assert most_overlap() > 0.31
    settings.nms.class_agnostic = True
    assert most_overlap() < 0.31
    assert_predictions_agree(source, least=1)


def test_masks_of_the_whole_image_on_a_squashed_one(trained_detector):
    """Width and height have factors of their own, which MMDetection takes the other way round."""
    source = trained_detector('RTMDet-Ins')
    source.config.test_dataloader.dataset.pipeline[1].update(scale=(128, 80), keep_ratio=False)
    description = plan(source, ExportOptions(Path('out')))
    assert description.sizes == [[96, 128]]
    assert_predictions_agree(source)
    run = as_runner(make_form(source, 'detection', (96, 128)))
    model = ExportedModel(description, lambda image, size: run(dict(image=image, image_size=np.float32(size))), 0.3)
    for image in images():
        (found,) = model.predict([image])
        (expected,) = LibraryModel(source, 'cpu', 0.3).predict([image], (96, 128))
        assert len(found.masks) == len(expected.masks) > 0
        for one, other in zip(found.masks, expected.masks):
            assert abs(int(one.bits.sum()) - int(other.bits.sum())) <= 0.01 * other.bits.sum() + 2


@pytest.mark.slow
def test_soft_nms_in_files(trained_detector, tmp_path):
    source = trained_detector('ATSS')
    source.model.test_cfg.update(nms=dict(type='soft_nms', iou_threshold=0.4), max_per_img=20)
    description = export(source, ExportOptions(tmp_path / 'out', ('onnx', 'openvino'), sizes=[(96, 128)]))
    assert {item['form'] for item in description.checks if item['passed']} == {'eager', 'onnx', 'openvino'}


@pytest.mark.parametrize('method', ['linear', 'gaussian', 'naive'])
@pytest.mark.parametrize('name', ['RTMDet', 'Cascade R-CNN'])
def test_soft_nms(name, method, trained_detector):
    source = trained_detector(name)
    settings = source.model.test_cfg.get('rcnn', source.model.test_cfg)
    settings.nms = dict(type='soft_nms', iou_threshold=0.4, method=method, min_score=0.01)
    assert_predictions_agree(source)


class Renamed(RTMDetSepBNHead):
    """A head with other settings."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Overridden(RTMDetSepBNHead):
    def _bbox_post_process(self, results, **kwargs):
        return super()._bbox_post_process(results=results, **kwargs)


class Doubled(RTMDet):
    def predict(self, *args, **kwargs):
        return super().predict(*args, **kwargs)


def test_classes_of_the_user(trained_detector):
    source = trained_detector('RTMDet')
    source.model.bbox_head.__class__ = Renamed
    assert_predictions_agree(source)
    source.model.bbox_head.__class__ = Overridden
    with pytest.raises(UserError, match='Overridden cannot be exported: the head'):
        make_form(source, 'detection', (96, 128))
    source = trained_detector('RTMDet')
    source.model.__class__ = Doubled
    with pytest.raises(UserError, match=r'Doubled cannot be exported: it has a predict\(\) of its own'):
        make_form(source, 'detection', (96, 128))


@pytest.mark.parametrize(
    ('name', 'test_cfg', 'message'),
    [
        ('RTMDet', dict(nms=dict(type='nms_match', iou_threshold=0.5)), 'its type must be nms or soft_nms'),
        ('RTMDet', dict(nms=dict(type='nms', iou_threshold=0.5, max_num=10)), 'without other settings'),
        ('RTMDet', dict(nms=None), 'with iou_threshold'),
        ('RTMDet', dict(min_bbox_size=4), 'min_bbox_size'),
        ('RTMDet', dict(nms_pre=-1), 'nms_pre'),
        ('RTMDet', dict(max_per_img=-1), 'max_per_img'),
        (
            'Faster R-CNN',
            dict(rpn=dict(nms=dict(iou_threshold=0.5), max_per_img=0)),
            'rpn.max_per_img must be a number',
        ),
        ('Faster R-CNN', dict(rpn=None), 'test_cfg.rpn.nms={} cannot be exported'),
    ],
)
def test_settings_that_are_rejected(name, test_cfg, message, trained_detector):
    with pytest.raises(UserError, match=message):
        make_form(changed(trained_detector(name), **test_cfg), 'detection', (96, 128))


def test_objects_that_the_file_did_not_look_at_are_reported(trained_detector, monkeypatch):
    source = trained_detector('YOLOX')
    monkeypatch.setattr(suppression, 'MAX_ROWS', 10)
    description = plan(source, ExportOptions(Path('out')))
    run = as_runner(make_form(source, 'detection', (96, 128)))
    model = ExportedModel(description, lambda image, size: run(dict(image=image, image_size=np.float32(size))))
    (found,) = model.predict(images()[:1])
    assert len(found.scores) <= 10
    assert model.notes == ['1 images have more objects than the file looks at: some may be missing']


def test_a_limit_that_yolox_ignores_is_rejected(trained_detector):
    with pytest.raises(UserError, match='no max_per_img, which YOLOX ignores'):
        make_form(changed(trained_detector('YOLOX'), max_per_img=5), 'detection', (96, 128))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('ssd/ssd300_coco.py', 'SSDHead cannot be exported: the head must be one that --list shows'),
        ('paa/paa_r50_fpn_1x_coco.py', 'PAAHead cannot be exported'),
        ('conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', 'ConditionalDETR cannot be exported'),
        ('htc/htc_r50_fpn_1x_coco.py', 'HybridTaskCascadeRoIHead cannot be exported: the RoI head must be'),
        ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 'the RPN must be RPNHead'),
        ('solo/solo_r50_fpn_1x_coco.py', 'SOLO cannot be exported whole'),
    ],
)
def test_stock_models_that_are_rejected(config, message, tmp_path):
    (tmp_path / 'a.py').write_text(f"_base_ = 'mmdet::{config}'")
    settings = Config.fromfile(tmp_path / 'a.py')
    settings.model.backbone.init_cfg = None
    source = Source(build_quietly(settings.model, 'mmdet').eval(), settings, 'mmdet', [], [])
    with pytest.raises(UserError, match=message):
        make_form(source, 'detection', (64, 64))
