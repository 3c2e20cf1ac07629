"""Masks: pasted as MMDetection pastes them, and encoded as COCO's own tools do; what files are named by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmefficientmod.export.results import Mask, cut_mask, encode, paste_mask
from mmefficientmod.predict.sources import Source
from mmefficientmod.predict.writer import category_ids, drawn_names, image_ids, map_names
from mmefficientmod.utils import UserError

coco = pytest.importorskip('pycocotools.mask')


def whole(mask, height, width):
    """A cut mask in its place."""
    bits = np.zeros((height, width), bool)
    bits[mask.top : mask.top + mask.bits.shape[0], mask.left : mask.left + mask.bits.shape[1]] = mask.bits
    return bits


@pytest.mark.parametrize('seed', range(40))
def test_run_lengths_are_those_of_coco(seed):
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 70, 2)
    bits = random.random((height, width)) < random.choice([0, 0.01, 0.3, 0.97, 1])
    if seed % 2:  # large and connected, so that counts need several characters
        rows, columns = np.mgrid[:height, :width]
        bits = (rows - random.integers(height)) ** 2 + (columns - random.integers(width)) ** 2 < random.integers(2000)
    cut = cut_mask(bits)
    assert (whole(cut, height, width) == bits).all()
    found = encode(cut, int(height), int(width))
    expected = coco.encode(np.asfortranarray(bits, np.uint8))
    assert (found['size'], found['counts'].encode()) == (expected['size'], expected['counts'])


def test_run_lengths_of_a_large_picture():
    bits = np.zeros((3000, 4000), bool)
    bits[100:2900, 1000:3999] = True
    bits[::7] = False
    expected = coco.encode(np.asfortranarray(bits, np.uint8))
    assert encode(cut_mask(bits), 3000, 4000)['counts'].encode() == expected['counts']
    nothing = coco.encode(np.zeros((3000, 4000), np.uint8, 'F'))
    assert encode(Mask(0, 0, np.zeros((0, 0), bool)), 3000, 4000)['counts'].encode() == nothing['counts']


@pytest.mark.ops
def test_masks_are_pasted_as_mmdetection_pastes_them():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    random = np.random.default_rng(0)
    height, width = 97, 131
    corners = random.uniform(-10, 1, (60, 2)) + random.uniform(0, 1, (60, 2)) * [width, height]
    boxes = np.concatenate([corners, corners + random.uniform(0.2, 80, (60, 2))], 1).astype(np.float32)
    masks = random.random((60, 28, 28), np.float32)
    pasted = _do_paste_mask(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), height, width, False)[0] >= 0.5
    for mask, box, expected in zip(masks, boxes, pasted.numpy()):
        found = whole(paste_mask(mask, box, height, width), height, width)
        assert (found != expected).sum() <= 1  # where a value is 0.5 to the last digit


# --- names ---


def sources(*names):
    return [Source(Path('/in', name), name) for name in names]


def test_categories_have_cocos_numbers_for_cocos_classes():
    coco_classes = ['person', *map(str, range(78)), 'toothbrush']
    ids = category_ids(coco_classes)
    assert (ids[0], ids[11], ids[-1], len(ids)) == (1, 13, 90, 80)  # 'stop sign' is 13
    assert category_ids(['a', 'b']) == [1, 2]


def test_pictures_have_the_numbers_that_they_are_named_by():
    assert list(image_ids(sources('000000000139.jpg', 'b/000000000285.jpg')).values()) == [139, 285]
    for other in (('1.jpg', 'a.jpg'), ('1.jpg', 'b/1.jpg'), ('1.jpg', '2.mp4')):
        assert image_ids(sources(*other)) == {}


def test_class_maps_are_named_by_the_picture():
    names = map_names(sources('a.jpg', 'b/a.jpg', 'c.jpg', 'c.png', 'd.mp4', 'd/000000.png'))
    assert list(names.values()) == ['a', 'b/a', 'c.jpg', 'c.png', 'd.mp4', 'd/000000']


def test_formats_that_are_only_read_become_png_or_mp4_and_two_are_never_one():
    assert list(drawn_names(sources('a.jpg', 'b.tif', 'c.avi')).values()) == ['a.jpg', 'b.tif.png', 'c.avi.mp4']
    with pytest.raises(UserError, match=r'a\.tif and /in/a\.tif\.png would both be written to'):
        drawn_names(sources('a.tif', 'a.tif.png'))
