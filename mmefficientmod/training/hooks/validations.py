"""The note next to a checkpoint that it was validated: the file itself is written before its validation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ...utils import replace_file

NAME = 'validated.json'  # a checkpoint's identity -> the metrics of its validation
MOST = 50  # notes that are kept


def note_validation(folder: Path, identity: str, metrics: Mapping) -> None:
    """Notes the metrics of a checkpoint; metrics that JSON does not give back exactly are not noted.

    Args:
        folder (Path): Of the checkpoint.
        identity (str): Of the checkpoint.
        metrics (Mapping): As the evaluator returned them.
    """
    numbers = {name: value.item() if hasattr(value, 'item') else value for name, value in metrics.items()}
    if all(isinstance(value, (int, float)) for value in numbers.values()):
        notes = {**_read(folder), identity: numbers}
        replace_file(folder / NAME, json.dumps(dict(list(notes.items())[-MOST:]), indent=1))


def find_validation(folder: Path, identity: object) -> dict | None:
    """The metrics that were noted for a checkpoint, None without any."""
    found = _read(folder).get(str(identity))
    return found if isinstance(found, dict) else None


def _read(folder: Path) -> dict:
    try:
        content = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
