"""What a look at data finds, and how it is said."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

ERROR, WARNING = 'error', 'warning'
MOST_WRITTEN = 30  # names of classes


@dataclass(frozen=True)
class Finding:
    """Something wrong with data."""

    level: str  # 'error' for what cannot work or learns the wrong thing, 'warning' for what is lost
    place: str  # dotted path in the config, as 'train_dataloader.dataset'
    message: str  # one line: what, file, count, one example, and what to change

    def __str__(self) -> str:
        return f'{self.place}: {self.message}'


def error(place: str, message: str) -> Finding:
    """A finding that a training or a test must not start with."""
    return Finding(ERROR, place, message)


def warning(place: str, message: str) -> Finding:
    """A finding to print and go on."""
    return Finding(WARNING, place, message)


def judge(place: str, count: int, total: int, message: str) -> Finding:
    """An error where all of something is affected, a warning where a part is."""
    return Finding(ERROR if count == total else WARNING, place, message)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether a training or a test must not start."""
    return any(finding.level == ERROR for finding in findings)


def check_in_turn(checks: Iterable[Iterable[Finding]]) -> list[Finding]:
    """The findings of several checks, up to the first one with an error: later checks rely on earlier ones."""
    findings: list[Finding] = []
    for found in checks:
        findings += found
        if has_errors(findings):
            break
    return findings


def find_unlearnt(place: str, unseen: Sequence[str], total: int, lacking: str) -> Iterator[Finding]:
    """A warning of classes that training data do not show: how many of ``total``, and what they have none of."""
    if unseen:
        message = f'{len(unseen)} of {total} classes have no {lacking}, as {unseen[0]!r}'
        yield warning(place, f'{message}: they are never learnt')


def repeated(values: Iterable[Hashable]) -> list:
    """The values that occur several times, each once."""
    return [value for value, count in Counter(values).items() if count > 1]


def write_tuple(names: Iterable[str]) -> str:
    """Names as Python writes a tuple of them, to paste into a config; the first of very many."""
    shown = [repr(name) for name in names]
    if len(shown) > MOST_WRITTEN:
        return f'({", ".join(shown[:MOST_WRITTEN])}, ... {len(shown)} names)'
    return f'({", ".join(shown)}{"," if len(shown) == 1 else ""})'


def nearest_name(name: str, names: Collection[Any], likeness: float = 0.75) -> str | None:
    """The name that was probably meant: alike but for case, spaces and a letter or two; None without one."""
    plain = {_plain(each): str(each) for each in names}
    found = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=likeness)
    return plain[found[0]] if found else None


def _plain(name: Any) -> str:
    return ''.join(str(name).casefold().replace('_', ' ').replace('-', ' ').split())


class Tally:
    """Counts faults by kind, each with its first example."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: object) -> None:
        """Counts one fault; ``example`` is kept for the first of its kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.examples.setdefault(kind, str(example))

    def __iter__(self) -> Iterator[tuple[str, int, str]]:
        """Kind, count and example of each, in the order in which they were met."""
        return ((kind, count, self.examples[kind]) for kind, count in self.counts.items())

    def __bool__(self) -> bool:
        return bool(self.counts)

    def errors(self, place: str, total: int, what: str) -> list[Finding]:
        """An error for each kind: how many of ``total`` things, called ``what``, have it."""
        return [error(place, f'{count} of {total} {what}, as {example}, {kind}') for kind, count, example in self]

    def judged(self, place: str, total: int) -> list[Finding]:
        """As :meth:`warnings`, an error where all of ``total`` have the fault."""
        found = [(count, f'{count} {kind}, as {example}') for kind, count, example in self]
        return [judge(place, min(count, total), total, message) for count, message in found]

    def warnings(self, place: str) -> list[Finding]:
        """A warning for each kind, which begins with what has the fault."""
        return [warning(place, f'{count} {kind}, as {example}') for kind, count, example in self]
