"""``--annotations`` with label images: mIoU is that of MMSegmentation, and labels that do not fit are named."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from helpers import load_tool
from mmefficientmod.export.library import LibraryModel
from mmefficientmod.export.source import Source, read_source
from mmefficientmod.predict.accuracy import LabelReader, read_measure
from mmefficientmod.utils import UserError

pytestmark = [pytest.mark.ops, pytest.mark.export]


@pytest.fixture
def labelled(trained, scenes, tmp_path):
    """A config whose test data are scenes, a checkpoint, the images, and the folder of their labels."""
    base, checkpoint = trained('segmentor')
    root = scenes / 'ade/ADEChallengeData2016'
    text = f'_base_ = {str(base)!r}\ntest_dataloader = dict(num_workers=0, dataset=dict(data_root={str(root)!r}))\n'
    config = tmp_path / 'labelled.py'
    text += 'test_dataloader.update(persistent_workers=False)\n'
    config.write_text(f'{text}work_dir = {str(tmp_path / "work")!r}\n')
    images = sorted((root / 'images/validation').glob('*.jpg'))
    return config, checkpoint, images, root / 'annotations/validation'


def source_of(config: Path, checkpoint: Path) -> Source:
    return read_source(str(config), str(checkpoint))


def test_miou_is_that_of_the_library(labelled):
    config, checkpoint, images, labels = labelled
    source = source_of(config, checkpoint)
    measure = read_measure(source, images, labels)
    settings = Config.fromfile(config)
    settings.load_from = str(checkpoint)
    expected = Runner.from_cfg(settings).test()['mIoU']
    assert len(images) == measure.images == 2 and expected > 0.5
    assert measure.name == 'mIoU'
    assert measure.of(LibraryModel(source, 'cpu')) == pytest.approx(expected, abs=0.006)  # which is rounded


def with_own_labels(config: Path, **settings: object) -> Path:
    """The config with test data whose labels are not ADE20K's."""
    found = Config.fromfile(config)
    steps = [step for step in found.test_dataloader.dataset.pipeline if step['type'] != 'LoadAnnotations']
    metainfo = dict(classes=[f'class {label}' for label in range(9)])
    found.test_dataloader.dataset = dict(type='BaseSegDataset', metainfo=metainfo, pipeline=steps, **settings)
    found.dump(config.with_name('own.py'))
    return config.with_name('own.py')


@pytest.mark.parametrize('reduces', [False, True])
def test_labels_are_read_as_the_data_set_reads_them(reduces, labelled, tmp_path):
    config, checkpoint, images, _ = labelled
    own = with_own_labels(config, reduce_zero_label=reduces, seg_map_suffix='_labels.png', img_suffix='.jpg')
    stored = np.random.default_rng(0).choice(np.uint8([0, 1, 5, 8, 255]), (96, 128))
    folder = tmp_path / 'labels/city'
    folder.mkdir(parents=True)
    for image in images:
        cv2.imwrite(str(folder / f'{image.stem}_labels.png'), stored)
    reader = LabelReader(source_of(own, checkpoint))
    label = reader.find(images, folder.parent)[images[1]]
    assert label == folder / f'{images[1].stem}_labels.png'
    wanted = np.where((stored == 0) | (stored == 255), 255, stored.astype(int) - 1) if reduces else stored
    assert np.array_equal(reader.read(label), wanted)


@pytest.mark.slow
def test_the_tool_names_the_fastest_file_within_a_loss(labelled, tmp_path, capsys):
    config, checkpoint, images, labels = labelled
    arguments = ['--format', 'onnx', '--precision', 'fp32', 'fp16-weights', '--check', images[0].parent]
    arguments += ['--annotations', labels, '--within', 1, '--cfg-options', 'model.test_cfg.mode=whole']
    load_tool('export').main([str(each) for each in (config, checkpoint, tmp_path / 'out', *arguments)])
    lines = capsys.readouterr().out.splitlines()
    (one,) = (line for line in lines if line.startswith('mIoU of onnx: '))
    (other,) = (line for line in lines if line.startswith('mIoU of onnx-fp16-weights: '))
    assert abs(float(one.rpartition(' ')[2]) - float(other.rpartition(' ')[2])) < 0.5
    assert [line for line in lines if line.startswith('fastest within 1: onnx')]


def edit(path: Path, kind: str) -> None:
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if kind == 'colour':
        labels = np.stack([labels] * 3, 2)
    elif kind == 'half':
        labels = labels[::2, ::2]
    elif kind == 'beyond':
        labels = np.full_like(labels, 8)
        labels[0, 0] = 77
    if kind == 'damaged':
        path.write_bytes(b'no image')
    elif kind == 'missing':
        path.unlink()
    else:
        cv2.imwrite(str(path), labels)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', 'lacks the label image of 1 of 2 images: .* has none named'),
        ('colour', 'is a colour image'),
        ('half', 'different sizes, 96 x 128 and 48 x 64'),
        ('beyond', 'has the label 77, but the model has 9 classes'),
        ('damaged', 'cannot be read as labels'),
    ],
)
def test_labels_that_do_not_fit(kind, message, labelled, tmp_path):
    config, checkpoint, images, labels = labelled
    folder = tmp_path / 'labels'
    folder.mkdir()
    for path in labels.glob('*.png'):
        (folder / path.name).write_bytes(path.read_bytes())
    edit(folder / f'{images[0].stem}.png', kind)
    source = source_of(with_own_labels(config) if kind == 'beyond' else config, checkpoint)
    with pytest.raises(UserError, match=message):
        read_measure(source, images, folder).of(LibraryModel(source, 'cpu'))


def test_a_file_is_no_folder_of_labels_and_a_classifier_has_no_measure(labelled, trained):
    config, checkpoint, images, _ = labelled
    with pytest.raises(UserError, match='is not a folder'):
        read_measure(source_of(config, checkpoint), images, config)
    with pytest.raises(UserError, match='for detectors and segmentors'):
        read_measure(source_of(*trained('classifier')), images, config)
