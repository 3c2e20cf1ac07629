"""What is written is whole or not there, and no prediction is lost to a file that cannot be drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from interpreter import run_python
from mmefficientmod.data.canvas import drawable
from mmefficientmod.export.results import Detections, Segmentation
from mmefficientmod.predict.sources import Source
from mmefficientmod.predict.writer import Writer
from mmefficientmod.utils import UserError

# Noise, which no codec makes small: as a video of 30 frames or as a picture, beside what was there before.
NOISE = """
import sys
from pathlib import Path
import numpy as np
from mmefficientmod.export.results import Segmentation
from mmefficientmod.predict.sources import Source
from mmefficientmod.predict.writer import Writer

name, out = sys.argv[1], Path(sys.argv[2])
source, random = Source(Path(name), name), np.random.default_rng(0)
writer = Writer(out, [source], ['a'], None)
try:
    for frame in range(30) if source.is_video else [None]:
        image = random.integers(0, 255, (240, 320, 3), np.uint8)
        writer.add(source, frame, 10, image, Segmentation(np.zeros((240, 320), np.uint8)))
    writer.close()
except OSError as error:
    print(error)
finally:
    writer.discard()
"""


@pytest.fixture
def write(tmp_path):
    """Writes a segmentation of frames of one size; returns predictions.json."""

    def write(name, fps, frames, classes=('a', 'b')):
        source = Source(Path(name), name)
        writer = Writer(tmp_path, [source], classes, None)
        errors = []
        for number, image in enumerate(frames):
            try:
                writer.add(source, number, fps, image, Segmentation(np.ones(image.shape[:2], np.uint8)))
            except UserError as error:
                errors.append(str(error))
        writer.close()
        return json.loads((tmp_path / 'predictions.json').read_text()), errors

    return write


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='files have a limit to their size')
@pytest.mark.parametrize('name', ['a.avi', 'a.png'])
def test_a_full_disk_leaves_nothing_half_written(name, tmp_path):
    pictures = tmp_path / 'images'
    pictures.mkdir()
    target = pictures / ('a.avi.mp4' if name == 'a.avi' else name)
    target.write_bytes(b'before')
    done = run_python('-c', NOISE, name, tmp_path, timeout=100, file_size=100_000)
    assert str(target) in done.stdout and done.stdout.count('\n') == 1, done.stdout + done.stderr
    assert target.read_bytes() == b'before'
    assert not [path for path in tmp_path.rglob('*') if path.name.startswith('.')]


@pytest.mark.parametrize(('fps', 'written'), [(119.923, 119.92), (90000, 600), (29.97, 29.97)])
def test_any_rate_becomes_one_that_can_be_written(fps, written, write, tmp_path):
    write('a.mp4', fps, np.zeros((5, 48, 64, 3), np.uint8))
    video = cv2.VideoCapture(str(tmp_path / 'images/a.mp4'))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(written, abs=1e-3)
    assert sum(video.read()[0] for _ in range(9)) == 5


def test_a_video_that_cannot_be_drawn_keeps_its_predictions(write, tmp_path):
    found, errors = write('a.mp4', 10, np.zeros((3, 1, 1, 3), np.uint8))
    assert len(found) == 3
    assert errors == ['is predicted on but not drawn: OpenCV writes no video of 1 x 1 pixels']
    assert not list((tmp_path / 'images').iterdir())


def test_classes_without_a_name_are_called_by_their_numbers(write, tmp_path):
    found, _ = write('a.mp4', 10, np.zeros((1, 48, 64, 3), np.uint8), classes=[])
    assert found[0]['shares'] == {'1': 1.0}
    source = Source(Path('a.png'), 'a.png')
    writer = Writer(tmp_path, [source], ['cat'], None)
    box, score = np.array([[1, 2, 30, 40]], np.float32), np.array([0.5], np.float32)
    writer.add(source, None, 0, np.zeros((48, 64, 3), np.uint8), Detections(box, score, np.array([2]), None))
    writer.close()
    (entry,) = json.loads((tmp_path / 'predictions.json').read_text())
    assert (entry['category'], entry['category_id']) == ('2', 3)


@pytest.mark.parametrize(('version', 'drawn'), [('5.0.0', ['Café', '猫']), ('4.13.0', ['Cafe', 'class 1'])])
def test_names_are_drawn_with_the_letters_that_opencv_has(version, drawn, monkeypatch):
    monkeypatch.setattr(cv2, '__version__', version)
    assert [drawable(name, number) for number, name in enumerate(['Café', '猫'])] == drawn
