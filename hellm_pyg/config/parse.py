"""Plain values against types, with errors that name the key."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_EXPECTED = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'text'}


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known name that is closest to a mistyped one, in any case."""
    lowered = {one.lower(): one for one in known}
    return lowered[difflib.get_close_matches(name.lower(), lowered, 1, cutoff=0.0)[0]]


def _expected(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return 'one of ' + ', '.join(repr(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return ' or '.join(_expected(arg) for arg in args)
    if annotation is type(None):
        return 'null'
    if origin is dict or dataclasses.is_dataclass(annotation):
        return 'a mapping'
    if origin in (list, tuple, Sequence):
        return 'a list of ' + ', '.join(_expected(a) for a in args if a is not ...)
    return _EXPECTED.get(annotation, str(annotation))


def parse(value: Any, annotation: Any, key: str, source: str) -> Any:
    """Checks a plain value against a type and returns it in that type.

    Integers pass for floats and lists for tuples; nothing else is converted.

    Args:
        value: What YAML gave.
        annotation: A dataclass, a builtin, a :obj:`Literal`, an optional, a
            list, tuple or dict. Other types are not checked.
        key: Dotted name, for the message.
        source: Where the value stands, for the message.

    Raises:
        ValueError: If a key is unknown or a value has another type.
    """
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Union, types.UnionType):
        return _parse_union(value, annotation, key, source)
    if origin is Literal:
        fits = any(type(value) is type(arg) and value == arg for arg in args)
    elif origin in (list, tuple):
        fits = isinstance(value, list | tuple)
        kinds = args if origin is tuple and ... not in args else None
        if fits and (kinds is None or len(kinds) == len(value)):
            kinds = kinds or (args[:1] or (Any,)) * len(value)
            pairs = enumerate(zip(value, kinds, strict=True))
            value = origin(parse(v, t, f'{key}[{i}]', source) for i, (v, t) in pairs)
        else:
            fits = False
    elif origin is Sequence:
        fits = isinstance(value, list | tuple | str)
    elif origin is dict:
        fits = isinstance(value, dict)
        if fits and args:
            for name in value:
                if args[0] is str and not isinstance(name, str):
                    raise ValueError(
                        f"'{key}' in {source} needs names that are text (got "
                        f"{name!r}): put them in quotes, as in {{'1': ...}}"
                    )
            items = value.items()
            value = {k: parse(v, args[1], f'{key}.{k}', source) for k, v in items}
    elif origin is float:
        fits = type(value) in (int, float)
        value = float(value) if fits else value
    elif dataclasses.is_dataclass(origin):
        fits = isinstance(value, dict)
        value = _parse_section(value, origin, key, source) if fits else value
    else:
        fits = origin not in (int, bool, str, type(None)) or type(value) is origin
    if not fits:
        raise ValueError(
            f"'{key}' in {source} needs to be {_expected(annotation)} (got {value!r})"
        )
    return value


def _parse_union(value: Any, annotation: Any, key: str, source: str) -> Any:
    for arg in get_args(annotation):
        if dataclasses.is_dataclass(arg) and isinstance(value, dict):
            return parse(value, arg, key, source)
        try:
            return parse(value, arg, key, source)
        except ValueError:
            continue
    raise ValueError(
        f"'{key}' in {source} needs to be {_expected(annotation)} (got {value!r})"
    )


def _parse_section(value: dict, section: Any, key: str, source: str) -> Any:
    hints = get_type_hints(section)
    dotted = {name: f'{key}.{name}' if key else name for name in hints}
    parsed = {}
    for name, entry in value.items():
        if name not in hints:
            known = dotted if key else {**_leaves(section), **dotted}
            found = known[nearest(str(name), known)]
            raise ValueError(
                f"unknown key '{f'{key}.{name}' if key else name}' in {source}; "
                f"the nearest known key is '{found}'"
            )
        parsed[name] = parse(entry, hints[name], dotted[name], source)
    try:
        return section(**parsed)
    except ValueError as error:
        raise ValueError(f"'{key}' in {source}: {error}") from None


def _leaves(section: Any) -> dict[str, str]:
    """Keys of the sections of a configuration; of equal ones the first is meant."""
    leaves: dict[str, str] = {}
    for key, hint in reversed(get_type_hints(section).items()):
        for kind in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(kind):
                leaves |= {name: f'{key}.{name}' for name in get_type_hints(kind)}
    return leaves
