# SPDX-License-Identifier: Apache-2.0
"""The args of the configs here: what follows the colon of --config=configs/X.py:a=1,b=2.

A config runs this file by its path, since a config is loaded by path too: from any working
directory, and whatever else is called `common` or `configs` there.
"""

from collections.abc import Iterable, Mapping
import difflib
import re
from typing import Any


def parse(file: str, arg: str, known: Mapping[str, Any]) -> dict[str, Any]:
  """Reads name=value pairs with commas between them.

  Args:
    file: what errors call the config.
    arg: the pairs.
    known: the args by name, each with its default, which says what values are right. A tuple
      holds all of them, the default first. An int wants a whole number, a float a share, and a str
      any text. The type `int` wants a whole number and has the default None.

  Returns:
    A value for each of `known`.

  Raises:
    ValueError: a pair that is not right; the text names it, what would be right and the nearest.
  """
  values = {name: _default(kind) for name, kind in known.items()}
  for pair in filter(None, arg.split(",")):
    name, equals, text = pair.partition("=")
    if not equals or name not in known:
      wrong = f"unknown arg {name!r}" if equals else f"{pair!r}: args are written name=value"
      raise ValueError(f"{file}: {wrong}{_nearest(name, known)}; args: {', '.join(known)}")
    try:
      values[name] = _value(text, known[name])
    except ValueError as e:
      raise ValueError(f"{file}: {name}={text!r}, not {e}") from None
  return values


def _default(kind: Any) -> Any:
  if kind is int:
    return None
  return kind[0] if isinstance(kind, tuple) else kind


def _value(text: str, kind: Any) -> Any:
  """Returns the value; raises a ValueError that says which ones are right."""
  if isinstance(kind, tuple):
    if text not in kind:
      raise ValueError(f"{', '.join(kind[:-1])} or {kind[-1]}{_nearest(text, kind)}")
    return text
  if kind is int or isinstance(kind, int):
    if not re.fullmatch("[0-9]{1,18}", text):
      raise ValueError("a whole number")
    return int(text)
  if isinstance(kind, float):
    if not re.fullmatch(r"[01]|0?\.[0-9]+|[01]\.[0-9]*", text) or float(text) > 1:
      raise ValueError("a share like 0.1")
    return float(text)
  return text


def _nearest(name: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f" (did you mean {near[0]!r}?)" if near else ""
