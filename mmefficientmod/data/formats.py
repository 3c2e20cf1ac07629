"""Recognises what format a user's data set has, and reads it into the form of its task."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from rich.console import Console

from ..utils import UserError, enumerate_names, read_json
from .canvas import spread_colors
from .converters import find_yolo_description, read_labelme, read_voc, read_yolo, swap_folder
from .files import Tree, group, join, role, scan
from .findings import Finding, warning
from .label_images import look_at, read_class_list
from .parts import ROLES, Boxes, Labels, Masks, OwnData, Part

MASK_FOLDER = re.compile(r'mask|annot|ann_dir|label|segmentation|(^|[^a-z])(seg|gt)([^a-z]|$)|ground.?truth')
INSTANCES = re.compile(r'object|instance')  # folders with a number for each object
MASK_ENDINGS = re.compile(r'[_-](mask|masks|label|labels|seg|gt|l|labelids|labeltrainids)$')
PEEKED = 64 * 1024  # bytes at the start of a file that tell its format
LABEL_LINE = re.compile(r'\s*\d+(\.0*)?(\s+-?[\d.eE+-]+){4,}\s*(\n|$)')


@dataclass(frozen=True)
class Format:
    """A format that is read."""

    title: str  # its name, as people call it
    read: Callable[[Tree, Sequence[str]], OwnData]  # the second argument names the classes where the files may not


def recognise(path: Path, wanted: str | None = None, names: Sequence[str] = ()) -> OwnData:
    """Finds out what a folder holds and reads it.

    Args:
        path (Path): The folder, or a COCO JSON in the folder of its images.
        wanted (str, optional): The format, a key of :data:`FORMATS`, where a folder holds several.
        names (Sequence[str]): Names of the classes, for formats whose files may not tell them.

    Raises:
        UserError: With one line, if it holds no data set or several, or cannot be read.
    """
    if not path.exists():  # or a loop of links
        raise UserError(f'{path} does not exist')
    single = path.is_file() and path.suffix.lower() == '.json'
    with Console(stderr=True).status('looking for files'):
        tree = scan(path.resolve().parent if single else path.resolve())
    if not any(tree.folders.values()):
        raise UserError(f'{path} is empty')
    if not tree.images_below(''):
        raise UserError(f'{path} holds no image; known are BMP, JPEG, PNG, PNM, TIFF and WebP')
    kind = FORMATS[wanted or ('coco' if single else _find_format(tree))]
    data = read_coco(tree, names, path.name) if single else kind.read(tree, names)
    if not any(map(len, data.parts.values())):
        raise UserError(f'{path} looks like {data.format}, but none of its images has annotations')
    order = [name for name in ('all', *ROLES) if name in data.parts]
    return replace(data, parts={name: data.parts[name] for name in order}, findings=[*tree.findings, *data.findings])


def _find_format(tree: Tree) -> str:
    """The key of the one format that the files speak for.

    Raises:
        UserError: If there is none, or several.
    """
    signs = _find_signs(tree)
    if len(signs) > 1:
        held = ' and '.join(f'{FORMATS[name].title} ({file})' for name, file in signs.items())
        raise UserError(f'{tree.root} holds {held}: give the folder of one of them, or choose with --format')
    if signs:
        return next(iter(signs))
    if _pair_folders(tree):
        return 'masks'
    if _class_folders(tree):
        return 'folders'
    raise UserError(
        f'{tree.root} holds images, but no annotations that are known: COCO JSON, YOLO (data.yaml or labels/*.txt), '
        'Pascal VOC (*.xml), LabelMe (*.json), masks named as the images (images/, masks/), or a folder for each class'
    )


def _find_signs(tree: Tree) -> dict[str, str]:
    """Formats of boxes that the files speak for, each with the first such file."""
    signs: dict[str, str] = {}
    for path in tree.files('.json'):
        kind = _peek_json(tree.root / path)
        if kind:
            signs.setdefault(kind, path)
    for path in tree.files('.xml'):
        start = _peek(tree.root / path)
        if '<annotations' in start and '<meta' in start:
            raise UserError(f'{tree.root / path} is an export "CVAT for images": export the task as "COCO 1.0"')
        if '<annotation' in start and '<filename' in start:
            signs['voc'] = path
            break
    described = find_yolo_description(tree)
    labels = (path for path in tree.files('.txt') if LABEL_LINE.match(_peek(tree.root / path)))
    sign = described or next((path for path in labels if _has_image(tree, path)), None)
    return {**signs, **({'yolo': sign} if sign else {})}


def _peek(path: Path) -> str:
    try:
        with open(path, 'rb') as file:
            return file.read(PEEKED).decode('utf-8', 'replace')
    except OSError as problem:
        raise UserError(f'{path} cannot be read: {problem.strerror}') from problem


def _peek_json(path: Path) -> str | None:
    """The format of a JSON: ``'coco'``, ``'labelme'`` or None."""
    start = _peek(path)
    if re.search(r'"shapes"\s*:', start):
        return 'labelme'
    keys = len(re.findall(r'"(?:images|annotations|categories)"\s*:\s*\[', start))
    return 'coco' if keys and '"captions"' not in start and not re.search(r'"caption"\s*:', start) else None


def _has_image(tree: Tree, path: str) -> bool:
    """Whether a label file lies in the folder of its image, or in the ``labels`` that goes with its ``images``."""
    places = (each.rpartition('/')[0] for each in (path, swap_folder(path, 'labels', 'images')))
    return any(tree.image_of_stem(place, PurePosixPath(path).stem) for place in places)


def read_coco(tree: Tree, names: Sequence[str], single: str | None = None) -> OwnData:
    """COCO's JSON: one file or one for each part."""
    files = [single] if single else [path for path in tree.files('.json') if _peek_json(tree.root / path) == 'coco']
    parts: dict[str, Part] = {}
    findings: list[Finding] = []
    sources: dict[str, str] = {}
    for file in files:
        content = read_json(tree.root / file)
        if not _is_coco(content):
            findings.append(warning(file, 'lacks images, annotations or categories: it is left out'))
            continue
        part = (None if single else role(file)) or 'all'
        if part in parts:
            raise UserError(
                f'{tree.root} holds two files for {part}, {sources[part]} and {file}: give one of them as DATA, '
                'or leave one in the folder'
            )
        parts[part], found = _read_coco_part(tree, file, content)
        sources[part] = file
        findings += found
    if not parts:
        raise UserError(f'{tree.root} holds no COCO JSON with images, annotations and categories')
    first = parts.get('train') or next(iter(parts.values()))
    assert isinstance(first, Boxes)
    classes = [str(category['name']) for category in first.categories]
    if names and list(names) != classes:
        raise UserError(
            f'--classes has other names than {", ".join(sources.values())}, which lists its own: leave it out'
        )
    return OwnData(tree.root, 'COCO JSON', 'detection', classes, spread_colors(len(classes)), parts, findings)


def _is_coco(content: Any) -> bool:
    """Whether a JSON has what COCO's format asks for, as far as reading it needs it."""
    if not isinstance(content, Mapping):
        return False
    lists = [content.get(key) for key in ('images', 'annotations', 'categories')]
    if not all(isinstance(each, list) and all(isinstance(item, Mapping) for item in each) for each in lists):
        return False
    images, _, categories = lists
    plain = all(isinstance(category.get(key), (int, str)) for category in categories for key in ('id', 'name'))  # type: ignore[union-attr]
    return bool(images) and plain


def _read_coco_part(tree: Tree, file: str, content: Mapping) -> tuple[Boxes, list[Finding]]:
    """One file, with the folder of its images; file names of another computer are corrected in a copy."""
    names = [image.get('file_name', image.get('coco_url')) for image in content['images']]  # LVIS has addresses
    nameless = [i for i, name in enumerate(names) if not isinstance(name, str)]
    if nameless:
        raise UserError(f'{tree.root / file}: {len(nameless)} images have no file_name, as image {nameless[0]}')
    names = [name.partition('://')[2].partition('/')[2] or name for name in names]
    root = _image_root(tree, file, names)
    corrected = [_correct(tree, root, name) for name in names]
    # A link that leads outside is the user's own and told by scan; a path is whoever's who wrote the file.
    top = str(tree.root)
    outside = [
        name for name in corrected if os.path.commonpath([top, os.path.normpath(tree.root / root / name)]) != top
    ]
    findings = []
    if outside:
        raise UserError(f'{tree.root / file} names {len(outside)} images outside of {tree.root}, as {outside[0]}')
    images, annotations = content['images'], content['annotations']
    changed = [name for image, name, other in zip(images, names, corrected) if image.get('file_name') != other]
    if changed:
        message = f'{len(changed)} file names are not those of this computer, as {changed[0]!r}: the copy has others'
        findings.append(warning(file, message))
        images = [{**image, 'file_name': name} for image, name in zip(images, corrected)]
        annotations = [{'iscrowd': 0, **each} for each in annotations]  # LVIS has no crowds
    path = None if changed else tree.root / file
    return Boxes(tree.root / root, images, annotations, content['categories'], path), findings


def _image_root(tree: Tree, file: str, names: Sequence[str]) -> str:
    """The folder, relative to the root, that the file names of a COCO JSON start from.

    Raises:
        UserError: If no image is found in any.
    """
    wanted = [PureWindowsPath(name).as_posix() for name in names[:: max(len(names) // 50, 1)]]
    ends = {name: PurePosixPath(name).name for name in wanted}
    hits: Counter = Counter()
    for folder in tree.folders:
        here = set(tree.folders[folder]) & set(ends.values())
        for name, end in ends.items():
            parent = name[: -len(end)].rstrip('/')
            if end in here and (folder == parent or folder.endswith('/' + parent) or not parent):
                hits[folder[: len(folder) - len(parent)].rstrip('/')] += 1
            elif end in here:
                hits[folder] += 0.5  # type: ignore[assignment]
    if not hits:
        raise UserError(f'none of the {len(names)} images of {tree.root / file} is below {tree.root}, as {names[0]}')
    near = file.rpartition('/')[0]
    return max(hits, key=lambda folder: (hits[folder], role(folder) == role(file), folder == near))


def _correct(tree: Tree, root: str, name: str) -> str:
    """A file name as it is on this computer: without backslashes, and without folders that are not here."""
    if tree.has(join(root, name)):
        return name
    plain = PureWindowsPath(name)
    for other in (plain.as_posix(), plain.name):
        if tree.has(join(root, other)):
            return other
    return name


@dataclass(frozen=True)
class Pairing:
    """A folder of images and the folder of their masks, relative to the root."""

    images: str
    masks: str
    suffix: str  # between the stem of an image and the suffix of its mask
    pairs: list[tuple[str, str]]  # names of image and mask


def read_masks(tree: Tree, names: Sequence[str]) -> OwnData:
    """Images with masks of the same names, as MMSegmentation's custom data sets."""
    pairings = group(_pair_folders(tree), lambda pairing: role(pairing.images) or role(pairing.masks) or 'all')
    listed, colors = read_class_list(tree.root)
    paths = [tree.root / each.masks / mask for found in pairings.values() for each in found for _, mask in each.pairs]
    if not paths:
        raise UserError(f'{tree.root} holds no masks named as its images: put them into images/ and masks/')
    label_images = look_at(paths, names or listed, colors)
    parts: dict[str, Part] = {}
    findings = list(label_images.findings)
    for name, found in pairings.items():
        parts[name], notes = _join_pairings(tree, name, found, label_images.decoder, len(label_images.classes))
        findings += notes
    return OwnData(
        tree.root, 'images with masks', 'segmentation', label_images.classes, label_images.palette, parts, findings
    )


def _pair_folders(tree: Tree) -> list[Pairing]:
    """Every folder of masks with the folder of images whose names it has."""
    pairings = []
    with_images = [folder for folder in tree.folders if tree.images(folder)]
    for folder in with_images:
        stems = {PurePosixPath(name).stem: name for name in tree.images(folder)}
        ended = [stem for stem in stems if MASK_ENDINGS.search(stem.lower())]
        own = [stem for stem in ended if MASK_ENDINGS.sub('', stem.lower()) in {each.lower() for each in stems}]
        if own:
            pairings += _pair(tree, folder, folder)
        elif MASK_FOLDER.search(folder.lower()) and not INSTANCES.search(folder.lower()):
            candidates = [other for other in with_images if other != folder and role(other) in (None, role(folder))]
            found = [pairing for other in candidates for pairing in _pair(tree, other, folder)]
            found.sort(key=lambda each: (not MASK_FOLDER.search(each.images.lower()), len(each.pairs)))
            pairings += found[-1:]
    return pairings


def _pair(tree: Tree, images: str, masks: str) -> list[Pairing]:
    """The pairing of two folders, where at least half of the masks have an image."""
    by_stem = {PurePosixPath(name).stem: name for name in tree.images(images)}
    mask_stems = {
        PurePosixPath(name).stem: name
        for name in tree.images(masks)
        if name.lower().endswith(('.png', '.bmp', '.tif', '.tiff'))
    }
    rests: Counter = Counter()
    for stem in list(mask_stems)[:50]:
        bare = MASK_ENDINGS.sub('', stem) if MASK_ENDINGS.search(stem.lower()) else stem
        bare = stem[: len(bare)]
        for each in {stem, bare, stem[: stem.lower().rfind('_mask')] if '_mask' in stem.lower() else stem}:
            if each in by_stem and (images != masks or each != stem):
                rests[stem[len(each) :], PurePosixPath(mask_stems[stem]).suffix] += 1
    if not rests:
        return []
    (rest, suffix), _ = rests.most_common(1)[0]
    pairs = [
        (by_stem[stem[: len(stem) - len(rest)]], name)
        for stem, name in mask_stems.items()
        if name.endswith(rest + suffix) and stem[: len(stem) - len(rest)] in by_stem
    ]
    return (
        [Pairing(images, masks, rest + suffix, pairs)] if len(pairs) * 2 >= len(mask_stems) or images == masks else []
    )


def _join_pairings(
    tree: Tree, name: str, found: Sequence[Pairing], decoder: Any, classes: int
) -> tuple[Masks, list[Finding]]:
    """One part of the pairings of its folders, which must lie alike below a folder of images and one of masks."""
    image_root, mask_root = found[0].images, found[0].masks
    while (
        len(found) > 1 and image_root and mask_root and PurePosixPath(image_root).name == PurePosixPath(mask_root).name
    ):
        image_root, mask_root = image_root.rpartition('/')[0], mask_root.rpartition('/')[0]
    stems, suffixes, findings, lacking = [], [], [], []
    for pairing in found:
        inner = pairing.images[len(image_root) :].strip('/')
        if pairing.suffix != found[0].suffix or inner != pairing.masks[len(mask_root) :].strip('/'):
            raise UserError(
                f'{tree.root} holds several pairs of folders for {name}: {found[0].images} with {found[0].masks}, '
                f'{pairing.images} with {pairing.masks}: give one of them'
            )
        for image, _ in pairing.pairs:
            path = PurePosixPath(join(inner, image))
            stems.append(path.with_suffix('').as_posix())
            suffixes.append(path.suffix)
        paired = {image for image, _ in pairing.pairs} | {mask for _, mask in pairing.pairs}
        lacking += [join(pairing.images, image) for image in tree.images(pairing.images) if image not in paired]
    if lacking:
        findings.append(warning(image_root, f'{len(lacking)} images have no mask and are left out, as {lacking[0]}'))
    mixed = bool(lacking) or image_root == mask_root
    part = Masks(
        tree.root / image_root, tree.root / mask_root, stems, suffixes, found[0].suffix, decoder, classes, listed=mixed
    )
    return part, findings


def read_folders(tree: Tree, names: Sequence[str]) -> OwnData:
    """A folder of images for each class, as ImageNet and torchvision's ``ImageFolder``."""
    found = _class_folders(tree)
    if not found:
        raise UserError(f'{tree.root} holds no two folders of images to be two classes')
    classes = sorted({name for folders in found.values() for name in folders})
    if names and list(names) != classes:
        raise UserError(
            f'--classes has other names than the folders, which are {enumerate_names(classes)}: leave it out'
        )
    parts: dict[str, Part] = {}
    findings = []
    for part, folders in found.items():
        top = next(iter(folders.values())).rpartition('/')[0]
        if sorted(folders) != classes:
            lost = enumerate_names(sorted(set(classes) - set(folders)))
            findings.append(
                warning(part, f'has no folder of {lost}: its images are listed with the number of their class')
            )
        pairs = [
            (join(name, image), classes.index(name))
            for name, folder in sorted(folders.items())
            for image in tree.images_below(folder)
        ]
        files, labels = [file for file, _ in pairs], [label for _, label in pairs]
        # MMPreTrain's own reading of folders knows no WebP
        listed = sorted(folders) != classes or any(file.lower().endswith(('.webp', '.tiff')) for file in files)
        parts[part] = Labels(tree.root / top, files, labels, len(classes), listed)
        stray = tree.images(top)
        if stray:
            findings.append(warning(part, f'{len(stray)} images lie in no folder of a class, as {join(top, stray[0])}'))
    return OwnData(
        tree.root, 'a folder for each class', 'classification', classes, spread_colors(len(classes)), parts, findings
    )


def _class_folders(tree: Tree) -> dict[str, dict[str, str]]:
    """The folder of each class by part and name, empty with fewer than two classes."""

    def below(folder: str) -> dict[str, str]:
        start = folder + '/' if folder else ''
        children = {
            each[len(start) :].partition('/')[0] for each in tree.folders if each.startswith(start) and each != folder
        }
        return {name: start + name for name in sorted(children) if tree.images_below(start + name)}

    top = ''
    while len(below(top)) == 1 and not tree.images(top):
        top = next(iter(below(top).values()))
    children = below(top)
    parts = {role(name): below(folder) for name, folder in children.items() if role(name) and below(folder)}
    found: dict[str, dict[str, str]] = parts if len(parts) == len(children) else {'all': children}  # type: ignore[assignment]
    return found if len({name for folders in found.values() for name in folders}) > 1 else {}


FORMATS = {
    'coco': Format('COCO JSON', read_coco),
    'yolo': Format('YOLO', read_yolo),
    'voc': Format('Pascal VOC', read_voc),
    'labelme': Format('LabelMe', read_labelme),
    'masks': Format('images with masks', read_masks),
    'folders': Format('a folder for each class', read_folders),
}
