# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses back from JSON; `core.jsonio.plain` is the way there."""

from collections.abc import Callable, Mapping, Sequence
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
  fields = _fields(cls)
  return cls(**{name: _as(fields[name], x) for name, x in data.items() if name in fields})


def value(hint: Any, data: Any) -> Any:
  """Returns a JSON value as the type that a field declares: records and tuples are made anew."""
  return _as(_maker(hint), data)


_Make = Callable[[Any], Any]


def _as(make: _Make | None, data: Any) -> Any:
  return data if make is None or data is None else make(data)


@functools.cache
def _fields(cls: type) -> dict[str, _Make | None]:
  """Returns what makes the value of each field; None = it stays as it is."""
  hints = typing.get_type_hints(cls)
  return {f.name: _maker(hints[f.name]) for f in dataclasses.fields(cls) if f.init}


def _maker(hint: Any) -> _Make | None:
  """Returns what makes values of a type: a million rows are read, a type is looked at once."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (types.UnionType, typing.Union):
    return _maker(next(a for a in args if a is not type(None)))
  if origin is tuple:
    return _tuple_maker(args)
  if origin in (list, Sequence):
    inner = _maker(args[0])
    return lambda data: [_as(inner, x) for x in data]
  if origin in (dict, Mapping):
    inner = _maker(args[1])
    return lambda data: {key: _as(inner, x) for key, x in data.items()}
  if dataclasses.is_dataclass(hint) and isinstance(hint, type):
    return functools.partial(load, hint)
  return None


def _tuple_maker(args: Sequence[Any]) -> _Make:
  if args[-1] is Ellipsis:
    inner = _maker(args[0])
    return lambda data: tuple(_as(inner, x) for x in data)
  makers = [_maker(a) for a in args]
  return lambda data: tuple(_as(make, x) for make, x in zip(makers, data, strict=True))
