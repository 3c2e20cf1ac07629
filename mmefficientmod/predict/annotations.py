"""Takes the ids of images and categories from a user's COCO JSON, so that predictions can be evaluated against it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.findings import nearest_name
from ..utils import UserError, enumerate_names, read_json
from .sources import Source


@dataclass(frozen=True)
class Ids:
    """Ids for the entries of ``predictions.json``.

    Args:
        images (dict[Source, int]): Of each image.
        categories (list[int]): Of each class of the model, in its order.
    """

    images: dict[Source, Any]
    categories: list[Any]


def read_ids(path: Path, sources: Sequence[Source], classes: Sequence[str]) -> Ids:
    """Looks up images and classes by their names.

    Args:
        path (Path): The COCO JSON.
        sources (Sequence[Source]): What is predicted on.
        classes (Sequence[str]): The classes of the model.

    Raises:
        UserError: If the file lacks one of them, or has it twice.
    """
    content = read_json(path)
    images, categories = (
        _read_list(path, content, key, name) for key, name in (('images', 'file_name'), ('categories', 'name'))
    )
    counts = Counter(categories.values())
    by_class = {name: number for number, name in categories.items()}
    missing = [name for name in classes if counts[name] != 1]
    if missing:
        near = nearest_name(missing[0], list(by_class))
        raise UserError(
            f'{path} has {"more than one" if counts[missing[0]] else "no"} category {missing[0]!r}, which the '
            f'model predicts{f": did you mean {near!r}?" if near else ""} It has {enumerate_names(by_class)}'
        )
    return Ids(_match(path, sources, images), [by_class[name] for name in classes])


def _read_list(path: Path, content: Any, key: str, name: str) -> dict[Any, str]:
    """Id -> name of the entries of a list."""
    entries = content.get(key) if isinstance(content, Mapping) else None
    whole = isinstance(entries, list) and all(
        isinstance(each, Mapping) and {'id', name} <= set(each) for each in entries
    )
    if not isinstance(entries, list) or not whole:
        raise UserError(f'{path} is not a COCO JSON: "{key}" is not a list of entries with "id" and "{name}"')
    return {each['id']: str(each[name]).replace('\\', '/') for each in entries}


def _match(path: Path, sources: Sequence[Source], images: Mapping[Any, str]) -> dict[Source, Any]:
    """The id of each source: of the one image of its name, or of the end of its path where several have that name."""
    by_name: dict[str, list[Any]] = defaultdict(list)
    for number, name in images.items():
        by_name[PurePosixPath(name).name].append(number)
    found, lost = {}, []
    for source in sources:
        whole = f'/{source.path.resolve().as_posix()}'
        same = by_name[source.path.name]
        ends = [number for number in same if whole.endswith(f'/{images[number]}')]
        chosen = ends if len(same) > 1 else same
        if source.is_video or len(chosen) != 1:
            lost.append(source)
        else:
            found[source] = chosen[0]
    if lost:
        several = len(by_name[lost[0].path.name]) > 1
        reason = 'is a video' if lost[0].is_video else f'is named by {"several" if several else "none"} of its images'
        raise UserError(f'{path} gives {len(lost)} of {len(sources)} inputs no id: {lost[0].path} {reason}')
    return found
