"""export.json: written and read without torch, refused in one line; the size that a picture gets."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mmefficientmod.export.description import FILE, Description, read_description
from mmefficientmod.utils import UserError


def describe(size: tuple | None = None, **resize) -> Description:
    height, width = size or (None, None)
    return Description(
        task='segmentation',
        part='model',
        classes=['sky', 'grass'],
        palette=[[0, 0, 255], [0, 255, 0]],
        files={'onnx': 'model.onnx'},
        input=dict(name='image', layout='NCHW', color='BGR', dtype='float32', range=[0, 255], fill=[1, 2, 3]),
        size_input=None,
        size=dict(dynamic=size is None, height=height, width=width, batch=size and 1, min=32, divisor=1),
        resize=dict(dict(scale=None, keep_ratio=True, multiple=1), **resize),
        outputs=['classes', 'logits'],
    )


def test_what_is_written_is_read(tmp_path):
    (tmp_path / 'model.onnx').touch()
    description = describe((64, 96), scale=[96, 64])
    description.write(tmp_path)
    assert read_description(tmp_path) == description


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, 'is no exported folder'),
        ('{', 'is no JSON'),
        ('[]', 'an unknown task'),
        ('{"task": "poetry"}', 'an unknown task'),
        ('{"task": "detection"}', 'missing'),
    ],
)
def test_what_is_no_description_is_refused_in_one_line(content, words, tmp_path):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        read_description(tmp_path)
    assert '\n' not in str(caught.value)


def test_a_missing_model_file_is_named(tmp_path):
    describe().write(tmp_path)
    with pytest.raises(UserError, match=r'lacks model\.onnx'):
        read_description(tmp_path)


def test_keys_of_a_later_version_are_passed_over(tmp_path):
    (tmp_path / 'model.onnx').touch()
    describe().write(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(dict(content, poem='a new key')))
    assert read_description(tmp_path) == describe()


@pytest.mark.parametrize(
    ('size', 'resize', 'picture', 'expected'),
    [
        (None, dict(), (50, 70), (50, 70)),
        (None, dict(scale=[1333, 800]), (480, 640), (800, 1067)),  # as mmcv.rescale_size has it
        (None, dict(scale=[1333, 800]), (640, 480), (1067, 800)),
        (None, dict(scale=[1333, 800]), (300, 1500), (267, 1333)),
        (None, dict(scale=[2048, 512], multiple=32), (333, 500), (512, 800)),
        (None, dict(short=256, crop=224), (300, 400), (256, 341)),
        (None, dict(scale=[300, 200], keep_ratio=False), (50, 70), (200, 300)),
        ((800, 1344), dict(scale=[1333, 800]), (480, 640), (800, 1067)),
        ((800, 1344), dict(scale=[1333, 800]), (640, 480), (800, 600)),  # a portrait is made to fit
        ((100, 100), dict(keep_ratio=False), (50, 70), (100, 100)),
        ((100, 100), dict(multiple=32), (100, 100), (100, 100)),
    ],
)
def test_a_picture_is_resized_as_the_test_pipeline_does_and_fits(size, resize, picture, expected):
    assert describe(size, **resize).fit(*picture) == expected


def test_padding():
    assert describe((64, 96)).padded(64, 50) == (64, 96)
    assert describe().padded(20, 50) == (32, 50)


def test_reading_and_the_runtimes_need_no_torch(tmp_path):
    (tmp_path / 'model.onnx').touch()
    describe().write(tmp_path)
    code = (
        'import sys\n'
        'class Hide:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name.partition(".")[0] in ("torch", "mmengine", "mmcv", "cv2"): raise ImportError(name)\n'
        'sys.meta_path.insert(0, Hide())\n'
        'import importlib.util\n'
        'found = importlib.util.find_spec\n'
        'importlib.util.find_spec = lambda name, *a: None if name in ("torch", "mmengine") else found(name, *a)\n'
        'from mmefficientmod.export.description import read_description\n'
        'import mmefficientmod.export.formats\n'
        f'print(read_description({str(tmp_path)!r}).task)\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout == 'segmentation\n', result.stderr
