"""Reads YOLO, Pascal VOC and LabelMe with supervision, into the dicts of COCO's format.

supervision interprets and judges every line, element and shape. Polygons are kept as the file has them: as
masks of whole pixels, which supervision draws, COCO's small objects keep an IoU of only 0.84.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import cv2
import numpy as np

from ..utils import UserError, describe_error, first_line, read_json
from .canvas import spread_colors
from .files import (
    TEXT_LIMIT,
    Tree,
    group,
    is_inside,
    join,
    read_lines,
    read_size,
    read_yaml,
    relative,
    role,
    track,
)
from .findings import Finding, Tally, error, judge, warning
from .label_images import read_class_list
from .parts import ROLES, Boxes, OwnData, Part

SUPERVISION = 'supervision==0.31.0'
TOLERANCE = 2.0  # pixels that a box may reach over the edge by rounding


class Builder:
    """Collects the images and objects of one part."""

    def __init__(self, tree: Tree, what: str) -> None:
        self.tree, self.what = tree, what  # the files, and what the findings are about, as 'YOLO train'
        self.images: list[dict] = []
        self.objects: list[tuple[str | int, dict]] = []
        self.notes, self.image_faults, self.object_faults = Tally(), Tally(), Tally()  # no fault is in the notes

    def add_image(self, path: str) -> tuple[int, int] | None:
        """Adds an image, relative to the root; its width and height, None where it cannot be read."""
        try:
            width, height = read_size(self.tree.root / path)
        except UserError as problem:
            self.image_faults.add('images cannot be read: remove or replace them', problem)
            return None
        self.images.append(dict(id=len(self.images) + 1, file_name=path, width=width, height=height))
        return width, height

    def add(self, label: str | int, box: Sequence[float], polygons: Sequence[np.ndarray], **more: int) -> None:
        """Adds an object of the last image: its class, corners in pixels, outlines (n, 2) if it has any."""
        image = self.images[-1]
        left, top, right, bottom = (round(float(value), 2) for value in box)
        if max(-left, -top, right - image['width'], bottom - image['height']) > TOLERANCE:
            example = f'{image["file_name"]}: {[left, top, right, bottom]}'
            self.object_faults.add('boxes reach over the edge of their image', example)
        width, height = round(right - left, 2), round(bottom - top, 2)
        entry = dict(image_id=image['id'], bbox=[left, top, width, height], area=width * height, iscrowd=0)
        if polygons:
            entry['segmentation'] = [np.round(polygon, 2).ravel().tolist() for polygon in polygons]
            entry['area'] = sum(float(cv2.contourArea(polygon.astype(np.float32))) for polygon in polygons)
        self.objects.append((label, {**entry, **more}))

    def finish(self, classes: Sequence[str]) -> tuple[Boxes, list[Finding]]:
        """The part, with classes by number or by name, and what was wrong with it."""
        numbers: dict[str | int, int] = {name: i + 1 for i, name in enumerate(classes)}
        numbers.update((i, i + 1) for i in range(len(classes)))
        annotations: list[dict] = []
        for label, entry in self.objects:
            if label in numbers:
                annotations.append(dict(id=len(annotations) + 1, category_id=numbers[label], **entry))
            else:
                name = self.images[entry['image_id'] - 1]['file_name']
                kind = f'objects are of a class beyond the {len(classes)} names: name it'
                self.object_faults.add(kind, f'{name}: {label}')
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
        findings = [
            *self.notes.warnings(self.what),
            *self.image_faults.judged(self.what, len(self.images)),
            *self.object_faults.judged(self.what, len(self.objects)),
        ]
        return Boxes(self.tree.root, self.images, annotations, categories), findings


def load_library(format: str, module: str) -> Any:
    """The part of supervision that reads a format.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return importlib.import_module(f'supervision.dataset.formats.{module}')
    except ImportError:
        raise UserError(
            f'{format} is read with the package supervision, which is not installed (Python 3.10 or newer has it): '
            f'pip install "{SUPERVISION}"'
        ) from None


def read_yolo(tree: Tree, names: Sequence[str]) -> OwnData:
    """Boxes or outlines of YOLO: ``data.yaml``, or ``labels/*.txt`` with ``classes.txt``; keypoints are left out."""
    library = load_library('YOLO', 'yolo')
    described = find_yolo_description(tree)
    content = read_yaml(tree.root / described) if described else {}
    findings: list[Finding] = []
    folders = _yolo_parts(tree, described, content, findings) if described else _yolo_folders(tree)
    classes = _yolo_names(content, names) or read_class_list(tree.root)[0]
    keypoints = content.get('kpt_shape')
    pose = 5 + int(np.prod(keypoints)) if isinstance(keypoints, list) else None
    builders = {name: Builder(tree, f'YOLO {name}') for name in folders}
    known = {path for name in folders for path in folders[name]}
    for name, images in folders.items():
        for path in track(images, f'YOLO {name}'):
            _add_yolo(builders[name], path, _label_path(tree, path), library, pose)
    orphans = [path for path in tree.files('.txt') if _is_orphan(tree, path, known)]
    if orphans:
        findings.append(warning('YOLO', f'{len(orphans)} label files have no image, as {orphans[0]}'))
    if not classes:
        highest = max((int(label) for each in builders.values() for label, _ in each.objects), default=-1)
        classes = [f'class_{i}' for i in range(highest + 1)]
        findings.append(warning('YOLO', 'nothing names the classes: write data.yaml or classes.txt, or give --classes'))
    return _finish(tree, 'YOLO', classes, builders, findings)


def _add_yolo(builder: Builder, path: str, labels: Path, library: Any, pose: int | None) -> None:
    size = builder.add_image(path)
    if size is None:
        return
    if not labels.is_file():
        builder.notes.add('images have no label file: they are taken as images without objects', path)
        return
    for line in read_lines(labels):
        values = line.split()
        if len(values) == pose:
            values = values[:5]
        try:
            found = library.yolo_annotations_to_detections([' '.join(values)], size, with_masks=False)
        except ValueError as problem:
            builder.image_faults.add('label lines cannot be read', f'{labels}: {first_line(problem)}')
            continue
        points = [float(value) for value in values[1 : len(values) - (len(values) + 1) % 2]] if len(values) > 6 else []
        outline = [np.reshape(points, (-1, 2)) * size] if points else []
        if max(map(abs, map(float, values[1:5]))) > 1.5:
            kind = 'objects are in pixels, YOLO has shares of the size from 0 to 1'
            builder.object_faults.add(kind, f'{labels}: {line[:60]}')
        builder.add(int(found.class_id[0]), found.xyxy[0], outline)


def find_yolo_description(tree: Tree) -> str | None:
    """The YAML that names the classes and folders of a YOLO data set.

    Raises:
        UserError: If there are several.
    """
    found = [path for path in tree.files('.yaml', '.yml') if is_yolo_description(tree.root / path)]
    if len(found) > 1:
        raise UserError(f'{tree.root} holds several data sets of YOLO ({", ".join(found[:3])}): give the folder of one')
    return found[0] if found else None


def is_yolo_description(path: Path) -> bool:
    """Whether a YAML names classes and the images of a part."""
    content = read_yaml(path) if path.stat().st_size <= TEXT_LIMIT else None
    return isinstance(content, Mapping) and 'names' in content and bool({'train', 'val', 'test', 'path'} & set(content))


def _yolo_names(content: Mapping, names: Sequence[str]) -> list[str]:
    """Classes of ``data.yaml``: a list, or a mapping from their numbers."""
    found = content.get('names') or list(names)
    if isinstance(found, Mapping):
        keys = list(found)
        if sorted(map(str, keys)) != sorted(map(str, range(len(keys)))):
            raise UserError(f'names of data.yaml has the keys {keys[:5]}: number the classes from 0 without gaps')
        found = [found[key] for key in sorted(keys, key=int)]
    if not isinstance(found, list):
        raise UserError('names of data.yaml is neither a list nor a mapping: write a list of the classes')
    wrong = [name for name in found if not isinstance(name, (str, int, float))]  # a nested alias may be endless as text
    if wrong:
        raise UserError(f'names of data.yaml holds a {type(wrong[0]).__name__}: write one text for each class')
    return [str(name) for name in found]


def _yolo_parts(tree: Tree, described: str, content: Mapping, findings: list[Finding]) -> dict[str, list[str]]:
    """Images of each part that ``data.yaml`` names; what leads outside the folder is not followed."""
    parts: dict[str, list[str]] = {}
    for name in ROLES:
        values = content.get(name) or []
        images: list[str] = []
        for value in values if isinstance(values, list) else [values]:
            place = _yolo_place(tree, described, content, value) if isinstance(value, str) else None
            if place is None and not isinstance(value, str):
                findings.append(error('YOLO', f'{described}: {name} holds a {type(value).__name__}, not a path'))
            elif place is None:
                findings.append(error('YOLO', f'{described}: {name}: {value} is not in {tree.root}: put it there'))
            elif (tree.root / place).is_file():
                images += _yolo_list(tree, place, findings)
            else:
                images += [join(place, image) for image in tree.images_below(place)]
        if images:
            parts[name] = images
    if parts and parts.get('train') == parts.get('val'):
        findings.append(warning('YOLO', 'train and val are the same images: they are divided again'))
        parts = {'all': parts['train'], **({'test': parts['test']} if 'test' in parts else {})}
    if not parts:
        raise UserError(f'{tree.root / described} names no folder with images below {tree.root}')
    return parts


def _yolo_place(tree: Tree, described: str, content: Mapping, value: str) -> str | None:
    """Where a folder or list of ``data.yaml`` lies in the data, which were often moved since; None if it does not."""
    base = (tree.root / described).parent
    value = value.replace('\\', '/')
    inner = '/'.join(part for part in PurePosixPath(value).parts if part not in ('..', '.', '/'))
    for place in (base / str(content.get('path') or '') / value, base / value, base / inner, tree.root / inner):
        if place.exists() and is_inside(place, tree.root):
            return relative(Path(place).resolve(), tree.root)
    return None


def _yolo_list(tree: Tree, file: str, findings: list[Finding]) -> list[str]:
    """Images that a text file lists."""
    base, found, lost = (tree.root / file).parent, [], []
    for line in read_lines(tree.root / file):
        line = line.replace('\\', '/')
        places = (base / line, tree.root / line)
        place = next((each for each in places if each.is_file() and is_inside(each, tree.root)), None)
        if place is None:
            lost.append(line)
        else:
            found.append(relative(place.resolve(), tree.root))
    if lost:
        findings.append(
            judge('YOLO', len(lost), len(lost) + len(found), f'{file}: {len(lost)} images are missing, as {lost[0]}')
        )
    return found


def _yolo_folders(tree: Tree) -> dict[str, list[str]]:
    """Images with labels in their own folder or in ``labels``, by the role that their folders' names tell."""
    labelled = [
        folder
        for folder in tree.folders
        if any(_label_path(tree, join(folder, name)).is_file() for name in tree.images(folder))
    ]
    images = [join(folder, name) for folder in labelled for name in tree.images(folder)]
    return group(images, lambda path: role(path.rpartition('/')[0]) or 'all')


def swap_folder(path: str, name: str, other: str) -> str:
    """A path with another name for the last folder of that name; the same path if it has none."""
    before, found, after = f'/{path}'.rpartition(f'/{name}/')
    return f'{before}/{other}/{after}'[1:] if found else path


def _label_path(tree: Tree, image: str) -> Path:
    """Where YOLO looks for the labels of an image: ``labels`` in the place of ``images``, else its own folder."""
    path = PurePosixPath(image).with_suffix('.txt').as_posix()
    swapped = swap_folder(path, 'images', 'labels')
    return tree.root / (swapped if tree.has(swapped) else path)


def _is_orphan(tree: Tree, path: str, known: set[str]) -> bool:
    """Whether a label file below ``labels`` belongs to no image."""
    swapped = swap_folder(path, 'labels', 'images')
    folder = swapped.rpartition('/')[0]
    if swapped == path or folder not in tree.folders:
        return False
    name = tree.image_of_stem(folder, PurePosixPath(path).stem)
    return name is None or join(folder, name) not in known


def read_voc(tree: Tree, names: Sequence[str]) -> OwnData:
    """Boxes of Pascal VOC's XML; difficult objects are ignored in training and evaluation, as MMDetection does."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import parse

    library = load_library('Pascal VOC', 'pascal_voc')
    images = group(tree.images_below(''), lambda path: PurePosixPath(path).stem)
    files = {PurePosixPath(path).stem: path for path in tree.files('.txt') if 'imagesets/main' in path.lower()}
    lists = {name: set(read_lines(tree.root / files[name])) for name in sorted(ROLES) if name in files}
    builders: dict[str, Builder] = {}
    trouble = Tally()
    for path in track(tree.files('.xml'), 'Pascal VOC'):
        stem = PurePosixPath(path).stem
        listed = [name for name in lists if stem in lists[name]]
        if lists and not listed:
            continue
        if len(listed) > 1:
            trouble.add('images are in several lists and stay in the first', f'{path}: {", ".join(listed)}')
        part = listed[0] if listed else role(path) or 'all'
        builder = builders.setdefault(part, Builder(tree, f'Pascal VOC {part}'))
        try:
            if (tree.root / path).stat().st_size > TEXT_LIMIT:
                raise ValueError('is too large')
            root = parse(tree.root / path).getroot()
        except (ValueError, SyntaxError, OSError) as problem:
            reason = describe_error(problem)
            if isinstance(problem, DefusedXmlException):
                reason = 'it declares entities, which are not followed: remove them'
            trouble.add('XML files cannot be read', f'{path}: {reason}')
            continue
        if root.tag != 'annotation':
            continue
        image = _voc_image(path, root, images)
        if image is None:
            trouble.add('XML files have no image', path)
        elif (size := builder.add_image(image)) is not None:
            _add_voc(builder, path, root, size, library)
    found = _labels(builders)
    known = [name for name in read_class_list(tree.root)[0] if name in found or name != 'background']
    return _finish(tree, 'Pascal VOC', list(names) or known or found, builders, trouble.warnings('Pascal VOC'))


def _voc_image(path: str, root: Any, images: Mapping[str, list[str]]) -> str | None:
    """The image of an XML file: of its name or of the name in it, in the nearest folder."""
    noted = PureWindowsPath(root.findtext('filename') or '').stem
    found = images.get(PurePosixPath(path).stem) or images.get(noted) or []

    def shared(other: str) -> int:
        pairs = zip(PurePosixPath(path).parts[:-1], PurePosixPath(other).parts[:-1])
        return sum(one == two for one, two in pairs)

    return max(found, key=shared) if found else None


def _add_voc(builder: Builder, path: str, root: Any, size: tuple[int, int], library: Any) -> None:
    noted = tuple(root.findtext(f'size/{side}') for side in ('width', 'height'))
    if all(noted) and noted != tuple(map(str, size)):
        example = f'{path}: {"x".join(noted)}, {size[0]}x{size[1]}'
        builder.image_faults.add('images have another size than their XML notes', example)
    for element in root.findall('object'):
        alone = type(root)('annotation')
        alone.append(element)
        try:
            found, (name,) = library.detections_from_xml_obj(alone, [], (1, 1))
            outlines = [library.parse_polygon_points(each) - 1 for each in element.findall('polygon')]
        except ValueError as problem:
            builder.object_faults.add('objects cannot be read', f'{path}: {first_line(problem)}')
            continue
        difficult = element.findtext('difficult') == '1'
        if difficult:
            builder.object_faults.add('objects are marked as difficult and count for nothing', path)
        builder.add(name, found.xyxy[0], outlines, **(dict(iscrowd=1) if difficult else {}))


def read_labelme(tree: Tree, names: Sequence[str]) -> OwnData:
    """Rectangles and polygons of LabelMe's JSON files; shapes of one group are one object."""
    library = load_library('LabelMe', 'labelme')
    builders: dict[str, Builder] = {}
    trouble = Tally()
    for path in track(tree.files('.json'), 'LabelMe'):
        content = read_json(tree.root / path)
        if not isinstance(content, Mapping) or not isinstance(content.get('shapes'), list):
            continue
        part = role(path) or 'all'
        builder = builders.setdefault(part, Builder(tree, f'LabelMe {part}'))
        folder, stem = path.rpartition('/')[0], PurePosixPath(path).stem
        noted = PureWindowsPath(str(content.get('imagePath'))).name
        name = noted if tree.has(join(folder, noted)) else tree.image_of_stem(folder, stem)
        if name is None:
            trouble.add('JSON files have no image in their folder', path)
        elif builder.add_image(join(folder, name)) is not None:
            _add_labelme(builder, path, content['shapes'], library)
    classes = list(names) or read_class_list(tree.root)[0] or _labels(builders)
    return _finish(tree, 'LabelMe', classes, builders, trouble.warnings('LabelMe'))


def _add_labelme(builder: Builder, path: str, shapes: Sequence[Any], library: Any) -> None:
    usable = [
        shape
        for shape in shapes
        if isinstance(shape, Mapping) and shape.get('shape_type') in library.SUPPORTED_SHAPE_TYPES
    ]
    for shape in shapes:
        if shape not in usable:
            kind = shape.get('shape_type') if isinstance(shape, Mapping) else shape
            fault = 'shapes are neither rectangles nor polygons and count for nothing'
            builder.image_faults.add(fault, f'{path}: {kind}')
    numbered = list(enumerate(usable))
    members = group(numbered, lambda item: (item[1].get('label'), item[1].get('group_id', None) or f'single {item[0]}'))
    for (label, _), pairs in members.items():
        together = [shape for _, shape in pairs]
        try:
            found = library.labelme_shapes_to_detections(together, {label: 0}, (1, 1), with_masks=False)
        except (ValueError, TypeError) as problem:
            builder.object_faults.add('objects cannot be read', f'{path}: {first_line(problem)}')
            continue
        outlines = [np.array(shape['points'], float) for shape in together if shape['shape_type'] == 'polygon']
        builder.add(str(label), found.xyxy[0], outlines if len(outlines) == len(together) else [])


def _labels(builders: Mapping[str, Builder]) -> list[str]:
    """The names of classes that objects have, in order."""
    return sorted({str(label) for builder in builders.values() for label, _ in builder.objects})


def _finish(
    tree: Tree, format: str, classes: Sequence[str], builders: Mapping[str, Builder], findings: list[Finding]
) -> OwnData:
    parts: dict[str, Part] = {}
    for name, builder in builders.items():
        part, found = builder.finish(classes)
        findings += found
        if len(part):
            parts[name] = part
    return OwnData(tree.root, format, 'detection', list(classes), spread_colors(len(classes)), parts, findings)
