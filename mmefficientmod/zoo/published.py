"""The values that the paper and its authors' repository publish; ``published.yml`` names the source of each."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.fileio import load

PUBLISHED = Path(__file__).with_name('published.yml')


@lru_cache
def published(table: str) -> dict[str, Any]:
    """One table of ``published.yml``.

    Args:
        table (str): Its name, e.g. ``'downstream'`` for Table 7 and Table 11 of the paper.

    Returns:
        dict[str, Any]: Backbone -> values: a dict by column name if the table names its columns, otherwise the entry.
        Parameters are in millions, multiply-accumulates in billions, latency in ms, accuracy in percent.

    Raises:
        KeyError: If the table does not exist.
    """
    tables = load(PUBLISHED)
    if table not in tables:
        raise KeyError(f'published.yml has no table {table!r}; it has {", ".join(tables)}')
    rows = dict(tables[table])
    columns = rows.pop('columns', None)
    return {name: dict(zip(columns, values)) for name, values in rows.items()} if columns else rows
