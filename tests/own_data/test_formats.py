"""Every format is read to the objects that its files hold, and what is no data set is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmefficientmod.data.formats import recognise
from mmefficientmod.data.parts import split
from mmefficientmod.utils import UserError
from own_images import NAMES, write_folders, write_masks


def boxes(part, classes):
    """File name, class and box of every object, sorted."""
    names = {image['id']: Path(image['file_name']).name for image in part.images}
    labels = {category['id']: category['name'] for category in part.categories}
    found = [(names[each['image_id']], labels[each['category_id']], each['bbox']) for each in part.annotations]
    return sorted(found)


@pytest.fixture
def truth(coco):
    data = recognise(coco)
    return {name: boxes(part, data.classes) for name, part in data.parts.items()}


def test_coco_is_used_in_place(coco):
    data = recognise(coco)
    assert (data.format, data.task, data.classes) == ('COCO JSON', 'detection', NAMES)
    assert {name: len(part) for name, part in data.parts.items()} == {'train': 12, 'val': 4}
    assert data.parts['val'].file == coco / 'annotations/instances_val2017.json'
    assert data.parts['val'].root == coco / 'val2017'
    assert not data.findings


@pytest.mark.parametrize('format', ['yolo', 'voc'])
def test_boxes_are_those_of_the_file(format, request, truth):
    pytest.importorskip('supervision')
    data = recognise(request.getfixturevalue(format))
    assert not data.findings
    assert data.classes == (NAMES if format == 'yolo' else sorted(NAMES))
    for name, expected in truth.items():
        found = boxes(data.parts[name], data.classes)
        assert [each[:2] for each in found] == [each[:2] for each in expected]
        np.testing.assert_allclose([each[2] for each in found], [each[2] for each in expected], atol=0.02)


def test_polygons_of_yolo_and_labelme_are_kept_as_they_are(yolo, labelme, objects):
    pytest.importorskip('supervision')
    for path in (yolo / 'labels').rglob('*.txt'):
        lines = []
        for line in path.read_text().splitlines():
            label, x, y, w, h = line.split()
            x, y, w, h = map(float, (x, y, w, h))
            points = [x - w / 2, y - h / 2, x + w / 2, y - h / 2, x, y + h / 2]
            lines.append(f'{label} ' + ' '.join(map(str, points)))
        path.write_text('\n'.join(lines))
    part = recognise(yolo).parts['train']
    for each in part.annotations:
        (polygon,) = each['segmentation']
        x, y, w, h = each['bbox']
        assert polygon == pytest.approx([x, y, x + w, y, x + w / 2, y + h], abs=0.05)
        assert each['area'] == pytest.approx(w * h / 2, rel=0.05, abs=1)
    data = recognise(labelme)
    assert data.classes == sorted(NAMES) and list(data.parts) == ['all']
    assert len(data.parts['all'].annotations) == sum(len(found) for _, found in objects['train'])
    assert all(len(each['segmentation'][0]) == 10 for each in data.parts['all'].annotations)


def test_label_images_of_numbers_are_used_in_place(tmp_path):
    data = recognise(write_masks(tmp_path / 'data'))
    assert (data.task, data.classes) == ('segmentation', ['class_0', 'class_1', 'class_2'])
    written = data.write(tmp_path).parts['all']
    assert written.mask_root == tmp_path / 'data/masks' and written.file is None
    assert not data.findings and written.counts() == [6, 6, 6]


@pytest.mark.parametrize('mode', ['binary', 'colours', 'grey as colours', 'palette', 'bits'])
def test_other_label_images_become_numbers(mode, tmp_path):
    root = tmp_path / 'data'
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    convert = {
        'binary': lambda values: (values > 0).astype(np.uint8) * 255,
        'bits': lambda values: (values > 0).astype(np.uint8) * 255,
        'colours': lambda values: colors[values][..., ::-1],
        'grey as colours': lambda values: np.repeat(values[..., None], 3, 2),
        'palette': lambda values: values,
    }[mode]
    write_masks(root, convert=convert)
    if mode == 'colours':
        (root / 'labelmap.txt').write_text(
            '# label:color_rgb:parts:actions\r\nsky:0,0,0::\r\nroof:128,0,0::\r\nlawn:0,128,0::\r\n'
        )
    for path in (root / 'masks').iterdir():
        if mode == 'palette':
            image = Image.open(path)
            image.putpalette(colors.ravel().tolist() + [0] * 759)
            image.save(path)
        elif mode == 'bits':
            Image.open(path).convert('1').save(path)
    data = recognise(root)
    written = data.write(tmp_path / 'new').parts['all'] if (tmp_path / 'new').mkdir() is None else None
    values = np.asarray(Image.open(written.mask(0)))
    assert values.ndim == 2 and written.decoder.is_plain
    two = mode in ('binary', 'bits')
    assert np.unique(values).tolist() == ([0, 1] if two else [0, 1, 2])
    assert [values[5, 2], values[5, 32], values[5, 61]] == ([0, 1, 1] if two else [0, 1, 2])
    assert data.classes == {
        'binary': ['background', 'foreground'],
        'bits': ['background', 'foreground'],
        'colours': ['sky', 'roof', 'lawn'],
    }.get(mode, ['class_0', 'class_1', 'class_2'])
    if mode in ('colours', 'palette'):
        assert [tuple(color) for color in data.palette] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    before = cv2.imread(str(root / 'masks/scene0.png'), cv2.IMREAD_UNCHANGED)
    assert before.shape[:2] == values.shape  # the user's files are left


@pytest.mark.parametrize(
    ('convert', 'names', 'says'),
    [
        (lambda values: values * 100, '', 'hold 0, 100, 200'),
        (lambda values: np.full_like(values, 255), '', 'nothing but 255'),
        (lambda values: values * 3, 'a\nb\nc\nd\n', 'hold 0, 3, 6'),
        (lambda values: np.random.default_rng(0).integers(0, 255, (*values.shape, 3)), '', 'more than 64 colours'),
    ],
)
def test_label_images_that_say_nothing_clear_are_errors(convert, names, says, tmp_path):
    root = write_masks(tmp_path / 'data', convert=convert)
    if names:
        (root / 'classes.txt').write_text(names)
    (finding,) = [each for each in recognise(root).findings if each.level == 'error']
    assert says in finding.message and 'scene0.png' in finding.message


def test_values_are_mapped_in_the_order_of_as_many_names(tmp_path):
    root = write_masks(tmp_path / 'data', convert=lambda values: values * 100)
    (root / 'classes.txt').write_text('sky\nroof\nlawn\n')
    data = recognise(root)
    assert data.classes == ['sky', 'roof', 'lawn']
    assert np.unique(data.parts['all'].decoder.read(root / 'masks/scene0.png')).tolist() == [0, 1, 2]


def test_masks_beside_their_images(tmp_path):
    root = write_masks(tmp_path / 'data')
    for path in sorted((root / 'masks').iterdir()):
        shutil.move(str(path), root / 'images' / f'{path.stem}_mask.png')
    shutil.rmtree(root / 'masks')
    cv2.imwrite(str(root / 'images/scene9.png'), np.zeros((48, 64, 3), np.uint8))  # another suffix, and without a mask
    data = recognise(root)
    part = data.parts['all']
    assert len(part) == 6 and part.mask(0).name == 'scene0_mask.png'
    assert any('1 images have no mask' in each.message for each in data.findings)
    (tmp_path / 'new').mkdir()
    assert (data.write(tmp_path / 'new').parts['all'].file).read_text().splitlines() == part.stems


def test_images_with_several_suffixes_are_all_used(tmp_path):
    root = write_masks(tmp_path / 'data')
    shutil.move(str(root / 'images/scene1.jpg'), root / 'images/scene1.JPG')
    (tmp_path / 'new').mkdir()
    part = recognise(root).write(tmp_path / 'new').parts['all']
    assert len(part) == 6
    assert all((part.root / name).is_file() and part.mask(i).is_file() for i, name in enumerate(part.names()))


def test_folders_of_classes(tmp_path):
    root = write_folders(tmp_path / 'data', {'cat': 3, 'dog': 5})
    data = recognise(root)
    assert (data.task, data.classes, data.parts['all'].counts()) == ('classification', ['cat', 'dog'], [3, 5])
    for part in ('train', 'val'):
        write_folders(tmp_path / 'parts' / part, {'cat': 2, 'dog': 2} if part == 'train' else {'dog': 2})
    data = recognise(tmp_path / 'parts')
    assert data.classes == ['cat', 'dog'] and data.parts['val'].labels == [1, 1]
    (tmp_path / 'new').mkdir()
    written = data.write(tmp_path / 'new').parts
    assert written['train'].file is None  # the folders say it
    assert all(line.endswith(' 1') for line in written['val'].file.read_text().splitlines())


def test_a_split_is_the_same_for_a_seed_and_keeps_groups_together(tmp_path):
    root = tmp_path / 'data'
    write_folders(root, {'cat': 40, 'dog': 10})
    part = recognise(root).parts['all']
    train, val = split(part, 0.2, 3)
    assert (val.counts(), train.counts()) == ([8, 2], [32, 8])
    assert val.files == split(part, 0.2, 3)[1].files != split(part, 0.2, 4)[1].files
    assert not set(train.files) & set(val.files)
    for i in range(20):
        shutil.move(str(root / f'cat/0_{i}.jpg'), root / f'cat/video{i // 5}_{i}.jpg')
    train, val = split(recognise(root).parts['all'], 0.3, 0, '_')
    groups = [{name.rpartition('/')[2].partition('_')[0] for name in each.files} for each in (train, val)]
    assert not groups[0] & groups[1]
    with pytest.raises(UserError, match='cannot be divided'):
        split(part.take([0]), 0.2, 0)


@pytest.mark.parametrize(
    'rename',
    [
        lambda image: image.update(file_name='C:\\Users\\me\\' + image['file_name']),
        lambda image: image.update(coco_url=f'http://images.cocodataset.org/val2017/{image.pop("file_name")}'),
    ],
    ids=['Windows', 'LVIS'],
)
def test_names_of_another_computer_are_corrected_in_a_copy(rename, coco, tmp_path):
    shutil.copytree(coco, tmp_path / 'data')
    path = tmp_path / 'data/annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    for image in content['images']:
        rename(image)
    path.write_text(json.dumps(content))
    data = recognise(tmp_path / 'data')
    assert any('4 file names are not those of this computer' in each.message for each in data.findings)
    (tmp_path / 'new').mkdir()
    part = data.write(tmp_path / 'new').parts['val']
    assert part.file == tmp_path / 'new/val.json'
    assert all((part.root / name).is_file() for name in part.names())
    assert path.read_text() == json.dumps(content)


@pytest.mark.parametrize('name', ['../../secret.jpg', '/etc/secret.jpg'])
def test_no_image_outside_of_the_folder_is_read(name, coco, tmp_path):
    shutil.copytree(coco, tmp_path / 'data')
    path = tmp_path / 'data/annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    content['images'][1]['file_name'] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match='outside of'):
        recognise(tmp_path / 'data')


@pytest.mark.parametrize('linked', ['annotations', 'val2017'])
def test_a_link_that_leads_outside_is_followed_with_a_warning(linked, coco, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(coco, root)
    shutil.rmtree(root / linked)
    os.symlink(coco / linked, root / linked)
    data = recognise(root)
    (finding,) = data.findings
    assert 'is a link to' in finding.message and finding.level == 'warning'
    assert [len(part) for part in data.parts.values()] == [12, 4]


def test_yolo_of_strangers(yolo, tmp_path):
    pytest.importorskip('supervision')
    described = yolo / 'data.yaml'
    marker = tmp_path / 'executed'
    described.write_text(f'names: !!python/object/apply:os.system ["touch {marker}"]\ntrain: images/train\n')
    with pytest.raises(UserError, match='not plain YAML'):
        recognise(yolo)
    assert not marker.exists()
    described.write_text('names: [a, b]\ntrain: /etc\nval: images/val\n')
    data = recognise(yolo)
    assert any('/etc is not in' in each.message and each.level == 'error' for each in data.findings)
    assert any('beyond the 2 names' in each.message for each in data.findings)


@pytest.mark.parametrize(
    ('line', 'says'),
    [
        ('0 0.5 0.5', 'cannot be read'),
        ('0 nan 0.5 0.1 0.1', 'cannot be read'),
        ('0 64 48 30 20', 'are in pixels'),
        ('x 0.5 0.5 0.1 0.1', 'cannot be read'),
        ('6 0.5 0.5 0.1 0.1', 'beyond the 6 names'),
    ],
)
def test_a_wrong_line_of_yolo_is_named(line, says, yolo):
    pytest.importorskip('supervision')
    path = sorted((yolo / 'labels/train').iterdir())[2]
    path.write_text(path.read_text() + '\n' + line)
    found = [each.message for each in recognise(yolo).findings]
    assert any(says in each and path.stem in each and '1 ' in each for each in found), found


def test_an_image_in_two_lists_of_voc_is_told(voc):
    pytest.importorskip('supervision')
    lists = voc / 'ImageSets/Main'
    lists.mkdir(parents=True, exist_ok=True)
    stems = [path.stem for path in sorted((voc / 'Annotations').iterdir())]
    (lists / 'train.txt').write_text('\n'.join(stems))
    (lists / 'val.txt').write_text(stems[0])
    data = recognise(voc)
    assert list(data.parts) == ['train'] and len(data.parts['train']) == len(stems)
    assert any('1 images are in several lists' in each.message for each in data.findings)


def test_an_entity_in_an_xml_is_not_resolved(voc):
    pytest.importorskip('supervision')
    path = sorted((voc / 'Annotations').iterdir())[0]
    path.write_text(
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'
    )
    assert any('declares entities' in each.message for each in recognise(voc).findings)


def test_without_the_library_the_other_formats_work(monkeypatch, yolo, coco):
    monkeypatch.setitem(__import__('sys').modules, 'supervision.dataset.formats.yolo', None)
    with pytest.raises(UserError, match='pip install "supervision'):
        recognise(yolo)
    assert recognise(coco).classes == NAMES


def test_what_is_no_data_set(tmp_path, coco, yolo):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text').mkdir()
    (tmp_path / 'text/readme.txt').write_text('nothing')
    (tmp_path / 'photos').mkdir()
    shutil.copy(next((coco / 'val2017').iterdir()), tmp_path / 'photos')
    for name, says in (
        ('nowhere', 'does not exist'),
        ('empty', 'is empty'),
        ('text', 'holds no image'),
        ('photos', 'no annotations that are known'),
    ):
        with pytest.raises(UserError, match=says) as error:
            recognise(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
    shutil.copytree(coco, yolo / 'coco')
    with pytest.raises(UserError, match=r'COCO JSON .* and YOLO .*--format'):
        recognise(yolo)
    assert recognise(yolo, 'coco').format == 'COCO JSON'


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('{"images": [', 'not a JSON'),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', 'have no file_name'),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}', 'none of the 1 images'),
        ('{"images": [], "annotations": [], "categories": []}', 'holds no COCO JSON'),
    ],
)
def test_a_json_that_is_no_cocos(content, says, coco, tmp_path):
    shutil.copytree(coco / 'val2017', tmp_path / 'images')
    (tmp_path / 'some.json').write_text(content)
    with pytest.raises(UserError, match=says):
        recognise(tmp_path)


def test_a_yaml_that_grows_without_end_is_refused(yolo):
    pytest.importorskip('supervision')
    levels = '\n'.join(f'{chr(98 + i)}: &{chr(98 + i)} [{", ".join([f"*{chr(97 + i)}"] * 9)}]' for i in range(9))
    (yolo / 'data.yaml').write_text(f'a: &a [x, x]\n{levels}\nnames: *j\ntrain: images/train\nval: *j\n')
    with pytest.raises(UserError, match='holds a list'):
        recognise(yolo)


@pytest.mark.parametrize('name', ['two\nlines.jpg', os.fsdecode(b'latin-\xe4.jpg')])
def test_names_that_no_list_can_hold(name, tmp_path):
    root = write_folders(tmp_path / 'data', {'cat': 2, 'dog': 2})
    shutil.copy(root / 'cat/0_0.jpg', root / 'cat' / name)
    with pytest.raises(UserError, match='rename it') as error:
        recognise(root)
    str(error.value).encode()  # can be printed


def test_files_that_are_links_to_elsewhere_are_counted(tmp_path):
    root = write_folders(tmp_path / 'data', {'cat': 2, 'dog': 2})
    elsewhere = write_folders(tmp_path / 'elsewhere', {'cow': 3})
    for path in (elsewhere / 'cow').iterdir():
        os.symlink(path, root / 'cat' / path.name.replace('0_', 'cow'))
    (finding,) = recognise(root).findings
    assert '3 files are links' in finding.message and str(elsewhere) in finding.message
