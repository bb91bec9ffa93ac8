# SPDX-License-Identifier: Apache-2.0
"""The text of a compiled program (HLO), as computations of instructions."""

from collections.abc import Sequence
import dataclasses
import math
import re

_NO_NUMBER = {"pred": 1.0, "token": 0.0, "opaque": 0.0}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a type.

  Attributes:
    size: its bytes.
    in_memory: whether it lies in the chip's main memory, and not in a core's own (S(1) and above).
  """

  size: float
  in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  rest: str  # everything after the operands
  is_root: bool

  def called(self, key: str) -> tuple[str, ...]:
    """Returns the names of the computations in the attribute `key`."""
    found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
    return tuple(_NAME.findall(found[1])) if found else ()

  @property
  def elements(self) -> tuple[str, ...]:
    """Returns the types of the elements of a tuple's outermost level, or its only type."""
    return tuple(_split(self.type[1:-1])) if self.type.startswith("(") else (self.type,)


Computation = dict[str, Instruction]


class Module:
  """The computations of a module by name.

  Attributes:
    computations: {name: {name: instruction}}, in the order of the text.
    entry: the name of the one that runs first.
    devices: how many run the program.
  """

  def __init__(self, text: str):
    self.computations: dict[str, Computation] = {}
    self.entry = ""
    head, _, _ = text.partition("\n")
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", head)
    self.devices = math.prod(int(n) for n in counts)
    current: Computation = {}
    for line in text.splitlines():
      if header := _HEADER.match(line):
        current = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
      elif instruction := _parse(line):
        current[instruction.name] = instruction

  def trips(self, loop: Instruction) -> int:
    """Returns how often a loop runs at most: as the compiler says, or N of its `t < N`."""
    if known := _TRIPS.search(loop.rest):
      return int(known[1])
    (condition,) = loop.called("condition")
    instructions = self.computations[condition]
    seen = [i for i in instructions.values() if i.opcode == "constant"]
    for fusion in instructions.values():
      for callee in fusion.called("calls"):
        seen += [i for i in self.computations[callee].values() if i.opcode == "constant"]
    values = [int(x) for i in seen for x in re.findall(r"^(\d+)$", ",".join(i.operands))]
    return max(values, default=1)


def arrays(type_text: str) -> list[Array]:
  """Returns all arrays in a type, those in nested tuples too."""
  return [
    Array(
      _element(dtype) * math.prod(int(n) for n in shape.split(",") if n),
      not re.search(r"S\([1-9]", layout),
    )
    for dtype, shape, layout in _ARRAY.findall(type_text)
  ]


def size(type_text: str) -> float:
  """Returns the bytes of all arrays in a type that lie in the chip's main memory."""
  return sum(a.size for a in arrays(type_text) if a.in_memory)


def whole_size(type_text: str) -> float:
  """Returns the bytes of all arrays in a type, wherever they lie."""
  return sum(a.size for a in arrays(type_text))


def _element(dtype: str) -> float:
  """Returns the bytes of one element; the first number in its type's name is its bits."""
  bits = re.search(r"\d+", dtype)
  return int(bits[0]) / 8 if bits else _NO_NUMBER[dtype]


def _parse(line: str) -> Instruction | None:
  found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)
  if not found:
    return None
  text = found[3]
  end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
  call = text[end:].lstrip()
  opened = call.index("(")
  closed = _closing(call, opened)
  inner = call[opened + 1 : closed]
  names: Sequence[str] = _NAME.findall(inner) or [inner]
  return Instruction(
    found[2], text[:end], call[:opened], tuple(names), call[closed:], bool(found[1])
  )


def _closing(text: str, start: int) -> int:
  """Returns the index of the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if not depth:
      return i
  raise ValueError(f"unbalanced: {text[start : start + 80]}")


def _split(text: str) -> list[str]:
  """Returns what commas separate outside all brackets."""
  parts, depth, start = [], 0, 0
  for i, letter in enumerate(text):
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and not depth:
      parts.append(text[start:i].strip())
      start = i + 1
  return [*parts, text[start:].strip()]
