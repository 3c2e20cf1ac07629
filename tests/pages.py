"""The code blocks, inline commands and tables of the Markdown pages.

A comment in the line before a block says what the block needs, in words of ``NEEDS``, and under which name the reader
saves it: ``<!-- needs: coco gpu -->``, ``<!-- file: configs/detection/mine.py; needs: coco -->``.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from helpers import REPO

PAGES = ['README.md', 'CONTRIBUTING.md', *sorted(str(path.relative_to(REPO)) for path in REPO.glob('docs/**/*.md'))]
NEEDS = ('nothing', 'ops', 'files', 'coco', 'ade20k', 'imagenet', 'gpu', 'slurm', 'network', 'time')
RUN = {'nothing', 'ops'}  # blocks that need no more than these are run
FENCE = re.compile(
    r'(?:^ *<!-- (?P<marker>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Block:
    """A fenced block: its page and line, language, code, needs (None: not said) and the file that it becomes."""

    page: str
    line: int
    language: str
    code: str
    needs: frozenset[str] | None
    file: str | None

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'

    @property
    def run(self) -> bool:
        """Whether a test runs the block; Python that says nothing needs nothing."""
        if self.needs is None:
            return self.language == 'python' and self.file is None
        return self.needs <= RUN


def read(page: str) -> str:
    return (REPO / page).read_text(encoding='utf-8')


def blocks(page: str) -> list[Block]:
    """The shell and Python blocks of a page."""
    found = []
    text = read(page)
    for match in FENCE.finditer(text):
        language = {'bash': 'shell'}.get(match['language'], match['language'])
        if language in ('shell', 'python'):
            marker = dict(part.split(': ', 1) for part in (match['marker'] or '').split('; ') if ': ' in part)
            needs = frozenset(marker['needs'].split()) if 'needs' in marker else None
            line = text.count('\n', 0, match.end()) - match['code'].count('\n')
            code = textwrap.dedent(match['code'])
            found.append(Block(page, line, language, code, needs, marker.get('file')))
    return found


def spans(page: str) -> list[str]:
    """What stands in backquotes in the text of a page."""
    return [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', FENCE.sub('', read(page)))]


def table(page: str, first: str, *columns: str) -> list[list[str]]:
    """The cells of tables that have these columns, ``first`` being the leftmost, without bold and backquotes."""
    rows, places = [], None
    for line in read(page).splitlines():
        cells = [cell.strip(' *`') for cell in line.strip('|').split('|')] if line.startswith('|') else None
        if cells is None:
            places = None
        elif cells[0] == first and set(columns) <= set(cells):
            places = [0, *map(cells.index, columns)]
        elif places and not set(line) <= set('|-: '):
            rows.append([cells[place] for place in places])
    return rows
