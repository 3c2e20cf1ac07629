"""tools/predict.py with checkpoints: what the libraries' inferencers say is what is written, for any kind of input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from helpers import REPO, ended, load_tool, refused
from mmefficientmod.models.conversion import convert_checkpoint
from scenes import make_scene

DETECTOR = str(REPO / 'demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py')
SEGMENTOR = str(REPO / 'demo/configs/fpn_efficientmod-xxs_1xb8-200_demo-192x256.py')
main = load_tool('predict').main


def predict(*args):
    """The content of predictions.json of a run, which must succeed."""
    out = args[args.index('--out') + 1]
    main([str(arg) for arg in args])
    return json.loads((out / 'predictions.json').read_text())


@pytest.mark.ops
@pytest.mark.both_stacks
def test_detections_are_those_of_the_inferencer_in_cocos_format(detector, pictures, tmp_path, capsys):
    from mmdet.apis import DetInferencer
    from pycocotools.coco import COCO

    found = predict(pictures, DETECTOR, detector, '--out', tmp_path, '--score-thr', '0.1', '--batch-size', '2')
    assert 'images a second' in capsys.readouterr().out.splitlines()[-1]
    inferencer = DetInferencer(DETECTOR, detector, device='cpu', show_progress=False)
    names = sorted(path.name for path in pictures.iterdir())
    assert {entry['file_name'] for entry in found} == set(names)
    for name in names:
        (expected,) = inferencer(str(pictures / name))['predictions']
        expected = [i for i, score in enumerate(expected['scores']) if score >= 0.1], expected
        entries = [entry for entry in found if entry['file_name'] == name]
        assert len(entries) == len(expected[0]) > 0
        for i, entry in zip(*expected[:1], entries):
            left, top, right, bottom = expected[1]['bboxes'][i]
            assert entry['image_id'] == int(name[:12])
            assert entry['category_id'] == expected[1]['labels'][i] + 1 == 'abcdef'.index(entry['category']) + 1
            assert entry['score'] == pytest.approx(expected[1]['scores'][i], abs=1e-4)
            assert entry['bbox'] == pytest.approx([left, top, right - left, bottom - top], abs=0.01)
            assert entry['segmentation'] == expected[1]['masks'][i]
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=number) for number in (7, 8, 9)], categories=[dict(id=i) for i in range(1, 7)], annotations=[]
    )
    truth.createIndex()
    assert len(truth.loadRes(found).anns) == len(found)
    for name in names:
        drawn = cv2.imread(str(tmp_path / 'images' / name))
        assert (drawn != cv2.imread(str(pictures / name))).any()


@pytest.mark.ops
@pytest.mark.both_stacks
def test_class_maps_are_those_of_the_inferencer(segmentor, pictures, tmp_path):
    from mmseg.apis import MMSegInferencer

    found = predict(pictures, SEGMENTOR, segmentor, '--out', tmp_path, '--batch-size', '4', '--device', 'cpu')
    inferencer = MMSegInferencer(SEGMENTOR, segmentor, device='cpu')
    assert len(found) == 3
    for entry in found:
        expected = inferencer(str(pictures / entry['file_name']))['predictions']
        written = cv2.imread(str(tmp_path / entry['classes']), cv2.IMREAD_UNCHANGED)
        assert written.shape == expected.shape == (entry['height'], entry['width'])
        assert (written != expected).mean() < 0.001  # a batch adds in another order
        assert sum(entry['shares'].values()) == pytest.approx(1, abs=1e-4)
        assert entry['shares'][f'class {written[0, 0]}'] > 0
    assert len(list((tmp_path / 'images').iterdir())) == 3


@pytest.mark.ops
@pytest.mark.both_stacks
def test_the_inference_form_predicts_the_same_with_the_same_command(detector, pictures, tmp_path):
    convert_checkpoint(detector, str(tmp_path / 'deploy.pth'), deploy=True)
    options = '--no-images', '--score-thr', '0.1', '--out'
    trained = predict(pictures, DETECTOR, detector, *options, tmp_path / 'trained')
    deployed = predict(pictures, DETECTOR, tmp_path / 'deploy.pth', *options, tmp_path / 'deployed')
    assert len(deployed) == len(trained) > 0
    for a, b in zip(deployed, trained):
        assert a['bbox'] == pytest.approx(b['bbox'], abs=0.05) and a['score'] == pytest.approx(b['score'], abs=1e-3)
    assert [path.name for path in (tmp_path / 'deployed').iterdir()] == ['predictions.json']


@pytest.mark.libraries
@pytest.mark.both_stacks
def test_classes_of_a_classifier(classifier, pictures, tmp_path):
    from mmpretrain import ImageClassificationInferencer

    found = predict(pictures, *classifier, '--out', tmp_path, '--batch-size', '2')
    inferencer = ImageClassificationInferencer(*classifier, device='cpu')
    assert len(found) == 3
    for entry in found:
        (expected,) = inferencer(str(pictures / entry['file_name']))
        assert (entry['class'], entry['label']) == (expected['pred_class'], expected['pred_label'])
        assert entry['score'] == pytest.approx(expected['pred_score'], abs=1e-4)
        assert {name for name, _ in entry['top5']} == {'left', 'middle', 'right'}
        drawn = cv2.imread(str(tmp_path / 'images' / entry['file_name']))
        assert (drawn != cv2.imread(str(pictures / entry['file_name']))).any()


@pytest.mark.ops
@pytest.mark.both_stacks
def test_bad_files_are_named_and_the_rest_goes_on(segmentor, pictures, tmp_path, capsys):
    mixed, out = tmp_path / 'mixed', tmp_path / 'out'
    shutil.copytree(pictures, mixed)
    (mixed / 'empty.jpg').touch()
    (mixed / '0.png').write_bytes((pictures / '000000000007.png').read_bytes()[:500])
    assert ended(main, mixed, SEGMENTOR, segmentor, '--out', out) == 1
    said = capsys.readouterr()
    assert f'error: {mixed}/empty.jpg is empty\n' in said.err and f'error: {mixed}/0.png is cut off' in said.err
    assert '3 images, 2 failed in ' in said.out.splitlines()[-1]
    assert len(json.loads((out / 'predictions.json').read_text())) == 3


@pytest.mark.ops
def test_a_run_without_a_prediction_leaves_earlier_results(segmentor, pictures, tmp_path):
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/predictions.json').write_text('[1]')
    assert ended(main, tmp_path / 'empty.jpg', SEGMENTOR, segmentor, '--out', tmp_path / 'out') == 1
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['predictions.json']
    assert (tmp_path / 'out/predictions.json').read_text() == '[1]'


@pytest.mark.ops
def test_an_image_that_the_model_cannot_take_is_named_and_the_rest_is_kept(segmentor, pictures, tmp_path, capsys):
    mixed = tmp_path / 'mixed'
    shutil.copytree(pictures, mixed)
    cv2.imwrite(str(mixed / 'a line.png'), np.zeros((1, 30000, 3), np.uint8))
    assert ended(main, mixed, SEGMENTOR, segmentor, '--out', tmp_path / 'out', '--batch-size', '4') == 1
    said = capsys.readouterr()
    assert 'a line.png cannot be predicted on (' in said.err and 'Traceback' not in said.err
    assert len(json.loads((tmp_path / 'out/predictions.json').read_text())) == 3


@pytest.mark.ops
def test_images_with_as_many_detections_as_there_can_be_are_noted(detector, pictures, tmp_path, capsys):
    options = '--score-thr', '0', '--no-images', '--max-per-img', '2'
    found = predict(pictures, DETECTOR, detector, '--out', tmp_path, *options)
    assert len(found) == 6
    assert '3 images have as many detections as max_per_img=2 lets through' in capsys.readouterr().err


@pytest.mark.ops
def test_options_of_the_config_change_the_prediction(segmentor, pictures, tmp_path):
    one = predict(pictures, SEGMENTOR, segmentor, '--out', tmp_path / 'a', '--no-images')
    step = 'test_dataloader.dataset.pipeline.1.scale=(64,48)'
    other = predict(pictures, SEGMENTOR, segmentor, '--out', tmp_path / 'b', '--no-images', '--cfg-options', step)
    assert one != other
    assert '--cfg-options takes KEY=VALUE' in refused(main, pictures, SEGMENTOR, segmentor, '--cfg-options', '=1')


@pytest.mark.ops
@pytest.mark.both_stacks
def test_a_video_becomes_a_video(detector, tmp_path):
    path = tmp_path / 'in' / 'a.avi'
    path.parent.mkdir()
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 12, (128, 96))
    for number in range(4):
        video.write(np.ascontiguousarray(make_scene(np.random.default_rng(number), 128, 96).image[..., ::-1]))
    video.release()
    out = tmp_path / 'out'
    found = predict(path, DETECTOR, detector, '--out', out, '--score-thr', '0.1', '--batch-size', '3')
    assert {(entry['file_name'], entry['frame']) for entry in found} == {('a.avi', number) for number in range(4)}
    assert {entry['image_id'] for entry in found} == {1, 2, 3, 4}
    written = cv2.VideoCapture(str(out / 'images/a.avi.mp4'))
    assert written.get(cv2.CAP_PROP_FPS) == 12
    assert sum(written.read()[0] for _ in range(9)) == 4
    assert sorted(path.name for path in out.rglob('*')) == ['a.avi.mp4', 'images', 'predictions.json']


@pytest.mark.ops
@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['none.jpg', SEGMENTOR, '{segmentor}'], 'none.jpg does not exist'),
        (['{pictures}', 'none.py', '{segmentor}'], 'config none.py does not exist'),
        (['{pictures}', SEGMENTOR, 'none.pth'], 'checkpoint none.pth does not exist'),
        (
            ['{pictures}', DETECTOR, '{segmentor}'],
            'does not fit MaskRCNN - 8 of another shape: neck.lateral_convs.0.conv.weight',
        ),
        (
            ['{pictures}', SEGMENTOR, '{segmentor}', '--device', 'gpu'],
            '--device gpu is not the name of a device: give cpu',
        ),
        (['{pictures}', SEGMENTOR, '{segmentor}', '--format', 'onnx'], '--format chooses among exported files'),
        (['{pictures}', SEGMENTOR, '{segmentor}', '--score-thr', '0.5'], '--score-thr chooses among objects, but the'),
        (['{pictures}', SEGMENTOR, '{segmentor}', '--max-per-img', '5'], '--max-per-img chooses among objects'),
        (['{pictures}', '{pictures}'], 'is not an exported folder'),
    ],
    ids=['input', 'config', 'checkpoint', 'fit', 'device', 'format', 'score', 'most', 'folder'],
)
def test_what_cannot_work_is_one_line(args, message, segmentor, pictures, tmp_path):
    if args[-1] == '{pictures}':
        pytest.importorskip('mmefficientmod.export')
    args = [arg.format(segmentor=segmentor, pictures=pictures) for arg in args]
    error = refused(main, *args, '--out', tmp_path / 'out')
    assert isinstance(error, str) and '\n' not in error
    import re

    assert re.match(f'error: .*{message}', error), error
    assert not (tmp_path / 'out').exists()


@pytest.mark.ops
@pytest.mark.parametrize('names', [['ant', 'bee'], None])
def test_a_checkpoint_without_names_has_those_of_its_config_and_else_numbers(names, segmentor, pictures, tmp_path):
    """Never those of Cityscapes, which MMSegmentation takes."""
    torch.save(dict(state_dict=torch.load(segmentor)['state_dict']), tmp_path / 'bare.pth')
    config = tmp_path / 'named.py'
    metainfo = dict(classes=names, palette=None)
    config.write_text(f"_base_ = '{SEGMENTOR}'\ntest_dataloader = dict(dataset=dict(metainfo={metainfo}))\n")
    found = predict(pictures, config, tmp_path / 'bare.pth', '--out', tmp_path / 'out')
    given = {name for entry in found for name in entry['shares']}
    assert given and given <= {*(names or '01'), *'2345678'}


@pytest.mark.ops
def test_a_config_whose_model_cannot_be_built_is_one_line(segmentor, pictures, tmp_path):
    config = tmp_path / 'strides.py'
    config.write_text(f"_base_ = '{SEGMENTOR}'\nmodel = dict(decode_head=dict(feature_strides=[4, 8]))\n")
    error = refused(main, pictures, config, segmentor, '--out', tmp_path / 'out')
    assert error.startswith(f'error: {config}: its model cannot be built (AssertionError') and '\n' not in error


@pytest.mark.ops
@pytest.mark.skipif(sys.platform == 'win32', reason='has no SIGTERM')
def test_a_run_that_is_terminated_keeps_what_is_done(segmentor, pictures, tmp_path):
    """As with Ctrl-C; a queue of jobs ends them so."""
    many, out = tmp_path / 'many', tmp_path / 'out'
    many.mkdir()
    for number in range(2000):
        (many / f'{number}.png').symlink_to(pictures / '000000000007.png')
    command = [sys.executable, str(REPO / 'tools/predict.py'), many, SEGMENTOR, segmentor, '--out', out]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list(out.glob('classes/*.png'))) < 3:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    run.terminate()
    said, errors = run.communicate(timeout=60)
    assert run.returncode == 1 and said.splitlines()[-1].endswith('; stopped') and 'Traceback' not in errors
    found = json.loads((out / 'predictions.json').read_text())
    assert 3 <= len(found) < 2000
    assert not [path for path in out.rglob('*') if path.name.startswith('.')]


@pytest.mark.ops
def test_other_classes_are_refused(segmentor, pictures, tmp_path):
    config = tmp_path / 'three.py'
    config.write_text(f"_base_ = '{SEGMENTOR}'\nmodel = dict(decode_head=dict(num_classes=3))\n")
    error = refused(main, pictures, config, segmentor, '--out', tmp_path / 'out')
    assert f'{segmentor} does not fit' in error and '2 of another shape: decode_head.conv_seg.weight' in error


@pytest.mark.ops
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs a device that is always full')
def test_a_full_disk_is_one_line(segmentor, pictures, tmp_path):
    (tmp_path / 'classes').symlink_to('/dev/null')
    error = refused(main, pictures, SEGMENTOR, segmentor, '--out', tmp_path)
    assert error.startswith('error: ') and '\n' not in error
    assert [path.name for path in tmp_path.iterdir()] == ['classes']
