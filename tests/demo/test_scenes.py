"""The generated data set: repeatable, consistent, and readable by the real loaders of both codebases."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from pycocotools.coco import COCO

from helpers import REPO
from interpreter import run_python
from scenes import ADE_DIR, COCO_DIR, STUFF, THINGS, make_dataset, make_scene

SETTINGS = dict(train_images=16, val_images=3, size=(160, 120), seed=3)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('demo')
    assert make_dataset(root / 'data', **SETTINGS)
    return root


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def load_coco(data: Path, split: str) -> COCO:
    return COCO(str(data / COCO_DIR / f'annotations/instances_{split}2017.json'))


def test_same_settings_same_bytes(root, tmp_path):
    make_dataset(tmp_path / 'again', **SETTINGS)
    again = contents(tmp_path / 'again')
    assert again == contents(root / 'data')

    make_dataset(tmp_path / 'other', **{**SETTINGS, 'seed': 4})
    image = Path(COCO_DIR, 'train2017/000000000001.jpg')
    assert contents(tmp_path / 'other')[image] != again[image]


def test_a_larger_data_set_starts_with_the_smaller_ones_scenes(root, tmp_path):
    make_dataset(tmp_path / 'larger', **{**SETTINGS, 'train_images': 18})
    larger = contents(tmp_path / 'larger')
    for split in ('images', 'annotations'):
        name = Path(ADE_DIR, split, 'training')
        for path in (root / 'data' / name).iterdir():
            assert larger[name / path.name] == path.read_bytes()


def test_both_layouts_show_the_same_scenes(root):
    data = root / 'data'
    for coco_split, ade_split, count in (('train', 'training', 16), ('val', 'validation', 3)):
        coco_images = sorted((data / COCO_DIR / f'{coco_split}2017').iterdir())
        ade_images = sorted((data / ADE_DIR / 'images' / ade_split).iterdir())
        ade_maps = sorted((data / ADE_DIR / 'annotations' / ade_split).iterdir())
        assert [p.read_bytes() for p in coco_images] == [p.read_bytes() for p in ade_images]
        assert [p.stem for p in ade_images] == [p.stem for p in ade_maps]

        coco = load_coco(data, coco_split)
        infos = coco.loadImgs(sorted(coco.imgs))
        assert [info['file_name'] for info in infos] == [p.name for p in coco_images]
        assert len(infos) == count
        for info, path in zip(infos, ade_maps):
            semantic = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert semantic.shape == (info['height'], info['width']) == (120, 160)
            assert set(np.unique(semantic)) <= {0, *STUFF.values(), *THINGS.values()}
            from_instances = np.zeros_like(semantic)
            for annotation in coco.imgToAnns[info['id']]:
                name = coco.cats[annotation['category_id']]['name']
                from_instances[coco.annToMask(annotation) > 0] = THINGS[name]
            things = np.isin(semantic, list(THINGS.values()))
            np.testing.assert_array_equal(from_instances, np.where(things, semantic, 0))


def test_masks_boxes_and_areas_agree(root):
    ids = []
    for split in ('train', 'val'):
        coco = load_coco(root / 'data', split)
        ids += coco.anns
        for image_id in coco.imgs:
            covered = np.zeros((120, 160), int)
            for annotation in coco.imgToAnns[image_id]:
                mask = coco.annToMask(annotation)
                y, x = np.nonzero(mask)
                left, top, width, height = annotation['bbox']
                assert (left, top) == (x.min(), y.min())
                assert (left + width, top + height) == (x.max() + 1, y.max() + 1)
                assert annotation['area'] == mask.sum() > 0
                assert annotation['iscrowd'] == 0
                covered += mask
            assert covered.max() <= 1  # visible pixels only: no pixel belongs to two objects
    assert len(ids) == len(set(ids))


def test_every_class_three_sizes_unlabelled_pixels_and_occlusion():
    names, areas, labels, cut = [], [], set(), 0
    for index in range(12):
        scene = make_scene(np.random.default_rng(index), 640, 480)
        labels |= set(np.unique(scene.semantic))
        for name, mask in scene.instances:
            names.append(name)
            areas.append(mask.sum())
            y, x = np.nonzero(mask)
            # A whole ball fills pi / 4 of its box, the part that another object left of it does not.
            touches_border = x.min() == 0 or y.min() == 0 or x.max() == 639 or y.max() == 479
            cut += name == 'ball' and not touches_border and areas[-1] < 0.7 * np.ptp(x) * np.ptp(y)
    assert set(names) == set(THINGS)
    assert labels == {0, *STUFF.values(), *THINGS.values()}
    sizes = np.digitize(areas, (32**2, 96**2))  # COCO's small, medium and large
    assert np.all(np.bincount(sizes, minlength=3) >= 0.1 * len(sizes))
    assert cut > 0


@pytest.mark.both_stacks
@pytest.mark.ops
def test_coco_dataset_reads_it(root, monkeypatch):
    monkeypatch.setenv('DEMO_ROOT', str(root))
    config = Config.fromfile(REPO / 'demo/configs/datasets/instance.py')
    import mmdet.datasets  # noqa: F401

    init_default_scope('mmdet')
    coco = load_coco(root / 'data', 'train')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    assert dataset.metainfo['classes'] == tuple(THINGS)
    assert len(dataset) == len(coco.imgs)
    for item in (dataset[i] for i in range(4)):
        truth = item['data_samples'].gt_instances
        annotations = coco.imgToAnns[item['data_samples'].img_id]
        assert truth.labels.tolist() == [annotation['category_id'] - 1 for annotation in annotations]
        assert truth.masks.masks.shape == (len(annotations), *item['inputs'].shape[1:])


@pytest.mark.libraries
@pytest.mark.both_stacks
def test_ade20k_dataset_reads_it(root, monkeypatch):
    monkeypatch.setenv('DEMO_ROOT', str(root))
    config = Config.fromfile(REPO / 'demo/configs/datasets/semantic.py')
    import mmseg.datasets  # noqa: F401

    init_default_scope('mmseg')
    dataset = DATASETS.build(config.val_dataloader.dataset)
    assert tuple(dataset.metainfo['classes']) == (*STUFF, *THINGS)
    assert len(dataset) == 3
    for item in (dataset[i] for i in range(3)):
        path = item['data_samples'].seg_map_path
        semantic = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        expected = np.full_like(semantic, 255)  # what the file leaves unlabelled is ignored
        for label, value in enumerate({**STUFF, **THINGS}.values()):
            expected[semantic == value] = label
        read = item['data_samples'].gt_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(read, expected)


def test_a_complete_data_set_is_kept_and_nothing_is_overwritten(root, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert not make_dataset(root / 'data', **SETTINGS)
    with pytest.raises(FileExistsError, match='other settings'):
        make_dataset(root / 'data', **{**SETTINGS, 'val_images': 4})
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before

    foreign = tmp_path / 'photos'
    foreign.mkdir()
    (foreign / 'cat.jpg').write_bytes(b'mine')
    with pytest.raises(FileExistsError, match='name another folder'):
        make_dataset(foreign, **SETTINGS)
    assert contents(tmp_path) == {Path('photos/cat.jpg'): b'mine'}


def test_an_interrupted_run_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError('no space left')

    monkeypatch.setattr('scenes.shutil.copyfile', full_disk)
    with pytest.raises(OSError, match='no space'):
        make_dataset(tmp_path / 'data', **SETTINGS)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('bad', [dict(train_images=0), dict(size=(32, 120)), dict(seed=-1)])
def test_settings_out_of_range_are_refused(bad, tmp_path):
    with pytest.raises(ValueError, match='needs at least'):
        make_dataset(tmp_path / 'data', **{**SETTINGS, **bad})
    assert not any(tmp_path.iterdir())


def test_command_line(tmp_path):
    def run(*options):
        return run_python(REPO / 'demo/make_data.py', tmp_path / 'data', *options)

    small = ('--images', '2', '--val-images', '1', '--size', '64', '64')
    assert 'written' in run(*small).stdout
    assert 'there already' in run(*small).stdout
    stamp = json.loads((tmp_path / 'data/dataset.json').read_text())
    assert (stamp['train_images'], stamp['size']) == (2, [64, 64])
    refused = run(*small, '--seed', '1')
    assert refused.returncode == 1
    assert refused.stderr.startswith('error: ') and refused.stderr.count('\n') == 1
