# SPDX-License-Identifier: Apache-2.0
"""An audit from Python: one short loop, what it found, and the repaired target on one failure.

COMMAND
  python -m examples.audit_from_python

It takes minutes on a laptop. Run again, it reads the finished run from `WORKDIR`.
"""

import json
import pathlib

from PIL import Image

import auditdm_jax

WORKDIR = pathlib.Path("runs/from_python")
# A miniature: enough to see every stage work, too little for figures that mean anything.
SHORT = {
  "optim.steps": 20,
  "checkpoints.harvest": (10,),
  "discover.probes": 960,
  "discover.search_probes": 200,
  "rectify.recipe.steps": 100,
  "rectify.curate.size": 200,
  "rounds.count": 1,
}


def main() -> None:
  """Audits the easy target of the scenes world and asks it again after the repair."""
  config = auditdm_jax.load_config("configs/scenes.py:target=easy,seed=0", **SHORT)
  summary = auditdm_jax.run_loop(config, WORKDIR)
  show("search success, prompt-only auditor", summary.search.prompt_only)
  show("search success, trained auditor", summary.search.trained)
  for name, accuracy in summary.rectify.items():
    show(f"{name}: accuracy on the gaps", accuracy.gaps)
  ask_again(config.models.target, WORKDIR / "rectify" / "repaired")


def show(what, rate) -> None:
  """Prints a rate with its interval and n."""
  low, high = rate.ci95
  value = "-" if rate.rate is None else f"{rate.rate:.3f}"
  print(f"{what:45} {value} [{low:.3f}, {high:.3f}], n = {rate.n}")


def ask_again(target: str, repaired: pathlib.Path) -> None:
  """Puts one verified failure to the target before and after the repair."""
  image, question, answer = first_failure()
  print(f"\n{question}  The references say {answer!r}.")
  for folder in (target, repaired):
    vlm = auditdm_jax.load_vlm(folder)
    print(f"  {vlm.name}: {vlm.answer([image], [question], max_new_tokens=3)[0]}")


def first_failure() -> tuple[Image.Image, str, str]:
  """Returns image, question and consensus of the first failure on an image that the audit made."""
  for line in (WORKDIR / "verify" / "failures-0.jsonl").open():
    failure = json.loads(line)
    image_id = failure["probe"]["image_id"]
    image = WORKDIR / "images" / image_id[:2] / f"{image_id}.png"
    if image.is_file():
      return Image.open(image), failure["probe"]["question"], failure["consensus"]
  raise SystemExit("no failure on a made image; give the audit more probes")


if __name__ == "__main__":
  main()
