"""The files of a data set: lists them without leaving its folder, and reads what strangers wrote."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from PIL import Image

from ..utils import IMAGE_SUFFIXES, UserError, describe_error
from .findings import Finding, warning

TEXT_LIMIT = 10 * 2**20  # bytes of a YAML, XML or list of names; people's are some kilobytes
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that make height and width change places
MOST_SIZES = 500  # images whose headers are read for the sizes of a data set
SLOW = 2000  # files from which a progress bar is worth its lines
Item = TypeVar('Item')


@dataclass
class Tree:
    """All files below a folder."""

    root: Path  # the folder
    # names of the files by folder relative to the root, with /; the root is ''
    folders: dict[str, list[str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)  # links that lead outside

    def files(self, *suffixes: str) -> list[str]:
        """Files with these suffixes in lower case, relative to the root, in order."""
        return [
            join(folder, name)
            for folder, names in self.folders.items()
            for name in names
            if os.path.splitext(name)[1].lower() in suffixes
        ]

    def __post_init__(self) -> None:
        # one look at a folder for all questions: with 100,000 files in it, a look for each would never end
        self._images: dict[str, list[str]] = {}
        self._names: dict[str, set[str]] = {}
        self._stems: dict[str, dict[str, str]] = {}

    def images(self, folder: str) -> list[str]:
        """Names of the images in one folder, without its subfolders."""
        if folder not in self._images:
            self._images[folder] = [name for name in self.folders.get(folder, ()) if is_image(name)]
        return self._images[folder]

    def has(self, path: str) -> bool:
        """Whether there is a file of that path relative to the root."""
        folder, _, name = path.rpartition('/')
        if folder not in self._names:
            self._names[folder] = set(self.folders.get(folder, ()))
        return name in self._names[folder]

    def image_of_stem(self, folder: str, stem: str) -> str | None:
        """Name of the image in a folder that is called so before its suffix."""
        if folder not in self._stems:
            self._stems[folder] = {os.path.splitext(name)[0]: name for name in self.images(folder)}
        return self._stems[folder].get(stem)

    def images_below(self, folder: str) -> list[str]:
        """Images in a folder and its subfolders, relative to the folder."""
        start = folder + '/' if folder else ''
        inside = [each for each in self.folders if each == folder or each.startswith(start)]
        return [join(each[len(start) :], name) for each in inside for name in self.images(each)]


def scan(root: Path) -> Tree:
    """Lists a data set's files; hidden ones are left out, links that lead outside are followed with a warning.

    Raises:
        UserError: If the folder does not exist, or cannot be read.
    """
    if not root.is_dir():
        raise UserError(f'{root} does not exist' if not root.exists() else f'{root} is not a folder')
    tree, seen = Tree(root), {os.path.realpath(root)}
    outside: list[Path] = []
    try:
        for place, folders, files in os.walk(root, followlinks=True, onerror=_raise):
            kept = []
            for name in sorted(folders):
                path = os.path.join(place, name)
                real = os.path.realpath(path)
                if name.startswith('.') or name == '__MACOSX' or real in seen:
                    continue
                if os.path.islink(path) and not is_inside(Path(real), root):
                    tree.findings.append(warning(relative(Path(path), root), f'is a link to {real}, outside the data'))
                seen.add(real)
                kept.append(name)
            folders[:] = kept
            names = sorted(name for name in files if not name.startswith('.'))
            for name in (*names, *kept):
                _check_name(place, name)
            paths = (Path(place, name) for name in names)
            outside += [path for path in paths if path.is_symlink() and not is_inside(path, root)]
            tree.folders[relative(Path(place), root)] = names
    except OSError as error:
        raise UserError(f'{error.filename} cannot be read: {error.strerror}') from error
    if outside:
        example = f'{relative(outside[0], root)} to {os.path.realpath(outside[0])}'
        tree.findings.append(
            warning(str(root), f'{len(outside)} files are links that lead outside the data, as {example}')
        )
    return tree


def _check_name(folder: str, name: str) -> None:
    """Raises UserError for a name that no list or JSON can hold."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF for letter in name):
        raise UserError(f'{os.path.join(folder, name)!a} has a line break or is not UTF-8: rename it')


def _raise(error: OSError) -> None:
    raise error


def track(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar on the terminal where they are many."""
    from rich.console import Console
    from rich.progress import track as track_with_bar

    few = len(items) < SLOW or not sys.stderr.isatty()
    return track_with_bar(items, what, console=Console(stderr=True), transient=True, disable=few)


def join(folder: str, name: str) -> str:
    """A path relative to the root from a folder and a name, with /."""
    return f'{folder}/{name}' if folder else name


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image that OpenCV reads."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path lies in a folder, once links and ``..`` are resolved."""
    real, top = os.path.realpath(path), os.path.realpath(root)
    return real == top or real.startswith(top.rstrip(os.sep) + os.sep)


def relative(path: Path, root: Path) -> str:
    """A path from a folder with /, the whole path where it lies outside."""
    try:
        text = path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()
    return '' if text == '.' else text


def role(path: str) -> str | None:
    """``'train'``, ``'val'`` or ``'test'`` where a path says which part it is of; the last component that does wins."""
    for part in reversed(PurePosixPath(path.lower()).parts):
        found = re.findall(r'(?<![a-z])(train|training|val|valid|validation|test|testing)(?![a-z])', part)
        found = found or re.findall(r'^(train|val|test)(?=annot|labels?$|masks?$|images?$|img)', part)
        if found:
            return {'tra': 'train', 'val': 'val', 'tes': 'test'}[found[-1][:3]]
    return None


def plain(value: Any) -> Any:
    """A value of a stranger's JSON as a key: itself, or None where it is a list or a dict."""
    return value if isinstance(value, (int, float, str)) else None


def spread(count: int, most: int) -> list[int]:
    """At most so many indices of a list, evenly spread over it."""
    step = max(count / most, 1) if most else 1
    return sorted({int(i * step) for i in range(min(count, most))})


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image of Pillow, without its warnings of large ones; whatever is wrong with the file is a UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(path) as image:
                yield image
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        raise UserError(f'{path} cannot be read as an image: {describe_error(error)}') from error


def open_image(path: str | Path) -> Image.Image:
    """An image with its pixels; raises UserError if it cannot be read."""
    with _opened(path) as image:
        image.load()
    return image


def read_header(path: str | Path) -> tuple[int, int, bool]:
    """Width and height in pixels as stored, and whether EXIF says that they change places; raises as open_image."""
    with _opened(path) as image:
        return (*image.size, image.getexif().get(ORIENTATION, 1) in TURNED)


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of an image as OpenCV shows it, upright, from its header; raises as open_image."""
    width, height, turned = read_header(path)
    return (height, width) if turned else (width, height)


def read_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Sizes of a sample of images; those that cannot be read are left out."""
    sizes = []
    for i in spread(len(paths), MOST_SIZES):
        with contextlib.suppress(UserError):
            sizes.append(read_size(paths[i]))
    return sizes


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: If it is none, or too large for what it should be.
    """
    try:
        if path.stat().st_size > TEXT_LIMIT:
            raise UserError(f'{path} is larger than {TEXT_LIMIT >> 20} MiB: no such list or description is')
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not text in UTF-8: save it as such') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without white space around them, and without empty ones; raises as read_text does."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; tags that would build Python objects are refused.

    Raises:
        UserError: If it is none.
    """
    import yaml

    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f'{path} is not plain YAML: {describe_error(error)}') from error


def group(items: Iterable[Item], key: Any) -> dict[Any, list[Item]]:
    """Items by what a function says of each, in the order of their first."""
    groups: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
