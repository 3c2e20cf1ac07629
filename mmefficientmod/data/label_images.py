"""Images of class numbers as people store them: numbers, 0 and 255, colours with or without a list of their names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils import enumerate_names
from .canvas import spread_colors
from .files import open_image, read_lines, spread, track
from .findings import Finding, error, warning

VOID = 255  # the number of pixels that belong to no class, in MMSegmentation
MOST_LOOKED_AT = 2000  # label images that the classes are taken from
MOST_COLORS = 64  # more come from the blur of a JPEG or of a resizing
Color = tuple  # red, green, blue


@dataclass(frozen=True)
class Decoder:
    """Turns label images into class numbers; without arguments they hold these already."""

    values: Mapping[int, int] | None = None  # class of each grey value
    colors: Mapping[Color, int] | None = None  # class of each colour

    @property
    def is_plain(self) -> bool:
        """Whether MMSegmentation reads the files as they are."""
        return self.values is None and self.colors is None

    def read(self, path: Path) -> np.ndarray:
        """Class numbers (H, W) of a label image, 255 where it holds another value.

        Raises:
            UserError: If it cannot be read.
        """
        if self.colors is not None:
            return _look_up(_pack(read_colors(path)), {_pack_one(color): i for color, i in self.colors.items()})
        values = read_values(path)
        return values if self.values is None else _look_up(values, self.values)

    def encode(self, path: Path) -> bytes:
        """The label image as a PNG of class numbers."""
        file = io.BytesIO()
        Image.fromarray(self.read(path).astype(np.uint8)).save(file, 'PNG')
        return file.getvalue()


@dataclass(frozen=True)
class LabelImages:
    """What a look at the label images of a data set shows."""

    decoder: Decoder
    classes: list[str]
    palette: list[Color]
    findings: list[Finding]


def read_values(path: Path) -> np.ndarray:
    """Grey values or indices (H, W); of colours with three equal channels their common value."""
    image = open_image(path)
    if image.mode in ('P', 'L', 'I', 'I;16'):
        return np.asarray(image)
    return np.asarray(image.convert('L') if image.mode in ('1', 'LA') else image.convert('RGB').split()[0])


def read_colors(path: Path) -> np.ndarray:
    """Colours (H, W, 3), without transparency."""
    return np.asarray(open_image(path).convert('RGB'))


def look_at(paths: Sequence[Path], names: Sequence[str], colors: Sequence[Color]) -> LabelImages:
    """Finds out what label images hold.

    Args:
        paths (Sequence[Path]): The label images.
        names (Sequence[str]): Names of the classes in the order of their numbers, empty if nothing names them.
        colors (Sequence[Color]): Their colours, empty if nothing lists them.
    """
    kinds: set[str] = set()
    values: set[int] = set()
    found: set[int] = set()  # packed colours
    palette: list[Color] = []
    chosen = spread(len(paths), MOST_LOOKED_AT)
    for i in track(chosen, 'label images'):
        image = open_image(paths[i])
        kind = image.mode if image.mode in ('P', '1', 'L', 'I', 'I;16') else 'RGB'
        if kind == 'RGB':
            pixels = np.asarray(image.convert('RGB'))
            if (pixels == pixels[..., :1]).all():
                kind = 'grey'
            found.update(np.unique(_pack(pixels)).tolist())
        elif kind == 'P' and not palette:
            flat = image.getpalette() or []
            palette = [tuple(flat[at : at + 3]) for at in range(0, len(flat), 3)]
        if kind != 'RGB':
            values.update(np.unique(read_values(paths[i])).tolist())
        kinds.add(kind)
    notes = []
    if len(chosen) < len(paths):
        notes.append(warning('label images', f'the values of {len(chosen)} of {len(paths)} were looked at'))
    example = str(paths[0])
    if 'RGB' in kinds:
        # the pixels of grey label images are colours as well
        found.update(_pack_one((value, value, value)) for value in values)
        result = _judge_colors(found, names, colors, example)
    else:
        result = _judge_values(values, names, colors or palette, bool(kinds - {'P', 'L', 'I', 'I;16'}), example)
    return LabelImages(result.decoder, result.classes, result.palette, notes + result.findings)


def _judge_values(
    values: set[int], names: Sequence[str], palette: Sequence[Color], unreadable: bool, example: str
) -> LabelImages:
    """Classes of label images of grey values; ``unreadable`` asks for new files whatever the values are."""
    inside = sorted(values - {VOID})
    findings, decoder = [], Decoder({value: value for value in inside}) if unreadable else Decoder()
    count = len(names) or (inside[-1] + 1 if inside else 0)
    shown = enumerate_names(sorted(values), 12)
    if values == {0, VOID} and len(names) in (0, 2):
        decoder, count = Decoder({0: 0, VOID: 1}), 2
        names = names or ('background', 'foreground')
        findings.append(
            warning('label images', f'hold 0 and 255, as {example}: they are read as {names[0]!r} and {names[1]!r}')
        )
    elif not inside:
        findings.append(error('label images', f'hold nothing but 255, which stands for no class, as {example}'))
    elif names and inside[-1] >= len(names):
        ordered = sorted(values) if len(values) == len(names) else inside
        if len(ordered) == len(names):
            decoder = Decoder({value: i for i, value in enumerate(ordered)})
            findings.append(warning('label images', f'hold {shown}: in this order they are read as the classes'))
        else:
            findings.append(
                error('label images', f'hold {shown}, as {example}, but {len(names)} classes are named: name them all')
            )
    elif not names and (inside[-1] > VOID or len(inside) * 4 < count):
        findings.append(
            error(
                'label images',
                f'hold {shown}, as {example}: name as many classes in the order of these values, in a file '
                'classes.txt with one name a line, next to the folders, or with --classes',
            )
        )
    colors = list(palette[:count]) if len(palette) >= count else spread_colors(count)
    return LabelImages(decoder, list(names) or [f'class_{i}' for i in range(count)], colors, findings)


def _judge_colors(found: set[int], names: Sequence[str], colors: Sequence[Color], example: str) -> LabelImages:
    """Classes of label images of colours."""
    seen = [_unpack(value) for value in sorted(found)]
    findings = []
    if colors:
        unknown = [color for color in seen if color not in set(colors)]
        if unknown:
            findings.append(
                warning(
                    'label images',
                    f'hold {len(unknown)} colours that the list of classes does not have, as {unknown[0]}: '
                    'their pixels count for no class',
                )
            )
    elif len(seen) > MOST_COLORS:
        findings.append(
            error(
                'label images',
                f'hold more than {MOST_COLORS} colours, as {example}: label images need PNG, without smoothing, and '
                'a file labelmap.txt with lines NAME:RED,GREEN,BLUE names the colours',
            )
        )
        seen = []
    elif len(names) != len(seen):
        names = ['#{:02x}{:02x}{:02x}'.format(*color) for color in seen]
        findings.append(
            warning(
                'label images',
                f'hold {len(seen)} colours without names: write labelmap.txt with lines NAME:RED,GREEN,BLUE next to '
                f'the folders; until then they are called {enumerate_names(names, 3)}',
            )
        )
    palette = list(colors or seen)
    return LabelImages(Decoder(colors={color: i for i, color in enumerate(palette)}), list(names), palette, findings)


def read_class_list(root: Path) -> tuple[list[str], list[Color]]:
    """Names and colours of the classes, where a file in the folder lists them; both may be empty.

    Files: ``labelmap.txt`` (CVAT), ``class_dict.csv``, ``label_colors.txt``, else ``classes.txt`` and its like.
    """
    names: list[str] = []
    colors: list[Color] = []
    for file in ('labelmap.txt', 'class_dict.csv', 'label_colors.txt'):
        if (root / file).is_file():
            for line in read_lines(root / file):
                fields = next(csv.reader([line])) if file.endswith('.csv') else re.split(r'[:,\s]+', line)
                numbers = [int(each) for each in fields if each.strip().isdecimal()]
                words = [each.strip() for each in fields if each.strip() and not each.strip().isdecimal()]
                if len(numbers) >= 3 and words and not line.startswith('#'):
                    names.append(words[0] if file != 'labelmap.txt' else line.partition(':')[0].strip())
                    colors.append(tuple(numbers[:3]))
            return names, colors
    for file in ('classes.txt', 'obj.names', 'predefined_classes.txt', 'class_names.txt'):
        if (root / file).is_file():
            return read_lines(root / file), []
    return names, colors


def _look_up(values: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """The table's number of every value, 255 for those that it does not have."""
    keys = np.array(sorted(table))
    numbers = np.array([table[key] for key in keys.tolist()])
    places = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[places] == values, numbers[places], VOID)


def _pack(pixels: np.ndarray) -> np.ndarray:
    """Colours (..., 3) as one number each."""
    red, green, blue = (pixels[..., i].astype(np.int64) for i in range(3))
    return red << 16 | green << 8 | blue


def _pack_one(color: Color) -> int:
    return int(color[0]) << 16 | int(color[1]) << 8 | int(color[2])


def _unpack(value: int) -> Color:
    return value >> 16, value >> 8 & 255, value & 255
