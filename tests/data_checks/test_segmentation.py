"""Label images with one mistake each: the finding names file, values and fix."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from damaged_data import SEGMENTATION, SPLITS, errors, load, look, warnings
from mmefficientmod.data.inspect import inspect_config

ADE = 'ade/ADEChallengeData2016'


def folder(root, kind='annotations', split='training'):
    return root / ADE / kind / split


def files(root, kind='annotations', split='training'):
    return sorted(folder(root, kind, split).iterdir())


def relabel(root, change) -> None:
    """Writes every label image anew."""
    for split in ('training', 'validation'):
        for path in files(root, split=split):
            Image.fromarray(change(np.array(Image.open(path)))).save(path)


def two(label):
    """Labels of two classes, 0 and 1."""
    return (label > 20).astype(np.uint8)


def own(classes=('road', 'sky'), zero=False, kind='BaseSegDataset', **options):
    """The demo's config with classes of one's own."""
    config = load(SEGMENTATION, model__decode_head__num_classes=len(classes), **options)
    for split in SPLITS:
        dataset = config[f'{split}_dataloader'].dataset
        dataset.type = kind
        dataset.metainfo = dict(classes=tuple(classes))
        if kind == 'BaseSegDataset':
            dataset.reduce_zero_label = zero
        for transform in dataset.pipeline:
            if transform.type == 'LoadAnnotations':
                transform.reduce_zero_label = zero
    return config


def test_nothing_is_found_in_sound_data(root):
    assert not look(load(SEGMENTATION))
    relabel(root, two)
    assert not look(own())
    config = own()
    for split in SPLITS:
        for transform in config[f'{split}_dataloader'].dataset.pipeline:
            transform.pop('reduce_zero_label', None)  # None: as the data set has it
    assert not look(config)


def test_nothing_is_found_below_the_stock_class(root):
    """ADE20K's 150 names and numbers, of which the scenes show a few, with 0 for nothing."""
    config = load(SEGMENTATION, model__decode_head__num_classes=150)
    for split in SPLITS:
        del config[f'{split}_dataloader'].dataset['metainfo']
    assert not look(config)


@pytest.mark.parametrize(
    'change',
    [
        lambda label: two(label).astype(np.uint16),
        lambda label: np.where(label % 7, two(label), 255).astype(np.uint8),  # 255 for nothing
    ],
)
def test_other_forms_that_are_right(root, change):
    relabel(root, change)
    assert not look(own())


def test_palettes_are_right(root):
    for split in ('training', 'validation'):
        for path in files(root, split=split):
            image = Image.fromarray(two(np.array(Image.open(path)))).convert('P')
            image.putdata(list(two(np.array(Image.open(path))).flat))
            image.putpalette([0, 0, 0, 255, 0, 0])
            image.save(path)
    assert not look(own())


@pytest.mark.parametrize('classes', [('road', 'sky'), ('crack',)])
def test_black_and_white(root, classes, tmp_path):
    relabel(root, lambda label: two(label) * np.uint8(255))
    found = errors(look(own(classes)))
    assert len(found) == 2 and 'the labels have the values 0 and 255 only' in found[0]
    command = re.search(r'python (-c ".*?") and set data_prefix', found[0])[1]
    subprocess.run([sys.executable, *shlex.split(command)], cwd=tmp_path, check=True)
    mapped = [np.unique(np.array(Image.open(path))).tolist() for path in sorted((tmp_path / 'labels').iterdir())]
    assert len(mapped) == 20 and {value for values in mapped for value in values} == {0, 1}


def test_everything_ignored(root):
    relabel(root, lambda label: np.full_like(label, 255))
    found = errors(look(own()))
    assert re.search('20 of 20 labels hold nothing but ignored pixels, .* the files have the values 255', found[0])


def test_some_labels_ignored_as_a_whole(root):
    relabel(root, two)
    for path in files(root)[:2]:
        Image.fromarray(np.full((96, 128), 255, np.uint8)).save(path)
    found = look(own())
    assert not errors(found) and '2 of 20 labels hold nothing but ignored pixels' in warnings(found)[0]


@pytest.mark.parametrize('channels', [3, 4])
def test_colours(root, channels):
    relabel(root, lambda label: np.stack([two(label)] * channels, -1))
    found = errors(look(own()))
    assert '20 of 20 labels are colour images' in found[0] and f'of shape (96, 128, {channels})' in found[0]


def test_values_beyond_the_classes(root):
    relabel(root, lambda label: label % 6)
    found = errors(look(own()))
    assert re.search('has the value 2, which is not a class: found 0, 1, 2, .*expected 0 to 1, and 255', found[0])
    relabel(root, lambda label: (label > 1).astype(np.uint16) * 300)
    assert 'has the value 300: MMSegmentation reads labels as 8 bits, 300 becomes 44' in errors(look(own()))[0]


def test_another_size_than_the_image(root):
    relabel(root, two)
    path = files(root)[0]
    Image.fromarray(np.array(Image.open(path))[::2, ::2]).save(path)
    found = errors(look(own()))
    assert len(found) == 1 and '1 of 20 labels have another size than their image' in found[0]
    assert 'of 64 x 48, its image of 128 x 96 pixels' in found[0]


def test_an_image_that_exif_turns(root):
    path = files(root, 'images')[0]
    image = Image.open(path)
    exif = image.getexif()
    exif[274] = 6
    image.save(path, exif=exif)
    found = errors(look(load(SEGMENTATION)))
    assert len(found) == 1 and '1 of 20 labels have another size than their image' in found[0]


def test_names_that_ade20k_does_not_have(root):
    found = errors(inspect_config(own(('asphalt', 'heaven'), True, 'ADE20KDataset')))
    assert "ADE20KDataset knows 150 classes and not asphalt, heaven: set type='BaseSegDataset'" in found[0]


def test_pipelines_of_ade20k_above_own_labels(root):
    relabel(root, two)
    config = own()
    for transform in config.train_dataloader.dataset.pipeline:
        if transform.type == 'LoadAnnotations':
            transform.reduce_zero_label = True
    found = errors(look(config))
    assert len(found) == 1 and 'reduce_zero_label is False in the data set and True in LoadAnnotations' in found[0]


def test_names_of_ade20k_with_own_labels(root):
    relabel(root, two)
    found = errors(look(own(('road', 'sky'), True, 'ADE20KDataset')))
    assert 'ADE20KDataset takes the label numbers of its 150 classes, the files have 0, 1' in found[0]


def test_the_first_class_that_becomes_nothing(root):
    relabel(root, two)
    found = errors(look(own(zero=True)))
    assert len(found) == 2 and re.search('ignores the label 0, [0-9]+% of the pixels, and makes 1 the first', found[0])
    relabel(root, lambda label: label + np.uint8(1))
    assert not look(own(zero=True))
    relabel(root, lambda label: np.where(np.arange(128) % 5, label, 0).astype(np.uint8))
    found = look(own(zero=True))
    assert not errors(found) and 'the label 0, ' in warnings(found)[0] and 'means nothing' in warnings(found)[0]


def test_a_class_without_pixels(root):
    relabel(root, two)
    found = look(own(('road', 'sky', 'sea')))
    assert [line for line in warnings(found) if '1 of 3 classes have no pixel in 20 labels' in line]
    assert not errors(found)


def test_labels_of_another_suffix(root):
    for path in files(root):
        path.rename(path.with_name(f'{path.stem}_mask.png'))
    found = errors(look(load(SEGMENTATION)))
    assert '20 of 20 label images do not exist' in found[0] and 'there is ADE_train_00000001_mask.png' in found[0]


def test_images_and_labels_without_one_another(root):
    files(root)[0].unlink()
    found = errors(look(load(SEGMENTATION)))
    assert len(found) == 1 and '1 of 20 label images do not exist' in found[0]
    files(root, 'images')[0].unlink()
    files(root, 'images')[0].unlink()
    found = look(load(SEGMENTATION))
    assert not errors(found) and 'labels in' in warnings(found)[0] and 'have no image in' in warnings(found)[0]


def test_images_of_another_suffix(root):
    path = files(root, 'images')[0]
    path.rename(path.with_suffix('.jpeg'))
    found = warnings(look(load(SEGMENTATION)))
    assert '1 of 20 images in' in found[0] and 'do not end in .jpg and are never read' in found[0]
    for path in files(root, 'images'):
        path.rename(path.with_suffix('.jpeg'))
    found = errors(look(load(SEGMENTATION)))
    assert 'holds no file that ends in .jpg, but 20 other images' in found[0]


def test_files_that_cannot_be_read(root):
    files(root)[0].write_bytes(b'no image')
    assert 'labels cannot be read, as' in errors(look(load(SEGMENTATION)))[0]
    files(root, 'images')[0].write_bytes(b'')
    assert '1 of 20 images, as' in errors(look(load(SEGMENTATION)))[0]


def test_a_palette_of_another_length(root):
    config = load(SEGMENTATION)
    config.train_dataloader.dataset.metainfo.palette = [(1, 2, 3)]
    assert 'metainfo.palette has 1 colours for 9 classes' in errors(inspect_config(config))[0]


def test_a_base_set_without_names(root):
    config = own()
    del config.train_dataloader.dataset['metainfo']
    assert 'metainfo.classes is not set' in errors(inspect_config(config))[0]


def test_an_image_in_both_sets(root):
    files(root, 'images', 'validation')[0].write_bytes(files(root, 'images')[0].read_bytes())
    assert '1 of 8 images are in train_dataloader.dataset as well' in warnings(look(load(SEGMENTATION)))[0]


def test_a_transform_that_fails(root):
    config = load(SEGMENTATION)
    config.train_dataloader.dataset.pipeline.insert(2, dict(type='PackSegInputs', meta_keys=('no_such_key', 'img')))
    found = errors(look(config))
    assert found and 'the pipeline fails on ' in found[0]
