"""What an exported model predicts on an image is what its library's inferencer predicts, whatever the test pipeline.

The exportable form stands for the file here, so that no file is written: each export checks its files against the form.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmefficientmod.export import check
from mmefficientmod.export.folder import as_runner
from mmefficientmod.export.library import LibraryModel, largest_class
from mmefficientmod.export.model import ExportedModel
from mmefficientmod.export.plan import ExportOptions, make_form, plan
from mmefficientmod.export.source import read_source
from mmefficientmod.utils import UserError

pytestmark = [pytest.mark.ops, pytest.mark.export]
SHAPES = (120, 160), (160, 120), (60, 300), (24, 40), (300, 400)  # landscape, portrait, panorama, tiny, large
LOAD = dict(type='LoadImageFromFile')
PACK = dict(
    segmentor=dict(type='PackSegInputs'),
    detector=dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    classifier=dict(type='PackInputs'),
)


def images() -> list[np.ndarray]:
    found = [check._patches(1, *shape, 7)[0].transpose(1, 2, 0).astype(np.uint8) for shape in SHAPES]
    return [*found, np.repeat(found[0][..., :1], 3, 2)]  # a grey one


def change(trained, kind: str, folder: Path, steps: list | None = None, text: str = '') -> tuple[str, str]:
    """A config like the trained one with other steps, or with further lines; and its checkpoint."""
    base, checkpoint = trained(kind)
    path = folder / f'{kind}.py'
    lines = [f'_base_ = {str(base)!r}', text]
    if steps is not None:
        pipeline = [LOAD, *steps, PACK[kind]]
        lines.append(f'test_dataloader = dict(dataset=dict(pipeline={pipeline!r}))')
    path.write_text('\n'.join(lines))
    return str(path), str(checkpoint)


def models(config: str, checkpoint: str, **options) -> tuple[LibraryModel, ExportedModel]:
    """The same model by its library, and as it is exported, with the exportable form in place of files."""
    source = read_source(config, checkpoint)
    description = plan(source, ExportOptions(Path('out'), **options))
    runs = [as_runner(make_form(source, source.task, size)) for size in description.sizes or [None]]

    def run(image, valid):
        feeds = dict(image=image)
        if description.size_input:
            feeds['image_size'] = np.array(valid, np.float32)
        size = list(image.shape[-2:])
        return runs[description.sizes.index(size) if description.sizes else 0](feeds)

    return LibraryModel(source, 'cpu', 0.0), ExportedModel(description, run, 0.0)


SEGMENTATION = {
    'half': [dict(type='Resize', scale_factor=0.5)],
    'shortest edge': [dict(type='ResizeShortestEdge', scale=128, max_size=512)],
    'nearest': [dict(type='Resize', scale=(256, 192), keep_ratio=True, interpolation='nearest')],
    'bicubic with Pillow': [
        dict(type='Resize', scale=(256, 192), keep_ratio=True, interpolation='bicubic', backend='pillow')
    ],
    'multiple': [
        dict(type='Resize', scale=(200, 150), keep_ratio=True),
        dict(type='ResizeToMultiple', size_divisor=32),
    ],
    'two': [dict(type='Resize', scale=(256, 192), keep_ratio=True), dict(type='Resize', scale_factor=0.75)],
    'pad': [dict(type='Resize', scale=(256, 192), keep_ratio=True), dict(type='Pad', size=(256, 256), pad_val=114)],
    'squash': [dict(type='Resize', scale=(160, 128))],
}


@pytest.mark.parametrize('name', SEGMENTATION)
def test_segmentors(name, trained, tmp_path):
    library, exported = models(*change(trained, 'segmentor', tmp_path, SEGMENTATION[name]))
    for image in images():
        try:
            (found,) = exported.predict([image])
        except UserError as error:  # half of a tiny image
            assert name == 'half' and min(image.shape[:2]) < 64 and '32 pixels or more' in str(error)
            continue
        (expected,) = library.predict([image])
        assert found.classes.shape == expected.classes.shape == image.shape[:2]
        assert len(np.unique(expected.classes)) > 1
        assert (found.classes != expected.classes).mean() <= check.CLASS_LIMIT


@pytest.mark.parametrize('stride', [(64, 64), (48, 40)])
def test_a_segmentor_that_slides(stride, trained, tmp_path):
    test_cfg = f"model = dict(test_cfg=dict(mode='slide', crop_size=(96, 112), stride={stride}))"
    library, exported = models(*change(trained, 'segmentor', tmp_path, text=test_cfg))
    assert exported.description.slide.crop == [96, 112]
    for image in images():
        (found,), (expected,) = exported.predict([image]), library.predict([image])
        assert (found.classes != expected.classes).mean() <= check.CLASS_LIMIT


def test_a_segmentor_that_pads_its_input(trained, tmp_path):
    text = 'model = dict(data_preprocessor=dict(test_cfg=dict(size_divisor=64), pad_val=0.5))'
    library, exported = models(*change(trained, 'segmentor', tmp_path, text=text))
    assert exported.description.input.pad_divisor == 64
    for image in images():
        (found,), (expected,) = exported.predict([image]), library.predict([image])
        assert (found.classes != expected.classes).mean() <= check.CLASS_LIMIT


DETECTION = {
    'resize': [dict(type='Resize', scale=(256, 192), keep_ratio=True)],
    'pad': [
        dict(type='Resize', scale=(256, 192), keep_ratio=True),
        dict(type='Pad', size=(256, 256), pad_val=dict(img=(114, 114, 114))),
    ],
    'squash': [dict(type='Resize', scale=(256, 192))],
    'shape': [dict(type='FixShapeResize', width=256, height=192, keep_ratio=True)],
    'shortest edge': [dict(type='ResizeShortestEdge', scale=96, max_size=160, keep_ratio=True)],
}


@pytest.mark.parametrize('name', DETECTION)
def test_detectors(name, trained, tmp_path):
    """Also in a portrait image: the model has both orientations where the pipeline keeps the ratio."""
    library, exported = models(*change(trained, 'detector', tmp_path, DETECTION[name]))
    assert len(exported.description.sizes) == (2 if name in ('resize', 'shortest edge') else 1)
    for image in images():
        sample = check.make_sample('', image, exported.description)
        assert not sample.prepared.reduced
        pad_to = sample.image.shape[2:]
        (expected,) = library.predict([image], pad_to)
        assert len(expected.scores) > 5
        feeds = dict(image=sample.image, image_size=np.array(sample.size, np.float32))
        found = check.compare_predictions(
            exported, lambda feeds: exported._run(feeds['image'], feeds['image_size']), feeds, sample, library, pad_to
        )
        assert all(item['passed'] for item in found), found
        (result,) = exported.predict([image])
        assert len(result.scores) == len(expected.scores)
        assert result.boxes == pytest.approx(expected.boxes, abs=0.1)


CLASSIFICATION = {
    'ImageNet': [
        dict(type='ResizeEdge', scale=96, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=(80, 64)),
    ],
    'long edge': [dict(type='ResizeEdge', scale=224, edge='long')],
    'EfficientNet': [dict(type='EfficientNetCenterCrop', crop_size=96)],
    'squash': [dict(type='Resize', scale=96, backend='pillow', interpolation='bicubic')],
}


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_classifiers(name, trained, tmp_path):
    library, exported = models(*change(trained, 'classifier', tmp_path, CLASSIFICATION[name]))
    scores = []
    for image in images():
        (found,), (expected,) = exported.predict([image]), library.predict([image])
        assert np.abs(found.scores - expected.scores).max() <= check.PROBABILITY_LIMIT
        scores.append(expected.scores)
    assert np.ptp(scores, 0).max() > 1e-3


def test_a_classifier_is_never_shown_padding(trained, tmp_path):
    config = change(trained, 'classifier', tmp_path, CLASSIFICATION['ImageNet'])
    with pytest.raises(UserError, match=r'--size 96 96: the test pipeline makes images 64 80'):
        models(*config, sizes=[(96, 96)])
    library, exported = models(*config, sizes=[(64, 80)], batch=2)
    results = exported.predict(images()[:3])  # two passes, the second one filled up
    for image, found in zip(images(), results):
        (expected,) = library.predict([image])
        assert np.abs(found.scores - expected.scores).max() <= check.PROBABILITY_LIMIT


def test_an_image_that_no_size_holds_is_made_smaller_with_a_note(trained):
    _, exported = models(*map(str, trained('detector')), sizes=[(192, 256)])
    exported.predict([images()[0]])
    assert not exported.notes
    (found,) = exported.predict([images()[1]])
    assert found.boxes[:, 2].max() <= 120 and '1 images were made smaller' in exported.notes[0]
    assert '192 x 256' in exported.notes[0]


PURE = """
from mmcv.transforms import LoadImageFromFile, Resize
from mmseg.datasets.transforms import PackSegInputs
from mmseg.models import EncoderDecoder, FPNHead, SegDataPreProcessor
from mmdet.models.necks import FPN
from mmefficientmod.models import EfficientMod

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(type=EfficientMod, arch={arch!r}),
    {rest}
)
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=Resize, scale=(256, 192), keep_ratio=True),
            dict(type=PackSegInputs),
        ]
    )
)
"""


def test_a_config_in_pure_python_is_exported_as_its_text_config(trained, tmp_path):
    from mmefficientmod.models.conversion import convert_checkpoint

    text_config, checkpoint = trained('segmentor')
    settings = Config.fromfile(text_config).model
    arch = dict(settings.backbone.arch)
    rest = ', '.join(
        f'{key}={dict(value) if isinstance(value, dict) else value!r}'
        for key, value in settings.items()
        if key not in ('type', 'data_preprocessor', 'backbone')
    )
    config = tmp_path / 'pure.py'
    config.write_text(PURE.format(arch=arch, rest=rest))
    deploy = str(tmp_path / 'deploy.pth')
    convert_checkpoint(str(checkpoint), deploy, deploy=True)
    _, expected = models(str(text_config), str(checkpoint))
    for path in (str(checkpoint), deploy):
        library, exported = models(str(config), path)
        assert exported.description.input == expected.description.input
        for image in images()[:3]:
            (one,), (other,), (third,) = expected.predict([image]), exported.predict([image]), library.predict([image])
            assert (one.classes != other.classes).mean() <= check.CLASS_LIMIT
            assert (one.classes != third.classes).mean() <= check.CLASS_LIMIT


@pytest.mark.parametrize(
    'text', ['import no_such_package', 'from mmengine.config import read_base\nimport mmseg.nothing']
)
def test_a_config_whose_import_fails_is_one_line(text, trained, tmp_path):
    config = tmp_path / 'broken.py'
    config.write_text(
        f'{text}\nfrom mmseg.models import NoSuchModel\nmodel = dict(type=NoSuchModel, backbone=dict())\n'
    )
    with pytest.raises(UserError) as caught:
        read_source(str(config), str(trained('segmentor')[1]))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('wrap', ['ConcatDataset', 'none'])
def test_wrapped_test_data_and_none(wrap, trained, tmp_path):
    base, checkpoint = trained('segmentor')
    config = Config.fromfile(base)
    if wrap == 'none':
        config.test_pipeline = config.test_dataloader.dataset.pipeline
        for key in ('test_dataloader', 'test_cfg', 'test_evaluator', 'val_dataloader'):
            config.pop(key, None)
    else:
        config.test_dataloader.dataset = dict(type=wrap, datasets=[dict(config.test_dataloader.dataset)])
    config.dump(tmp_path / 'a.py')
    library, exported = models(str(tmp_path / 'a.py'), str(checkpoint))
    (found,), (expected,) = exported.predict([images()[0]]), library.predict([images()[0]])
    assert (found.classes != expected.classes).mean() <= check.CLASS_LIMIT


@pytest.mark.parametrize('padding', [(0, 0, 0, 0), (0, 7, 0, 5)])
@pytest.mark.parametrize('align_corners', [False, True])
def test_classes_in_parts_are_those_of_the_whole(padding, align_corners, monkeypatch):
    from mmefficientmod.export import library

    monkeypatch.setattr(library, 'PART_ELEMENTS', 64 * 96 * 2)
    torch.manual_seed(0)
    logits = torch.rand(1, 7, 16, 24)
    settings = dict(mode='bilinear', align_corners=align_corners)
    whole = torch.nn.functional.interpolate(logits, (64, 96), **settings)
    whole = whole[..., : 64 - padding[3], : 96 - padding[1]]
    expected = torch.nn.functional.interpolate(whole, (50, 70), **settings)[0].argmax(0)
    assert torch.equal(largest_class(logits, (64, 96), padding, (50, 70), align_corners)[0], expected)


MEMORY = """
import resource, sys
import numpy as np
from mmefficientmod.export.library import LibraryModel
from mmefficientmod.export.source import read_source

model = LibraryModel(read_source(sys.argv[1], sys.argv[2]), 'cpu')
(found,) = model.predict([np.random.default_rng(0).integers(0, 255, (3000, 4000, 3), np.uint8)])
print(found.classes.shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_twelve_megapixels_and_150_classes_fit_into_two_gigabytes(trained, tmp_path):
    import subprocess
    import sys

    base, checkpoint = trained('segmentor')
    weights = torch.load(checkpoint)
    for name in ('weight', 'bias'):
        value = weights['state_dict'][f'decode_head.conv_seg.{name}']
        weights['state_dict'][f'decode_head.conv_seg.{name}'] = torch.randn(150, *value.shape[1:])
    torch.save(weights, tmp_path / 'a.pth')
    (tmp_path / 'a.py').write_text(f'_base_ = {str(base)!r}\nmodel = dict(decode_head=dict(num_classes=150))\n')
    command = [sys.executable, '-c', MEMORY, str(tmp_path / 'a.py'), str(tmp_path / 'a.pth')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shape, megabytes = done.stdout.rsplit(None, 1)
    assert shape == '(3000, 4000)' and int(megabytes) < 2000


def test_near_ties_are_no_difference(trained, tmp_path):
    """On one colour every anchor has nearly the same score: the last digit says which are kept."""
    from mmefficientmod.export.folder import Work

    source = read_source(*map(str, trained('detector')))
    description = plan(source, ExportOptions(tmp_path / 'out'))
    flat = np.full((192, 256, 3), 100, np.uint8)
    sample = check.make_sample('one colour', flat, description)
    log: list[str] = []
    options = ExportOptions(tmp_path / 'out', log=log.append)
    work = Work(source, options, description, 0, [sample], check.ImageSamples([], description, '--int8'))
    assert work.samples == [sample]
    work.check_form()
    assert [item['form'] for item in description.checks]
    photo = check.make_sample('photo', cv2.GaussianBlur(images()[0], (5, 5), 0), description)
    assert not work._is_near_tie(photo, work.run_form(dict(image=photo.image, image_size=np.float32(photo.size))))


@pytest.mark.parametrize(('score_thr', 'told'), [(0.0, False), (1.0, True)])
def test_a_check_without_detections_is_told(score_thr, told, trained, tmp_path):
    from mmefficientmod.export.folder import Work

    source, log = read_source(*map(str, trained('detector'))), []
    source.model.test_cfg.rcnn.score_thr = score_thr
    options = ExportOptions(tmp_path / 'out', log=log.append)
    description = plan(source, options)
    sample = check.make_sample('photo', cv2.GaussianBlur(images()[0], (5, 5), 0), description)
    Work(source, options, description, 0, [sample], check.ImageSamples([], description, '--int8')).check_form()
    assert any('nothing is detected' in line for line in log) == told


@pytest.mark.parametrize(
    ('kind', 'text', 'message'),
    [
        ('segmentor', "model = dict(test_cfg=dict(mode='slid'))", "mode='whole', or mode='slide'"),
        ('segmentor', "model = dict(test_cfg=dict(mode='slide'))", 'crop_size and stride'),
        ('segmentor', "model = dict(test_cfg=dict(mode='slide', crop_size=64, stride=32))", 'heights and widths'),
        ('segmentor', "model = dict(test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(96, 32)))", 'not larger'),
        (
            'segmentor',
            "model = dict(test_cfg=dict(mode='slide', crop_size=(64.5, 64), stride=(9, 9)))",
            r'slide.crop\[0\]',
        ),
        ('segmentor', 'model = dict(test_cfg=None)', 'it is None'),
        ('segmentor', 'test_dataloader = dict(dataset=dict(pipeline=3))', 'is not a list of dict.*as 3 shows'),
        (
            'detector',
            'model = dict(test_cfg=dict(rcnn=dict(mask_thr_binary=-1)))',
            'mask_thr must be a number from 0 to 1',
        ),
        ('detector', 'model = dict(test_cfg=dict(rcnn=dict(score_thr=1.5)))', 'score_thr must be a number from 0 to 1'),
        (
            'segmentor',
            'model = dict(data_preprocessor=dict(test_cfg=dict(size=(64, 64), size_divisor=32)))',
            'either size, a height and a width, or size_divisor',
        ),
        ('segmentor', 'model = dict(data_preprocessor=dict(test_cfg=dict(size=64)))', 'either size, a height'),
    ],
)
def test_settings_of_a_test_that_no_exported_model_follows_are_named(kind, text, message, trained, tmp_path):
    source = read_source(*change(trained, kind, tmp_path, text=text))
    with pytest.raises(UserError, match=message):
        plan(source, ExportOptions(Path('out')))


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        (['Resize'], 'is not a list of dict'),
        ([dict(scale=(256, 192))], 'is not a list of dict'),
        ([dict(type='Resize', scale=(256, 192, 3))], r'steps\[0\].size has 3 values'),
        ([dict(type='Resize', scale=(-1, 192), keep_ratio=True)], r'size\[0\] must be a number from 0'),
        ([dict(type='Resize', scale=(1e6, 1e6), keep_ratio=True)], r'size\[0\] must be a number from 0 to 65536'),
        ([dict(type='Pad', size_divisor=0)], r'divisor must be a whole number from 1'),
    ],
)
def test_steps_that_no_image_can_pass_are_named(steps, message, trained, tmp_path):
    with pytest.raises(UserError, match=message):
        plan(read_source(*change(trained, 'segmentor', tmp_path, steps)), ExportOptions(Path('out')))


def test_sizes_that_need_no_further_padding_are_proposed(trained):
    from mmefficientmod.export.folder import describe_padding

    source = read_source(*map(str, trained('detector')))  # 256 x 192, in multiples of 32
    pixels = [np.zeros((*shape, 3), np.uint8) for shape in ((96, 128), (60, 128), (128, 60), (62, 128))]

    def note(**options) -> str:
        description = plan(source, ExportOptions(Path('out'), **options))
        return describe_padding([check.make_sample('', image, description) for image in pixels], description)

    assert note().startswith('3 of 4 --check images get more padding')
    assert note().endswith('without it: --size 128 256 --size 192 256 --size 256 128')
    assert not note(sizes=[(128, 256), (192, 256), (256, 128)])
