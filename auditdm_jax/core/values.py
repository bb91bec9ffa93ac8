# SPDX-License-Identifier: Apache-2.0
"""Values of a config as people type them in a shell, to the types that the config's fields have.

float, int       3e-6, 1_000, 1e6
bool             true, false, yes, no, 1, 0
str              as it is; quotes around all of it are taken off
tuple            a,b or ('a', 'b') or ["a", "b"]; nothing = ()
section, dict    {'a': 1} as Python or as JSON has it
None             none, where the type allows it
"""

import ast
from collections.abc import Mapping
import dataclasses
import json
import types
import typing
from typing import Any, Literal, Union

import ml_collections

from auditdm_jax.core.config import Named, UserError, did_you_mean

_BOOLS = {"true": True, "yes": True, "1": True, "t": True}
_BOOLS |= {"false": False, "no": False, "0": False, "f": False}
_BRACKETS = ("(", "[", "{")


def parse(hint: Any, text: str, where: str) -> Any:
  """Returns the value that a text stands for.

  Args:
    hint: the type that it must have; Any = whatever it looks like.
    text: as it was typed.
    where: the argument without its value, for errors.

  Raises:
    UserError: the text stands for no such value.
  """
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (Union, types.UnionType):
    return _one_of(args, text, where)
  if origin is Literal:
    known, text = {str(a): a for a in args}, _unquoted(text)
    if text not in known:
      near = did_you_mean(text, known)
      raise UserError(f"{where}={text}: not one of {', '.join(known)}{near}")
    return known[text]
  if origin is tuple or hint is tuple:
    return _tuple(args, text, where)
  if origin in (dict, Mapping) or hint is dict or is_section(hint):
    value = literal(text)
    if isinstance(value, str) and is_section(hint) and issubclass(hint, Named):
      return {"name": value}  # Other keys may follow.
    if not isinstance(value, dict):
      raise UserError(f"{where}={text}: a section with keys; give {where}.KEY=…, or {{'KEY': …}}")
    return value
  if hint in (bool, int, float, str):
    return _plain(hint, text, where)
  return literal(text)


def like(example: Any) -> Any:
  """Returns the type of values like an example, for keys whose type nothing else says."""
  if isinstance(example, bool | int | float | str):
    return type(example)
  if isinstance(example, tuple | list):
    kinds = {type(x) for x in example}
    return tuple[kinds.pop() if len(kinds) == 1 else Any, ...]
  return dict if isinstance(example, dict | ml_collections.ConfigDict) else Any


def is_section(hint: Any) -> bool:
  """Returns whether a type is a dataclass, which a section of a config becomes."""
  return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def literal(text: str) -> Any:
  """Returns the value of a text as Python or JSON has it; the text itself if it is neither."""
  try:
    return ast.literal_eval(
      text.capitalize() if text.lower() in ("true", "false", "none") else text
    )
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    pass
  try:
    return json.loads(text)
  except ValueError:
    return text


def _one_of(args: tuple, text: str, where: str) -> Any:
  if type(None) in args and text.lower() in ("none", "null"):
    return None
  errors = []
  # A str takes everything, so that it comes last.
  for hint in sorted((a for a in args if a is not type(None)), key=lambda a: a is str):
    try:
      return parse(hint, text, where)
    except UserError as e:
      errors.append(str(e))
  raise UserError("; or ".join(dict.fromkeys(errors)))


def _tuple(args: tuple, text: str, where: str) -> tuple:
  text = text.strip()
  value = literal(text) if text.startswith(_BRACKETS) else None
  if isinstance(value, list | tuple):
    return tuple(value)
  quoted = literal(f"({text},)") if text.startswith(("'", '"')) else None
  if isinstance(quoted, tuple):
    return quoted
  parts = [part.strip() for part in text.split(",") if part.strip()]
  hints = list(args)
  if len(args) == 2 and args[1] is Ellipsis:
    hints = [args[0]] * len(parts)
  elif not args:
    hints = [Any] * len(parts)
  if len(hints) != len(parts):
    raise UserError(f"{where}={text}: expected {len(hints)} values between commas")
  return tuple(parse(hint, part, where) for hint, part in zip(hints, parts, strict=True))


def _plain(hint: type, text: str, where: str) -> Any:
  if hint is str:
    return _unquoted(text)
  if hint is bool:
    if text.lower() in _BOOLS:
      return _BOOLS[text.lower()]
    raise UserError(f"{where}={text}: expected true or false")
  try:
    return float(text) if hint is float else _whole(text)
  except (ValueError, OverflowError):
    kind = "a number" if hint is float else "a whole number"
    raise UserError(f"{where}={text}: expected {kind}") from None


def _unquoted(text: str) -> str:
  """Returns a text without quotes around all of it."""
  value = literal(text) if text[:1] in ("'", '"') else text
  return value if isinstance(value, str) else text


def _whole(text: str) -> int:
  """Returns a whole number, which may be written as 1e6."""
  try:
    return int(text)
  except ValueError:
    value = float(text)
    if value != int(value):
      raise
    return int(value)
