"""Classes that a config names are read as MMEngine reads them, before a training and in a report."""

from __future__ import annotations

import json

import pytest
from mmengine.config import Config

from mmefficientmod.compare.results import dataset_of
from mmefficientmod.training.checks.data import check_classes, check_content, check_data
from mmefficientmod.training.checks.run import check_run
from mmefficientmod.utils import UserError


def make_dataset(classes, tmp_path) -> dict:
    """A data set of two images of a dog."""
    content = dict(
        images=[dict(id=1)], categories=[dict(id=7, name='dog')], annotations=[dict(id=1, image_id=1, category_id=7)]
    )
    (tmp_path / 'dogs.json').write_text(json.dumps(content))
    return dict(type='CocoDataset', ann_file=str(tmp_path / 'dogs.json'), metainfo=dict(classes=classes))


def check(dataset: dict, classes: int = 9) -> None:
    check_content('train', 'CocoDataset', dataset, dict(ann_file=dataset['ann_file']))
    check_classes([('train', dataset)], [('model.bbox_head', dict(num_classes=classes))])


def test_a_file_of_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    dataset = make_dataset('classes.txt', tmp_path)
    check(dataset)
    with pytest.raises(UserError, match=r'num_classes is 1, but train\.metainfo names 2 classes'):
        check(dataset, classes=1)
    config = Config(dict(test_dataloader=dict(dataset=dataset)))
    assert dataset_of(config)[-1] == '(2 classes)'
    (tmp_path / 'classes.txt').write_bytes(b'\xff')
    with pytest.raises(UserError, match=r'^train: metainfo\.classes cannot be read \('):
        check(dataset)
    (tmp_path / 'classes.txt').unlink()  # a report elsewhere
    assert dataset_of(config)[-1] == '(classes of classes.txt)'


def test_a_text_is_no_list_of_classes(tmp_path):
    dataset = make_dataset('dog', tmp_path)
    with pytest.raises(UserError, match=r"^train: metainfo\.classes is the text 'dog': write \('dog',\) for one class"):
        check(dataset)
    with pytest.raises(UserError, match=r"^train\.metainfo\.classes is the text 'dog': write "):
        check_classes([('train', dataset)], [])
    check(make_dataset('https://example.org/classes.txt', tmp_path))  # MMEngine fetches it
    check(make_dataset(('dog',), tmp_path))


@pytest.mark.parametrize('left_out', [dict(), dict(annotations=[])])
def test_only_a_training_needs_objects(left_out, tmp_path):
    """COCO's own test-dev has no ``annotations``, and a test split may be of pictures that show nothing."""
    path = tmp_path / 'image_info_test-dev2017.json'
    path.write_text(json.dumps(dict(images=[dict(id=1)], categories=[dict(id=7, name='dog')], **left_out)))
    dataset = dict(type='CocoDataset', ann_file=str(path))
    check_data(
        Config(dict(test_dataloader=dict(dataset=dataset), val_dataloader=dict(dataset=dataset))), ['test', 'val']
    )
    with pytest.raises(UserError, match=r"KeyError: 'annotations'|has no object of the classes dog"):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ['train'])


def judge(model: dict, **dataset: object) -> None:
    check_run('train', Config(dict(model=model, train_dataloader=dict(dataset=dataset))))


def test_the_heads_of_a_panoptic_model_tell_things_alone():
    names = dict(classes=('dog', 'cat', 'sky'), thing_classes=('dog', 'cat'))
    heads = dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2))
    judge(heads, type='CocoPanopticDataset', metainfo=names)
    judge(heads, type='mmdet.CocoPanopticDataset', metainfo=dict(classes=names['classes']))
    heads['mask_head']['num_classes'] = 1
    with pytest.raises(UserError, match=r'model\.mask_head\.num_classes is 1, but .* names 2 classes'):
        judge(heads, type='CocoPanopticDataset', metainfo=names)


def test_heads_that_tell_something_else_are_not_judged():
    judge(dict(rpn_head=dict(type='FCOSHead', num_classes=1)), metainfo=dict(classes=('a', 'b')))
    judge(dict(auxiliary_head=[dict(type='STDCHead', num_classes=2)]), metainfo=dict(classes=('a', 'b', 'c')))


@pytest.mark.parametrize('name', ['bbox_head', 'auxiliary_head'])
def test_each_of_several_heads_is_judged(name):
    heads = {name: [dict(num_classes=3), dict(num_classes=2)]}
    with pytest.raises(UserError, match=rf'model\.{name}\.1\.num_classes is 2, but .* names 3 classes'):
        judge(heads, metainfo=dict(classes=('a', 'b', 'c')))
