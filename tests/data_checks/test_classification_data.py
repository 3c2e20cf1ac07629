"""Folders and lists of MMPreTrain, and XML files of Pascal VOC, with one mistake each."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from damaged_data import errors, look, warnings
from mmefficientmod.data.inspect import inspect_config

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]


@pytest.fixture
def folders(tmp_path):
    """Three images for each of the classes a, b and c, in folders of train and val."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in 'abc':
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
                image.save(tmp_path / split / name / f'{number}.png')
    return tmp_path


def classifier(root, classes=None, heads=3, **dataset) -> Config:
    settings = dict(type='CustomDataset', data_root=str(root), pipeline=PIPELINE, **dataset)
    if classes:
        settings['metainfo'] = dict(classes=tuple(classes))
    loaders = {
        f'{split}_dataloader': dict(batch_size=1, dataset={'data_prefix': split, **settings})
        for split in ('train', 'val')
    }
    head = dict(type='LinearClsHead', num_classes=heads)
    model = dict(type='ImageClassifier', head=head)
    return Config(
        dict(default_scope='mmpretrain', model=model, val_evaluator=dict(type='Accuracy', topk=(1,)), **loaders)
    )


def test_nothing_is_found_in_sound_folders(folders):
    assert not look(classifier(folders))
    assert not look(classifier(folders, 'abc'))
    assert not look(classifier(folders, ('tench', 'goldfish', 'white shark')))  # names of one's own, as ImageNet's


def test_classes_in_another_order_than_the_folders(folders):
    found = errors(look(classifier(folders, 'bac')))
    assert 'MMPreTrain numbers the folders of' in found[0] and "set metainfo=dict(classes=('a', 'b', 'c'))" in found[0]
    for split in ('train', 'val'):
        for old, new in zip('abc', ('cats', 'cows', 'dogs')):
            (folders / split / old).rename(folders / split / new)
    assert (
        "class 'dog' stands for the folder cats, but looks like dogs"
        in errors(look(classifier(folders, ('dog', 'cow', 'cat'))))[0]
    )


def test_another_number_of_folders_than_classes(folders):
    config = classifier(folders)
    config.train_dataloader.dataset.type = 'ImageNet'
    found = errors(inspect_config(config))
    assert 'ImageNet has 1000 classes' in found[0] and "set type='CustomDataset', metainfo=dict(" in found[0]
    assert 'model.head.num_classes=3' in found[0]
    found = errors(inspect_config(classifier(folders, 'ab')))
    assert 'metainfo names 2 classes' in found[0] and '3 folders, a, b, c, not named: c: set ' in found[0]


def test_a_folder_that_the_validation_lacks(folders):
    for path in (folders / 'val/b').iterdir():
        path.unlink()
    (folders / 'val/b').rmdir()
    assert 'without a folder: b' in errors(look(classifier(folders, 'abc')))[0]
    found = errors(look(classifier(folders)))
    assert 'it has 2 classes, a, c, and train_dataloader.dataset has 3, a, b, c' in found[0]


def test_a_folder_without_images(folders):
    for path in (folders / 'train/b').iterdir():
        path.unlink()
    assert '1 of 3 classes have no image in' in warnings(look(classifier(folders, 'abc')))[0]


def test_folders_that_are_no_classes(folders):
    config = classifier(folders, data_prefix='')
    assert 'train, val, are not classes: set data_prefix' in errors(inspect_config(config))[0]
    (folders / 'flat').mkdir()
    config = classifier(folders, data_prefix='flat')
    assert 'flat have no labels: put those of each class into a folder of its own' in errors(inspect_config(config))[0]


def test_images_that_are_never_read(folders):
    (folders / 'train/a/0.png').rename(folders / 'train/0.png')
    (folders / 'train/a/1.png').rename(folders / 'train/a/1.webp')
    found = warnings(look(classifier(folders)))
    assert any(
        '1 images in' in line and 'in no folder of a class and are never read, as 0.png' in line for line in found
    )
    assert any('1 of 9 images in' in line and 'as a/1.webp' in line for line in found)


def test_top_5_of_three_classes(folders):
    config = classifier(folders)
    config.val_evaluator.topk = (1, 5)
    assert errors(inspect_config(config)) == [
        'val_evaluator: topk is (1, 5), but model.head.num_classes is 3: add --cfg-options val_evaluator.topk=(1,)'
    ]


def test_a_head_of_another_size(folders):
    found = errors(look(classifier(folders, 'abc', heads=2)))
    assert 'model.head.num_classes is 2, but train_dataloader.dataset.metainfo names 3 classes' in found[0]
    assert 'model.head.num_classes is 9' in warnings(look(classifier(folders, 'abc', heads=9)))[0]
    assert 'model.head.num_classes is 2' in errors(look(classifier(folders, heads=2)))[0]  # classes are the folders


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ('a/0.png 1\nb/0.png 2\nc/0.png 3\n', 'as 3; expected are 0 to 2: the numbers start at 0'),
        ('a/0.png 0\nb/0.png -1\n', 'as -1; expected are 0 to 2'),
        ('a/0.png,0\nb/0.png 1\n', '1 of 2 lines of .*, as line 1: .a/0.png,0.'),
        ('a/0.png 0\n\nb/0.png 1\n', '1 of 3 lines of .*, as line 2: ..'),
        ('a/0.png cat\n', '1 of 1 lines of'),
        ('', 'lists no images'),
        ('a/none.png 0\n', '1 of 1 images do not exist'),
    ],
)
def test_lists_that_are_wrong(folders, lines, message):
    (folders / 'list.txt').write_text(lines)
    config = classifier(folders, 'abc')
    config.train_dataloader.dataset.ann_file = 'list.txt'
    found = errors(look(config))
    assert found and re.search(message, found[0]), found


def test_a_list_that_is_right(folders):
    (folders / 'list.txt').write_bytes(b'a/0.png 0\r\nb/0.png 1\r\nc/0.png 2\r\n')
    config = classifier(folders, 'abc')
    config.train_dataloader.dataset.ann_file = 'list.txt'
    assert not look(config)


def test_a_list_whose_numbers_contradict_the_folders(folders):
    """A list has no names: where the images lie in folders of the classes, these tell the order of the numbers."""
    for split in ('train', 'val'):
        lines = [f'{name}/{number}.png {"abc".index(name)}' for name in 'abc' for number in range(3)]
        (folders / f'{split}.txt').write_text('\n'.join(lines))
    config = classifier(folders, 'bac')
    for split in ('train', 'val'):
        config[f'{split}_dataloader'].dataset.ann_file = f'{split}.txt'
    found = errors(look(config))[0]
    assert '6 of 9 labels of' in found and 'a/0.png with 0, which is b: order metainfo.classes' in found
    for split in ('train', 'val'):
        config[f'{split}_dataloader'].dataset.metainfo = dict(classes=('a', 'b', 'c'))
    assert not look(config)


def test_a_list_without_names_of_classes(folders):
    """Its largest number tells how many classes a head needs."""
    for split in ('train', 'val'):
        (folders / f'{split}.txt').write_text('a/0.png 0\nc/0.png 3\n')
    config = classifier(folders)
    for split in ('train', 'val'):
        config[f'{split}_dataloader'].dataset.ann_file = f'{split}.txt'
    assert errors(look(config)) == [
        'model.head: model.head.num_classes is 3, but train_dataloader.dataset has 4 classes: '
        'add --cfg-options model.head.num_classes=4',
        'model.head: model.head.num_classes is 3, but val_dataloader.dataset has 4 classes: '
        'add --cfg-options model.head.num_classes=4',
    ]
    config.model.head.num_classes = 4
    assert not look(config)


def test_several_labels_of_an_image(folders):
    content = dict(
        metainfo=dict(classes=['a', 'b', 'c']),
        data_list=[dict(img_path=f'{name}/0.png', gt_label=[number, 0]) for number, name in enumerate('abc')],
    )
    (folders / 'labels.json').write_text(json.dumps(content))
    config = classifier(folders, 'abc')
    config.train_dataloader.dataset.update(type='MultiLabelDataset', ann_file='labels.json')
    assert not look(config, ('train',))
    content['data_list'][0]['gt_label'] = [7]
    (folders / 'labels.json').write_text(json.dumps(content))
    assert 'as 7; expected are 0 to 2' in errors(look(config, ('train',)))[0]


# Pascal VOC -----------------------------------------------------------------------------------------------------------

XML = (
    '<annotation><size><width>64</width><height>48</height></size><object><name>{name}</name><bndbox><xmin>{left}</xmin>'
    '<ymin>5</ymin><xmax>{right}</xmax><ymax>40</ymax></bndbox></object></annotation>'
)


@pytest.fixture
def voc(tmp_path):
    """Four images with a cat or a dog each."""
    for folder in ('JPEGImages', 'Annotations'):
        (tmp_path / folder).mkdir()
    for number in range(4):
        Image.new('RGB', (64, 48), (number, 0, 0)).save(tmp_path / f'JPEGImages/{number}.jpg')
        write_xml(tmp_path, number, 'cat' if number % 2 else 'dog')
    (tmp_path / 'train.txt').write_text('0\r\n1\r\n2\r\n3\r\n')
    return tmp_path


def write_xml(root, number, name, left=4, right=50) -> None:
    (root / f'Annotations/{number}.xml').write_text(XML.format(name=name, left=left, right=right))


def voc_config(root, classes=('cat', 'dog'), **dataset) -> Config:
    settings = dict(
        type='VOCDataset',
        data_root=str(root),
        ann_file='train.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=tuple(classes)),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)],
        **dataset,
    )
    return Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=settings)))


@pytest.mark.ops
def test_pascal_voc(voc):
    assert not look(voc_config(voc))
    assert not look(voc_config(voc, ('dog',)))  # a choice
    found = errors(look(voc_config(voc, ('Cat', 'dog'))))
    assert "2 of 4 objects are named 'cat', which is not a class, and none 'Cat'" in found[0]
    assert 'none of the classes cow, pig is in the files of' in errors(look(voc_config(voc, ('cow', 'pig'))))[0]
    found = look(voc_config(voc, ('cat', 'dog', 'horse')))
    assert not errors(found) and '1 of 3 classes have no object in the files of' in warnings(found)[0]


@pytest.mark.ops
def test_files_of_pascal_voc_that_are_wrong(voc):
    write_xml(voc, 0, 'cat', right=500)
    assert re.search('1 of 4 boxes .* reach outside their image', warnings(look(voc_config(voc)))[0])
    write_xml(voc, 0, 'cat', left=50.2, right=50.9)
    assert '1 of 4 boxes of the files of' in errors(look(voc_config(voc)))[0]
    for number in range(4):
        write_xml(voc, number, 'cat', left=0.1, right=0.8)
    assert 'are they shares of the size' in errors(look(voc_config(voc)))[0]
    for number in range(4):
        write_xml(voc, number, 'cat')
    write_xml(voc, 0, 'cat', left='x')
    assert 'have an <object> without a <bndbox> of four numbers' in errors(look(voc_config(voc)))[0]
    (voc / 'Annotations/0.xml').write_text('<annotation>')
    assert '1 of 4 files, as' in errors(look(voc_config(voc)))[0]
    (voc / 'train.txt').write_text('0.jpg\n1.jpg\n')
    assert 'write names without a suffix, one a line' in errors(look(voc_config(voc)))[0]
    (voc / 'train.txt').write_text('')
    assert 'lists no images' in errors(look(voc_config(voc)))[0]


@pytest.mark.ops
def test_images_of_pascal_voc_that_are_missing(voc):
    (voc / 'JPEGImages/1.jpg').rename(voc / 'JPEGImages/1.png')
    assert 'there is 1.png' in errors(look(voc_config(voc)))[0]
