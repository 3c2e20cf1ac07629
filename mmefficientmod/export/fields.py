"""Rules for the fields of a dataclass that is read from JSON: a value that breaks its rule is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, Callable, TypeVar

from ..utils import UserError

T = TypeVar('T')
Rule = Callable[[Any, str], Any]  # value, dotted name -> value; raises UserError
LARGEST = 2**31 - 1


def checked(rule: Rule, **kwargs: Any) -> Any:
    """Makes a dataclass field whose value in JSON follows a rule."""
    return field(metadata=dict(rule=rule), **kwargs)


def read_record(cls: type[T], content: object, name: str) -> T:
    """Makes a dataclass of :func:`checked` fields from an object of JSON.

    Args:
        cls (type): The dataclass. Every field must be in the object, whether it has a default or not.
        content (object): What ``json.loads`` returned. Keys that are not fields are passed over.
        name (str): Dotted name of the object, for messages; empty for the outermost one.

    Raises:
        UserError: With the dotted name of the first field that is missing or wrong.
    """
    if not isinstance(content, dict):
        raise UserError(f'{name or "the content"} must be an object, not {show(content)}')
    values = {}
    for item in fields(cls):  # type: ignore[arg-type]
        place = f'{name}.{item.name}' if name else item.name
        if item.name not in content:
            raise UserError(f'{place} is missing')
        values[item.name] = item.metadata['rule'](content[item.name], place)
    return cls(**values)


def show(value: object) -> str:
    """A value of JSON, shortened."""
    text = repr(value)
    return text if len(text) <= 40 else f'{text[:37]}...'


def _expect(condition: bool, name: str, what: str, value: object) -> None:
    if not condition:
        raise UserError(f'{name} must be {what}, not {show(value)}')


def text(*choices: str) -> Rule:
    """A text that is not empty; one of the choices, if there are any."""
    what = f'one of {", ".join(choices)}' if choices else 'a text'

    def rule(value: Any, name: str) -> str:
        _expect(isinstance(value, str) and bool(value) and (not choices or value in choices), name, what, value)
        return value

    return rule


def flag(value: Any, name: str) -> bool:
    """True or false."""
    _expect(isinstance(value, bool), name, 'true or false', value)
    return value


def whole(least: int = 0, most: int = LARGEST) -> Rule:
    """A whole number within bounds."""

    def rule(value: Any, name: str) -> int:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        _expect(is_whole and least <= value <= most, name, f'a whole number from {least} to {most}', value)
        return value

    return rule


def number(least: float = -1e9, most: float = 1e9) -> Rule:
    """A number within bounds; NaN is in none."""

    def rule(value: Any, name: str) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _expect(is_number and least <= value <= most, name, f'a number from {least:g} to {most:g}', value)
        return value

    return rule


def anything(value: Any, name: str) -> Any:
    """Any value of JSON."""
    return value


def optional(rule: Rule) -> Rule:
    """Null, or what another rule takes."""
    return lambda value, name: None if value is None else rule(value, name)


def items(rule: Rule, length: int | None = None, least: int = 0) -> Rule:
    """A list of values that follow a rule, of a length or of a least length."""
    what = f'a list of {length} values' if length is not None else f'a list of {least} values or more'

    def check(value: Any, name: str) -> list:
        fits = isinstance(value, list) and (len(value) == length if length is not None else len(value) >= least)
        _expect(fits, name, what, value)
        return [rule(each, f'{name}[{i}]') for i, each in enumerate(value)]

    return check


def mapping(rule: Rule, *keys: str) -> Rule:
    """An object whose values follow a rule; its keys are among some, if there are any."""

    def check(value: Any, name: str) -> dict:
        _expect(isinstance(value, dict), name, 'an object', value)
        for key in value:
            _expect(not keys or key in keys, f'a key of {name}', f'one of {", ".join(keys)}', key)
        return {key: rule(each, f'{name}.{key}') for key, each in value.items()}

    return check


def record(cls: type) -> Rule:
    """An object that :func:`read_record` reads."""
    return lambda value, name: read_record(cls, value, name)


def one_of(classes: Sequence[type]) -> Rule:
    """An object of one of several dataclasses; its ``kind`` says of which."""
    kinds = {cls.kind: cls for cls in classes}  # type: ignore[attr-defined]

    def rule(value: Any, name: str) -> Any:
        _expect(isinstance(value, dict), name, 'an object', value)
        kind = text(*kinds)(value.get('kind'), f'{name}.kind')
        return read_record(kinds[kind], value, name)

    return rule
