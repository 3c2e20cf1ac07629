"""Searches the pages and the code for the wordings that docs/design.md rules out; `make lint` runs it.

It finds what a pattern can find. Whether a sentence helps its reader, only a reader can tell.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
MOST_WORDS = 25  # a sentence of a page
CODE = ('mmefficientmod', 'tools', 'demo', 'docs', 'configs', 'examples')
# pattern -> what to write instead
WORDINGS = {
    r'by (?:OpenVINO|ONNX Runtime|AOTInductor|NNCF|OpenCV|Slurm|pyenv|ruff|pip|autocast|`?mim\b|`?-|`?python)': 'with',
    r'(?<!stand )(?<!let )(?<!leave )(?<!leaves )\balone\b': '"only", before the noun',
    r'\bbeside\b': '"next to" or "with"',
    r'\banew\b': '"again"',
    r'\bpictures?\b': '"image"',
    r'\binference form\b': '"deploy form"',
    r'\bat hand\b': '"available"',
    r'\ball the same\b': '"anyway" or "nevertheless"',
    r'\b(?:has|have) to be\b': '"must be"',
    r'(?<!there )\b(?:is|are|was) no (?!longer|more|less|need|way|room)[a-z]+': '"is not a"',
    r'\b(?:ours|theirs)\b': 'the noun',
    r'\bthat day\b': 'the date, in a caption',
    r'\bso it went\b': 'the result',
}
SEARCH = {re.compile(pattern, re.IGNORECASE): advice for pattern, advice in WORDINGS.items()}
RIDDLE = re.compile(r'^What [^?]*$')
NOT_PROSE = re.compile(r'```.*?```|~~~.*?~~~|<!--.*?-->|^\|.*?$|^    .*?$|^:::.*?$|^!\[.*?$', re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """Every page that a reader sees; the changelog's older sections are history."""
    return [
        *(REPO / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
        *sorted(REPO.glob('docs/**/*.md')),
    ]


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each sentence of a page, without code, tables, comments and the targets of links."""
    blank = NOT_PROSE.sub(lambda match: re.sub(r'[^\n]', ' ', match[0]), text)
    blank = re.sub(r'\]\([^)\s]*\)', ']', blank)
    for paragraph in re.finditer(r'(?:^[^\n]*\S[^\n]*\n?)+', blank, re.MULTILINE):
        start = 0
        for part in re.split(r'(?<=[.!?])["”)]?\s+(?=[A-Z`\[*"])|\n(?=\s*(?:[-*]|\d+\.|#+)\s)', paragraph[0]):
            at = paragraph[0].index(part, start)
            start = at + len(part)
            sentence = re.sub(r'^\s*(?:[-*]|\d+\.|#+|>)\s+', '', part)
            if sentence.strip():
                yield text.count('\n', 0, paragraph.start() + at) + 1, ' '.join(sentence.split())


def judge_page(path: Path) -> Iterator[str]:
    text = path.read_text(encoding='utf-8')
    for line, sentence in sentences(text):
        words = len(re.findall(r"[\w'`./-]*\w[\w'`./-]*", re.sub(r'`[^`]*`', 'code', sentence)))
        if words > MOST_WORDS:
            yield f'{line}: {words} words in a sentence: {sentence[:70]}...'
        plain = re.sub(r'`[^`]*`', 'code', sentence)
        if plain.count(': ') > 1:
            yield f'{line}: more than one colon in a sentence: {sentence[:70]}...'
        yield from (f'{line}: {problem}' for problem in judge(plain))
    table = '\n'.join(line if line.startswith('|') else '' for line in text.splitlines())
    for number, row in enumerate(re.sub(r'`[^`]*`', 'code', table).splitlines(), 1):
        yield from (f'{number}: {problem}' for problem in judge(row))


def judge_code(path: Path) -> Iterator[str]:
    """Comments, docstrings and texts of a module."""
    source = path.read_text(encoding='utf-8')
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and ' ' in token.string):
            for offset, line in enumerate(token.string.splitlines()):
                yield from (f'{token.start[0] + offset}: {problem}' for problem in judge(line))


def judge(text: str) -> Iterator[str]:
    for pattern, advice in SEARCH.items():
        for match in pattern.finditer(text):
            yield f'"{match[0]}": write {advice}'
    if RIDDLE.match(text.strip()):
        yield f'"{text.strip()[:40]}...": begin with the noun'


def main() -> int:
    this = Path(__file__).resolve()
    modules = [path for folder in CODE for path in sorted((REPO / folder).rglob('*.py')) if '.mim' not in path.parts]
    found = [f'{path.relative_to(REPO)}:{problem}' for path in pages() for problem in judge_page(path)]
    found += [
        f'{path.relative_to(REPO)}:{problem}'
        for path in modules
        if path.resolve() != this
        for problem in judge_code(path)
    ]
    print('\n'.join(found) or 'no wording that docs/design.md rules out')
    return bool(found)


if __name__ == '__main__':
    sys.exit(main())
