# SPDX-License-Identifier: Apache-2.0
"""Collectives and memory traffic of a compiled program, read from the text of its HLO.

What stands in a loop is counted as often as it runs: N, the constant in the condition `t < N`. A
fusion reads its operands and writes its results once, and of what it slices or updates in place
only the slice; what lies in a core's own memory (S(1)) costs nothing.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
)
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8, "s8": 1, "u8": 1, "s4": 0.5}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
# Neither of them moves anything by itself.
_FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "after-all",
  "partition-id",
  "replica-id",
  "opt-barrier",
  "iota",
}


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


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of collective.

  Attributes:
    sites: in the program's text.
    runs: how often they are carried out.
    payload: bytes of their results on one chip, over all runs.
    wire: bytes that one chip sends, by the ring algorithms.
  """

  sites: int = 0
  runs: int = 0
  payload: float = 0.0
  wire: float = 0.0

  def __add__(self, other: "Collective") -> "Collective":
    return Collective(
      *(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other)))
    )


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Of one chip in one run of the program: bytes of its memory, and its collectives by kind."""

  memory: float
  collectives: Mapping[str, Collective]

  @property
  def wire(self) -> float:
    return sum(c.wire for c in self.collectives.values())


class Module:
  """The computations of a module by name."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ""
    self._seen: set[str] = set()  # channels: a collective may be written in several pieces
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
      if header := _HEADER.match(line):
        current = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
      elif instruction := _parse(line):
        current[instruction.name] = instruction

  def traffic(self) -> Traffic:
    self._seen.clear()
    total = {kind: Collective() for kind in COLLECTIVES}
    memory = self._walk(self.entry, 1, total)
    return Traffic(memory, {kind: c for kind, c in total.items() if c.sites})

  def _walk(self, name: str, times: int, total: dict[str, Collective]) -> float:
    """Adds up the collectives of a computation; returns the bytes of memory it moves, all runs."""
    memory, computation = 0.0, self.computations[name]
    for instruction in computation.values():
      code = instruction.opcode
      kind = code.removesuffix("-start")
      if kind in COLLECTIVES and self._is_new(instruction):
        total[kind] += _collective(instruction, kind, times)
      if code in _FREE or code.endswith("-done") or code == "async-update":
        continue
      if code == "while":
        (body,), (condition,) = instruction.called("body"), instruction.called("condition")
        memory += self._walk(body, times * self._trips(condition), total)
      elif code == "conditional":
        names = instruction.called("branch_computations")
        names = names or instruction.called("true_computation") + instruction.called(
          "false_computation"
        )
        memory += max(self._walk(branch, times, total) for branch in names)
      elif code in ("call", "async-start"):
        memory += sum(self._walk(n, times, total) for n in self._callees(instruction))
      else:
        if code == "fusion":
          # Collectives may be fused; what is between the instructions stays in registers.
          for callee in instruction.called("calls"):
            self._walk(callee, times, total)
        memory += times * self._moved(instruction, computation)
    return memory

  def _is_new(self, instruction: Instruction) -> bool:
    channel = re.search(r"channel_id=(\d+)", instruction.rest)
    if channel is None:
      return True
    known = channel[1] in self._seen
    self._seen.add(channel[1])
    return not known

  def _callees(self, instruction: Instruction) -> tuple[str, ...]:
    return instruction.called("to_apply") or instruction.called("calls")

  def _trips(self, condition: str) -> int:
    """Returns the constant with which the condition compares."""
    instructions = self.computations[condition]
    seen = [i for i in instructions.values() if i.opcode == "constant"]
    for fusion in instructions.values():
      for callee in fusion.called("calls"):
        seen += [i for i in self.computations[callee].values() if i.opcode == "constant"]
    values = [int(x) for i in seen for x in re.findall(r"^(\d+)$", ",".join(i.operands))]
    return max(values, default=1)

  def _moved(self, instruction: Instruction, computation: Mapping[str, Instruction]) -> float:
    """Returns the bytes that an instruction reads and writes."""
    result = size(instruction.type)
    operands = [
      size(computation[n].type) if n in computation else 0.0 for n in instruction.operands
    ]
    if instruction.opcode == "dynamic-slice":
      return 2 * result
    if instruction.opcode == "dynamic-update-slice":
      return 2 * operands[1]
    if instruction.opcode == "gather":
      return 2 * result
    if instruction.opcode != "fusion":
      return result + sum(operands)
    inside = self.computations[instruction.called("calls")[0]]
    parameters = [i for i in inside.values() if i.opcode == "parameter"]
    parameters.sort(key=lambda i: int(i.operands[0]))
    read = sum(
      min(whole, self._touched(parameter, inside)) for parameter, whole in zip(parameters, operands)
    )
    return read + min(result, self._written(inside, result))

  def _touched(self, parameter: Instruction, inside: Mapping[str, Instruction]) -> float:
    """Returns how many bytes of a fusion's parameter are read: slices, if all users take one."""
    total, names = 0.0, [parameter.name]
    while names:
      name = names.pop()
      for user in (i for i in inside.values() if name in i.operands):
        if user.opcode in ("dynamic-slice", "slice", "gather"):
          total += size(user.type)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
          continue  # In place.
        elif user.opcode == "bitcast":
          names.append(user.name)
        elif user.opcode == "fusion":
          nested = self.computations[user.called("calls")[0]]
          number = str(user.operands.index(name))
          same = (i for i in nested.values() if i.opcode == "parameter" and i.operands[0] == number)
          total += self._touched(next(same), nested)
        else:
          return math.inf
    return total

  def _written(self, inside: Mapping[str, Instruction], result: float) -> float:
    root = next(i for i in inside.values() if i.is_root)
    while root.opcode in ("bitcast", "copy", "convert") and root.operands[0] in inside:
      root = inside[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
      return size(inside[root.operands[1]].type)
    return result


def size(type_text: str) -> float:
  """Returns the bytes of all arrays in a type that lie in the chip's main memory."""
  return sum(
    _element(dtype) * math.prod(int(n) for n in shape.split(",") if n)
    for dtype, shape, layout in _ARRAY.findall(type_text)
    if not re.search(r"S\([1-9]", layout)
  )


def _element(dtype: str) -> float:
  return _BYTES.get(dtype, 4)


def _collective(instruction: Instruction, kind: str, times: int) -> Collective:
  result = _ARRAY.findall(instruction.type)
  if (
    instruction.opcode.endswith("-start")
    and instruction.type.startswith("(")
    and kind
    in (
      "all-gather",
      "collective-permute",
    )
  ):
    result = result[len(result) // 2 :][:1] or result  # (operands, results, …)
  # Wherever it lies: what travels is not what the memory sees.
  payload = sum(
    _element(d) * math.prod(int(n) for n in shape.split(",") if n) for d, shape, _ in result
  )
  n = _group(instruction.rest)
  share = (n - 1) / n
  sent = {
    "all-gather": payload * share,
    "all-reduce": 2 * payload * share,
    "reduce-scatter": payload * (n - 1),
    "all-to-all": payload * share,
    "collective-permute": payload,
  }[kind]
  return Collective(1, times, times * payload, times * sent)


def _group(rest: str) -> int:
  """Returns how many chips take part, written in any of three ways."""
  if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
    sizes = dict(re.findall(r"'([\w:()]+)'=(\d+)", named[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r"'([\w:()]+)'", named[2]))
  if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
    return int(iota[2])
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
    return len(listed[1].split(","))
  return 2


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
