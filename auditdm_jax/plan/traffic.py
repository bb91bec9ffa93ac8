# SPDX-License-Identifier: Apache-2.0
"""Memory traffic and collectives of a compiled program, loops counted.

What stands in a loop is counted as often as it runs, and of a conditional the dearest branch. A
fusion reads its operands and writes its results once, and of what it slices or updates in place
only the slice; what lies in a core's own memory (S(1)) costs nothing.
"""

from collections.abc import Mapping
import dataclasses
import math
import re

from auditdm_jax.plan import collectives, hlo
from auditdm_jax.plan.collectives import Collective
from auditdm_jax.plan.hlo import Computation, Instruction

# None of them moves anything by itself.
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
_SLICES = ("dynamic-slice", "slice", "gather")
_RELABELS = ("bitcast", "copy")
# The fusions that start, go on with and end a collective pass its buffers on.
_PASSED_ON = re.compile(r"\{(\d*)\}: \((\d+), \{\}")


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Traffic of one chip in one run of the program.

  Attributes:
    memory: bytes that it reads from its memory and writes to it.
    collectives: by kind; those of one chip alone are left out.
  """

  memory: float
  collectives: Mapping[str, Collective]

  @property
  def wire(self) -> float:
    return sum(c.wire for c in self.collectives.values())


def read(text: str) -> Traffic:
  """Returns the traffic of the program with this HLO."""
  return _Walk(hlo.Module(text)).total()


class _Walk:
  """Goes through a module from its entry, as often as it runs."""

  def __init__(self, module: hlo.Module):
    self._module = module
    self._chains: set[str] = set()  # Collectives of which a piece was seen.

  def total(self) -> Traffic:
    return self._computation(self._module.entry, 1)

  def _computation(self, name: str, times: int) -> Traffic:
    computation = self._module.computations[name]
    parts = [self._instruction(i, computation, times) for i in computation.values()]
    return _sum(parts)

  def _instruction(self, instruction: Instruction, inside: Computation, times: int) -> Traffic:
    code = instruction.opcode
    if code in _FREE or code.endswith("-done") or code == "async-update":
      return Traffic(0.0, {})
    if code == "while":
      (body,), (condition,) = instruction.called("body"), instruction.called("condition")
      turns = self._module.trips(instruction)
      # The condition is asked once more; that all are done may have to be asked of other chips.
      parts = [
        self._computation(body, times * turns),
        self._computation(condition, times * (turns + 1)),
      ]
      return _sum(parts)
    if code == "conditional":
      names = instruction.called("branch_computations")
      names = names or instruction.called("true_computation") + instruction.called(
        "false_computation"
      )
      return _dearest([self._computation(name, times) for name in names])
    if code in ("call", "async-start"):
      names = instruction.called("to_apply") or instruction.called("calls")
      return _sum([self._computation(name, times) for name in names])
    if code == "fusion":
      return self._fusion(instruction, inside, times)
    sent = {}
    if collectives.kind_of(instruction):
      booked = collectives.book(instruction, times=times, devices=self._module.devices)
      sent = dict([booked]) if booked else {}
    return Traffic(times * self._moved(instruction, inside), sent)

  def _fusion(self, instruction: Instruction, outside: Computation, times: int) -> Traffic:
    """Collectives may be fused; what is between the instructions stays in registers."""
    (name,) = instruction.called("calls")
    inside, devices = self._module.computations[name], self._module.devices
    moved = self._moved_by_fusion(instruction, outside, inside)
    if scatter := collectives.fused_scatter(inside, times=times, devices=devices):
      return Traffic(times * moved, {"reduce-scatter": scatter})
    sent, piece_of, begins = [], "", False
    for fused in inside.values():
      if fused.opcode == "fusion":
        # Counts for what it sends: its operands do not come from memory.
        sent.append(Traffic(0.0, self._fusion(fused, inside, times).collectives))
      elif collectives.kind_of(fused):
        piece_of = collectives.chain(fused)
        begins = piece_of not in self._chains
        # The first piece is the start: its loop, not that of what it overlaps with, tells the runs.
        if not piece_of or begins:
          booked = collectives.book(fused, times=times, devices=devices)
          sent.append(Traffic(0.0, dict([booked]) if booked else {}))
        self._chains.add(piece_of)
    if piece_of:
      moved -= self._passed_on(instruction, outside, begins=begins)
    return Traffic(times * moved, _sum(sent).collectives)

  def _passed_on(self, instruction: Instruction, outside: Computation, *, begins: bool) -> float:
    """Returns the bytes of buffers that a piece of a collective only hands on, read and written.

    The piece that begins it reads the shard that it sends.
    """
    aliasing = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", instruction.rest)
    pairs = _PASSED_ON.findall(aliasing[1]) if aliasing else []
    written = sum(hlo.size(instruction.elements[int(out or 0)]) for out, _ in pairs)
    operands = {instruction.operands[int(operand)] for _, operand in pairs}
    return written + (0 if begins else sum(hlo.size(outside[name].type) for name in operands))

  def _moved(self, instruction: Instruction, inside: Computation) -> float:
    """Returns the bytes that an instruction other than a fusion reads and writes."""
    code, types = instruction.opcode, [inside[n].type for n in instruction.operands if n in inside]
    if code in _SLICES:
      slice_size = hlo.whole_size(instruction.type)
      return hlo.size(instruction.type) + slice_size * (hlo.size(types[0]) > 0)
    if code == "dynamic-update-slice":
      update = inside[instruction.operands[1]].type
      return hlo.size(update) + hlo.whole_size(update) * (hlo.size(instruction.type) > 0)
    result = instruction.type
    if collectives.kind_of(instruction):
      result = collectives.results(instruction)
    elif code.endswith("-start"):
      result = instruction.elements[0]  # Of a copy: its destination, then its source and state.
    return hlo.size(result) + sum(map(hlo.size, types))

  def _moved_by_fusion(
    self, instruction: Instruction, outside: Computation, inside: Computation
  ) -> float:
    operands = [hlo.size(outside[n].type) if n in outside else 0.0 for n in instruction.operands]
    result = hlo.size(instruction.type)
    parameters = [i for i in inside.values() if i.opcode == "parameter"]
    parameters.sort(key=lambda i: int(i.operands[0]))
    read = sum(
      min(whole, self._touched(parameter, inside)) for parameter, whole in zip(parameters, operands)
    )
    return read + min(result, self._written(inside, result))

  def _touched(self, parameter: Instruction, inside: Computation) -> float:
    """Returns how many bytes of a fusion's parameter are read: slices, if all users take one.

    Of what only gets another layout before it is sliced, no more is read than the slice.
    """
    total, names = 0.0, [parameter.name]
    while names:
      name = names.pop()
      if inside[name].is_root:
        return math.inf
      for user in (i for i in inside.values() if name in i.operands):
        if user.opcode in _SLICES:
          total += hlo.whole_size(user.type)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
          continue  # In place.
        elif user.opcode in _RELABELS:
          names.append(user.name)
        elif user.opcode == "fusion":
          nested = self._module.computations[user.called("calls")[0]]
          number = str(user.operands.index(name))
          same = (i for i in nested.values() if i.opcode == "parameter" and i.operands[0] == number)
          inner = next(same)
          if _origin(nested) == inner.name:
            names.append(user.name)
          else:
            total += self._touched(inner, nested)
        else:
          return math.inf
    return total

  def _written(self, inside: Computation, result: float) -> float:
    root = next(i for i in inside.values() if i.is_root)
    while root.opcode in ("bitcast", "copy", "convert") and root.operands[0] in inside:
      root = inside[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
      return hlo.whole_size(inside[root.operands[1]].type)
    return result


def _origin(computation: Computation) -> str:
  """Returns the name of what the result is but for its layout."""
  found = next(i for i in computation.values() if i.is_root)
  while found.opcode in _RELABELS:
    found = computation[found.operands[0]]
  return found.name


def _sum(parts: list[Traffic]) -> Traffic:
  total: dict[str, Collective] = {}
  for part in parts:
    for kind, collective in part.collectives.items():
      total[kind] = total.get(kind, Collective()) + collective
  return Traffic(sum(part.memory for part in parts), total)


def _dearest(branches: list[Traffic]) -> Traffic:
  """Returns the most of memory and the most of the links, which may be of different branches."""
  most = max(branches, key=lambda branch: branch.wire)
  return Traffic(max(branch.memory for branch in branches), most.collectives)
