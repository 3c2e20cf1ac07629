"""Annotation files with one mistake each: the finding names file, count, example and fix."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from damaged_data import DETECTION, NAMES, SPLITS, change_json, change_objects, errors, load, look, warnings
from mmefficientmod.data.inspect import inspect_config

pytestmark = pytest.mark.ops
BOXES_ONLY = dict(
    model__roi_head__mask_head=None,
    model__roi_head__mask_roi_extractor=None,
    train_dataloader__dataset__pipeline__1__with_mask=False,
)


def with_classes(classes, **options):
    config = load(DETECTION, **options)
    for split in SPLITS:
        config[f'{split}_dataloader'].dataset.metainfo = dict(classes=tuple(classes))
    return config


def shares(box: list, width: int = 128, height: int = 96) -> list:
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]


def corners(box: list) -> list:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def polygon(box: list) -> list:
    left, top, right, bottom = corners(box)
    return [left, top, right, top, right, bottom, left, bottom]


def test_nothing_is_found_in_sound_data(root):
    assert not look(load(DETECTION))
    change_objects(root, lambda each: each.update(segmentation=[polygon(each['bbox'])]))
    assert not look(load(DETECTION))


def test_nothing_is_found_below_the_stock_class(root):
    """COCO's 80 names, with gaps in the numbers as COCO has them, of which the images show six."""
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO['classes']

    def rename(content):
        content['categories'] = [dict(id=1 + i + i // 10, name=name) for i, name in enumerate(names)]

    change_json(root, rename)
    config = load(DETECTION, model__roi_head__bbox_head__num_classes=80, model__roi_head__mask_head__num_classes=80)
    for split in SPLITS:
        del config[f'{split}_dataloader'].dataset['metainfo']
    assert not look(config)


# Names of the classes -------------------------------------------------------------------------------------------------


def test_classes_in_another_order_than_the_file(root):
    found = errors(look(with_classes(NAMES[::-1])))
    assert [line.partition(':')[0] for line in found] == ['train_dataloader.dataset', 'val_dataloader.dataset']
    assert all(f'set metainfo=dict(classes={NAMES!r})' in line and 'numbers the categories' in line for line in found)


def test_a_subset_in_the_order_of_the_file_is_right(root):
    config = with_classes(('ball', 'fan'), model__roi_head__bbox_head__num_classes=2)
    config.model.roi_head.mask_head.num_classes = 2
    assert not look(config)
    config = with_classes(('fan', 'ball'), model__roi_head__bbox_head__num_classes=2)
    assert "set metainfo=dict(classes=('ball', 'fan'))" in errors(look(config))[0]


def test_a_class_that_is_misspelt(root):
    found = errors(look(with_classes(('ball', 'Box', *NAMES[2:]))))
    assert len(found) == 2 and all("class 'Box' of metainfo.classes is not a category of" in line for line in found)
    assert all("(is 'box' meant?)" in line for line in found)


def test_a_class_that_one_file_lacks(root):
    def without_tent(content):
        number = next(each['id'] for each in content['categories'] if each['name'] == 'tent')
        content['categories'] = [each for each in content['categories'] if each['id'] != number]
        content['annotations'] = [each for each in content['annotations'] if each['category_id'] != number]

    change_json(root, without_tent, ('val',))
    found = errors(look(load(DETECTION)))
    assert len(found) == 1 and re.match(r"val_dataloader\.dataset: class 'tent' .*instances_val2017\.json", found[0])


def test_other_classes_in_the_validation(root):
    config = load(DETECTION, model__roi_head__bbox_head__num_classes=2, model__roi_head__mask_head__num_classes=2)
    config.train_dataloader.dataset.metainfo = dict(classes=('ball', 'fan'))
    found = errors(look(config))
    assert 'val_dataloader.dataset: it has 6 classes' in found[0] and 'train_dataloader.dataset has 2' in found[0]
    assert "set metainfo=dict(classes=('ball', 'fan')) in both" in found[0]


@pytest.mark.parametrize('classes', [80, 2])
def test_metainfo_that_is_forgotten(root, classes):
    def rename(content):
        content['categories'] = [dict(id=1, name='crack'), dict(id=2, name='dent')]
        for each in content['annotations']:
            each['category_id'] = 1 + each['category_id'] % 2

    change_json(root, rename)
    config = load(DETECTION, model__roi_head__bbox_head__num_classes=classes)
    for split in SPLITS:
        del config[f'{split}_dataloader'].dataset['metainfo']
    found = errors(look(config))
    assert all('metainfo is not set, so the 80 classes of CocoDataset are taken' in line for line in found)
    assert "set metainfo=dict(classes=('crack', 'dent')) there and num_classes=2" in found[0]
    config.train_dataloader.dataset.metainfo = dict(CLASSES=('crack', 'dent'))
    assert 'metainfo.CLASSES is not read by MMDetection 3' in errors(look(config))[0]


def test_a_file_of_classes(root, tmp_path):
    (tmp_path / 'classes.txt').write_text('\r\n'.join(NAMES) + '\r\n')
    config = load(DETECTION)
    for split in SPLITS:
        config[f'{split}_dataloader'].dataset.metainfo = dict(classes=str(tmp_path / 'classes.txt'))
    assert not look(config)
    (tmp_path / 'classes.txt').write_bytes(b'\xff')
    assert 'metainfo.classes cannot be read (' in errors(inspect_config(config))[0]
    (tmp_path / 'classes.txt').write_text('\n'.join(NAMES[::-1]))
    assert 'numbers the categories in the order' in errors(inspect_config(config))[0]


def test_a_text_is_no_list_of_classes(root):
    config = load(DETECTION)
    config.train_dataloader.dataset.metainfo = dict(classes='ball')
    assert "metainfo.classes is the text 'ball': write ('ball',) for one class" in errors(inspect_config(config))[0]
    config.train_dataloader.dataset.metainfo = dict(classes=('ball', 'ball'))
    assert 'metainfo.classes names ball twice' in errors(inspect_config(config))[0]


def test_heads_of_other_sizes(root):
    found = errors(look(load(DETECTION, model__roi_head__bbox_head__num_classes=2)))
    assert found and 'bbox_head.num_classes is 2, but train_dataloader.dataset.metainfo names 6 classes' in found[0]
    found = look(load(DETECTION, model__roi_head__bbox_head__num_classes=80))
    assert not errors(found) and 'bbox_head.num_classes is 80' in warnings(found)[0]


# Masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('empty', [False, True])
def test_no_masks(root, empty):
    change_objects(root, lambda each: each.update(segmentation=[]) if empty else each.pop('segmentation'))
    total = len(json.loads((root / 'coco/annotations/instances_train2017.json').read_text())['annotations'])
    found = errors(look(load(DETECTION)))
    assert f'{total} of {total} annotations' in found[0] and 'model.roi_head.mask_head=None' in found[0]
    evaluator = dict(val_dataloader__dataset__pipeline__2__with_mask=False, val_evaluator__metric='bbox')
    assert not look(load(DETECTION, **BOXES_ONLY, **evaluator))


def test_one_object_without_a_mask(root):
    change_json(root, lambda content: content['annotations'][8].pop('segmentation'), ('train',))
    found = errors(look(load(DETECTION)))
    assert len(found) == 1 and re.search(r'1 of \d+ annotations .*, as annotation 108, have no segmentation', found[0])


def test_polygons_of_two_points(root):
    change_objects(root, lambda each: each.update(segmentation=[corners(each['bbox'])]), ('train',))
    found = errors(look(load(DETECTION)))
    assert len(found) == 1 and re.search(
        r'(\d+) of \1 objects .* have a segmentation that MMDetection cannot', found[0]
    )
    change_objects(root, lambda each: each.update(segmentation=[corners(each['bbox'])]), ('val',))
    assert 'a polygon of less than three points, which metric "segm" cannot use' in errors(look(load(DETECTION)))[0]


def test_some_polygons_of_two_points(root):
    change_json(root, lambda content: content['annotations'][0].update(segmentation=[[1, 1, 5, 5]]), ('train',))
    found = look(load(DETECTION))
    assert not errors(found) and re.search(r'1 of \d+ objects .* cannot use and are not learnt', warnings(found)[0])


def test_settings_that_contradict_one_another_about_masks(root):
    found = errors(look(load(DETECTION, train_dataloader__dataset__pipeline__1__with_mask=False)))
    assert 'the model has a mask head, but LoadAnnotations loads no masks' in found[0]
    found = errors(look(load(DETECTION, **BOXES_ONLY)))
    assert found == ["val_evaluator: metric has 'segm', but the model predicts no masks: set val_evaluator.metric=bbox"]


def test_masks_that_the_validation_still_loads(root):
    change_objects(root, lambda each: each.pop('segmentation'))
    found = errors(look(load(DETECTION, **BOXES_ONLY, val_evaluator__metric='bbox')))
    assert found and all(line.startswith('val_dataloader.dataset') and 'have no segmentation' in line for line in found)


# Objects that are dropped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda each: each.update(area=0), r'(\d+) of \1 objects .* are dropped \(\1 have an area of 0'),
        (lambda each: each.update(iscrowd=1), r'(\d+) of \1 objects .* have iscrowd=1 and are neither learnt'),
        (lambda each: each.update(bbox=shares(each['bbox'])), r'(\d+) of \1 objects .*look like shares of the size'),
        (lambda each: each.update(bbox=corners(each['bbox'])), r'\d+ of \d+ boxes .*look like \[x1, y1, x2, y2\]'),
        (lambda each: each.update(image_id=99999), r'(\d+) of \1 annotations .* are of no image of the file'),
    ],
)
def test_all_objects(root, change, message):
    change_objects(root, change)
    found = errors(look(load(DETECTION)))
    assert len(found) >= 2 and all('instances_' in line for line in found)
    assert re.search(message, found[0]), found[0]


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (dict(area=0), r'1 of \d+ objects .* are dropped \(1 have an area of 0, as annotation 100 of '),
        (dict(bbox=[300, 300, 20, 20]), r'1 of \d+ objects .* are dropped \(1 lie outside their image'),
        (dict(bbox=[90, 60, 100, 100]), r'1 of \d+ boxes .* reach outside their image, as \[90, 60, 100, 100\]'),
        (dict(image_id=99999), r'1 of \d+ annotations .*, as annotation 100 of image_id 99999, are of no image'),
        (dict(category_id=77), r'1 of \d+ annotations .*, as annotation 100 of category_id 77, are of no category'),
    ],
)
def test_one_object(root, values, message):
    change_json(root, lambda content: content['annotations'][0].update(values), ('train',))
    found = look(load(DETECTION))
    assert not errors(found) and len(found) == 1 and re.search(message, warnings(found)[0]), found


def test_width_and_height_swapped(root):
    change_json(
        root, lambda content: [each.update(width=each['height'], height=each['width']) for each in content['images']]
    )
    found = errors(look(load(DETECTION)))
    assert len(found) == 2 and 'have width and height swapped in the annotations' in found[0]
    assert 'which is 128 x 96 and annotated as 96 x 128' in found[0]


def test_images_that_are_filtered(root):
    def shrink(content):
        for each in content['images'][:2]:
            each.update(width=16, height=12)
            Image.new('RGB', (16, 12)).save(root / 'coco/train2017' / each['file_name'])
        kept = {each['id'] for each in content['images'][:-4]}
        content['annotations'] = [each for each in content['annotations'] if each['image_id'] in kept]
        for each in content['annotations']:
            if each['image_id'] in [image['id'] for image in content['images'][:2]]:
                each['bbox'] = [1, 1, 8, 8]

    change_json(root, shrink, ('train',))
    found = warnings(look(load(DETECTION)))
    assert any(re.search(r'2 of 20 images .* hold objects and are left out.*which is 32', line) for line in found)
    assert any(re.search(r'4 of 20 images .* hold no object.*filter_empty_gt=False', line) for line in found)


def test_a_class_without_objects(root):
    change_json(
        root,
        lambda content: content.update(
            annotations=[each for each in content['annotations'] if each['category_id'] != 2]
        ),
        ('train',),
    )
    found = look(load(DETECTION))
    assert not errors(found) and '1 of 6 classes have no object in' in warnings(found)[0]


def test_objects_that_are_too_small_at_the_scale(root):
    found = warnings(look(load(DETECTION, train_dataloader__dataset__pipeline__2__scale=(16, 12))))
    assert re.search(r'\d+ of \d+ objects are narrower than 4 pixels at the scale \(16, 12\)', found[0])


# Keys, ids, files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('key', ['area', 'bbox', 'id', 'image_id', 'category_id'])
def test_a_key_that_annotations_lack(root, key):
    change_json(root, lambda content: content['annotations'][3].pop(key), ('train',))
    label = '3' if key == 'id' else '103'
    found = errors(look(load(DETECTION)))
    assert len(found) == 1 and re.search(rf'1 of \d+ annotations .*, as annotation {label}, have no "{key}"', found[0])


@pytest.mark.parametrize('key', ['height', 'width', 'file_name', 'id'])
def test_a_key_that_images_lack(root, key):
    change_json(root, lambda content: content['images'][1].pop(key), ('train',))
    found = errors(look(load(DETECTION)))
    assert len(found) == 1 and re.search(rf'1 of 20 images .*, as image .*, have no "{key}"', found[0])


def test_iscrowd_is_needed_where_it_is_evaluated(root):
    change_objects(root, lambda each: each.pop('iscrowd'), ('train',))
    assert not look(load(DETECTION))
    change_objects(root, lambda each: each.pop('iscrowd'), ('val',))
    found = errors(look(load(DETECTION)))
    assert len(found) == 1 and found[0].startswith('val_evaluator: ') and 'have no "iscrowd"' in found[0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda content: content['annotations'][1].update(id=content['annotations'][0]['id']),
            'gives the id 100 to several annotations, 1 such ids',
        ),
        (lambda content: content['images'][1].update(id=1), 'gives the id 1 to several images, 1 such ids'),
        (
            lambda content: content['annotations'][0].update(bbox=['1', '2', '3', '4']),
            'have a "bbox" that is not four numbers',
        ),
        (lambda content: content['annotations'][0].update(bbox=[float('nan')] * 4), 'have a "bbox" that is not four'),
        (lambda content: content['annotations'][0].update(bbox=[1, 2, 3]), 'have a "bbox" that is not four numbers'),
        (lambda content: content['annotations'][0].update(area='12'), 'have an "area" that is not a number'),
        (
            lambda content: [each.update(category_id=str(each['category_id'])) for each in content['annotations']],
            'have a str as "category_id", of another type than the ids of the categories',
        ),
        (
            lambda content: [each.update(id=str(each['id'])) for each in content['categories']],
            'have a int as "category_id", of another type',
        ),
        (lambda content: content['categories'][0].update(name='box'), 'has several categories of name box'),
        (lambda content: content['categories'][0].update(id=2), 'has several categories of id 2'),
        (lambda content: content['categories'][0].pop('name'), '1 of 6 categories .* have no "name"'),
        (lambda content: content['images'][0].update(height=0), 'have a "height" that is not a number above 0'),
        (lambda content: content.update(images=[]), 'lists no images'),
        (lambda content: content.pop('categories'), 'it has no list of categories'),
        (lambda content: content.update(annotations={}), 'it has a dict as list of annotations'),
        (lambda content: content.update(annotations=[]), 'has no object of the classes ball, box'),
    ],
)
def test_content_that_cannot_be_read(root, change, message):
    change_json(root, change, ('train',))
    found = errors(look(load(DETECTION)))
    assert found and re.search(message, found[0]) and 'train2017.json' in found[0], found


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', r'not JSON in UTF-8 \(JSONDecodeError'),
        (b'[]', 'holds a list in place of images, annotations and categories'),
        (b'\xef\xbb\xbf{}', 'starts with a byte order mark'),
        (b'{"a": "\xff"}', r'not JSON in UTF-8 \(UnicodeDecodeError'),
        (b'[' * 100000, 'not JSON in UTF-8'),
    ],
)
def test_files_in_another_format(root, data, message):
    (root / 'coco/annotations/instances_train2017.json').write_bytes(data)
    assert re.search(
        f'is not an annotation file in the format of COCO: it .*{message}', errors(look(load(DETECTION)))[0]
    )


@pytest.mark.parametrize('number', [10**30, -5, 'x1', 2.5])
def test_ids_that_are_odd_and_right(root, number):
    change_json(root, lambda content: content['annotations'][0].update(id=number), ('train',))
    assert not look(load(DETECTION))


def test_an_id_of_0_is_a_miss_for_pycocotools(root):
    change_json(root, lambda content: content['annotations'][0].update(id=0))
    found = look(load(DETECTION))
    assert not errors(found) and warnings(found)[0].startswith('val_evaluator: ') and 'counts a match' in str(found[0])


def test_more_keys_than_needed_are_right(root):
    """As LVIS and keypoints have them."""

    def extend(content):
        content['categories'][0].update(frequency='f', synset='ball.n.01', keypoints=['nose'], skeleton=[[1, 1]])
        content['images'][0].update(neg_category_ids=[2], not_exhaustive_category_ids=[], coco_url='http://a/b.jpg')
        content['annotations'][0].update(keypoints=[1, 2, 2], num_keypoints=1, attributes=dict(occluded=False))

    change_json(root, extend)
    assert not look(load(DETECTION))


@pytest.mark.parametrize(
    ('classes', 'lacking', 'message'),
    [
        (NAMES, None, None),
        (NAMES[::-1], None, 'MMDetection numbers the categories in the order of'),
        (NAMES[:2], None, 'set metainfo=dict.classes=.*fan'),
        (NAMES, 'coco_url', '1 of 20 images .* have no "coco_url"'),
    ],
)
def test_lvis(root, classes, lacking, message):
    """Images have an address in place of a name, objects no iscrowd, and the classes are always all categories."""

    def change(content):
        for each in content['images']:
            each['coco_url'] = f'http://images.cocodataset.org/train2017/{each.pop("file_name")}'
        content['images'][0].pop(lacking, None)
        for each in content['annotations']:
            each.pop('iscrowd')

    change_json(root, change, ('train',))
    config = with_classes(classes, train_dataloader__dataset__type='LVISV1Dataset')
    found = [line for line in errors(inspect_config(config, ('train',))) if not line.startswith('model')]
    assert bool(found) == bool(message) and all(re.search(message, line) for line in found[:1]), found


def test_images_that_are_missing(root):
    names = sorted((root / 'coco/train2017').iterdir())
    names[0].rename(names[0].with_suffix('.png'))
    found = errors(look(load(DETECTION)))
    assert '1 of 20 images do not exist, as ' in found[0] and 'there is 000000000001.png: set the suffix' in found[0]


def test_backslashes_in_file_names(root):
    change_json(root, lambda content: [each.update(file_name='a\\' + each['file_name']) for each in content['images']])
    assert 'the names have backslashes: write / in file_name' in errors(look(load(DETECTION)))[0]


def test_images_that_cannot_be_read(root):
    first, second = sorted((root / 'coco/train2017').iterdir())[:2]
    first.write_bytes(b'')
    second.write_bytes(b'no image')
    found = errors(look(load(DETECTION)))
    assert any('1 of 20 images' in line and 'are empty files' in line for line in found)
    assert any('1 of 20 images' in line and 'cannot be read' in line for line in found)


def test_an_image_that_is_cut_off(root):
    first = next(iter(sorted((root / 'coco/train2017').iterdir())))
    first.write_bytes(first.read_bytes()[:-400])
    assert 'images that were decoded are damaged' in warnings(look(load(DETECTION)))[0]


def test_images_that_exif_turns(root):
    path = next(iter(sorted((root / 'coco/train2017').iterdir())))
    image = Image.open(path)
    exif = image.getexif()
    exif[274] = 6
    image.save(path, exif=exif)
    found = errors(look(load(DETECTION)))
    assert len(found) == 1 and 'are turned by their EXIF orientation when they are loaded' in found[0]
    config = load(DETECTION, train_dataloader__dataset__pipeline__0__color_type='color_ignore_orientation')
    assert not look(config)


def test_an_image_in_both_sets(root):
    source = next(iter(sorted((root / 'coco/train2017').iterdir())))
    target = next(iter(sorted((root / 'coco/val2017').iterdir())))
    target.write_bytes(source.read_bytes())
    found = warnings(look(load(DETECTION)))
    assert '1 of 8 images are in train_dataloader.dataset as well' in found[0]


def test_wrapped_data_sets_are_looked_at_each(root):
    config = load(DETECTION)
    inner = config.train_dataloader.dataset
    balanced = dict(type='ClassBalancedDataset', oversample_thr=1e-3, dataset=inner)
    config.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[inner, dict(type='RepeatDataset', times=2, dataset=balanced)]
    )
    assert not look(config)
    change_objects(root, lambda each: each.update(area=0), ('train',))
    places = {line.partition(':')[0] for line in errors(look(config))}
    assert 'train_dataloader.dataset' in ''.join(places)


def test_a_list_of_annotation_files(root):
    config = load(DETECTION)
    config.train_dataloader.dataset.ann_file = ['a.json', 'b.json']
    assert 'ann_file is a list: give one file' in errors(inspect_config(config))[0]


def test_a_test_set_without_annotations(root):
    config = load(DETECTION, test_evaluator__format_only=True, test_evaluator__outfile_prefix='out')
    change_json(root, lambda content: content.pop('annotations'), ('val',))
    assert not look(config, ('test',))


def test_a_data_set_of_the_users_own_is_judged_by_what_it_yields(root, tmp_path, monkeypatch):
    """A class that only names other classes is read by MMDetection; one that loads in its own way is not judged."""
    (tmp_path / 'my_data.py').write_text(
        'from mmdet.datasets import CocoDataset\n'
        'from mmdet.registry import DATASETS\n'
        '@DATASETS.register_module(force=True)\n'
        f'class Named(CocoDataset):\n    METAINFO = dict(classes={NAMES[::-1]!r})\n'
        '@DATASETS.register_module(force=True)\n'
        'class Loading(Named):\n    def load_data_list(self):\n        return super().load_data_list()\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__('my_data')
    config = load(DETECTION, custom_imports__imports=['mmefficientmod', 'my_data'])
    for split in SPLITS:
        config[f'{split}_dataloader'].dataset.type = 'Named'
        del config[f'{split}_dataloader'].dataset['metainfo']
    assert 'metainfo.classes is ' in errors(look(config))[0]
    for split in SPLITS:
        config[f'{split}_dataloader'].dataset.type = 'Loading'
    assert not errors(look(config))
