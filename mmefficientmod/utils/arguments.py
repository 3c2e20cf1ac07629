"""Types of argparse, and its help."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import re
from pathlib import Path

LARGEST_SIDE = 16384  # pixels; an image of such a height and width has 256 megapixels


def parse_text(text: str) -> str:
    """A text that is not empty, as that of an unset shell variable is."""
    if not text.strip() or '\0' in text:
        raise argparse.ArgumentTypeError(f'the value {text!r} is empty: give one, or leave out the option')
    return text


def parse_path(text: str) -> Path:
    """A path that is not empty: an empty one would be the current folder."""
    return Path(parse_text(text))


def parse_whole(text: str, least: int = 0, most: int = 1_000_000) -> int:
    """A whole number within bounds."""
    if not re.fullmatch(r'-?[0-9]{1,18}', text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {least} to {most}')
    return int(text)


def parse_positive(text: str) -> int:
    """A whole number of 1 or more."""
    return parse_whole(text, 1)


def parse_share(text: str) -> float:
    """A number from 0 to 1."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 1')


def parse_amount(text: str) -> float:
    """A number above 0; neither infinite nor NaN."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels of ``800x1333`` or ``512``."""
    match = re.fullmatch(r'([0-9]{1,9})(?:x([0-9]{1,9}))?', text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 32 <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
        bounds = f'from 32 to {LARGEST_SIDE} pixels each'
        raise argparse.ArgumentTypeError(f'{text!r} is not a size: give HEIGHTxWIDTH, {bounds}')
    return height, width


def is_complete_key(key: str) -> bool:
    """Whether each part of a dotted key of a config has a name."""
    return all(part.strip() for part in key.split('.'))


class HelpFormatter(argparse.HelpFormatter):
    """Wraps a tool's description and epilog, and keeps lines that begin with a space, such as examples, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        texts = []
        for is_kept, group in itertools.groupby(text.splitlines(), key=lambda line: line[:1] in ('', ' ')):
            block = '\n'.join(group)
            texts.append(block if is_kept else super()._fill_text(block, width, indent))
        return '\n'.join(texts)
