# SPDX-License-Identifier: Apache-2.0
"""Questions of a pool as a benchmark, and the groups of the scenes world."""

from collections.abc import Sequence

from auditdm_jax.bench import evaluate
from auditdm_jax.core import pool as pool_lib
from auditdm_jax.scenes import gaps as gaps_lib
from auditdm_jax.scenes import questions

GAPS, REST = "gaps", "rest"


def from_pool(pool: pool_lib.ImagePool, *, limit: int | None = None) -> "list[evaluate.Example]":
  """Returns every answered question of the first `limit` images (all if None).

  What several people answered is in order of how many did, so that the first reference is the
  answer of most.
  """
  examples = []
  for i in range(len(pool) if limit is None else min(limit, len(pool))):
    image_id = pool.image_id(i)
    asked = zip(pool.question_ids(i), pool.questions(i), pool.answers(i), strict=True)
    for example_id, question, answers in asked:
      if answers:
        examples.append(
          evaluate.Example(
            example_id=example_id,
            image=i,
            image_id=image_id,
            question=question,
            references=tuple(sorted(answers, key=answers.count, reverse=True)),
          )
        )
  return examples


def scenes_groups(gaps: Sequence[gaps_lib.Gap]) -> "evaluate.Groups":
  """Groups of a scenes question: "skill: …", then "gaps" and "gap: …", or "rest"."""

  def groups(example: "evaluate.Example") -> list[str]:
    program = questions.parse_question(example.question)
    if program is None:
      raise ValueError(f"not a question of the scenes world: {example.question!r}")
    gap = gaps_lib.match(gaps, program, example.references[0])
    return [f"skill: {program.skill}", *((REST,) if gap is None else (GAPS, f"gap: {gap}"))]

  return groups
