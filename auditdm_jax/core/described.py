# SPDX-License-Identifier: Apache-2.0
"""What a config's dataclasses say of their keys: names, types, defaults, meanings."""

from collections.abc import Mapping, Sequence
import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from typing import Any, Union, get_args, get_origin

import ml_collections

from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.core.values import is_section

HELP = "help"  # The value that asks for a listing.
_ENTRY = re.compile(r"^  (\w+): ", re.MULTILINE)
_VALUE = 44  # Characters of a value in a listing.


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of a section.

  Attributes:
    name: of the field.
    hint: its type.
    default: its default as Python writes it; "required", or "the section's".
    meaning: what the docstring says.
    section: the dataclass that its value, or each value of its dict, is read into; None = none.
  """

  name: str
  hint: Any
  default: str
  meaning: str
  section: type | None


def keys_of(cls: type) -> list[Key]:
  """Returns the keys of a section in the order of its fields."""
  hints, meanings = typing.get_type_hints(cls), attributes(cls)
  return [
    Key(
      name=field.name,
      hint=hints[field.name],
      default=_default(field),
      meaning=meanings.get(field.name, ""),
      section=section_in(value_hint(hints[field.name]) or hints[field.name]),
    )
    for field in dataclasses.fields(cls)
    if field.init
  ]


def summary(cls: type) -> str:
  """Returns the first line of a section's docstring; "" without one."""
  line = (inspect.getdoc(cls) or "").partition("\n")[0]
  return "" if line.startswith(f"{cls.__name__}(") else line  # dataclasses write a signature.


def attributes(cls: type) -> dict[str, str]:
  """Returns what the docstrings of a dataclass and its bases say about each field."""
  found: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    _, _, text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
    parts = _ENTRY.split(text)[1:]
    found |= {name: " ".join(said.split()) for name, said in zip(parts[::2], parts[1::2])}
  return found


def section_in(hint: Any) -> type | None:
  """Returns the dataclass of a type `C` or `C | None`."""
  return next(filter(is_section, _options(hint)), None)


def value_hint(hint: Any) -> Any:
  """Returns the type of a dict's values, also of `dict | None`; None for what is no dict."""
  for option in _options(hint):
    if option is dict:
      return Any
    if get_origin(option) in (dict, Mapping):
      return get_args(option)[1]
  return None


def type_name(hint: Any) -> str:
  """Returns a type as a reader writes it, without modules."""
  if isinstance(hint, type) and get_origin(hint) is None:
    return hint.__name__
  return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(hint))


def listing(cls: type, keys: Sequence[str], config: ml_collections.ConfigDict) -> str:
  """Returns the keys of a section as text for a terminal.

  Args:
    cls: the dataclass of the whole config.
    keys: the path to the section, or to one key of it.
    config: values that are set, which are shown in place of defaults.

  Raises:
    UserError: the path leads nowhere.
  """
  hint, path, values = cls, "config", config.to_dict()
  for key in keys:
    section = section_in(hint)
    if (of_keys := value_hint(hint)) is not None:  # Its keys are names that a user gives.
      hint, name = of_keys, key
    elif section is not None:
      found = _key(section, key, path)
      if found.section is None:
        return "\n".join(_rows(path, [found], values))
      hint, name = found.hint, found.name
    else:
      raise UserError(f"{path} is a {type_name(hint)}, not a section with keys")
    path, values = f"{path}.{name}", values.get(name) or {}
  if (of_keys := value_hint(hint)) is not None:
    hint, path, values = of_keys, f"{path}.NAME", {}
  section = section_in(hint)
  if section is None:
    raise UserError(f"{path} is a {type_name(hint)}, not a section with keys")
  head = f"--{path}.KEY=…  {summary(section)}".rstrip()
  return "\n".join([head, "", *_rows(path, keys_of(section), values)])


def _key(cls: type, name: str, path: str) -> Key:
  known = {key.name: key for key in keys_of(cls)}
  name = name.replace("-", "_")
  if name not in known:
    raise UserError(
      f"{path} has no key {name!r}{did_you_mean(name, known)}; keys: {', '.join(known)}"
    )
  return known[name]


def _rows(path: str, keys: Sequence[Key], values: Mapping[str, Any]) -> list[str]:
  """Returns two lines or more a key: the key, its type and value, and below what it means."""
  wide = max((len(key.name) for key in keys), default=0)
  columns = max(shutil.get_terminal_size((100, 24)).columns, 40)
  rows = []
  for key in keys:
    text = key.meaning
    if key.section is None:
      shown = f"{type_name(key.hint)}  {_shown(key, values)}"
    else:
      text = text or summary(key.section)
      shown = f"section, see --{path}.{key.name}={HELP}"
    rows.append(f"  {key.name:{wide}}  {shown}")
    indent = " " * (wide + 4)
    rows += textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent)
  return rows


def _shown(key: Key, values: Mapping[str, Any]) -> str:
  """Returns the value of a key: the config's, or the default."""
  if key.name in values:
    return f"= {textwrap.shorten(repr(values[key.name]), _VALUE, placeholder='…')}"
  return key.default if key.default == "required" else f"default {key.default}"


def _default(field: dataclasses.Field) -> str:
  if field.default_factory is not dataclasses.MISSING:
    value = field.default_factory()
  elif field.default is dataclasses.MISSING:
    return "required"
  else:
    value = field.default
  return "the section's" if dataclasses.is_dataclass(value) else f"{value!r}"


def _options(hint: Any) -> tuple[Any, ...]:
  return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
