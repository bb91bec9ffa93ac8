# SPDX-License-Identifier: Apache-2.0
"""What the collectives of a compiled program send over the links.

Bytes that one chip sends, by the ring algorithms, n chips in a group:

    all-gather          (n - 1) / n of the result
    all-reduce          2 (n - 1) / n of the result
    reduce-scatter      (n - 1) times the result, which is one shard
    all-to-all          (n - 1) / n of the result; a ragged one at most so much
    collective-permute  the result, from each chip that sends to another one
    broadcast, send     the result

Three forms in which the compiler writes them need care:

- An asynchronous one returns its operands, its results and words of its state in one tuple.
- A reduce-scatter may be a fusion of an all-reduce of the whole, padded, and a slice of its shard.
- An all-gather may be written once in each of the fusions that it overlaps with. These pieces have
  one `chain_id`. A channel does not tell collectives apart: all those of `shard_map` share one.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

from auditdm_jax.plan import hlo
from auditdm_jax.plan.hlo import Computation, Instruction

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
  "ragged-all-to-all",
  "collective-broadcast",
  "send",
)
# Whose asynchronous form returns operands before results.
_WITH_OPERANDS = ("all-gather", "collective-permute")
_LOOKS_AT = ("get-tuple-element", "bitcast")
_PAIR = re.compile(r"\{(\d+),(\d+)\}")


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


def kind_of(instruction: Instruction) -> str:
  """Returns the kind of collective that an instruction is or starts, or ""."""
  kind = instruction.opcode.removesuffix("-start")
  return kind if kind in KINDS and "is_host_transfer=true" not in instruction.rest else ""


def results(instruction: Instruction) -> str:
  """Returns the type of what a collective leaves, without operands and state."""
  kind, elements = kind_of(instruction), instruction.elements
  if kind == "send":
    return elements[0]
  if instruction.opcode.endswith("-start") and kind in _WITH_OPERANDS and len(elements) > 1:
    return elements[1]
  return instruction.type


def chain(instruction: Instruction) -> str:
  """Returns what the pieces of one collective have in common, or "" for one in one piece."""
  found = re.search(r'\bchain_id="(\d+)"', instruction.rest)
  return f"{kind_of(instruction)} {found[1]}" if found else ""


def book(instruction: Instruction, *, times: int, devices: int) -> tuple[str, Collective] | None:
  """Returns kind and traffic of a collective, or None if it sends nothing.

  Args:
    instruction: what `kind_of` knows.
    times: how often it runs.
    devices: of the program.
  """
  kind, payload = kind_of(instruction), hlo.whole_size(results(instruction))
  n = 2 if kind == "send" else group(instruction.rest, devices)
  if kind == "collective-permute":
    n = 1 + any(a != b for a, b in _PAIR.findall(_pairs(instruction.rest)))
  if n == 1:
    return None
  return kind, Collective(1, times, times * payload, times * _sent(kind, payload, n))


def _sent(kind: str, payload: float, n: int) -> float:
  share = (n - 1) / n
  return {
    "all-gather": payload * share,
    "all-reduce": 2 * payload * share,
    "reduce-scatter": payload * (n - 1),
    "all-to-all": payload * share,
    "ragged-all-to-all": payload * share,
  }.get(kind, payload)


def fused_scatter(fusion: Computation, *, times: int, devices: int) -> Collective | None:
  """Returns the reduce-scatter that a fused computation is, or None if it is another one.

  It is one if nothing but slices takes the results of its only all-reduce, and each slice is the
  n-th part of one.
  """
  reduces = [i for i in fusion.values() if kind_of(i) == "all-reduce"]
  if len(reduces) != 1:
    return None
  users = list(_users(reduces[0], fusion))
  if not users or any(user.opcode != "dynamic-slice" for user in users):
    return None
  n = group(reduces[0].rest, devices)
  shards = sum(hlo.whole_size(user.type) for user in users)
  if n == 1 or shards * n != hlo.whole_size(reduces[0].type):
    return None
  return Collective(1, times, times * shards, times * _sent("reduce-scatter", shards, n))


def _users(instruction: Instruction, computation: Computation) -> Iterator[Instruction]:
  """Yields what takes an instruction's results, and not what only looks at them."""
  for user in computation.values():
    if instruction.name not in user.operands:
      continue
    if user.opcode in _LOOKS_AT:
      yield from _users(user, computation)
    else:
      yield user


def _pairs(rest: str) -> str:
  found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest)
  return found[1] if found else ""


def group(rest: str, devices: int) -> int:
  """Returns how many chips of `devices` take part, written in any of four ways.

  The ways are mesh['a'=2,'b'=4] {'b'}, perhaps with the order of the devices between the two and
  with parts of axes; [2,4]<=[8]; {{0,1},{2,3}}; and {} for all.
  """
  if named := re.search(r"replica_groups=mesh\[([^\]]*)\]", rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    axes = re.search(r"\{([^}]*)\}", rest[named.end() :])
    used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[1]) if axes else []
    return math.prod(int(part or sizes[name]) for name, part in used)
  if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
    return int(iota[2])
  if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", rest):
    return max(len(ids.split(",")) for ids in re.findall(r"\{([\d,]*)\}", listed[1]))
  return devices
