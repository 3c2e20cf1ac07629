"""Training, validation and test data in one form for each task, whatever files they come from."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Union

import numpy as np

from ..utils import UserError, replace_file
from .files import group, plain, read_sizes, relative, spread, track
from .findings import Finding
from .label_images import Color, Decoder

ROLES = ('train', 'val', 'test')
MOST_COUNTED = 200  # label images that the classes are counted in


@dataclass(frozen=True)
class Boxes:
    """Images with boxes and perhaps polygons or masks, as the dicts of COCO's format."""

    root: Path  # what each `file_name` is relative to
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    file: Path | None = None  # a COCO JSON that holds exactly this

    def __len__(self) -> int:
        return len(self.images)

    def names(self) -> list[str]:
        """The file name of each image, relative to the root."""
        return [image['file_name'] for image in self.images]

    def counts(self) -> list[int]:
        """Objects of each class."""
        found = Counter(plain(annotation.get('category_id')) for annotation in self.annotations)
        return [found[category['id']] for category in self.categories]

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image in pixels, as the file notes them; of a sample, where it does not."""
        noted = [(image.get('width'), image.get('height')) for image in self.images]
        if all(isinstance(side, int) and side > 0 for size in noted for side in size):
            return noted  # type: ignore[return-value]
        return read_sizes([self.root / name for name in self.names()])

    @property
    def is_complete(self) -> bool:
        """Whether :meth:`write` adds nothing."""
        return self.file is not None

    def objects(self) -> list[list[tuple[int, dict]]]:
        """The objects of each image, each with the number of its class; those of no category are left out."""
        numbers = {category['id']: i for i, category in enumerate(self.categories)}
        found: dict[Any, list[tuple[int, dict]]] = {plain(image.get('id')): [] for image in self.images}
        for each in self.annotations:
            image, number = plain(each.get('image_id')), numbers.get(plain(each.get('category_id')))
            if image in found and number is not None:
                found[image].append((number, each))
        return [found[plain(image.get('id'))] for image in self.images]

    def take(self, chosen: Iterable[int]) -> Boxes:
        """The images of these indices with their annotations."""
        images = [self.images[i] for i in chosen]
        kept = {plain(image.get('id')) for image in images}
        annotations = [each for each in self.annotations if plain(each.get('image_id')) in kept]
        return replace(self, images=images, annotations=annotations, file=None)

    def write(self, folder: Path, name: str) -> Boxes:
        """The same with a file for :meth:`settings`: its own, else ``NAME.json`` in the folder."""
        if self.is_complete:
            return self
        content = dict(images=self.images, annotations=self.annotations, categories=self.categories)
        replace_file(folder / f'{name}.json', json.dumps(content))
        return replace(self, file=folder / f'{name}.json')

    def settings(self, root: Path) -> dict[str, Any]:
        """The options of MMDetection's ``CocoDataset`` below ``data_root``."""
        assert self.file, 'written first'
        return dict(ann_file=relative(self.file, root), data_prefix=dict(img=_folder(self.root, root)))


@dataclass(frozen=True)
class Masks:
    """Images, each with an image of class numbers."""

    root: Path  # of the images
    mask_root: Path
    stems: list[str]  # of the images below their root, with /, without suffix
    suffixes: list[str]  # of the images
    mask_suffix: str  # what follows the stem of the image in the name of its mask, such as `_mask.png`
    decoder: Decoder
    classes: int
    listed: bool = False  # whether the folders hold more than this part
    file: Path | None = None  # the list of the stems

    def __len__(self) -> int:
        return len(self.stems)

    def names(self) -> list[str]:
        """The file name of each image, relative to its root."""
        return [stem + suffix for stem, suffix in zip(self.stems, self.suffixes)]

    @property
    def is_converted(self) -> bool:
        """Whether :meth:`write` makes other label images."""
        return len(set(self.suffixes)) > 1 or not self.decoder.is_plain

    @property
    def is_complete(self) -> bool:
        """Whether :meth:`write` adds nothing."""
        return not (self.is_converted or self.listed)

    def mask(self, index: int) -> Path:
        """The file with the class numbers of an image."""
        return self.mask_root / (self.stems[index] + self.mask_suffix)

    def counts(self) -> list[int]:
        """Images that show each class, among at most :data:`MOST_COUNTED` that are spread over the part."""
        found = np.zeros(self.classes, int)
        for i in spread(len(self), MOST_COUNTED):
            values = np.unique(self.decoder.read(self.mask(i)))
            found[values[values < self.classes]] += 1
        return found.tolist()

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height in pixels of a sample of the images."""
        return read_sizes([self.root / name for name in self.names()])

    def take(self, chosen: Iterable[int]) -> Masks:
        """The images of these indices."""
        chosen = list(chosen)
        stems, suffixes = ([values[i] for i in chosen] for values in (self.stems, self.suffixes))
        return replace(self, stems=stems, suffixes=suffixes, listed=True)

    def write(self, folder: Path, name: str) -> Masks:
        """The same with files that MMSegmentation reads: a list of the images, and masks of class numbers.

        ``BaseSegDataset`` takes one suffix for all images. Where they have several, it becomes part of the stem.
        """
        part, mixed = self, len(set(self.suffixes)) > 1
        if self.is_converted:
            stems = self.names() if mixed else self.stems
            for i in track(range(len(self)), 'masks'):
                path = folder / 'masks' / name / f'{stems[i]}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, self.decoder.encode(self.mask(i)), durable=False)
            suffixes = [''] * len(self) if mixed else self.suffixes
            part = replace(
                self, mask_root=folder / 'masks' / name, stems=stems, suffixes=suffixes, mask_suffix='.png',
                decoder=Decoder(), listed=self.listed or mixed,
            )  # fmt: skip
        if part.listed:
            replace_file(folder / f'{name}.txt', ''.join(f'{stem}\n' for stem in part.stems))
            part = replace(part, file=folder / f'{name}.txt')
        return part

    def settings(self, root: Path) -> dict[str, Any]:
        """The options of MMSegmentation's ``BaseSegDataset`` below ``data_root``."""
        prefix = dict(img_path=relative(self.root, root), seg_map_path=relative(self.mask_root, root))
        return dict(_listed(self.file, root), data_prefix=prefix)


@dataclass(frozen=True)
class Labels:
    """Images of one class each."""

    root: Path
    files: list[str]  # relative to the root
    labels: list[int]
    classes: int
    listed: bool = False  # whether the root holds more than this part, or its folders are not the classes
    file: Path | None = None  # the list of files and labels

    def __len__(self) -> int:
        return len(self.files)

    def names(self) -> list[str]:
        """The file name of each image, relative to the root."""
        return self.files

    def counts(self) -> list[int]:
        """Images of each class."""
        found = Counter(self.labels)
        return [found[label] for label in range(self.classes)]

    @property
    def is_complete(self) -> bool:
        """Whether :meth:`write` adds nothing."""
        return not self.listed

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height in pixels of a sample of the images."""
        return read_sizes([self.root / name for name in self.files])

    def take(self, chosen: Iterable[int]) -> Labels:
        """The images of these indices."""
        chosen = list(chosen)
        files, labels = [self.files[i] for i in chosen], [self.labels[i] for i in chosen]
        return replace(self, files=files, labels=labels, listed=True)

    def write(self, folder: Path, name: str) -> Labels:
        """The same with a list of files and labels, where the folders do not say it."""
        if self.is_complete:
            return self
        lines = (f'{file} {label}\n' for file, label in zip(self.files, self.labels))
        replace_file(folder / f'{name}.txt', ''.join(lines))
        return replace(self, file=folder / f'{name}.txt')

    def settings(self, root: Path) -> dict[str, Any]:
        """The options of MMPreTrain's ``CustomDataset`` below ``data_root``."""
        return dict(_listed(self.file, root), data_prefix=relative(self.root, root))


Part = Union[Boxes, Masks, Labels]


def _folder(path: Path, root: Path) -> str:
    """A folder from another one, with the / that MMDetection's own configs end it with."""
    text = relative(path, root)
    return f'{text}/' if text else ''


def _listed(file: Path | None, root: Path) -> dict[str, Any]:
    return dict(ann_file=relative(file, root)) if file else {}


def split(part: Part, share: float, seed: int, separator: str | None = None) -> tuple[Part, Part]:
    """Divides a part at random into one for training and one for validation.

    Args:
        part (Part): The images.
        share (float): Share of the images for validation, above 0 and below 1.
        seed (int): Another one gives another choice.
        separator (str, optional): Images whose names agree up to this text stay together, such as the frames of a
            video or the tiles of a photograph. Defaults to None, which keeps no images together.

    Raises:
        UserError: If there are not two groups of images to divide.
    """
    names = part.names()
    together = group(
        range(len(part)), lambda i: names[i].rpartition('/')[2].partition(separator)[0] if separator else i
    )
    if len(together) < 2:
        what = f'all names begin with {next(iter(together))!r}' if separator and together else f'{len(part)} image'
        raise UserError(f'the data cannot be divided into training and validation data: {what}')
    # a classifier's classes are divided one by one, so that each has its share; groups may hold several
    strata = group(together.values(), lambda members: part.labels[members[0]] if isinstance(part, Labels) else 0)
    chosen: set[int] = set()
    chance = random.Random(seed)
    for groups in strata.values():
        chance.shuffle(groups)
        wanted, taken = share * sum(map(len, groups)), 0
        for members in groups[:-1]:  # one stays for training
            if taken >= wanted or (taken and taken + len(members) / 2 > wanted):
                break
            chosen.update(members)
            taken += len(members)
    if not chosen:
        raise UserError('no class has two images to divide into training and validation data')
    return part.take(i for i in range(len(part)) if i not in chosen), part.take(sorted(chosen))


@dataclass(frozen=True)
class OwnData:
    """A data set that was recognised."""

    root: Path  # its folder
    format: str  # what it is called, as 'COCO JSON'
    task: str  # 'detection', 'segmentation' or 'classification'
    classes: list[str]  # names in the order of their numbers
    palette: list[Color]  # their colours
    parts: dict[str, Part]  # by 'train', 'val', 'test'; 'all' where it is not divided
    findings: list[Finding] = field(default_factory=list)  # what is wrong with the files, as far as reading shows it

    def divide(self, share: float, seed: int, separator: str | None = None) -> OwnData:
        """The same with training and validation data, divided as :func:`split` does where there is one set."""
        parts = dict(self.parts)
        if 'train' not in parts or 'val' not in parts:
            whole = parts.pop('all', None) or parts.pop('train', None) or parts.pop('val', None)
            if whole is None:
                raise UserError(f'{self.root} holds test data only: a training needs a part called train')
            parts['train'], parts['val'] = split(whole, share, seed, separator)
        return replace(self, parts={name: parts[name] for name in ROLES if name in parts})

    def write(self, folder: Path) -> OwnData:
        """The same with the files that the MM libraries need and the data lacks, in a folder outside of the data."""
        return replace(self, parts={name: part.write(folder, name) for name, part in self.parts.items()})
