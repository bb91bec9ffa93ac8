# SPDX-License-Identifier: Apache-2.0
"""Ways to search, at equal queries: is a trained auditor worth more than its opponents?

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/search.py:gaps=drawn \\
    --workdir=runs/search --seeds=101,102,103,104,105
  python -m auditdm_jax sweep --config=configs/ablations/search.py:gaps=drawn,repair=yes \\
    --workdir=runs/search-repaired --seeds=101,102,103,104,105 --cells=default,random

ARGS: see configs/ablations/common.py, and
  arm   default | grpo | questioner | best-of | evolution | few-shot | prompt-only | random
        | no-images
        default      the preset's own search
        grpo         the paper: binary reward, all samples are asked, its sweep asks one each; it
                     trains for half of its queries, or longer if the preset does
        questioner   the same with a reward of validity and diversity, after arXiv:2604.04733
        best-of      no training; untrained auditor and data set propose, a surrogate picks
        evolution    finds with a small change beside random questions, no model writes
        few-shot     the untrained auditor, shown finds as examples
        prompt-only  the untrained auditor
        random       the data set's questions
        no-images    the default without strategies that make an image

A query is one question about an image, which all models answer; GRPO's completions count, malformed
ones too. All arms have as many queries, those without training spend them in the sweep. `random`
needs a data set with enough questions. With repair=yes it is the repair from mined failures, taken
evenly over their modes. Each run has random questions at equal queries beside it in any case.

What the reward of 2604.04733 is in numbers, its text does not fix for this set-up: +0.2 for a
question that the references agree on, and finds weigh by their distance to earlier ones (ours). The
tiny auditor of scenes has never read examples, so few-shot says little there.
"""

from collections.abc import Callable
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]
ARMS = "default grpo questioner best-of evolution few-shot prompt-only random no-images".split()
ARGS = {"arm": tuple(ARMS)}
PAPER = dict(novelty="off")
QUESTIONER = dict(novelty="text", terms=(("auditdm_jax.rl.reward:validity", 0.2),))
SOURCES = {
  "best-of": ("untrained", "random"),
  "evolution": ("random", "mutated"),
  "few-shot": ("untrained",),
  "prompt-only": ("untrained",),
  "random": ("random",),
}
SHOTS = 8


def get_config(arg: str = "") -> ConfigDict:
  c, args = common["ablated"]("configs/ablations/search.py", arg, ARGS)
  arm = args["arm"]
  if arm == "default":
    return c
  if arm == "no-images":
    prompts = sum(c.rollout.prompts.values())
    c.rollout.prompts = dict.fromkeys(c.rollout.prompts, 0) | {"question": prompts}
    return c
  c.discover.again = False
  if c.rollout.surrogate.get("untrained"):
    c.grpo.tis_cap = 0.0  # It is there for these.
  step = sum(c.rollout.prompts.values()) * c.grpo.get("group_size", 8)
  reader = c.rollout.surrogate.get("reader", "")
  c.rollout.surrogate = dict(proposals=0)
  if arm == "best-of":
    c.rollout.surrogate.reader = reader
  else:  # No surrogate chooses: what is proposed is asked.
    c.discover.update(proposals=0, drafts=1, start=0, fits=0)
    c.discover.ranking = {}
  if arm in SOURCES:
    c.discover.probes += c.optim.steps * step
    c.optim.steps = 0
    c.checkpoints.harvest = ()
    c.discover.sources = SOURCES[arm]
    c.discover.shots = SHOTS if arm == "few-shot" else 0
  else:
    c.discover.sources = ("trained",)
    c.reward = QUESTIONER if arm == "questioner" else PAPER
    _train_for_half(c, step)
    c.stop = dict(least_live=0.0)  # An opponent spends its queries, whatever it learns.
  return c


def _train_for_half(c: ConfigDict, step: int) -> None:
  """Trains for at least half of the queries; a preset that ranks its sweep may train for fewer."""
  more = (c.discover.probes // step - c.optim.steps) // 2
  if more > 0:
    c.optim.steps += more
    c.discover.probes -= more * step
    thirds = c.optim.steps // 3, 2 * c.optim.steps // 3
    c.checkpoints.harvest = tuple(dict.fromkeys(n for n in thirds if n))


def sweep(add: Callable[..., None], arg: str) -> None:
  for arm in ARMS:
    add(arm, f"arm={arm}")
