# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses back from JSON; `core.jsonio.plain` is the way there."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def load(cls: type[T], data: Mapping[str, Any]) -> T:
  """Returns the dataclass that was written as `data`.

  Fields that the class does not know are left out, missing ones get their defaults.

  Raises:
    TypeError: a field without a default is missing.
  """
  hints = _hints(cls)
  return cls(**{name: value(hints[name], x) for name, x in data.items() if name in hints})


def value(hint: Any, data: Any) -> Any:
  """Returns a JSON value as the type that a field declares: records and tuples are made anew."""
  if data is None:
    return None
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (types.UnionType, typing.Union):
    return value(next(a for a in args if a is not type(None)), data)
  if origin is tuple:
    inner = args[:1] * len(data) if args[-1] is Ellipsis else args
    return tuple(value(a, x) for a, x in zip(inner, data, strict=True))
  if origin in (list, Sequence):
    return [value(args[0], x) for x in data]
  if origin in (dict, Mapping):
    return {key: value(args[1], x) for key, x in data.items()}
  if dataclasses.is_dataclass(hint) and isinstance(hint, type):
    return load(hint, data)
  return data


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  hints = typing.get_type_hints(cls)
  return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}
