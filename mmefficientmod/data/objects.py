"""Objects of detection: the content of the annotation file against what the built data set yields."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .built import Budget, apply, find_transform
from .coco import OUTSIDE, WITHOUT_MASKS
from .findings import Finding, Tally, error, judge, warning

MANY = 0.1  # share of lost objects or images above which a usual loss, as of crowds in COCO, is told
FEW = 0.001  # share below which lost objects are not told: COCO itself has two in 860,000
SMALLEST = 4.0  # pixels: an object with shorter sides at the network's input can hardly be learnt


def compare(
    place: str, dataset: Any, entries: Sequence[Mapping], content: Mapping | None, path: str
) -> Iterator[Finding]:
    """Compares the objects of a COCO file with those of the data set that was built from it.

    The content of a large file is None: it is judged by the entries.
    """
    if content is not None:
        yield from find_lost_images(place, dataset, entries, content, path)
        yield from find_lost_objects(place, entries, content, path, dataset)
    else:
        yield from find_lost_share(place, dataset, entries, path)
    yield from judge_crowds(place, entries, path)
    yield from judge_boxes(place, entries, path)
    yield from judge_masks(place, dataset, entries, path)


def find_lost_images(
    place: str, dataset: Any, entries: Sequence[Mapping], content: Mapping, path: str
) -> Iterator[Finding]:
    """Images of the file that the data set leaves out."""
    if getattr(dataset, '_indices', None) is not None or len(entries) != len(dataset):  # the user chose some
        return
    kept = {entry['img_id'] for entry in entries}
    lost = [image for image in content['images'] if image['id'] not in kept]
    if not lost:
        return
    names = {category['id']: category['name'] for category in content['categories']}
    chosen = set(dataset.metainfo['classes'])
    with_objects = {each['image_id'] for each in content['annotations'] if names.get(each['category_id']) in chosen}
    total = len(content['images'])
    full = [image for image in lost if image['id'] in with_objects]
    if full:
        size = (dataset.filter_cfg or {}).get('min_size', 0)
        first = full[0]
        yield warning(
            place,
            f'{len(full)} of {total} images of {path} hold objects and are left out, as image {first["id"]!r} of '
            f'{first["width"]} x {first["height"]} pixels: lower filter_cfg.min_size, which is {size}',
        )
    empty = [image for image in lost if image['id'] not in with_objects]
    if len(empty) > MANY * total:
        yield warning(
            place,
            f'{len(empty)} of {total} images of {path} hold no object of the classes and are left out, as '
            f'image {empty[0]["id"]!r}: set filter_cfg.filter_empty_gt=False to learn from them as background',
        )


def find_lost_objects(
    place: str, entries: Sequence[Mapping], content: Mapping, path: str, dataset: Any
) -> Iterator[Finding]:
    """Objects of the chosen classes that stand in the file and not in the data set, with the reason."""
    chosen, names = set(dataset.metainfo['classes']), {each['id']: each['name'] for each in content['categories']}
    by_image: dict[Any, list[Mapping]] = defaultdict(list)
    for each in content.get('annotations', []):
        if names.get(each['category_id']) in chosen:
            by_image[each['image_id']].append(each)
    tally, total, lost_boxes = Tally(), 0, []
    for entry in entries:
        kept = Counter(_key(instance['bbox']) for instance in entry['instances'])
        for each in by_image[entry['img_id']]:
            total += 1
            x, y, width, height = each['bbox']
            key = _key((x, y, x + width, y + height))
            if kept[key]:
                kept[key] -= 1
                continue
            lost_boxes.append(each['bbox'])
            tally.add(_reason(each, entry), f'annotation {each["id"]!r} of {entry["img_path"]}')
    count = len(lost_boxes)
    if not total or count <= FEW * total:
        return
    reasons = '; '.join(f'{number} {kind}, as {example}' for kind, number, example in tally)
    looks = ''
    if count > total / 2 and all(0 <= side <= 1 for box in lost_boxes for side in box):
        looks = ': the boxes look like shares of the size of the image; multiply them by its width and height in pixels'
    yield judge(place, count, total, f'{count} of {total} objects of {path} are dropped ({reasons}){looks}')


def _key(box: Sequence[float]) -> tuple:
    return tuple(round(float(side), 3) for side in box)


def _reason(annotation: Mapping, entry: Mapping) -> str:
    """Why an object is not in the data set, as far as its own values tell."""
    x, y, width, height = annotation['bbox']
    if annotation.get('ignore'):
        return 'have "ignore" set'
    if annotation['area'] <= 0:
        return f'have an area of {annotation["area"]}'
    if x >= entry['width'] or y >= entry['height'] or x + width <= 0 or y + height <= 0:
        return 'lie outside their image'
    if width < 1 or height < 1:
        return 'have a box of less than one pixel'
    return 'are left out by the data set'


def find_lost_share(place: str, dataset: Any, entries: Sequence[Mapping], path: str) -> Iterator[Finding]:
    """The same for a large file, from the table of it that the data set keeps."""
    table: Mapping = getattr(dataset, 'cat_img_map', None) or {}
    counts: Counter = Counter()
    for number in getattr(dataset, 'cat_ids', []):
        counts.update(table.get(number, ()))
    total = sum(counts[entry['img_id']] for entry in entries)
    lost = total - sum(len(entry['instances']) for entry in entries)
    if total and lost > 10 * FEW * total:
        message = f'{lost} of {total} objects of {path} are dropped in {len(entries)} images that were looked at'
        yield judge(place, lost, total, f'{message}: look for an "area" of 0 and for boxes outside their image')


def judge_crowds(place: str, entries: Sequence[Mapping], path: str) -> Iterator[Finding]:
    """Objects that are marked as crowds, which a detector does not learn."""
    flags = [bool(each.get('ignore_flag')) for entry in entries for each in entry['instances']]
    if flags and sum(flags) > MANY * len(flags):
        yield judge(
            place,
            sum(flags),
            len(flags),
            f'{sum(flags)} of {len(flags)} objects of {path} have iscrowd=1 and are neither learnt nor counted: set it '
            'to 0 for single objects',
        )


def judge_boxes(place: str, entries: Sequence[Mapping], path: str) -> Iterator[Finding]:
    """Boxes that reach over the border of their image, and what they look like."""
    total, outside, example, as_corners = 0, 0, '', True
    for entry in entries:
        width, height = entry['width'], entry['height']
        for each in entry['instances']:
            left, top, right, bottom = each['bbox']
            total += 1
            second = right - left, bottom - top  # in the file: width and height, or the second corner
            as_corners &= left < second[0] <= width + 1 and top < second[1] <= height + 1
            if left < -OUTSIDE or top < -OUTSIDE or right > width + OUTSIDE or bottom > height + OUTSIDE:
                outside += 1
                example = example or f'[{left:g}, {top:g}, {second[0]:g}, {second[1]:g}] of {entry["img_path"]}'
    if outside <= FEW * total:
        return
    message = f'{outside} of {total} boxes of {path} reach outside their image, as {example}'
    if as_corners and total > 1:
        yield error(place, f'{message}: they look like [x1, y1, x2, y2]; COCO has [x, y, width, height]')
    else:
        yield judge(place, outside, total, f'{message}: compare the boxes, and the height and width, with the image')


def judge_masks(place: str, dataset: Any, entries: Sequence[Mapping], path: str) -> Iterator[Finding]:
    """Objects whose mask the pipeline wants and cannot have."""
    load = find_transform(dataset, 'LoadAnnotations')
    if load is None or not getattr(load, 'with_mask', False):
        return
    instances = [(each, entry) for entry in entries for each in entry['instances']]
    missing = [(each, entry) for each, entry in instances if 'mask' not in each]
    if missing:
        yield error(
            place,
            f'{len(missing)} of {len(instances)} objects of {path} have no segmentation, as one of '
            f'{missing[0][1]["img_path"]}: {WITHOUT_MASKS}',
        )
        return
    lost, total, example = 0, 0, ''
    for entry in Budget(0.5).within([entry for entry in entries if entry['instances']]):
        before = sum(bool(each['ignore_flag']) for each in entry['instances'])
        loaded = apply([load], dict(entry, ori_shape=(entry['height'], entry['width'])))
        after = int(loaded['gt_ignore_flags'].sum()) if loaded else 0
        total += len(entry['instances'])
        lost += after - before
        example = example or (entry['img_path'] if after > before else '')
    if lost:
        yield judge(
            place,
            lost,
            total,
            f'{lost} of {total} objects of {path} have a segmentation that MMDetection cannot use and are not learnt, '
            f'as in {example}: a polygon needs three points or more, [x1, y1, x2, y2, x3, y3, ...]',
        )


def judge_scale(place: str, dataset: Any, entries: Sequence[Mapping]) -> Iterator[Finding]:
    """Objects that become too small to learn at the scale that the pipeline chooses."""
    resize = next((each for each in getattr(dataset.pipeline, 'transforms', []) if _fixed_scale(each)), None)
    if resize is None:
        return
    small = total = 0
    for entry in entries:
        factor = _fixed_factor(resize, entry)
        for each in entry['instances']:
            left, top, right, bottom = each['bbox']
            total += 1
            small += min(right - left, bottom - top) * factor < SMALLEST
    if total and small > total / 2:
        yield warning(
            place,
            f'{small} of {total} objects are narrower than {SMALLEST:g} pixels at the scale {tuple(resize.scale)}: '
            'raise the scale in train and test pipelines, or cut the images into tiles',
        )


def _fixed_scale(transform: Any) -> bool:
    return type(transform).__name__ == 'Resize' and bool(getattr(transform, 'scale', None))


def _fixed_factor(resize: Any, entry: Mapping) -> float:
    """By how much Resize enlarges an image, with its sides in proportion."""
    long, short = max(resize.scale), min(resize.scale)
    return min(long / max(entry['width'], entry['height']), short / min(entry['width'], entry['height']))
