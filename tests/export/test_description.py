"""export.json: written and read without torch; whatever is missing or wrong in it is named in one line."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest

from mmefficientmod.export.description import (
    FILE,
    Crop,
    Description,
    Input,
    Pad,
    Resize,
    Slide,
    ToFloat,
    read_description,
)
from mmefficientmod.utils import UserError

RESIZE = Resize('scale', [2048.0, 512.0], True, False, 'bilinear', 'cv2')


def describe(sizes: list | None = None, steps: list | None = None, **changes) -> Description:
    entry = Input('image', 'NCHW', 'BGR', 'float32', [RESIZE] if steps is None else steps, 1, None, [1.0, 2.0, 3.0])
    values = dict(
        task='segmentation',
        part='model',
        num_classes=2,
        classes=['sky', 'grass'],
        palette=[[0, 0, 255], [0, 255, 0]],
        sizes=sizes or [],
        batch=1 if sizes else None,
        min_size=32,
        files={'onnx': ['model.onnx'] * max(len(sizes or []), 1)},
        opset=20,
        input=entry,
        size_input=None,
        outputs=['classes', 'logits'],
        score_thr=None,
        mask_thr=None,
        max_per_img=None,
        align_corners=False,
        slide=None,
        source=dict(config='a.py', checkpoint='b.pth'),
        versions=dict(torch='2.13.0'),
        cpu=dict(name='a CPU'),
        checks=[dict(name='a check', figure=0.5, limit=1.0, passed=True)],
        latency_ms=dict(onnx=1.5),
    )
    return Description(**dict(values, **changes))


def write(tmp_path, description: Description) -> dict:
    """Writes a folder; returns the content of its JSON."""
    for names in description.files.values():
        for name in names:
            (tmp_path / name).touch()
    description.write(tmp_path)
    return json.loads((tmp_path / FILE).read_text())


def refused(tmp_path, content: object) -> str:
    (tmp_path / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_description(tmp_path)
    message = str(caught.value)
    assert '\n' not in message and FILE in message
    return message


def test_what_is_written_is_read(tmp_path):
    steps = [ToFloat(), RESIZE, Pad(None, 32, True, [114.0] * 3, 'constant'), Crop([224, 160])]
    for description in (
        describe([[64, 96]], steps),
        describe(slide=Slide([64, 64], [48, 48])),
        describe(
            [[64, 96], [96, 64]], task='detection', size_input='image_size', outputs=['boxes', 'scores', 'labels']
        ),
    ):
        write(tmp_path, description)
        assert read_description(tmp_path) == description


@pytest.mark.parametrize(
    ('content', 'words'),
    [('{', 'is not a JSON file'), ('[]', 'must be an object'), ('{"task": "poetry"}', 'task must be one of')],
)
def test_what_is_no_description_is_refused(content, words, tmp_path):
    assert words in refused(tmp_path, content)


def test_a_folder_without_a_description_and_one_without_its_file_are_refused(tmp_path):
    with pytest.raises(UserError, match='is not an exported folder'):
        read_description(tmp_path)
    content = write(tmp_path, describe())
    (tmp_path / 'model.onnx').unlink()
    assert 'lacks model.onnx' in refused(tmp_path, content)


def paths(value: object, place: tuple = ()) -> list[tuple]:
    """The place of every value in some JSON, but not below the entries that only inform."""
    found = [place] if place else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    free = place and place[0] in ('source', 'versions', 'cpu', 'checks', 'latency_ms')
    for key, child in () if free else children:
        found += paths(child, (*place, key))
    return found


FULL = describe(
    [[64, 96], [96, 64]],
    [RESIZE, Pad([640, 640], None, False, [114.0] * 3, 'constant'), Crop([224, 160])],
    slide=Slide([64, 64], [48, 48]),
    files={'onnx': ['a.onnx', 'b.onnx'], 'openvino': ['a.xml', 'b.xml']},
)


def parent_of(content: dict, place: tuple) -> object:
    for key in place[:-1]:
        content = content[key]
    return content


def test_each_missing_field_and_each_of_a_wrong_type_is_named(tmp_path):
    """Of every field, at any depth: deleted, and of three other types."""
    content = write(tmp_path, FULL)
    tried = 0
    for place in paths(content):
        named = str(place[0])
        if not isinstance(place[-1], int) and place[:-1] != ('files',):  # one format fewer is right
            changed = copy.deepcopy(content)
            del parent_of(changed, place)[place[-1]]
            assert named in refused(tmp_path, changed), place
            tried += 1
        before = parent_of(content, place)[place[-1]]
        for wrong in (None, -7, {'a': 1}, [[]], 'no such thing', 1e12):
            if type(wrong) is type(before):
                continue
            optional = ('batch', 'slide', 'size_input', 'score_thr', 'mask_thr', 'max_per_img', 'pad_size', 'divisor')
            if (wrong is None and place[-1] in (*optional, 'size')) or place[0] in ('source', 'versions', 'cpu'):
                continue
            if (
                isinstance(before, (int, float))
                and isinstance(wrong, (int, float))
                and place[-2:-1] in (('value',), ('fill',))
            ):
                continue  # a value that pads may be any number
            changed = copy.deepcopy(content)
            parent_of(changed, place)[place[-1]] = wrong
            assert named in refused(tmp_path, changed), (place, wrong)
            tried += 1
    assert tried > 300


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(files={'onnx': ['../b.onnx', 'a.onnx']}), 'files.onnx[0] must be the name of a file in this folder'),
        (dict(files={'onnx': ['/etc/passwd', 'a.onnx']}), 'must be the name of a file in this folder'),
        (dict(files={'onnx': ['C:a.onnx', 'a.onnx']}), 'must be the name of a file in this folder'),
        (dict(files={'onnx': ['a.onnx']}), 'files.onnx has to name one file for each of sizes (2)'),
        (dict(files={}), 'files names no file'),
        (dict(files={'openvino': ['a.onnx', 'b.xml']}), 'files.openvino must name .xml files, not a.onnx, b.xml'),
        (dict(files={'onnx-bf16': ['a.onnx', 'b.onnx']}), 'a key of files must be one of onnx'),
        (dict(opset=16), 'opset must be a whole number from 17 to 21, not 16'),
        (dict(files={'tflite': ['a.onnx', 'a.onnx']}), 'a key of files must be one of onnx'),
        (dict(sizes=[[0, 96], [96, 64]]), 'sizes[0][0] must be a whole number from 1 to 65536, not 0'),
        (dict(sizes=[[64, 96, 3], [96, 64]]), 'sizes[0] must be a list of 2 values'),
        (dict(sizes=[]), 'files.onnx has to name one file'),
        (dict(sizes=[[64, 96], [64, 96]]), 'sizes names one size twice'),
        (dict(classes=['sky']), 'classes has 1 names, but num_classes is 2'),
        (dict(palette=[[0, 0, 256]]), 'palette[0][2]'),
        (dict(outputs=['classes']), 'outputs lacks logits'),
        (dict(batch=None), 'batch must be a number where sizes are fixed'),
        (dict(part='backbone'), 'part backbone does not fit'),
        (dict(size_input='image_size'), 'size_input must be image_size for detection'),
    ],
)
def test_fields_that_contradict_each_other_are_named(change, words, tmp_path):
    content = write(tmp_path, FULL)
    content['files'] = {'onnx': ['a.onnx', 'b.onnx']}
    assert words in refused(tmp_path, dict(content, **change))


def test_keys_of_a_later_version_are_passed_over(tmp_path):
    content = write(tmp_path, describe())
    (tmp_path / FILE).write_text(json.dumps(dict(content, poem='a new key')))
    assert read_description(tmp_path) == describe()


def test_reading_and_the_runtimes_need_no_torch(tmp_path):
    write(tmp_path, describe())
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
