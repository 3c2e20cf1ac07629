"""Test pipelines become steps that make the same pixels as the library's own transforms; others are refused by name."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from mmefficientmod.codebases.config import find_test_pipeline
from mmefficientmod.codebases.nodes import type_name
from mmefficientmod.export.inputs import apply_steps, frame_size
from mmefficientmod.export.pipeline import NO_IMAGE_STEP, keeps_ratio, natural_sizes, read_steps
from mmefficientmod.utils import UserError

pytestmark = pytest.mark.libraries
SHAPES = (96, 144), (150, 90), (40, 260), (17, 23), (333, 517)  # landscape, portrait, panorama, tiny, large
LOAD = dict(type='LoadImageFromFile')
PACK = {
    'mmdet': dict(type='PackDetInputs', meta_keys=('scale_factor', 'img_shape')),
    'mmseg': dict(type='PackSegInputs', meta_keys=('scale_factor', 'img_shape')),
    'mmpretrain': dict(type='PackInputs', meta_keys=('scale_factor', 'img_shape')),
}


def make_config(scope: str, *steps: dict) -> Config:
    pipeline = [LOAD, *steps, PACK[scope]]
    return Config(dict(default_scope=scope, test_dataloader=dict(dataset=dict(pipeline=pipeline))))


def image(shape: tuple) -> np.ndarray:
    generator = np.random.default_rng(sum(shape))
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = np.stack([rows * 3, columns * 2, rows + columns], 2) % 200
    return (smooth + generator.integers(0, 50, (*shape, 3))).astype(np.uint8)


def by_library(config: Config, scope: str, pixels: np.ndarray) -> tuple[np.ndarray, tuple | None]:
    """What the transforms themselves make of an image, and the scale that they note."""
    pipeline = find_test_pipeline(config)
    kept = [s for s in pipeline if type_name(s) != 'LoadImageFromFile' and not NO_IMAGE_STEP.fullmatch(type_name(s))]
    as_float = any(step.get('to_float32') for step in pipeline)
    sample = dict(img=pixels.astype(np.float32) if as_float else pixels.copy(), img_shape=pixels.shape[:2])
    with DefaultScope.overwrite_default_scope(scope):
        found = Compose(kept)(dict(sample, ori_shape=pixels.shape[:2]))
    return found['img'], found.get('scale_factor')


def assert_same(config: Config, scope: str, shapes: tuple = SHAPES) -> None:
    steps = read_steps(config, scope)
    for shape in shapes:
        pixels = image(shape)
        expected, scale = by_library(config, scope, pixels)
        found, found_scale = apply_steps(pixels, steps)
        assert found.shape == expected.shape and found.dtype == expected.dtype, shape
        assert frame_size(steps, shape) == found.shape[:2]
        assert np.array_equal(found, expected), shape
        if scale is not None:
            assert found_scale == pytest.approx(scale, rel=1e-12)


STEPS = [
    ('mmdet', dict(type='Resize', scale=(133, 80), keep_ratio=True)),
    ('mmdet', dict(type='Resize', scale=(133, 80), keep_ratio=False)),
    ('mmseg', dict(type='Resize', scale_factor=0.5)),
    ('mmseg', dict(type='Resize', scale_factor=(0.7, 1.3), keep_ratio=True)),
    ('mmseg', dict(type='Resize', scale=64, interpolation='nearest')),
    ('mmseg', dict(type='Resize', scale=(90, 70), interpolation='area')),
    ('mmseg', dict(type='Resize', scale=(90, 70), interpolation='lanczos')),
    ('mmpretrain', dict(type='Resize', scale=(90, 70), interpolation='bicubic', backend='pillow')),
    ('mmpretrain', dict(type='Resize', scale=(90, 70), interpolation='box', backend='pillow')),
    ('mmpretrain', dict(type='Resize', scale=(90, 70), interpolation='nearest', backend='pillow')),
    *(('mmpretrain', dict(type='ResizeEdge', scale=61, edge=edge)) for edge in ('short', 'long', 'width', 'height')),
    ('mmseg', dict(type='ResizeShortestEdge', scale=64, max_size=200)),
    ('mmseg', dict(type='ResizeShortestEdge', scale=(64, 90), max_size=70)),
    ('mmdet', dict(type='ResizeShortestEdge', scale=64, max_size=100)),
    ('mmdet', dict(type='ResizeShortestEdge', scale=64, keep_ratio=True, interpolation='bicubic')),
    ('mmdet', dict(type='FixScaleResize', scale=(133, 80), keep_ratio=True)),
    ('mmdet', dict(type='FixShapeResize', width=64, height=96)),
    ('mmdet', dict(type='FixShapeResize', width=64, height=96, keep_ratio=True, pad_val=114)),
    ('mmseg', dict(type='ResizeToMultiple', size_divisor=32)),
    ('mmseg', dict(type='ResizeToMultiple', size_divisor=(32, 16), interpolation='nearest')),
    ('mmdet', dict(type='Pad', size=(256, 300), pad_val=dict(img=(114, 113, 112)))),
    ('mmdet', dict(type='Pad', size_divisor=32, pad_val=dict(img=(114.0, 114.0, 114.0)))),
    ('mmdet', dict(type='Pad', pad_to_square=True, size_divisor=32, pad_val=7)),
    *(('mmseg', dict(type='Pad', size_divisor=16, padding_mode=mode)) for mode in ('edge', 'reflect', 'symmetric')),
    ('mmpretrain', dict(type='CenterCrop', crop_size=64)),
    ('mmpretrain', dict(type='CenterCrop', crop_size=(96, 33))),
    ('mmpretrain', dict(type='EfficientNetCenterCrop', crop_size=64)),
    ('mmpretrain', dict(type='EfficientNetCenterCrop', crop_size=64, crop_padding=0, backend='pillow')),
    ('mmdet', dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)),
    ('mmdet', dict(type='RandomFlip', prob=0.0)),
]


@pytest.mark.parametrize(('scope', 'step'), STEPS, ids=str)
def test_each_step_makes_the_same_pixels(scope, step):
    pytest.importorskip(scope)
    assert_same(make_config(scope, step), scope)


@pytest.mark.parametrize(
    'steps',
    [
        (dict(type='Resize', scale=(133, 80), keep_ratio=True), dict(type='Pad', size=(160, 160), pad_val=114)),
        (dict(type='Resize', scale=(133, 80), keep_ratio=True), dict(type='Resize', scale_factor=0.7)),
        (dict(type='Resize', scale=90), dict(type='CenterCrop', crop_size=64), dict(type='Pad', size_divisor=50)),
    ],
)
def test_several_steps_follow_each_other(steps):
    pytest.importorskip('mmdet')
    assert_same(make_config('mmdet', *steps), 'mmdet')


def test_an_image_in_float_is_resized_without_rounding():
    pytest.importorskip('mmdet')
    config = make_config('mmdet', dict(type='Resize', scale=(133, 80), keep_ratio=True))
    config.test_dataloader.dataset.pipeline[0]['to_float32'] = True
    assert_same(config, 'mmdet')
    assert apply_steps(image((50, 70)), read_steps(config, 'mmdet'))[0].dtype == np.float32


@pytest.mark.parametrize(
    ('step', 'words'),
    [
        (dict(type='RandomResize', scale=(64, 64)), 'the step RandomResize of the test pipeline cannot be exported'),
        (dict(type='RandomChoiceResize', scales=[(64, 64)]), 'the step RandomChoiceResize'),
        (
            dict(type='RandomFlip', prob=0.5),
            'the step RandomFlip of the test pipeline cannot be exported: it depends on',
        ),
        (dict(type='RandomCrop', crop_size=(64, 64)), 'the step RandomCrop'),
        (dict(type='LoadImageFromFile', color_type='grayscale'), "has color_type='grayscale': predictions are made of"),
        (dict(type='mmdet.LoadImageFromNDArray', color_type='unchanged'), 'LoadImageFromNDArray of the test pipeline'),
        (dict(type='LoadImageFromFile', imdecode_backend='tifffile'), "has imdecode_backend='tifffile'"),
        (dict(type='CenterCrop', crop_size=64, auto_pad=True), 'auto_pad=True'),
        (
            dict(type='Resize', scale=64, backend='pillow', interpolation='area'),
            "backend='pillow', interpolation='area'",
        ),
        (dict(type='NoSuchStep'), 'the step NoSuchStep of the test pipeline cannot be built (KeyError'),
        (dict(type='Resize'), 'the step Resize of the test pipeline cannot be built (AssertionError'),
    ],
)
def test_other_steps_are_refused_by_name(step, words):
    pytest.importorskip('mmdet')
    with pytest.raises(UserError) as caught:
        read_steps(make_config('mmdet', step), 'mmdet')
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_a_step_of_the_users_own_is_refused_though_it_has_a_known_name():
    from mmcv.transforms import Resize as Original

    class Resize(Original):
        __module__ = 'my_package.transforms'

    with pytest.raises(UserError, match='the step Resize of the test pipeline cannot be exported: it is not known'):
        read_steps(make_config('mmpretrain', dict(type=Resize, scale=64)), 'mmpretrain')


def test_wrapped_data_and_configs_in_pure_python_have_the_same_steps():
    pytest.importorskip('mmdet')
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets.transforms import PackDetInputs, Resize

    expected = read_steps(make_config('mmdet', dict(type='Resize', scale=(133, 80), keep_ratio=True)), 'mmdet')
    pure = [dict(type=LoadImageFromFile), dict(type=Resize, scale=(133, 80), keep_ratio=True), dict(type=PackDetInputs)]
    inner = dict(type='CocoDataset', pipeline=pure)
    for dataset in (
        inner,
        dict(type='RepeatDataset', times=2, dataset=inner),
        dict(type='ConcatDataset', datasets=[inner, dict(type='CocoDataset', pipeline=[])]),
        dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', times=2, dataset=inner)]),
    ):
        config = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=dataset)))
        assert read_steps(config, 'mmdet') == expected
    assert read_steps(Config(dict(default_scope='mmdet', test_pipeline=pure)), 'mmdet') == expected
    with pytest.raises(UserError, match=r'has no test_dataloader\.dataset\.pipeline'):
        read_steps(Config(dict(default_scope='mmdet')), 'mmdet')


@pytest.mark.parametrize(
    ('steps', 'sizes', 'keeps'),
    [
        ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)], [(800, 1344), (1344, 800)], True),
        ([dict(type='ResizeShortestEdge', scale=800, max_size=1333)], [(800, 1344), (1344, 800)], True),
        ([dict(type='Resize', scale=(300, 300))], [(320, 320)], False),
        (
            [dict(type='Resize', scale=(640, 640), keep_ratio=True), dict(type='Pad', size=(640, 640))],
            [(640, 640)],
            False,
        ),
        ([dict(type='Resize', scale_factor=0.5)], [], True),
        ([], [], True),
    ],
)
def test_the_sizes_that_hold_any_image(steps, sizes, keeps):
    pytest.importorskip('mmdet')
    found = read_steps(make_config('mmdet', *steps), 'mmdet')
    assert natural_sizes(found, 32) == sizes
    assert keeps_ratio(found) == keeps


# What is refused of the stock configs, by the reason: what is not in this list is understood, and right to the pixel.
REFUSED = {
    'mmdet': {'TransformBroadcaster', 'LoadProposals', 'RandomCenterCropPad'},
    'mmseg': {'LoadMultipleRSImageFromFile'},
    'mmpretrain': {'CleanCaption', 'ApplyToList', 'OFAAddObjects'},
}


@pytest.mark.slow
@pytest.mark.parametrize('scope', REFUSED)
def test_the_pipelines_of_all_stock_configs(scope, record_property):
    pytest.importorskip(scope)
    root = Path(importlib.util.find_spec(scope).origin).parent / '.mim/configs'
    seen: dict[str, str] = {}
    counts: Counter = Counter()
    for path in sorted(root.rglob('*.py')):
        if '_base_' in path.parts:
            continue
        try:
            config = Config.fromfile(path)
            config.default_scope = own = config.get('default_scope') or scope
            key = f'{own} {[dict(step) for step in find_test_pipeline(config)]}'
        except Exception as error:  # a part of a config, for a library that is not installed, or without a test
            counts[f'no config of its own ({type(error).__name__})'] += 1
            continue
        if key not in seen:
            try:
                read_steps(config, own)
                seen[key] = 'understood'
                assert_same(config, own, SHAPES[:3])
            except UserError as error:
                seen[key] = str(error).partition(' of the test pipeline')[0].replace('the step ', '')
        counts[seen[key]] += 1
    record_property('counts', dict(counts))
    print(scope, dict(counts))
    refused = {name for name in counts if name != 'understood' and not name.startswith('no config')}
    assert refused <= REFUSED[scope]
    assert counts['understood'] > 0.9 * sum(counts[name] for name in {*refused, 'understood'})
