# SPDX-License-Identifier: Apache-2.0
"""Question, generate and edit, and their pairs: the paper's ablation of what the auditor writes.

COMMAND
  python -m auditdm_jax sweep --config=configs/ablations/strategies.py --workdir=runs/strategies \\
    --seeds=0,1,2,3,4
  python -m auditdm_jax sweep --workdir=gs://BUCKET/strategies --print=tpu \\
    --config=configs/ablations/strategies.py:preset=paligemma2,pixels=224 \\
    --launch="--zone=us-west4-a"

ARGS: see configs/ablations/common.py, and
  use   all | question | generate | edit | question+generate | question+edit | generate+edit: who
        makes probes. Generate and edit are both with the auditor's question about the new image and
        with the data set's. A step has as many prompts in any case, in the preset's shares

The paper has this for PaliGemma 2 of 3B at 224 pixels, and says: questions help most, edits more
than new images, which hurt reading and charts. It repairs; give repair=yes for that.
"""

from collections.abc import Callable, Mapping
import pathlib
import runpy

from ml_collections import ConfigDict

common = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))
target = common["target"]
FAMILIES = {
  "question": ("question",),
  "generate": ("generate", "generate-only"),
  "edit": ("edit", "edit-only"),
}
USES = (
  *("all", "question", "generate", "edit"),
  *("question+generate", "question+edit", "generate+edit"),
)
ARGS = {"use": USES}


def get_config(arg: str = "") -> ConfigDict:
  c, args = common["ablated"]("configs/ablations/strategies.py", arg, ARGS)
  if args["use"] != "all":
    used = {name for family in args["use"].split("+") for name in FAMILIES[family]}
    c.rollout.prompts = shared(c.rollout.prompts, used)
  return c


def shared(prompts: Mapping[str, int], used: set[str]) -> dict[str, int]:
  """Returns as many prompts, only those of `used`, as nearly in their shares as goes."""
  kept = {name: n for name, n in prompts.items() if name in used and n}
  total, part = sum(prompts.values()), sum(kept.values())
  exact = {name: n * total / part for name, n in kept.items()}
  given = {name: int(x) for name, x in exact.items()}
  rest = total - sum(given.values())
  for name in sorted(exact, key=lambda name: given[name] - exact[name])[:rest]:
    given[name] += 1
  return given


def sweep(add: Callable[..., None], arg: str) -> None:
  for use in USES:
    add(use, f"use={use}")
