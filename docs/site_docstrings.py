"""Extension of griffe: the docstrings' Sphinx roles and links in Markdown, which is what the site writes."""

from __future__ import annotations

import re

import griffe

RULES = {
    r':\w+:`~?([^`]+)`': r'`\1`',  # :class:`EfficientMod`
    r'`([^`<]+) <(https?:[^>]+)>`_': r'[\1](\2)',
    r'^(\s*)Example:$': r'\1Examples:',  # the one of the two that griffe knows
}


class SphinxToMarkdown(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            for pattern, replacement in RULES.items():
                obj.docstring.value = re.sub(pattern, replacement, obj.docstring.value, flags=re.M)
