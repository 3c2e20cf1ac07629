"""Exported files: what they compute is what the MM libraries compute, at sizes that no check of the export saw."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from mmefficientmod.export import check, formats
from mmefficientmod.export.check import Sample, compare, library_result
from mmefficientmod.export.description import Resize, read_description
from mmefficientmod.export.files import write_file
from mmefficientmod.export.formats import Job, Session
from mmefficientmod.export.inputs import pad_to
from mmefficientmod.utils import UserError

pytestmark = pytest.mark.export


def picture(batch: int, height: int, width: int) -> Sample:
    return Sample('new', check._patches(batch, height, width, 99), (height, width))


def padded(image: np.ndarray, height: int, width: int, fill: list[float]) -> np.ndarray:
    return pad_to(image[0].transpose(1, 2, 0), (height, width), fill)[None]


def assert_agrees(checks: list[dict]) -> None:
    assert checks
    assert all(item['passed'] for item in checks), checks


@pytest.mark.parametrize('size', [(1, 32, 211), (3, 187, 64), (2, 61, 61)])
def test_backbone_of_any_size(size, exported):
    model, folder = exported('segmentor', part='backbone')
    sample = picture(*size)
    found = Session(folder).run(sample.image)
    assert found['level0'].shape == (size[0], 8, -(-size[1] // 4), -(-size[2] // 4))
    assert_agrees(compare('backbone', library_result(model, 'backbone', sample), found, sample))


@pytest.mark.parametrize('kind', ['classifier', 'segmentor', pytest.param('detector', marks=pytest.mark.ops)])
def test_preprocessing_and_inference_form_of_each_library(kind, trained):
    """Eagerly: the libraries name the swap of channels differently."""
    from mmefficientmod.export.folder import as_runner
    from mmefficientmod.export.forms import BackboneForm
    from mmefficientmod.export.source import read_source

    model = read_source(*map(str, trained(kind)), part='backbone').model
    form = BackboneForm(model).eval()
    assert form.preprocess.swap
    assert form.backbone.deploy
    sample = picture(2, 65, 96)
    found = as_runner(form)(dict(image=sample.image))
    assert_agrees(compare('backbone', library_result(model, 'backbone', sample), found, sample))


SIGNAL_AFTER_SESSIONS = """
import signal, sys
from mmefficientmod.export.formats import Session

first = Session(sys.argv[1], 'openvino')
second = Session(sys.argv[1], 'openvino')
del first
del second
signal.signal(signal.SIGINT, lambda *_: print('handled'))
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_after_two_openvino_sessions_is_handled(exported):
    """In a process of its own: OpenVINO's plugin sets the stack that signals are handled on."""
    _, folder = exported('segmentor', formats=('onnx', 'openvino'))
    command = [sys.executable, '-c', SIGNAL_AFTER_SESSIONS, str(folder)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    assert (done.returncode, done.stdout) == (0, 'handled\n')


@pytest.mark.parametrize('size', [(1, 224, 224), (3, 61, 97)])
def test_classifier(size, exported):
    model, folder = exported('classifier')
    (resize, crop) = read_description(folder).input.steps
    assert (resize.rule, resize.backend, resize.interpolation) == ('short', 'pillow', 'bicubic')
    assert crop.size == [224, 224]
    sample = picture(*size)
    found = Session(folder).run(sample.image)
    expected = library_result(model, 'classification', sample)
    assert np.ptp(expected['scores']) > 0.01
    assert_agrees(compare('classification', expected, found, sample))


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
@pytest.mark.parametrize('size', [(1, 32, 32), (2, 95, 61), (1, 61, 200)])
def test_segmentor_of_any_size(size, format, exported):
    model, folder = exported('segmentor', formats=('onnx', 'openvino'))
    sample = picture(*size)
    found = Session(folder, format, threads=1).run(sample.image)
    expected = library_result(model, 'segmentation', sample)
    assert len(np.unique(expected['classes'])) > 2
    assert_agrees(compare('segmentation', expected, found, sample))


def test_the_file_says_what_it_is(exported):
    import onnx

    _, folder = exported('segmentor', formats=('onnx', 'openvino'))
    assert {path.name for path in folder.iterdir()} == {'model.onnx', 'model.xml', 'model.bin', 'export.json'}
    described = read_description(folder)
    assert described.classes[:2] == ['sky', 'grass']
    assert len(described.palette) == 9
    assert described.input.steps == [Resize('scale', [256.0, 192.0], True, False, 'bilinear', 'cv2')]
    assert {item['form'] for item in described.checks} == {'eager', 'onnx', 'openvino'}
    assert set(described.latency_ms) == {'eager', 'onnx', 'openvino'}
    file = onnx.load(folder / 'model.onnx')
    onnx.checker.check_model(file)
    metadata = {item.key: item.value for item in file.metadata_props}
    assert json.loads(metadata['classes']) == described.classes
    assert not [node for node in file.graph.node if node.metadata_props]
    assert [value.name for value in file.graph.output] == described.outputs


@pytest.mark.ops
@pytest.mark.parametrize('size', [(128, 160), (96, 160), (128, 60)])
def test_detector_with_and_without_padding(size, exported):
    model, folder = exported('detector', sizes=((128, 160),))
    described = read_description(folder)
    small = picture(1, *size)
    sample = Sample('new', padded(small.image, 128, 160, described.input.fill), size)
    found = Session(folder).run(sample.image, sample.size)
    expected = library_result(model, 'detection', sample)
    assert len(expected['scores'])
    assert found['boxes'].shape == (30, 4)
    assert found['masks'].shape == (30, 28, 28)
    assert_agrees(compare('detection', expected, found, sample, described.mask_thr))


@pytest.mark.ops
@pytest.mark.parametrize('kind', ['retinanet', 'fcos'])
@pytest.mark.slow
def test_one_stage_detectors(kind, exported):
    model, folder = exported(kind, sizes=((96, 128),))
    described = read_description(folder)
    sample = Sample('new', padded(picture(1, 90, 100).image, 96, 128, described.input.fill), (90, 100))
    found = Session(folder).run(sample.image, sample.size)
    expected = library_result(model, 'detection', sample)
    assert len(expected['scores']) > 10
    assert expected['boxes'][:, 2].max() <= 100
    assert_agrees(compare('detection', expected, found, sample))


@pytest.mark.ops
@pytest.mark.parametrize('share', ['none', 'few', 'crowd'])
def test_detector_form_of_few_and_many_objects(share, trained):
    """Eagerly: the number of candidates changes no shape, and an unused row has score 0."""
    from mmefficientmod.export.detector import DetectorForm
    from mmefficientmod.export.folder import as_runner
    from mmefficientmod.export.source import read_source

    model = read_source(*map(str, trained('detector')), part='model').model
    classifier = model.roi_head.bbox_head.fc_cls
    classifier.bias.data[-1] += dict(none=100, few=0, crowd=-100)[share]  # of the background
    sample = picture(1, 128, 160)
    if share == 'few':
        model.test_cfg.rcnn.score_thr = float(library_result(model, 'detection', sample)['scores'][5])
    found = as_runner(DetectorForm(model, (128, 160)).eval())(
        dict(image=sample.image, image_size=np.array([128, 160], np.float32))
    )
    expected = library_result(model, 'detection', sample)
    count = len(expected['scores'])
    assert (found['scores'] > 0).sum() == count
    assert {name: value.shape for name, value in found.items()} == dict(
        boxes=(30, 4), scores=(30,), labels=(30,), masks=(30, 28, 28), left_out=()
    )
    assert dict(none=count == 0, few=0 < count < 30, crowd=count == 30)[share]
    assert_agrees(compare('detection', expected, found, sample))


@pytest.mark.ops
def test_candidates_that_nms_does_not_see_are_counted(trained, monkeypatch):
    from mmefficientmod.export import detector
    from mmefficientmod.export.source import read_source

    model = read_source(*map(str, trained('detector')), part='model').model
    model.test_cfg.rcnn.score_thr = 0.01
    model.test_cfg.rcnn.max_per_img = 300
    sample = picture(1, 128, 160)
    inputs = torch.from_numpy(sample.image), torch.tensor([128.0, 160.0])
    monkeypatch.setattr(detector, 'MAX_CANDIDATES', 60)
    with torch.no_grad():
        *_, left_out = detector.DetectorForm(model, (128, 160)).eval()(*inputs)
        assert left_out > 0
        model.test_cfg.rcnn.max_per_img = 5  # found among the first 60: the others change nothing
        *_, left_out = detector.DetectorForm(model, (128, 160)).eval()(*inputs)
        assert left_out == 0


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_for_this_cpu(exported, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    model, folder = exported('segmentor', part='backbone', formats=('pt2',), sizes=((96, 64),))
    assert not list(tmp_path.rglob('*.so'))  # which would hold the weights once more
    assert {path.name for path in folder.iterdir()} == {'model.pt2', 'export.json'}
    sample = picture(1, 96, 64)
    found = Session(folder).run(sample.image)
    assert_agrees(compare('backbone', library_result(model, 'backbone', sample), found, sample))


class DependsOnValues(torch.nn.Module):
    output_names = ['level0']

    def forward(self, image):
        return (image if image.sum() > 0 else -image,)


@pytest.mark.parametrize('name', ['onnx', 'pt2'])
def test_a_model_that_cannot_be_written_says_why(name, tmp_path, capfd):
    with pytest.raises(UserError) as caught:
        write_file(name, Job(DependsOnValues().eval(), (torch.rand(1, 3, 32, 32),), ['image']), tmp_path)
    message = str(caught.value)
    assert message.startswith(f'{name}: this model cannot be written (')
    assert 'data-dependent' in message  # the reason, not the step of the exporter
    assert '\n' not in message
    assert 'def forward' not in ''.join(capfd.readouterr())


def test_a_failed_check_leaves_nothing(trained, tmp_path, monkeypatch):
    from mmefficientmod.export.folder import export
    from mmefficientmod.export.plan import ExportOptions
    from mmefficientmod.export.source import read_source

    source = read_source(*map(str, trained('segmentor')), part='backbone')
    monkeypatch.setattr(check, 'FILE_LIMIT', 0.0)  # the last digits differ in any runtime
    lines = []
    with pytest.raises(UserError, match='does not agree'):
        export(source, ExportOptions(tmp_path / 'new' / 'out', part='backbone', log=lines.append))
    assert [line for line in lines if 'FAILED' in line]
    source.model.data_preprocessor.std.zero_()
    with pytest.raises(UserError, match=r'is inf, .*its results or those of the model itself are NaN'):
        export(source, ExportOptions(tmp_path / 'new' / 'out', part='backbone', log=lines.append))
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def detections(count: int) -> dict:
    generator = np.random.default_rng(0)
    corners = generator.random((count, 2)) * 100
    return dict(
        boxes=np.concatenate([corners, corners + 20], 1).astype(np.float32),
        scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
        labels=np.arange(count) % 3,
    )


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('boxes', lambda value: value + np.array([0, 0, 2, 0])),
        ('scores', lambda value: value - 0.002),
        ('labels', lambda value: (value + 1) % 3),
    ],
)
def test_the_check_of_detections_sees_a_difference(name, change):
    expected = detections(8)
    sample = Sample('', np.zeros((1, 3, 32, 32), np.float32), (32, 32))
    shuffled = {key: value[::-1].copy() for key, value in expected.items()}
    assert_agrees(compare('detection', expected, shuffled, sample))
    changed = {key: value.copy() for key, value in expected.items()}
    changed[name][3] = change(expected[name])[3]
    assert not all(item['passed'] for item in compare('detection', expected, changed, sample))
    fewer = {key: value[:-1] for key, value in expected.items()}
    assert not all(item['passed'] for item in compare('detection', expected, fewer, sample))
    assert not all(item['passed'] for item in compare('detection', fewer, expected, sample))


def test_near_ties_of_classes_are_no_difference_and_others_are():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(1, 4, 64, 64)).astype(np.float32)
    logits[0, 0, :8] += 9
    logits[0, 1, :8] = logits[0, 0, :8] * np.float32(1 + 1e-6)  # the first rows tie
    classes = logits.argmax(1)
    expected = dict(classes=classes, logits=logits)
    sample = Sample('', np.zeros((1, 3, 64, 64), np.float32), (64, 64))

    def verdicts(found: np.ndarray, logits: np.ndarray = logits) -> bool:
        (check,) = compare('segmentation', expected, dict(classes=found, logits=logits), sample)
        return check['passed']

    tied = classes.copy()
    tied[:, :8] = 0
    assert (tied != classes).mean() > 0.1 and verdicts(tied)
    third, wrong = tied.copy(), tied.copy()
    third[0, 3, :2] = 2  # a class that does not tie
    wrong[0, 30, :2] = (classes[0, 30, :2] + 1) % 4
    assert not verdicts(third) and not verdicts(wrong)
    moved = logits + generator.uniform(-1e-3, 1e-3, logits.shape).astype(np.float32) * np.ptp(logits)
    assert not verdicts(moved.argmax(1), moved)
    assert not verdicts(np.zeros_like(classes), np.zeros_like(logits))  # a file that makes everything tie


OUTPUTS = {
    'backbone': {f'level{i}': np.ones((1, 4, 2, 2), np.float32) for i in range(3)},
    'classification': dict(scores=np.full((2, 4), 0.25, np.float32)),
    'segmentation': dict(classes=np.zeros((1, 8, 8), np.int64), logits=np.ones((1, 3, 2, 2), np.float32)),
    'detection': detections(8),
}


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('task', OUTPUTS)
def test_no_check_passes_what_is_no_number(task, value):
    """In the last output, on one side or on both: no comparison with NaN is true."""
    expected = OUTPUTS[task]
    sample = Sample('', np.zeros((1, 3, 32, 32), np.float32), (32, 32))
    assert_agrees(compare(task, expected, expected, sample))
    name = [name for name, array in expected.items() if array.dtype.kind == 'f'][-1]
    broken = dict(expected, **{name: np.full_like(expected[name], value)})
    for pair in ((expected, broken), (broken, expected), (broken, broken)):
        checks = compare(task, *pair, sample)
        assert checks and all(not item['passed'] and item['figure'] == np.inf for item in checks)


def test_the_worst_check_is_one_that_failed():
    figures = [0.0, float('nan'), 0.5]
    checks = [dict(form='onnx', name='difference', figure=figure, passed=figure <= 1) for figure in figures]
    assert not check.worst(checks)[0]['passed']


def test_the_librarys_results_are_not_kept(trained, tmp_path, monkeypatch):
    """Its masks are as large as the picture, and there may be a hundred of them in each."""
    from mmefficientmod.export import folder
    from mmefficientmod.export.plan import ExportOptions
    from mmefficientmod.export.source import read_source

    made, alive = [], []

    def watched(*args):
        alive.append(sum(found() is not None for found in made))
        result = library_result(*args)
        made.append(weakref.ref(result['level0']))
        return result

    monkeypatch.setattr(folder, 'library_result', watched)
    monkeypatch.setattr(check, 'FILE_LIMIT', 0.0)  # ends the export before a file is written
    source = read_source(*map(str, trained('segmentor')), part='backbone')
    with pytest.raises(UserError, match='eager does not agree'):
        folder.export(source, ExportOptions(tmp_path / 'out', part='backbone'))
    assert len(alive) > 3 and max(alive) <= 1


@pytest.mark.parametrize(('value', 'passed'), [(0.5005, True), (0.52, False)])
def test_pixels_at_the_threshold_of_a_mask_do_not_count(value, passed):
    """One of thirty, which the library left out and the form puts in."""
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :5, :6] = True
    expected = dict(boxes=np.array([[0, 0, 6, 5.0]]), scores=np.array([0.9]), labels=np.array([1]), pasted=masks)
    values = masks.astype(np.float32)
    values[0, 5, 0] = value
    found = dict(expected, pasted=values >= 0.5, borderline=np.abs(values - 0.5) <= check.SCORE_LIMIT)
    checks = check.compare_detections(expected, found, found)
    assert [item['passed'] for item in checks if 'masks' in item['name']] == [passed]


CHANGES = {
    'segmentor': [
        ('outputs', ['logits', 'classes']),
        ('sizes', [[64, 96]]),
        ('num_classes', 100),
        ('align_corners', True),
        ('slide', dict(crop=[64, 64], stride=[32, 32])),
        ('input.pad_divisor', 60000),
        ('input.pad_size', [500, 500]),
        ('input.fill', [0.0, 0.0, 0.0]),
        ('input.steps', []),
    ],
    'detector': [
        ('outputs', ['labels', 'scores', 'boxes', 'masks', 'left_out']),
        ('sizes', [[256, 192], [192, 256]]),
        ('mask_thr', 0.9),
        ('max_per_img', 1),
        ('num_classes', 1),
    ],
}


@pytest.mark.parametrize('format', ['onnx', pytest.param('openvino', marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', CHANGES)
def test_a_description_that_was_changed_after_the_export_is_refused(kind, format, exported, tmp_path):
    """Each change alone is a right description, of another model."""
    _, folder = exported(kind, formats=('onnx', 'openvino'))
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    content = json.loads((folder / 'export.json').read_text())
    assert Session(copy, format)
    for name, value in CHANGES[kind]:
        changed = json.loads(json.dumps(content))
        place, _, key = name.rpartition('.')
        (changed[place] if place else changed)[key] = value
        if name == 'num_classes':
            changed.update(classes=[], palette=[])
        if name == 'sizes' and kind == 'segmentor':
            changed['batch'] = 1
        (copy / 'export.json').write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r'export.json: [\w.]+ is .*, but model.*exported with .*') as caught:
            Session(copy, format)
        assert name == 'sizes' or f': {name} is ' in str(caught.value)


def test_files_of_two_exports_that_are_mixed_up_are_refused(exported, tmp_path):
    _, one = exported('segmentor', formats=('onnx', 'openvino'))
    _, other = exported('segmentor', formats=('onnx', 'openvino'), sizes=((64, 96),))
    mixed = tmp_path / 'mixed'
    shutil.copytree(one, mixed)
    shutil.copy(other / 'model.onnx', mixed)
    with pytest.raises(UserError, match='exported with'):
        Session(mixed, 'onnx')


@pytest.mark.parametrize(
    ('format', 'name', 'content', 'error', 'message'),
    [
        ('onnx', 'model.onnx', b'', UserError, r'model\.onnx is empty: copy the whole folder again'),
        ('onnx', 'model.onnx', b'<html>', UserError, r'model\.onnx cannot be opened: export again \(InvalidProtobuf'),
        ('openvino', 'model.bin', b'', UserError, r'model\.bin is empty'),
        (
            'openvino',
            'model.bin',
            b'cut',
            UserError,
            r'model\.xml cannot .*: export again \(.*Incorrect weights in bin file',
        ),
        ('openvino', 'model.bin', None, FileNotFoundError, r'model\.bin'),
    ],
)
def test_a_file_that_cannot_be_opened_says_why(format, name, content, error, message, exported, tmp_path):
    _, folder = exported('segmentor', formats=('onnx', 'openvino'))
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(error, match=message):
        Session(copy, format)


def test_a_folder_whose_name_is_not_utf8(exported, tmp_path):
    _, folder = exported('segmentor', formats=('onnx', 'openvino'))
    copy = tmp_path / 'copy\udcff'
    shutil.copytree(folder, copy)
    assert Session(copy, 'openvino').run(picture(1, 64, 96).image)
    with pytest.raises(UserError, match='opens paths in UTF-8 only: rename the folder'):
        Session(copy, 'onnx')


@pytest.mark.parametrize(
    ('reason', 'advice'),
    [  # as the runtimes say it
        ('Fail: [ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:std::bad_alloc', 'too little memory'),
        ('RuntimeError: Can not create file mapping for 8, err=Cannot allocate memory', 'too little memory'),
        (
            'RuntimeError: Cannot load library "l.so": l.so: failed to map segment from shared object',
            'too little memory',
        ),
        ('RuntimeError: Device with "CPU" name is not registered in the OpenVINO Runtime', 'lacks a part: pip install'),
    ],
)
def test_what_is_no_fault_of_the_file_does_not_ask_for_another(reason, advice):
    assert advice in formats._advice('openvino', None, reason)


def test_a_runtime_that_is_installed_and_cannot_be_imported_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / 'halfway.py').write_text('import ctypes\nctypes.CDLL("libnone.so.1")\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r'needs halfway, which is installed, but .*\(OSError: libnone\.so\.1: cannot open'
    ):
        formats.require(('halfway',), 'running a file')


def test_a_file_under_the_name_of_another_is_refused(exported, tmp_path):
    _, folder = exported('segmentor', formats=('onnx',), precisions=('fp32', 'fp16-weights'))
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    content = json.loads((copy / 'export.json').read_text())
    assert Session(copy, 'onnx-fp16-weights')
    content['files']['onnx'] = content['files']['onnx-fp16-weights']
    (copy / 'export.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'files\.onnx names model-fp16-weights\.onnx, which was exported as'):
        Session(copy, 'onnx')
