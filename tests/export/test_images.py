"""Images are read upright and in 8 bits whatever they are stored as; bad ones are named."""

from __future__ import annotations

import importlib.util
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mmefficientmod.export.images import _read_by_pillow, read_image
from mmefficientmod.utils import IMAGE_SUFFIXES, UserError


@pytest.fixture
def image():
    """A smooth picture (48, 64, 3) in RGB, no two corners alike."""
    rows, columns = np.mgrid[0:48, 0:64]
    return np.stack([rows * 5, columns * 4, 255 - rows * 2 - columns * 2], 2).astype(np.uint8)


def read_rgb(path):
    picture = read_image(path)
    assert picture.dtype == np.uint8 and picture.ndim == 3
    return picture[..., ::-1]


def difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b).max()


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tif', '.ppm', '.webp', '.jpg'])
def test_colour(suffix, image, tmp_path):
    options = dict(lossless=True) if suffix == '.webp' else dict(quality=98, subsampling=0) if suffix == '.jpg' else {}
    Image.fromarray(image).save(tmp_path / f'a{suffix}', **options)
    assert difference(read_rgb(tmp_path / f'a{suffix}'), image) <= (4 if suffix == '.jpg' else 0)


@pytest.mark.parametrize(
    ('suffix', 'kind', 'limit'), [('.gif', 'GIF', 16), ('.avif', 'AVIF', 12), ('.jp2', 'JPEG2000', 0)]
)
def test_newer_formats(suffix, kind, limit, image, tmp_path):
    """With OpenCV, or where it was built without the format with Pillow, which reads the same."""
    path = tmp_path / f'a{suffix}'
    try:
        Image.fromarray(image).save(path, kind, **(dict(quality=95) if kind == 'AVIF' else {}))
    except (KeyError, OSError) as error:
        pytest.skip(f'this Pillow writes no {kind}: {error}')
    assert suffix in IMAGE_SUFFIXES
    assert difference(read_rgb(path), image) <= limit
    assert difference(_read_by_pillow(path.read_bytes(), kind)[..., ::-1], image) <= limit


def test_a_jpeg_by_another_name(image, tmp_path):
    (tmp_path / 'a.jfif').write_bytes(jpeg(image, quality=98, subsampling=0))
    assert '.jfif' in IMAGE_SUFFIXES and difference(read_rgb(tmp_path / 'a.jfif'), image) <= 4


def test_heic_without_its_reader_says_what_to_install(tmp_path):
    if importlib.util.find_spec('pillow_heif'):
        pytest.skip('its reader is installed')
    (tmp_path / 'a.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(100))
    with pytest.raises(UserError, match='is HEIC, for which no reader is installed: pip install pillow-heif'):
        read_image(tmp_path / 'a.heic')


@pytest.mark.parametrize('mode', ['L', '1', 'P', 'RGBA', 'LA'])
def test_modes_of_a_png(mode, image, tmp_path):
    stored = Image.fromarray(image).convert('RGB').convert(mode if mode != 'LA' else 'L')
    if mode == 'LA':
        stored = stored.convert('LA')
    stored.save(tmp_path / 'a.png')
    expected = np.array(stored.convert('RGB'))
    assert difference(read_rgb(tmp_path / 'a.png'), expected) <= 1


def test_transparency_is_dropped(image, tmp_path):
    Image.fromarray(np.dstack([image, np.tile(np.arange(64, dtype=np.uint8), (48, 1))]), 'RGBA').save(
        tmp_path / 'a.png'
    )
    assert difference(read_rgb(tmp_path / 'a.png'), image) == 0


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('grey', [False, True], ids=['colour', 'grey'])
def test_16_bits(suffix, grey, image, tmp_path):
    deep = image[..., ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / f'a{suffix}'), deep[..., 0] if grey else deep)
    expected = np.repeat(image[..., 2:], 3, 2) if grey else image
    assert difference(read_rgb(tmp_path / f'a{suffix}'), expected) <= 1


def test_cmyk(image, tmp_path):
    stored = Image.fromarray(image).convert('CMYK')
    stored.save(tmp_path / 'a.jpg', quality=98, subsampling=0)
    assert difference(read_rgb(tmp_path / 'a.jpg'), np.array(stored.convert('RGB'))) <= 6


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_picture_that_exif_turns_is_upright(orientation, image, tmp_path):
    turned = {  # how the picture is stored, for it to be upright after what the number asks for
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.swapaxes(0, 1),
        6: np.rot90(image),
        7: np.rot90(image, 2).swapaxes(0, 1),
        8: np.rot90(image, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / 'a.jpg', exif=exif, quality=98, subsampling=0)
    assert difference(read_rgb(tmp_path / 'a.jpg'), image) <= 4


def jpeg(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (lambda image: b'', 'is empty'),
        (lambda image: b'no picture', 'is damaged, or no image that OpenCV reads'),
        (lambda image: jpeg(image)[:-200], 'is cut off'),
        (lambda image: jpeg(image, progressive=True)[:-100], 'is cut off'),
        (lambda image: jpeg(image)[:30], 'is cut off'),
        (lambda image: cv2.imencode('.png', image)[1].tobytes()[:-300], 'is cut off'),
    ],
    ids=['empty', 'text', 'jpeg', 'progressive', 'header', 'png'],
)
def test_bad_files_are_named(content, message, image, tmp_path):
    (tmp_path / 'a.jpg').write_bytes(content(image))
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / 'a.jpg')


def test_a_thumbnail_does_not_hide_that_the_end_is_missing(image, tmp_path):
    exif = b'Exif\0\0' + jpeg(image[::4, ::4])  # it has an end of its own
    whole = jpeg(image, exif=exif)
    (tmp_path / 'whole.jpg').write_bytes(whole + b'what a camera adds')
    (tmp_path / 'cut.jpg').write_bytes(whole[:-200])
    assert read_image(tmp_path / 'whole.jpg').shape == image.shape
    with pytest.raises(UserError, match='is cut off'):
        read_image(tmp_path / 'cut.jpg')


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match='No such file'):
        read_image(tmp_path / 'a.jpg')
