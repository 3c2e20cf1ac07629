"""Draws a data set as it will be learnt: a sheet of images for each class, and an HTML page with all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..utils import render_page, replace_file
from .canvas import blend, drawable, sheet, thickness, write_name
from .files import spread, track
from .findings import Finding
from .parts import MOST_COUNTED, Boxes, Labels, Masks, OwnData, Part

TILE = 320, 240  # width and height in pixels that images are fitted into
COLUMNS = 4
TILES = 12  # of a class; fewer where the classes are many
MANY_CLASSES = 100
GAP = 6
STRONG, FAINT = 0.55, 0.2  # opacity of the class that a sheet is about, and of the rest
COUNTED = {
    'detection': 'objects',
    'segmentation': f'the images that show a class, among up to {MOST_COUNTED} of each part',
    'classification': 'images',
}


def draw_preview(data: OwnData, out: Path, findings: Sequence[Finding]) -> Path:
    """Writes a sheet for each class and the page.

    Args:
        data (OwnData): The data set.
        out (Path): The folder; ``index.html`` and ``classes/NUMBER.jpg`` appear in it.
        findings (Sequence[Finding]): What the page says above the sheets.

    Returns:
        Path: The page.

    Raises:
        OSError: If a file cannot be written.
    """
    (out / 'classes').mkdir(parents=True, exist_ok=True)
    page = out / 'index.html'
    page.unlink(missing_ok=True)  # it comes last: without it, the sheets are not complete
    views = [View(part) for part in data.parts.values()]
    palette = [tuple(color[::-1]) for color in data.palette]
    most = TILES if len(data.classes) <= MANY_CLASSES else COLUMNS
    shown = []
    for number in track(range(len(data.classes)), 'preview'):
        places = [(view, i) for view in views for i in view.indices[number]]
        chosen = [places[i] for i in spread(len(places), most)]
        found = [(view.names[i], view.draw(i, number, data.classes, palette)) for view, i in chosen]
        drawn = [(name, tile) for name, tile in found if tile is not None]
        if drawn:
            tiles = [tile for _, tile in drawn]
            drawing = sheet([tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)], GAP)
            content = cv2.imencode('.jpg', drawing, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
            replace_file(out / 'classes' / f'{number}.jpg', content, durable=False)
        shown.append([name for name, _ in drawn])
    counts = [part.counts() for part in data.parts.values()]
    template = Path(__file__).parent / 'templates' / 'preview.html'
    values = dict(data=data, findings=findings, counts=counts, counted=COUNTED[data.task], shown=shown)
    replace_file(page, render_page(template, **values))
    return page


class View:
    """A part of a data set, and which of its images show each class; of label images, a sample is looked at."""

    def __init__(self, part: Part) -> None:
        self.part, self.names = part, part.names()
        self.objects = part.objects() if isinstance(part, Boxes) else []
        self.indices: dict[int, list[int]] = defaultdict(list)  # number of a class -> images
        for i in spread(len(part), MOST_COUNTED) if isinstance(part, Masks) else range(len(part)):
            for number in self._shown(i):
                self.indices[number].append(i)

    def _shown(self, index: int) -> Iterable[int]:
        """The classes that an image shows."""
        if isinstance(self.part, Labels):
            return [self.part.labels[index]]
        if isinstance(self.part, Boxes):
            return {number for number, _ in self.objects[index]}
        return np.unique(self.part.decoder.read(self.part.mask(index))).tolist()

    def draw(self, index: int, number: int, classes: Sequence[str], palette: Sequence[tuple]) -> np.ndarray | None:
        """A tile of an image, with one class drawn strongly and the rest faintly; None where it cannot be read."""
        content = np.fromfile(self.part.root / self.names[index], np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
        if image is None:
            return None
        height, width = image.shape[:2]
        ratio = min(TILE[0] / width, TILE[1] / height)
        size = max(round(width * ratio), 1), max(round(height * ratio), 1)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)
        if isinstance(self.part, Boxes):
            _draw_objects(image, self.objects[index], number, ratio, classes, palette)
        elif isinstance(self.part, Masks):
            _draw_classes(image, self.part, index, number, palette)
        return _frame(image)


def _draw_objects(
    image: np.ndarray,
    objects: Iterable[tuple[int, dict]],
    number: int,
    ratio: float,
    names: Sequence[str],
    palette: Sequence[tuple],
) -> None:
    for label, entry in sorted(objects, key=lambda item: item[0] == number):
        strong = label == number
        try:
            outlines = _outlines(entry.get('segmentation'), ratio)
        except (KeyError, TypeError, ValueError):  # a finding says so
            outlines = []
        if outlines:
            bits = np.zeros(image.shape[:2], np.uint8)
            cv2.fillPoly(bits, outlines, 1)
            blend(image, bits.astype(bool), palette[label], STRONG if strong else FAINT)
        box = entry.get('bbox')
        if not isinstance(box, list) or not _is_box(box):
            continue
        left, top, right, bottom = (
            round(value * ratio) for value in (box[0], box[1], box[0] + box[2], box[1] + box[3])
        )
        cv2.rectangle(image, (left, top), (right, bottom), palette[label], 2 if strong else 1)
        if strong:
            write_name(image, drawable(names[label], label), left, top, palette[label])


def _is_box(box: Sequence) -> bool:
    """Whether a box has four numbers that can be drawn."""
    return len(box) == 4 and all(isinstance(each, (int, float)) and abs(each) < 1e6 for each in box)


def _outlines(segmentation: object, ratio: float) -> list[np.ndarray]:
    """Polygons of an object in pixels of the tile; run lengths are decoded first."""
    if isinstance(segmentation, dict):
        from pycocotools import mask as rle

        height, width = segmentation['size']
        runs = segmentation['counts']
        coded = rle.frPyObjects(segmentation, height, width) if isinstance(runs, list) else segmentation
        found = cv2.findContours(rle.decode(coded), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
        polygons = [contour.reshape(-1, 2) for contour in found]
    else:
        given = segmentation if isinstance(segmentation, list) else []
        polygons = [
            np.reshape(each, (-1, 2)) for each in given if isinstance(each, list) and len(each) % 2 == 0 and each
        ]
    return [np.round(polygon * ratio).astype(np.int32) for polygon in polygons]


def _draw_classes(image: np.ndarray, part: Masks, index: int, number: int, palette: Sequence[tuple]) -> None:
    size = image.shape[1::-1]
    values = cv2.resize(part.decoder.read(part.mask(index)).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    for label in np.unique(values).tolist():
        if label < len(palette):
            blend(image, values == label, palette[label], STRONG if label == number else FAINT)
    own = (values == number).astype(np.uint8)
    contours = cv2.findContours(own, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(image, contours, -1, palette[number], thickness(image))


def _frame(image: np.ndarray) -> np.ndarray:
    """The image in the middle of a tile."""
    tile = np.full((TILE[1], TILE[0], 3), 245, np.uint8)
    top, left = (TILE[1] - image.shape[0]) // 2, (TILE[0] - image.shape[1]) // 2
    tile[top : top + image.shape[0], left : left + image.shape[1]] = image
    return tile
