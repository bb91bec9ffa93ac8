# SPDX-License-Identifier: Apache-2.0
"""Configs from a command line: `--config=FILE[:ARGS]` and `--config.a.b=value` as people write it.

1. Any key of any section can be given, also one that the file leaves out: the section's dataclass
   says which keys there are and of which types they are.
2. A key may have a dash: `prompts.edit-only` is `prompts['edit-only']`. Where the file or the
   dataclass has the key in the other spelling, with dashes for underscores or the reverse, that one
   is meant.
3. Values are read as their types have them, see `core.values`.
4. Overrides hold in the order in which they are given: the last one of a key counts. Tuples of one
   key add up.
5. `--config.a=help` lists a section, see `core.described`.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import re
from typing import Any

from absl import flags
import ml_collections

from auditdm_jax.core import config_file, described, values
from auditdm_jax.core.config import UserError, did_you_mean

_FLAG = re.compile(r"--?config([.\[][^=]*)(?:=(.*))?", re.DOTALL)
_ALL = re.compile(f"--?config={described.HELP}")
_PART = re.compile(r"\.?([^.\[\]]+)|\[(?:'([^']*)'|\"([^\"]*)\"|([^\]'\"]+))\]")


@dataclasses.dataclass(frozen=True)
class Override:
  """One argument.

  Attributes:
    keys: the path of keys.
    value: as text from a command line, as an object from Python.
  """

  keys: tuple[str, ...]
  value: Any

  @property
  def where(self) -> str:
    """The argument without its value."""
    return f"--config.{'.'.join(self.keys)}"


def define(text: str, *, flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder[Any]:
  """Defines the flag --config, whose value is a ConfigDict once `parse_flags` has seen it."""
  return flags.DEFINE_string("config", None, text, flag_values=flag_values)


def parse_flags(
  flag_values: flags.FlagValues, argv: Sequence[str], sections: type | None = None
) -> list[str]:
  """Parses arguments, those of the config with them; returns those that are no flags.

  Args:
    flag_values: the flags that are known.
    argv: without the name of the program.
    sections: the dataclass that the config is read into.

  Raises:
    UserError: they cannot be read.
  """
  rest, given = split(argv)
  try:
    words = flag_values(["", *rest])[1:]
  except flags.Error as e:
    raise UserError(str(e).strip().rpartition("\n")[2]) from e
  spec = flag_values["config"].value if "config" in flag_values else None
  if isinstance(spec, str):
    flag_values["config"].value = _read(spec, given, sections)
  elif given and spec is None:
    raise UserError(f"{given[0].where} changes a config; --config is missing")
  return words


def read(
  spec: str, given: Sequence[str] = (), sections: type | None = None
) -> ml_collections.ConfigDict:
  """Returns the config of a file with the overrides `--config.a.b=value` that are given, locked.

  Raises:
    UserError: no such file or key, or a value of the wrong type.
  """
  rest, parsed = split(given)
  if rest:
    raise UserError(f"{rest[0]}: not of the form --config.a.b=value")
  return _read(spec, parsed, sections)


def given_in(argv: Sequence[str]) -> tuple[str | None, list[str]]:
  """Returns the value of --config as it was typed, and the overrides, one argument each.

  Raises:
    UserError: one names no key.
  """
  rest, found = split(argv)
  values = flags.FlagValues()
  define("", flag_values=values)
  try:
    values(["", *rest], known_only=True)
  except flags.Error as e:
    raise UserError(str(e)) from e
  return values["config"].value, [f"{x.where}={x.value}" for x in found]


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
  given = [Override(_keys(f".{key}", key), value) for key, value in overrides.items()]
  return _read(path_and_args, given, None)


def split(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
  """Returns the other arguments, and the overrides among them.

  Raises:
    UserError: one names no key.
  """
  rest, found = [], []
  following = list(argv)
  while following:
    arg = following.pop(0)
    match = _FLAG.fullmatch(arg)
    if not match:
      rest.append(arg)
      continue
    text = match[2]
    if text is None:  # `--config.a.b value`, or a switch.
      text = following.pop(0) if following and not following[0].startswith("--") else "true"
    found.append(Override(_keys(match[1], arg), text))
  return rest, found


def apply(
  config: ml_collections.ConfigDict, given: Sequence[Override], sections: type | None = None
) -> None:
  """Sets the values of overrides in a config.

  Args:
    config: is changed.
    given: in the order in which they hold.
    sections: the dataclass that the config is read into; None = its keys are not known, and types
      are those of the values that are there.

  Raises:
    UserError: no such key, or a value of the wrong type.
  """
  seen: dict[tuple[str, ...], tuple[Any, ...]] = {}
  with config.unlocked(), config.ignore_type():
    for override in given:
      section, name = _set(config, override, Any if sections is None else sections)
      value: Any = section[name]
      if isinstance(value, tuple):
        section[name] = seen[override.keys] = (*seen.get(override.keys, ()), *value)


def asks_help(argv: Sequence[str]) -> bool:
  """Returns whether an argument such as `--config.a=help` asks for a listing."""
  rest, given = split(argv)
  return any(x.value == described.HELP for x in given) or any(map(_ALL.fullmatch, rest))


def listing(argv: Sequence[str], sections: type) -> str:
  """Returns the listings that arguments ask for, with the values of --config if it is given.

  Raises:
    UserError: there is no such section, or the config cannot be read.
  """
  rest, given = split(argv)
  asked = [x.keys for x in given if x.value == described.HELP]
  asked += [() for _ in filter(_ALL.fullmatch, rest)]
  values = flags.FlagValues()
  define("", flag_values=values)
  others = [arg for arg in argv if not arg.endswith(f"={described.HELP}")]
  parse_flags(values, [arg for arg in others if re.match("--?config[=.]", arg)], sections)
  config = values["config"].value or ml_collections.ConfigDict()
  return "\n\n".join(described.listing(sections, keys, config) for keys in dict.fromkeys(asked))


def _read(spec: str, given: Sequence[Override], sections: type | None) -> ml_collections.ConfigDict:
  config = config_file.read(spec)
  apply(config, given, sections)
  return config.lock()


def _keys(path: str, arg: str) -> tuple[str, ...]:
  """Returns the keys of a path `.a.b['c']`."""
  parts = list(_PART.finditer(path))
  if not parts or "".join(part[0] for part in parts) != path:
    raise UserError(f"{arg}: keys are written --config.a.b=value or --config.a['b']=value")
  return tuple(next(filter(None, part.groups()), "") for part in parts)


def _set(
  config: ml_collections.ConfigDict, override: Override, hint: Any
) -> tuple[ml_collections.ConfigDict, str]:
  """Sets one value, makes the sections that lead to it, and returns where it is."""
  section, name = config, ""
  for depth, key in enumerate(override.keys, 1):
    if depth > 1:
      section = _inner(section, name, hint, override, depth - 1)
    name, hint = _found(section, key, hint, override, depth)
  _put(section, name, override, hint)
  return section, name


def _inner(
  section: ml_collections.ConfigDict, name: str, hint: Any, override: Override, depth: int
) -> ml_collections.ConfigDict:
  """Returns a section of a section, which is made if the file leaves it out.

  Raises:
    UserError: it is no section.
  """
  path = ".".join(("config", *override.keys[:depth]))
  if section.get(name) is None:
    if not _has_keys(hint):
      raise UserError(f"{override.where}: {path} is a {described.type_name(hint)}, not a section")
    section[name] = ml_collections.ConfigDict()
  inner = section[name]
  if not isinstance(inner, ml_collections.ConfigDict):
    raise UserError(f"{override.where}: {path} is {inner!r:.60}, not a section with keys")
  return inner


def _put(section: ml_collections.ConfigDict, name: str, override: Override, hint: Any) -> None:
  value = override.value
  if isinstance(value, str):
    known = values.like(section[name]) if hint is Any and name in section else hint
    value = values.parse(known, value, override.where)
  elif hint is Any and isinstance(section.get(name), float) and isinstance(value, int):
    value = float(value)
  try:
    section[name] = value
  except (TypeError, ValueError) as e:  # A key with a dot in it.
    raise UserError(f"{override.where}: {e}") from e


def _found(
  section: ml_collections.ConfigDict, key: str, hint: Any, override: Override, depth: int
) -> tuple[str, Any]:
  """Returns a key as the file or the dataclass spells it, and the type of its value.

  Raises:
    UserError: there is no such key, or a key without a type is nearly one that is there.
  """
  inner, of_keys = described.section_in(hint), described.value_hint(hint)
  fields = {} if inner is None else {x.name: x.hint for x in described.keys_of(inner)}
  names = [str(name) for name in section]
  same = [name for name in dict.fromkeys([*names, *fields]) if _plain(name) == _plain(key)]
  name = key if key in same or len(same) != 1 else same[0]
  if name in fields:
    return name, fields[name]
  if of_keys is not None or name in names:
    return name, Any if of_keys is None else of_keys
  path = ".".join(("config", *override.keys[: depth - 1]))
  if fields:
    near = did_you_mean(key, [*fields, *names])
    raise UserError(
      f"{override.where}: {path} has no key {key!r}{near}; --{path}={described.HELP} lists its keys"
    )
  is_section = depth < len(override.keys) or isinstance(override.value, dict)
  if is_section and (near := difflib.get_close_matches(key, names, n=1, cutoff=0.7)):
    raise UserError(f"{override.where}: {path} has no key {key!r} (did you mean {near[0]!r}?)")
  return name, Any


def _has_keys(hint: Any) -> bool:
  known = described.section_in(hint), described.value_hint(hint)
  return hint is Any or any(x is not None for x in known)


def _plain(key: str) -> str:
  """Returns a key without the difference of dash and underscore."""
  return key.replace("-", "_")
