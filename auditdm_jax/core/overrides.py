# SPDX-License-Identifier: Apache-2.0
"""Arguments `--config.a.b=value` as people write them, to those that ml_collections understands.

1. A key may have a dash: `prompts.edit-only` is `prompts['edit-only']`. Where the file has a key in
   the other spelling, with dashes for underscores or the reverse, that one is meant.
2. Sections that the file leaves out can be given: `images.client.deadline_s=8`, without
   `images.client`, is `images.client={'deadline_s': 8}`.
3. Names for a tuple may stand between commas: `references=a,b`.
"""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import keyword
import re
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from auditdm_jax.core.config import OVERRIDES, UserError

_FLAG = re.compile(r"--?config\.([^=]+)=(.*)", re.DOTALL)
_PART = re.compile(r"\.?([^.\[\]]+)|\[(?:'([^']*)'|\"([^\"]*)\")\]")
_Section = Mapping | ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class _Override:
  """One argument: a path of keys and a value as text."""

  keys: tuple[str, ...]
  text: str

  def __str__(self) -> str:
    first, *rest = self.keys
    plain = [f".{k}" if k.isidentifier() and not keyword.iskeyword(k) else f"[{k!r}]" for k in rest]
    return f"--config.{first}{''.join(plain)}={self.text}"

  @property
  def value(self) -> Any:
    """The value of a key whose type is not known, as ml_collections reads it."""
    text = self.text.capitalize() if self.text in ("true", "false") else self.text
    try:
      return ast.literal_eval(text)
    except (SyntaxError, ValueError):
      return text


def take(argv: Sequence[str]) -> list[str]:
  """Returns all arguments, those of overrides in ml_collections' form.

  Raises:
    UserError: an override names a key of something that is not a section.
  """
  parsed = [(arg, _parse(arg)) for arg in argv]
  if any(override for _, override in parsed):
    config = _read(argv)
    known = [_tuple(_respell(x, config), config) if x else arg for arg, x in parsed]
    argv = [str(arg) for arg in _join_absent(known, config)]
  return list(argv)


def load_config(path_and_args: str, **overrides: Any) -> ml_collections.ConfigDict:
  """Reads a config file as the command line does.

  Example:
    load_config("configs/scenes.py:rare", seed=1, **{"optim.steps": 20, "models.target": "pg2"})

  Args:
    path_and_args: the file, and after a colon what its `get_config` takes.
    **overrides: values by key; a dot leads into a section.

  Returns:
    The config, locked: no key can be added to it.

  Raises:
    UserError: no such file or key, or a value of the wrong type.
  """
  given = [f"--config.{key}={x if isinstance(x, str) else repr(x)}" for key, x in overrides.items()]
  return locked(read(path_and_args, given), path_and_args)


def read(path_and_args: str, given: Sequence[str]) -> ml_collections.ConfigDict:
  """Returns the config of a file with the overrides `--config.a.b=value` that are given.

  Raises:
    UserError: no such key, or a value of the wrong type.
  """
  values = flags.FlagValues()
  argv = take([f"--config={path_and_args}", *given])
  holder = config_flags.DEFINE_config_file(
    "config", None, "", flag_values=values, sys_argv=["", *argv], **OVERRIDES
  )
  parse_flags(values, argv)
  return holder.value


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Parses arguments that `take` returned; returns those that are no flags.

  Raises:
    UserError: they cannot be read.
  """
  try:
    return values(["", *argv])[1:]
  except (AttributeError, KeyError) as e:  # Of ml_collections, with a repr inside a repr.
    message = str(e).replace("\\n", " ").translate({ord(c): None for c in "'\"\\"})
    raise UserError(f"--config.…: no such key: {message}") from e
  except (flags.Error, OSError, TypeError, ValueError) as e:
    # Of a complaint raised by the config file itself only the last line, not ml_collections' trace.
    raise UserError(str(e).strip().rpartition("\n")[2]) from e


def locked(config: ml_collections.ConfigDict, given: str) -> ml_collections.ConfigDict:
  """Returns the config, to which no key can be added any more.

  Raises:
    UserError: its file, which is called `given`, does not exist.
  """
  try:
    config.lock()
  except OSError as e:  # ml_collections holds it back until the config is used.
    raise UserError(f"{given}: no such file") from e
  return config


def _read(argv: Sequence[str]) -> ml_collections.ConfigDict:
  """Returns the config without overrides; an empty one if there is none or it cannot be read."""
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    "config", None, "", flag_values=values, sys_argv=[], **OVERRIDES
  )
  given: list[str] = []
  for arg, following in zip(argv, [*argv[1:], ""]):
    if match := re.match("--?config(=|$)", arg):
      given += [arg] if match[1] else [arg, following]
  try:
    values(["", *given])
    config = holder.value
    return config if isinstance(config, ml_collections.ConfigDict) else ml_collections.ConfigDict()
  except Exception:  # The file is a program; it is run again where its errors are told.
    return ml_collections.ConfigDict()


def _parse(arg: str) -> _Override | None:
  """Returns the override in an argument; None for other arguments and other forms."""
  match = _FLAG.fullmatch(arg)
  parts = list(_PART.finditer(match[1])) if match else []
  if not match or "".join(part[0] for part in parts) != match[1]:
    return None
  return _Override(tuple(next(filter(None, part.groups()), "") for part in parts), match[2])


def _respell(override: _Override, config: _Section) -> _Override:
  """Returns the override with its keys in the file's spelling.

  Raises:
    UserError: it names a key of something that is not a section.
  """
  keys: list[str] = []
  section: Any = config
  for key in override.keys:
    if section is not None and not isinstance(section, _Section):
      raise UserError(
        f"--config.{'.'.join(override.keys)}: config.{'.'.join(keys)} is {section!r:.60}, not a"
        " section with keys"
      )
    known = () if section is None else section
    same = [str(k) for k in known if _plain(str(k)) == _plain(key)]
    keys.append(same[0] if key not in known and len(same) == 1 else key)
    section = section[keys[-1]] if section is not None and keys[-1] in section else None
  return _Override(tuple(keys), override.text)


def _plain(key: str) -> str:
  """Returns a key without the difference of dash and underscore."""
  return key.replace("-", "_")


def _tuple(override: _Override, config: _Section) -> _Override:
  section: Any = config
  for key in override.keys:
    section = section[key] if isinstance(section, _Section) and key in section else None
  text = override.text
  if not isinstance(section, tuple) or "," not in text or override.value != text:
    return override
  return _Override(override.keys, repr(tuple(part.strip() for part in text.split(",") if part)))


def _join_absent(args: Sequence[str | _Override], config: _Section) -> list[str | _Override]:
  """The arguments, with one for each section that the file leaves out in place of its keys'."""
  out: list[str | _Override] = []
  made: dict[tuple[str, ...], tuple[int, dict[str, Any]]] = {}
  for arg in args:
    root = _absent(arg, config) if isinstance(arg, _Override) else ()
    if not root or not isinstance(arg, _Override):
      out.append(arg)
      continue
    place, section = made.setdefault(root, (len(out), {}))
    out[place : place + 1] = [_Override(root, "")]
    _put(section, arg.keys[len(root) :], arg.value)
  for root, (place, section) in made.items():
    out[place] = _Override(root, repr(section))
  return out


def _put(section: dict[str, Any], keys: Sequence[str], value: Any) -> None:
  """Sets a value of nested sections, or all values of one."""
  for key in keys[:-1] if keys else ():
    inner = section.get(key)
    section[key] = section = inner if isinstance(inner, dict) else {}
  if keys:
    section[keys[-1]] = value
  else:
    section.update(value)


def _absent(override: _Override, config: _Section) -> tuple[str, ...]:
  """Returns the outermost section of an override that the file leaves out; () if there is none.

  A name that is nearly that of a section next to it is a mistake, and left to be told.
  """
  section: Any = config
  for depth, key in enumerate(override.keys, 1):
    if not isinstance(section, _Section) or not section:
      return ()
    if key not in section:
      near = difflib.get_close_matches(key, list(map(str, section)), n=1, cutoff=0.7)
      is_section = depth < len(override.keys) or isinstance(override.value, dict)
      return override.keys[:depth] if is_section and not near else ()
    section = section[key]
  return ()
