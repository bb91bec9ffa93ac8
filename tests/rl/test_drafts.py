# SPDX-License-Identifier: Apache-2.0
"""Which drafts are carried out: what was said least, and what it does to what is shown."""

import numpy as np
import pytest

from auditdm_jax.rl.batch import AuditorReply, Trajectory
from auditdm_jax.rl.drafts import Drafts


def _draft(text, sample, prompt=0):
  none = np.zeros(0)
  reply = AuditorReply("caption", "i", (), text or "", none, none, 0, truncated=False)
  fields, malformed = ({}, "empty") if text is None else ({"caption": text}, "")
  return Trajectory(
    ("w",), prompt, sample, "generate", "i", (reply,), fields=fields, malformed=malformed
  )


def _group(*texts, prompt=0):
  return [_draft(text, i, prompt) for i, text in enumerate(texts)]


def _texts(kept):
  return [[t.fields.get("caption") for t in group] for group in kept]


def test_of_each_prompt_the_one_is_kept_that_says_what_was_said_least():
  drafts = Drafts(3)
  drafts.read("a red cup")
  groups = [
    _group("a red cup", "a Red  cup.", "a blue cup"),
    _group("a blue cup", "a red hat", None, prompt=1),
    _group(None, None, None, prompt=2),
  ]
  kept, rest = drafts.pick(groups, size=1)
  assert _texts(kept) == [["a blue cup"], ["a red hat"], [None]], "the second knows of the first"
  assert [t.prompt_id for (t,) in kept] == [0, 1, 2] and len(rest) == 6
  assert not {id(t) for (t,) in kept} & {id(t) for t in rest}


def test_several_are_kept_in_their_order_and_malformed_ones_last():
  kept, rest = Drafts(4).pick([_group("red cup", None, "red cup", "blue hat")], size=3)
  assert _texts(kept) == [["red cup", "red cup", "blue hat"]] and _texts([rest]) == [[None]]
  kept, _ = Drafts(3).pick([_group(None, "red cup", None)], size=2)
  assert _texts(kept) == [[None, "red cup"]]


def test_a_copy_goes_on_by_itself():
  drafts = Drafts(2)
  other = drafts.copy()
  other.read("red cup")
  assert drafts.novelty("red cup") == 1 > other.novelty("red hat") > other.novelty("red cup")
  assert Drafts(2).novelty("") == 0


@pytest.mark.parametrize("seed", range(5))
def test_conjunctions_of_three_are_shown_more_evenly_than_by_lot(seed):
  """Words of two attributes are skewed as in a pool; each text says three."""
  rng = np.random.default_rng(seed)
  skewed = 0.5 ** np.arange(6)
  said = [
    " ".join(f"{part}{rng.choice(6, p=skewed / skewed.sum())}" for part in "abc")
    for _ in range(8 * 400)
  ]
  groups = [_group(*said[i : i + 8], prompt=i) for i in range(0, len(said), 8)]
  chosen = {text for (text,) in _texts(Drafts(8).pick(groups, size=1)[0])}
  by_lot = {group[0].fields["caption"] for group in groups}
  assert len(chosen) > 1.4 * len(by_lot)
