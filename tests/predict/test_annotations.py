"""tools/predict.py --annotations: the result evaluates to what tools/test.py says, whatever the ids are."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from helpers import REPO, load_tool
from interpreter import run_python
from mmefficientmod.predict.annotations import read_ids
from mmefficientmod.predict.sources import find_sources
from mmefficientmod.utils import UserError

DETECTOR = str(REPO / 'demo/configs/mask-rcnn_efficientmod-xxs_fpn_1xb8-8e_demo.py')
CLASSES = list('abcdef')
CATEGORIES = [dict(id=number, name=name) for number, name in zip((90, 7, 12, 3, 44, 21), CLASSES)]
main = load_tool('predict').main


def predict(*args):
    out = args[args.index('--out') + 1]
    main([str(arg) for arg in args])
    return json.loads((out / 'predictions.json').read_text())


@pytest.fixture
def data(detector, pictures, tmp_path):
    """Images whose objects are some of those that the detector finds, each moved a little, under ids of the user's."""
    (tmp_path / 'data/images').mkdir(parents=True)
    names = [f'bild {i}.png' for i in range(3)]
    for name, path in zip(names, sorted(pictures.iterdir())):
        shutil.copy(path, tmp_path / 'data/images' / name)
    found = predict(tmp_path / 'data/images', DETECTOR, detector, '--out', tmp_path / 'first', '--score-thr', '0')
    numbers = dict(zip(names, (5001, 17, 320)))
    annotations = []
    for i, entry in enumerate(found[::7], 1):
        x, y, w, h = entry['bbox']
        box = [x + 0.08 * w, y, w, h]
        category = CATEGORIES[CLASSES.index(entry['category'])]['id']
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append(dict(id=i, image_id=numbers[entry['file_name']], category_id=category, bbox=box, area=w * h,
                                iscrowd=0, segmentation=outline))  # fmt: skip
    images = [dict(id=numbers[name], file_name=f'images/{name}', width=128, height=96) for name in names]
    images[-1].update(width=80, height=120)
    truth = tmp_path / 'data/truth.json'
    truth.write_text(json.dumps(dict(images=images, annotations=annotations, categories=CATEGORIES)))
    return tmp_path / 'data'


@pytest.mark.ops
@pytest.mark.both_stacks
def test_the_result_evaluates_to_the_ap_of_a_test(detector, data, tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    config = tmp_path / 'own.py'
    config.write_text(
        f'_base_ = {DETECTOR!r}\n'
        f'metainfo = dict(classes={tuple(CLASSES)})\n'
        f'test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={str(data) + "/"!r}, '
        "ann_file='truth.json', data_prefix=dict(img=''), metainfo=metainfo))\n"
        f'test_evaluator = dict(ann_file={str(data / "truth.json")!r}, outfile_prefix={str(tmp_path / "test")!r})\n'
    )
    done = run_python(REPO / 'tools/test.py', config, detector, '--work-dir', tmp_path / 'work')
    assert done.returncode == 0, done.stdout + done.stderr
    (scores,) = (tmp_path / 'work').glob('2*/2*.json')
    expected = json.loads(scores.read_text())
    found = predict(data / 'images', config, detector, '--out', tmp_path / 'out', '--annotations', data / 'truth.json')
    assert {entry['image_id'] for entry in found} <= {5001, 17, 320}
    with redirect_stdout(StringIO()):
        truth = COCO(str(data / 'truth.json'))
        for kind in ('bbox', 'segm'):
            evaluation = COCOeval(truth, truth.loadRes(found), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(expected[f'coco/{kind}_mAP'], abs=6e-4)  # 3 decimals in the log
            assert evaluation.stats[1] == pytest.approx(expected[f'coco/{kind}_mAP_50'], abs=6e-4)
    assert expected['coco/bbox_mAP'] > 0.01  # a test that could fail


@pytest.mark.ops
def test_what_has_no_id_is_named(data, pictures, tmp_path):
    sources = find_sources([str(data / 'images')], tmp_path / 'out')
    truth = json.loads((data / 'truth.json').read_text())
    path = tmp_path / 'other.json'
    for change, classes, says in (
        (lambda content: None, [*CLASSES[:-1], 'F'], "no category 'F'.*did you mean 'f'"),
        (lambda content: content['images'].pop(), CLASSES, '1 of 3 inputs no id.*bild 2.png is named by none'),
        (lambda content: content['categories'].append(dict(id=1, name='a')), CLASSES, "more than one category 'a'"),
        (lambda content: content.pop('images'), CLASSES, '"images" is not a list'),
        (lambda content: content['images'].append(dict(id=1, file_name='bild 2.png')), CLASSES, 'named by several'),
    ):
        content = json.loads(json.dumps(truth))
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=says):
            read_ids(path, sources, classes)
    content = json.loads(json.dumps(truth))
    content['images'].append(dict(id=1, file_name='elsewhere/bild 2.png'))
    path.write_text(json.dumps(content))
    ids = read_ids(path, sources, CLASSES)
    assert [ids.images[source] for source in sources] == [5001, 17, 320]
    assert ids.categories == [90, 7, 12, 3, 44, 21]


@pytest.mark.ops
def test_only_detections_take_ids(segmentor, data, tmp_path):
    config = str(Path(DETECTOR).with_name('fpn_efficientmod-xxs_1xb8-200_demo-192x256.py'))
    arguments = data / 'images', config, segmentor, '--out', tmp_path / 'out', '--annotations', data / 'truth.json'
    with pytest.raises(SystemExit, match='is for segmentation'):
        main([str(arg) for arg in arguments])
