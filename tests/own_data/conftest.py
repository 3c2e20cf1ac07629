"""The demo's scenes in the formats that people's own data has."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers import load_tool
from own_images import NAMES
from scenes import make_dataset


@pytest.fixture(scope='session')
def coco(tmp_path_factory) -> Path:
    """12 training and 4 validation images of 128 x 96 in COCO's layout; not to be changed."""
    root = tmp_path_factory.mktemp('scenes')
    make_dataset(str(root), 12, 4, (128, 96), 0)
    return root / 'coco'


@pytest.fixture(scope='session')
def objects(coco) -> dict:
    """Part -> image entry and annotations of each image."""
    found = {}
    for part in ('train', 'val'):
        content = json.loads((coco / f'annotations/instances_{part}2017.json').read_text())
        by_image = defaultdict(list)
        for annotation in content['annotations']:
            by_image[annotation['image_id']].append(annotation)
        numbers = {category['id']: i for i, category in enumerate(content['categories'])}
        for annotation in content['annotations']:
            annotation['number'] = numbers[annotation['category_id']]
        found[part] = [(image, by_image[image['id']]) for image in content['images']]
    return found


@pytest.fixture
def yolo(coco, objects, tmp_path) -> Path:
    """The same as YOLO with boxes, in a folder with a space and an umlaut."""
    root = tmp_path / 'mein Bäcker'
    for part, images in objects.items():
        for kind in ('images', 'labels'):
            (root / kind / part).mkdir(parents=True)
        for image, entries in images:
            shutil.copy(coco / f'{part}2017' / image['file_name'], root / 'images' / part)
            lines = []
            for each in entries:
                x, y, w, h = each['bbox']
                box = (x + w / 2) / 128, (y + h / 2) / 96, w / 128, h / 96
                lines.append(f'{each["number"]} ' + ' '.join(f'{value:.6f}' for value in box))
            path = root / 'labels' / part / Path(image['file_name']).with_suffix('.txt')
            path.write_bytes('\r\n'.join(lines).encode())
    (root / 'data.yaml').write_text(f'train: ../images/train\nval: images/val\nnames: {NAMES}\n')
    return root


@pytest.fixture
def voc(coco, objects, tmp_path) -> Path:
    """The same as Pascal VOC."""
    root = tmp_path / 'voc'
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for part, images in objects.items():
        for image, entries in images:
            shutil.copy(coco / f'{part}2017' / image['file_name'], root / 'JPEGImages')
            top = ElementTree.Element('annotation')
            ElementTree.SubElement(top, 'filename').text = image['file_name']
            for each in entries:
                element = ElementTree.SubElement(top, 'object')
                ElementTree.SubElement(element, 'name').text = NAMES[each['number']]
                box = ElementTree.SubElement(element, 'bndbox')
                x, y, w, h = each['bbox']
                for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), (x + 1, y + 1, x + w + 1, y + h + 1)):
                    ElementTree.SubElement(box, tag).text = str(value)
            path = root / 'Annotations' / Path(image['file_name']).with_suffix('.xml')
            ElementTree.ElementTree(top).write(path)
        stems = [Path(image['file_name']).stem for image, _ in images]
        (root / f'ImageSets/Main/{part}.txt').write_text('\n'.join(stems))
    return root


@pytest.fixture
def labelme(coco, objects, tmp_path) -> Path:
    """The training images with a polygon of LabelMe for each object: its box, one corner cut off."""
    root = tmp_path / 'labelme'
    root.mkdir()
    for image, entries in objects['train']:
        shutil.copy(coco / 'train2017' / image['file_name'], root)
        shapes = []
        for each in entries:
            x, y, w, h = each['bbox']
            points = [[x, y], [x + w, y], [x + w, y + h / 2], [x + w / 2, y + h], [x, y + h]]
            shapes.append(dict(label=NAMES[each['number']], points=points, shape_type='polygon', group_id=None))
        content = dict(shapes=shapes, imagePath=f'C:\\data\\{image["file_name"]}', imageWidth=128, imageHeight=96)
        (root / Path(image['file_name']).with_suffix('.json')).write_text(json.dumps(content))
    return root


@pytest.fixture
def own_data(capsys):
    """Runs the tool: exit code, and all that it says."""
    main = load_tool('own_data').main

    def run(*args) -> tuple:
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        text = said.out + said.err
        if isinstance(code, str):  # Python prints it and exits with 1
            text, code = text + code, 1
        return code, text

    return run
