# SPDX-License-Identifier: Apache-2.0
"""From a section of an ml_collections config to a frozen dataclass, every key accounted for.

A module declares what it needs as a frozen dataclass of about a dozen fields and the stage builds
it: `grpo.Config` from `config.grpo`. No module takes the whole config, and a key that nobody reads
is an error rather than a setting that silently does nothing.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import importlib
import math
import re
import types
import typing
from typing import Any, Literal, TypeVar, Union, cast

import ml_collections

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z_][\w-]*")  # Not a path, which may be a key too.


class UserError(ValueError):
  """A mistake the user can mend; `__main__` prints it as text, without a traceback."""


class TryLater(UserError):
  """Nobody's mistake: what the run depends on is gone for now, and the same command continues.

  The exit code is EX_TEMPFAIL, after which the launchers start the run again.
  """


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
  """Returns " (did you mean 'x'?)" for the nearest of `known`, or "" if none is near."""
  near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f" (did you mean {near[0]!r}?)" if near else ""


class Named:
  """A dataclass whose values may have names, so that a config can say which one it means.

  A section may then be the name alone, or have it as its key `name` beside the keys that differ.
  """

  @classmethod
  def by_name(cls, name: str, *, where: str) -> Any:
    """Returns the value of that name.

    Raises:
      UserError: there is none; the error says `where` the name stands.
    """
    raise NotImplementedError


def load_object(path: str, cls: type[T], *, where: str) -> T:
  """Imports an object of code outside the package, which a config names by its import path.

  All extension points take such paths: strategies, reward terms, benchmarks, image backends. Python
  finds the module as in any `import`; under `python -m` that includes the current directory.

  Args:
    path: "package.module:NAME".
    cls: the type that the object must have.
    where: the key of the config, for errors.

  Raises:
    UserError: the path is malformed, names nothing, or names an object of another type.
  """
  found = _imported(path, where)
  if not isinstance(found, cls):
    raise UserError(f"{where}={path!r}: expected a {cls.__name__}, got {type(found).__name__}")
  return found


def load_function(path: str, *, where: str) -> Callable[..., Any]:
  """Imports a function as `load_object` imports an object."""
  found = _imported(path, where)
  if not callable(found):
    raise UserError(f"{where}={path!r}: expected a function, got {type(found).__name__}")
  return found


def _imported(path: str, where: str) -> Any:
  module_name, _, name = path.partition(":")
  if not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
    raise UserError(f"{where}={path!r}: an import path is written package.module:NAME")
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as e:
    raise UserError(
      f"{where}={path!r}: no module {e.name!r}; it must be installed, or lie in the directory that"
      " the command is run in"
    ) from e
  if name not in vars(module):
    public = [key for key in vars(module) if not key.startswith("_")]
    raise UserError(f"{where}={path!r}: {module_name} has no {name!r}{did_you_mean(name, public)}")
  return vars(module)[name]


def build(
  cls: type[T],
  section: Mapping[str, Any] | ml_collections.ConfigDict | str,
  *,
  name: str = "",
  base: Mapping[str, Any] = types.MappingProxyType({}),
) -> T:
  """Builds the dataclass `cls` from a config section.

  Nested dataclasses are built from nested sections, tuples from lists or tuples, floats from ints.

  Args:
    cls: a dataclass whose fields have type hints.
    section: the keys, one per field; fields with defaults may be left out. A name alone for a
      `Named`.
    name: what the errors call the section, such as "config.grpo"; the class's name if empty.
    base: values of the fields that the section leaves out; else their defaults.

  Raises:
    UserError: an unknown key, a missing key or a value of the wrong type.
  """
  name = name or f"{cls.__module__.rpartition('.')[2]}.{cls.__qualname__}"
  if isinstance(section, cls):
    return section
  if issubclass(cls, Named) and isinstance(section, str):
    return cls.by_name(section, where=name)
  if not isinstance(section, Mapping | ml_collections.ConfigDict):
    raise UserError(f"{name}: expected a section with keys, got {section!r}")
  if issubclass(cls, Named) and section.get("name"):
    base = vars(cls.by_name(_convert_plain(str, section["name"], f"{name}.name"), where=name))
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cast(type[Any], cls)) if f.init}
  check_spelling(section, name)
  for key in section:
    if key not in fields:
      raise UserError(
        f"{name}.{key}: unknown key{did_you_mean(str(key), fields)}; keys: {', '.join(fields)}"
      )
  missing = [
    key
    for key, field in fields.items()
    if key not in section
    and key not in base
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  ]
  if len(missing) > 1:
    raise UserError(f"{name} has none of the keys {', '.join(missing)}")
  if missing:
    raise UserError(f"{name}.{missing[0]}: missing key{did_you_mean(missing[0], section)}")
  values = {key: base[key] for key in fields if key in base}
  for key in fields:
    if key not in section:
      continue
    hint, where = hints[key], f"{name}.{key}"
    value: Any = section[key]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and key in base:
      values[key] = build(hint, value, name=where, base=vars(base[key]))
    else:
      values[key] = _convert(hint, value, where)
  try:
    return cls(**values)
  except UserError:
    raise
  except ValueError as e:  # Raised by a __post_init__ that checks the values together.
    raise UserError(f"{name}: {e}") from e


def check_spelling(section: Mapping[str, Any] | ml_collections.ConfigDict, where: str) -> None:
  """Checks that no key is there twice, with dashes and with underscores.

  Raises:
    UserError: one is.
  """
  seen: dict[str, str] = {}
  for key in filter(_NAME.fullmatch, map(str, section)):
    other = seen.setdefault(key.replace("-", "_"), key)
    if other != key:
      raise UserError(
        f"{where}: {other}={section[other]!r} and {key}={section[key]!r} are one key in two"
        " spellings; give one of them"
      )


def check(
  section: Mapping[str, Any],
  where: str,
  *names: str,
  least: float = -math.inf,
  above: float = -math.inf,
  most: float = math.inf,
  below: float = math.inf,
) -> None:
  """Checks numbers of a section for `__post_init__`; none of them may be NaN or infinite.

  Args:
    section: the numbers by key, such as `vars(self)`.
    where: what the error calls the section, such as "optim".
    *names: which of them; none = all.
    least: the smallest one that is right.
    above: what they must be greater than.
    most: the greatest one that is right.
    below: what they must be less than.

  Raises:
    UserError: one is out of range.
  """
  for name in names or section:
    value = section[name]
    if math.isfinite(value) and least <= value <= most and above < value < below:
      continue
    said = {"at least ": least, "above ": above, "at most ": most, "below ": below}
    right = " and ".join(
      f"{word}{bound:.10g}" for word, bound in said.items() if math.isfinite(bound)
    )
    raise UserError(f"{where}.{name}={value}: must be {right or 'a finite number'}")


def _convert(hint: Any, value: Any, name: str) -> Any:
  """Returns `value` as the type `hint`, or raises UserError naming the key."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return build(hint, value, name=name)
  if origin in (Union, types.UnionType):
    return _convert_union(args, value, name)
  if origin is Literal:
    if any(value == a and type(value) is type(a) for a in args):
      return value
    hint_text = did_you_mean(value, [str(a) for a in args]) if isinstance(value, str) else ""
    raise UserError(f"{name}: {value!r} is not one of {', '.join(map(repr, args))}{hint_text}")
  if origin is tuple:
    return _convert_tuple(args, value, name)
  if origin in (dict, Mapping):
    if not isinstance(value, Mapping | ml_collections.ConfigDict):
      raise UserError(f"{name}: expected a section with keys, got {value!r}")
    check_spelling(value, name)
    return {k: _convert(args[1], value[k], f"{name}.{k}") for k in value}
  if origin is Callable:
    if not callable(value):
      raise UserError(f"{name}: expected a function, got {value!r}")
    return value
  return _convert_plain(hint, value, name)


def _convert_union(args: tuple, value: Any, name: str) -> Any:
  if value is None and type(None) in args:
    return None
  errors = []
  for hint in args:
    if hint is type(None):
      continue
    try:
      return _convert(hint, value, name)
    except UserError as e:
      errors.append(str(e))
  raise UserError("; or ".join(errors))


def _convert_tuple(args: tuple, value: Any, name: str) -> tuple:
  if not isinstance(value, list | tuple):
    raise UserError(f"{name}: expected a tuple, got {value!r}")
  if not args:
    return tuple(value)
  if len(args) == 2 and args[1] is Ellipsis:
    args = (args[0],) * len(value)
  if len(args) != len(value):
    raise UserError(f"{name}: expected {len(args)} values, got {len(value)}: {value!r}")
  return tuple(_convert(a, v, f"{name}[{i}]") for i, (a, v) in enumerate(zip(args, value)))


def _convert_plain(hint: type, value: Any, name: str) -> Any:
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  # bool is an int to Python, but never one that was meant.
  if isinstance(value, hint) and not (isinstance(value, bool) and hint in (int, float)):
    return value
  raise UserError(f"{name}: expected {hint.__name__}, got {type(value).__name__} {value!r}")
