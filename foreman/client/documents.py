"""Reading foreman's JSON documents into values, by the types of their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache, partial
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import attrs

from foreman.client.errors import NotForeman

V = TypeVar("V")


def read(kind: type[V], document: object, **more: Any) -> V:
    """Make a value of a JSON object, by the types of its fields.

    A field `x_seconds` is found as `x_s` or, in milliseconds, as `x_ms` too.  Null is the same as absent.

    :param more: fields that are not in the document.
    :raise NotForeman: it is no object, or lacks what foreman always says.
    """
    if not isinstance(document, Mapping):
        raise NotForeman(f"an answer is not what foreman says: {str(document)[:200]!r}")
    found = {}
    try:
        for name, reader in _readers(kind).items():  # type: ignore[arg-type]  # a type can be hashed
            stem = name.removesuffix("_seconds")
            if (value := document.get(name)) is not None:
                found[name] = reader(value)
            elif stem != name and (value := document.get(f"{stem}_s")) is not None:
                found[name] = value
            elif stem != name and (value := document.get(f"{stem}_ms")) is not None:
                found[name] = value / 1000
        return kind(**found, **more)
    except (TypeError, ValueError) as error:
        raise NotForeman(f"an answer is not what foreman says: {error}") from error


@cache
def _readers(kind: type) -> Mapping[str, Callable[[Any], Any]]:
    """For each public field, what makes its value of JSON."""
    hints = get_type_hints(kind)
    fields = attrs.fields(cast("type[attrs.AttrsInstance]", kind))
    return {each.name: _reader(hints[each.name]) for each in fields if not each.name.startswith("_")}


def _reader(hint: Any) -> Callable[[Any], Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:  # with None, and nothing else
        return _reader(arguments[0])
    if origin is tuple:
        return lambda given: tuple(map(_reader(arguments[0]), given))
    if hint is datetime:
        return datetime.fromisoformat
    if isinstance(hint, type) and attrs.has(hint):
        return partial(read, hint)
    return hint if isinstance(hint, type) and issubclass(hint, StrEnum) else lambda given: given
