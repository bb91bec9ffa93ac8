# SPDX-License-Identifier: Apache-2.0
r"""A judge of one's own: when do two answers mean the same?

COMMAND
  python -m auditdm_jax audit --auditor=data/scenes/weights/auditor \
    --target=data/scenes/weights/target_easy \
    --references=data/scenes/weights/ref_paligemma2,data/scenes/weights/ref_gemma3 \
    --images=data/photos --steps=0 --budget=256 --workdir=runs/own_judge \
    --config.judge.rules=examples.own_judge:same

It is asked about pairs of answers that say something and are not equal. What it returns decides who
agrees with whom: the consensus, the finds, their verification.
"""

import re

UNSURE = {"maybe", "perhaps", "probably"}


def same(question: str, a: str, b: str) -> bool | None:
  """Returns whether the words are the same in any order; None where an answer is not sure."""
  words = [set(re.findall(r"\w+", text.lower())) - {"a", "an", "the"} for text in (a, b)]
  if any(w & UNSURE for w in words):
    return None
  return words[0] == words[1]
