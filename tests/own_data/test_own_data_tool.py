"""tools/own_data.py: what it says of data, what it draws, and how it ends where something is in its way."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from own_images import NAMES, write_folders, write_masks


@pytest.mark.ops
def test_it_says_what_is_there(coco, own_data):
    code, text = own_data(coco)
    assert code == 0
    lines = text.splitlines()
    assert 'COCO JSON, for detection, 6 classes' in lines[0]
    assert '  train: 12 images, 128 x 96 pixels' in lines
    content = json.loads((coco / 'annotations/instances_train2017.json').read_text())
    balls = sum(each['category_id'] == content['categories'][0]['id'] for each in content['annotations'])
    (line,) = [line for line in lines if line.split()[:1] == ['ball']]
    assert int(line.split()[1]) == balls
    assert lines[-1].startswith('0 errors')


@pytest.mark.ops
def test_an_error_gives_exit_code_1_and_no_config(coco, tmp_path, own_data):
    shutil.copytree(coco, tmp_path / 'data')
    path = tmp_path / 'data/annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    for each in content['annotations']:
        each.pop('area')
    path.write_text(json.dumps(content))
    code, text = own_data(tmp_path / 'data', '--config', tmp_path / 'mine.py')
    assert code == 1 and 'no "area"' in text and 'error: ' in text, text
    assert not (tmp_path / 'mine.py').exists()


@pytest.mark.ops
@pytest.mark.parametrize('kind', ['boxes', 'masks', 'folders'])
def test_the_preview_shows_every_class(kind, coco, tmp_path, own_data):
    root = coco
    if kind == 'masks':
        root = write_masks(tmp_path / 'data')
        (root / 'classes.txt').write_text('sky\n<b>roof</b>\nWäse\n', encoding='utf-8')
    elif kind == 'folders':
        root = write_folders(tmp_path / 'data', {'cat': 6, 'dog': 6})
    code, text = own_data(root, '--preview', tmp_path / 'out')
    assert code == 0, text
    names = {'boxes': NAMES, 'masks': ['sky', '&lt;b&gt;roof&lt;/b&gt;', 'Wäse'], 'folders': ['cat', 'dog']}[kind]
    page = (tmp_path / 'out/index.html').read_text(encoding='utf-8')
    for number, name in enumerate(names):
        assert f'{number}: {name}</h2>' in page and f'classes/{number}.jpg' in page
        assert cv2.imread(str(tmp_path / f'out/classes/{number}.jpg')).shape[1] > 320
    assert 'http' not in page  # nothing is fetched


@pytest.mark.ops
def test_a_preview_draws_the_mask_where_it_is(tmp_path, own_data):
    root = write_masks(tmp_path / 'data', 2, (320, 240))
    for path in (root / 'images').iterdir():
        cv2.imwrite(str(path), np.zeros((240, 320, 3), np.uint8))
    assert own_data(root, '--preview', tmp_path / 'out')[0] == 0
    sheet = cv2.imread(str(tmp_path / 'out/classes/1.jpg')).astype(int)
    left, middle, right = (sheet[126, 6 + x].sum() for x in (50, 160, 270))
    assert middle > 2 * left and middle > 2 * right


def test_outputs_that_cannot_be(coco, tmp_path, own_data):
    (tmp_path / 'file').write_text('')
    for options, says in (
        (('--preview', coco / 'out'), 'outside of the data'),
        (('--preview', tmp_path / 'file/out'), 'cannot be written'),
        (('--config', tmp_path / 'file/mine.py'), 'cannot be written'),
        (('--config', tmp_path / 'mine.txt'), 'does not end in .py'),
        (('--val-share', '1'), 'below 1'),
        (('--classes', 'a,,b'), 'empty name'),
        (('--preview', ''), 'empty'),
    ):
        code, text = own_data(coco, *options)
        assert code and says in text.strip().splitlines()[-1], (options, text)
    assert not (coco / 'out').exists()


@pytest.mark.parametrize('draft', ['mine.py', 'out/classes/1.jpg', 'out/index.html', 'data_prepared/val.txt'])
def test_a_full_disk(draft, tmp_path, own_data):
    """What was there is left or gone, never half of it, and the next run makes it whole."""
    root = write_folders(tmp_path / 'data', {'cat': 10, 'dog': 10})
    config, page = tmp_path / 'mine.py', tmp_path / 'out/index.html'
    options = (root, '--config', config, '--preview', page.parent, '--overwrite')
    assert own_data(*options)[0] == 0
    whole = config.read_text()
    full = (tmp_path / draft).with_name(f'.{(tmp_path / draft).name}')
    full.symlink_to('/dev/full')  # where the file is written before it takes its name
    code, text = own_data(*options, '--seed', 1)
    (line,) = [line for line in text.splitlines() if 'error: ' in line]
    assert code == 1 and 'No space left on device' in line and 'Traceback' not in text
    assert config.read_text() == whole and page.exists() != draft.startswith('out'), draft
    assert own_data(*options)[0] == 0 and page.exists()


def test_no_folder_where_nothing_is_added(coco, tmp_path, own_data):
    code, text = own_data(coco, '--config', tmp_path / 'mine.py', '--prepared', tmp_path / 'added')
    assert code == 0, text
    assert not (tmp_path / 'added').exists()


@pytest.mark.ops
@pytest.mark.parametrize(
    'change',
    [
        lambda content: content['annotations'][3].update(bbox=['a', None, 1, 2]),
        lambda content: content['annotations'][3].update(segmentation={'counts': 5}),
        lambda content: content['annotations'][3].update(category_id=[1]),
        lambda content: content['annotations'][3].update(image_id={}),
        lambda content: content['images'][1].update(id=[2]),
        lambda content: content['images'][1].update(width='128', height=None),
        lambda content: content.update(annotations=[]),
    ],
)
def test_any_json_gets_an_answer_and_a_preview(change, coco, tmp_path, own_data):
    """A list in a number's place, for instance: findings, never a traceback."""
    shutil.copytree(coco, tmp_path / 'data')
    path = tmp_path / 'data/annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    code, text = own_data(tmp_path / 'data', '--preview', tmp_path / 'out')
    assert ('error: ' in text) == bool(code) and ('error: ' in text or 'warning: ' in text)
    assert (tmp_path / 'out/index.html').is_file()
