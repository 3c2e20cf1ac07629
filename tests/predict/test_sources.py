"""Pictures and videos are found, and videos read; bad ones are named."""

from __future__ import annotations

import functools
import http.server
import os
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmefficientmod.predict.sources import Source, Video, find_sources
from mmefficientmod.utils import UserError

# --- finding ---


@pytest.fixture
def folder(tmp_path):
    for name in ('b.jpg', 'a.PNG', 'sub/c.mp4', '.hidden.jpg', '.git/d.jpg', 'text.txt', 'out/images/b.jpg'):
        path = tmp_path / 'in' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')
    return tmp_path / 'in'


def names(*inputs, out='nowhere'):
    return [source.name for source in find_sources([str(item) for item in inputs], Path(out))]


def test_folders_files_and_patterns(folder):
    out = folder / 'out'
    assert names(folder, out=out) == ['a.PNG', 'b.jpg', 'sub/c.mp4']
    assert names(folder / 'text.txt', out=out) == ['text.txt']  # what is named is tried
    assert names(folder / '*', out=out) == ['a.PNG', 'b.jpg']
    assert names(folder / '**/*.mp4', folder / 'b.jpg', out=out) == ['sub/c.mp4', 'b.jpg']
    assert names(folder / 'b.jpg', folder, out=out) == ['b.jpg', 'a.PNG', 'sub/c.mp4']
    for name in ('y.jpg', 'z.jpg'):  # which cannot be read, and are named then
        (folder / name).symlink_to('y.jpg')
    assert names(folder, out=out)[-2:] == ['y.jpg', 'z.jpg']


def test_a_relative_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert names('.', out='out') == ['a.PNG', 'b.jpg', 'sub/c.mp4']


def test_a_pattern_may_lead_upwards_or_into_a_hidden_folder(folder, monkeypatch):
    monkeypatch.chdir(folder / 'sub')
    assert names('../*.jpg') == ['b.jpg']
    assert names('../.git/*.jpg') == ['d.jpg']


def test_no_result_is_written_over_an_input(folder, monkeypatch, tmp_path):
    """Names have no '..', and what lies where results go is refused, by whatever way it is named."""
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/e.jpg').write_bytes(b'x')
    monkeypatch.chdir(folder / 'sub')
    found = names('.', '../../other', out='../../runs')
    assert found == ['in/sub/c.mp4', 'other/e.jpg']
    (tmp_path / 'link').symlink_to(tmp_path)
    for what, out in ((folder, '../..'), ('../../other', tmp_path / 'link'), ('../../link/other/*', tmp_path)):
        with pytest.raises(UserError, match=r'lies in .*, where the results go'):
            names(what, out=out)


@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('none.jpg', 'none.jpg does not exist: give an image'),
        ('*.bmp', r'\*.bmp holds no image or video: known are'),
        ('.git', 'holds no image or video'),
        ('pipe.jpg', 'pipe.jpg is not a regular file: give an image'),
        ('out/images/b.jpg', 'lies in .*out, where the results go: choose another folder with --out'),
    ],
)
def test_what_is_not_there_is_refused(what, message, folder):
    (folder / '.git/d.jpg').unlink()
    os.mkfifo(folder / 'pipe.jpg')
    with pytest.raises(UserError, match=message):
        names(folder / what, out=folder / 'out')


def test_linked_folders_are_searched_and_loops_end(tmp_path, capsys):
    (tmp_path / 'elsewhere/deep').mkdir(parents=True)
    for name in ('in/a.jpg', 'in/sub/b.jpg', 'elsewhere/c.jpg', 'elsewhere/deep/d.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    folder = tmp_path / 'in'
    (folder / 'linked').symlink_to(tmp_path / 'elsewhere')
    (folder / 'linked.jpg').symlink_to(folder / 'a.jpg')
    expected = ['a.jpg', 'linked/c.jpg', 'linked/deep/d.jpg', 'linked.jpg', 'sub/b.jpg']
    assert names(folder) == expected
    (folder / 'sub/up').symlink_to(folder)
    (tmp_path / 'elsewhere/deep/back').symlink_to(tmp_path / 'elsewhere')
    assert names(folder) == expected
    assert names(folder / '**/*.jpg') == expected
    (tmp_path / 'only').mkdir()
    (tmp_path / 'only/linked').symlink_to(tmp_path / 'elsewhere')
    assert names(tmp_path / 'only') == ['linked/c.jpg', 'linked/deep/d.jpg']
    assert not capsys.readouterr().err


def test_files_that_are_left_out_are_counted(folder, capsys):
    (folder / 'notes.TXT').write_bytes(b'x')
    (folder / 'no suffix').write_bytes(b'x')
    (folder / 'out/predictions.json').write_bytes(b'x')  # of an earlier run
    names(folder, out=folder / 'out')
    assert capsys.readouterr().err == f'{folder}: 3 files are left out: 2 .txt, 1 without a suffix\n'


# --- videos ---


def write_video(path, frames, fps=10, size=(64, 48)):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
    for i in range(frames):
        video.write(np.full((size[1], size[0], 3), 20 * i, np.uint8))
    video.release()
    return path


def open_video(path):
    return Video(Source(path, path.name))


def test_frames_of_a_video(tmp_path):
    path = write_video(tmp_path / 'a.mp4', 5)
    assert Source(path, 'a.mp4').is_video
    video = open_video(path)
    frames = list(video)
    assert (video.fps, video.frames, len(frames)) == (10, 5, 5)
    assert [round(float(frame.mean()) / 20) for frame in frames] == [0, 1, 2, 3, 4]
    assert not video.is_uneven


def write_matroska(path, times, duration):
    """A video of grey JPEGs at times in ms, in as few of Matroska's elements as a reader needs."""

    def element(number, content):
        if isinstance(content, int):
            content = content.to_bytes(4, 'big')
        return bytes.fromhex(number) + (1 << 56 | len(content)).to_bytes(8, 'big') + content

    jpeg = cv2.imencode('.jpg', np.full((48, 64, 3), 99, np.uint8))[1].tobytes()
    head = element('1A45DFA3', element('4282', b'matroska') + element('4287', 4) + element('4285', 2))
    info = element('1549A966', element('2AD7B1', 1_000_000) + element('4489', struct.pack('>d', duration)))
    size = element('E0', element('B0', 64) + element('BA', 48))
    track = element('D7', 1) + element('73C5', 1) + element('83', 1) + element('86', b'V_MJPEG') + size
    frames = (element('1F43B675', element('E7', time) + element('A3', b'\x81\0\0\x80' + jpeg)) for time in times)
    body = info + element('1654AE6B', element('AE', track)) + b''.join(frames)
    path.write_bytes(head + element('18538067', body))
    return path


def test_a_gap_between_frames_is_no_damage(tmp_path):
    """Matroska tells its duration, from which OpenCV computes more frames than there are."""
    times = [33 * i for i in range(10)] + [5000 + 33 * i for i in range(10)]
    video = open_video(write_matroska(tmp_path / 'gap.mkv', times, duration=5330))
    assert video.frames > 40 and len(list(video)) == 20
    assert video.is_uneven
    cut = open_video(write_matroska(tmp_path / 'cut.mkv', times[:10], duration=5330))
    with pytest.raises(UserError, match='is damaged: 10 of'):
        list(cut)


@pytest.mark.parametrize(('step', 'uneven'), [(40, False), (0, True)])
def test_a_variable_rate_is_noticed(step, uneven, tmp_path):
    times = [i * 40 + (25 if i % 3 and not step else 0) for i in range(12)]
    video = open_video(write_matroska(tmp_path / 'a.mkv', times, duration=480))
    assert len(list(video)) == 12 and video.is_uneven == uneven


def test_bad_videos_are_named(tmp_path):
    data = write_video(tmp_path / 'a.mp4', 5).read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(data[: len(data) // 2])
    (tmp_path / 'empty.mp4').write_bytes(b'')
    (tmp_path / '\udcff.mp4').write_bytes(data)
    for name, message in (
        ('cut.mp4', 'is damaged'),
        ('empty.mp4', 'is empty'),
        ('none.mp4', 'does not exist'),
        ('\udcff.mp4', 'has a name that is not UTF-8'),
    ):
        with pytest.raises(UserError, match=message):
            list(open_video(tmp_path / name))


# --- streams ---


@pytest.fixture
def address(tmp_path):
    """Address of a folder that a server offers."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_frames_of_a_stream(address, tmp_path):
    write_video(tmp_path / 'a.mp4', 5)
    (source,) = find_sources([f'http://me:secret@{address}/a.mp4'], tmp_path / 'out')
    assert source.is_video and str(source) == f'http://{address}/a.mp4'
    assert source.name == f'127.0.0.1-{address[10:]}-a.mp4'
    assert [round(float(frame.mean()) / 20) for frame in Video(source)] == [0, 1, 2, 3, 4]


def test_streams_stand_beside_files_and_a_file_comes_before_a_camera(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / '1.mp4', 1).rename('1')
    sources = find_sources([str(folder), '2', 'rtsp://camera.local/live'], tmp_path / 'out')
    assert [source.name for source in sources[-2:]] == ['camera-2', 'camera.local-live']
    assert all(source.stream is None for source in sources[:-2])
    assert [source.stream for source in find_sources(['1'], tmp_path / 'out')] == [None]


def test_a_camera_or_an_address_that_is_not_there_is_named(address, tmp_path):
    for text in ('97', f'http://{address}/none.mp4'):
        (source,) = find_sources([text], tmp_path / 'out')
        with pytest.raises(UserError, match='cannot be opened'):
            Video(source)
