# SPDX-License-Identifier: Apache-2.0
"""Questions of a pool as a benchmark, and the suite of the scenes world: a benchmark per skill."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import pathlib

from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.layouts.pooled import PooledItems
from auditdm_jax.bench.specs.base import BenchmarkSpec, Family, MetricName, PromptSpec
from auditdm_jax.core import pool as pool_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.scenes import gaps as gaps_lib
from auditdm_jax.scenes import questions
from auditdm_jax.scenes.gaps import Gap
from auditdm_jax.scenes.questions import SKILLS, Program

GAPS, REST = "gaps", "rest"

ItemGroups = Callable[[BenchmarkItem], Iterable[str]]
_SPLITS = ("heldout", "pool", "rounds")
_SETS: Mapping[str, Sequence[Gap]] = {"easy": gaps_lib.EASY, "rare": gaps_lib.RARE}


def from_pool(pool: pool_lib.ImagePool, *, limit: int | None = None) -> list[BenchmarkItem]:
  """Returns every answered question of the first `limit` images (all if None).

  What several people answered is in order of how many did, so that the first reference is the
  answer of most. An item has no picture of its own: its key is the image's id.
  """
  items = []
  for i in range(len(pool) if limit is None else min(limit, len(pool))):
    image_id = pool.image_id(i)
    asked = zip(pool.question_ids(i), pool.questions(i), pool.answers(i), strict=True)
    for item_id, question, answers in asked:
      if answers:
        items.append(
          BenchmarkItem(
            item_id=item_id,
            pictures=(),
            image_key=image_id,
            question=question,
            references=tuple(sorted(answers, key=answers.count, reverse=True)),
          )
        )
  return items


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneQuestions:
  """A layout: those questions of a scenes data set that a benchmark is about.

  Attributes:
    keeps: (program, true answer) -> whether the benchmark has it.
  """

  keeps: Callable[[Program, str], bool]

  kind = "pool"

  @property
  def splits(self) -> Mapping[str, str]:
    """Those of the data set."""
    return {name: name for name in _SPLITS}

  def expected(self, split: str) -> tuple[str, ...]:
    """Returns the files that are looked for."""
    return (f"a prepared scenes data set with the split {split}",)

  def open(self, path: pathlib.Path, split: str) -> "list[BenchmarkItem]":
    """Opens a split; see `layouts.open.open_items`."""
    found = _read(path, split)
    return [item for program, item in found if self.keeps(program, item.references[0])]


@functools.lru_cache(maxsize=2)  # The benchmarks of the suite read one data set.
def _read(path: pathlib.Path, split: str) -> list[tuple[Program, BenchmarkItem]]:
  items = PooledItems(pool_lib.open_pool(path, split, cache=pool_lib.cache_folder()))
  found = []
  for item in (items[i] for i in range(len(items))):
    program = questions.parse_question(item.question)
    if program is None:
      raise UserError(f"{path}: {item.question[:80]!r} is no question of the scenes world")
    found.append((program, dataclasses.replace(item, category=program.skill)))
  return found


def _spec(name: str, title: str, keeps: Callable[[Program, str], bool]) -> BenchmarkSpec:
  asked = PromptSpec(
    template="{question}",
    metric=MetricName(name="exact_match", variant="ours"),
    max_tokens=3,
    source="ours",
  )
  return BenchmarkSpec(
    name=name,
    title=title,
    layouts=(SceneQuestions(keeps=keeps),),
    prompts=dict.fromkeys(Family, asked),
    split="heldout",
    source="data/scenes",
    licence="Apache-2.0",
  )


def in_gaps(name: str, gaps: Sequence[Gap], *, inside: bool) -> BenchmarkSpec:
  """Makes a benchmark of the questions in planted gaps, or of those in none of them."""
  side = GAPS if inside else REST
  return _spec(
    f"scenes-{side}-{name}",
    f"scenes: {side} ({name})",
    lambda program, answer: (gaps_lib.match(gaps, program, answer) is not None) == inside,
  )


def _of_skill(skill: str) -> BenchmarkSpec:
  title = f"scenes: {skill.replace('_', ' ')}"
  return _spec(f"scenes-{skill}", title, lambda program, _: program.skill == skill)


SUITE: tuple[BenchmarkSpec, ...] = (
  _spec("scenes", "scenes: all", lambda *_: True),
  *(in_gaps(name, gaps, inside=side) for name, gaps in _SETS.items() for side in (True, False)),
  *map(_of_skill, SKILLS),
)
