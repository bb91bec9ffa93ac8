# SPDX-License-Identifier: Apache-2.0
"""The paper's recipe: a Gemma 3 auditor of 4B against PaliGemma 2 of 3B, at 448 pixels.

COMMAND
  python -m auditdm_jax plan --config=configs/paligemma2.py:on=v5e-16 --topology=v5e:4x4
  python -m auditdm_jax train --config=configs/paligemma2.py:on=v5e-16 --workdir=runs/paligemma2

  python -m auditdm_jax plan --config=configs/paligemma2.py:recipe=chartqa,pixels=224 \\
    --topology=v5e:4x4 --only=repair

ARGS, as configs/paligemma2.py:on=v6e-8,references=28b
  on          v5e-16 | v5e-64 | v6e-8 | v6e-16 | v5p-8 | h200 | h100-8: the chips; layouts follow
  references  10b: PaliGemma 2 10B, Gemma 3 4B and 12B | 28b: and PaliGemma 2 28B
  recipe      vqav2 | gqa | okvqa | ai2d | docvqa | chartqa | refcoco | cococap | forkme: the
              transfer of big_vision by whose recipe the target is repaired
  pixels      448 | 224: side of the target's images, and of its checkpoint
  prompts     per step, a multiple of 32; the paper's batch of 256 completions is 32 x 8
  chips       others than `on` says, of its kind, to see how the recipe scales

The folders of models/ hold the published checkpoints, of Hugging Face or big_vision; the images are
VQAv2's, see data/vqav2/prepare.py, or a folder of your own: --config.pool.dataset. FLUX is served
from machines of its own: launch/image_server, --config.images.address.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

parse = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))["parse"]
# chips, and of which the heads of a layer are split over so many in the rollout
SLICES = {
  "v5e-16": (16, 4), "v5e-64": (64, 4), "v6e-8": (8, 4), "v6e-16": (16, 4), "v5p-8": (8, 4),
  "h200": (1, 1), "h100-8": (8, 4),
}  # fmt: skip
FOLDERS = {
  "models/gemma-3-4b-it": "gemma3_4b",
  "models/gemma-3-12b-it": "gemma3_12b",
  "models/paligemma2-3b-mix-224": "paligemma2_3b_224",
  "models/paligemma2-3b-mix-448": "paligemma2_3b_448",
  "models/paligemma2-10b-mix-448": "paligemma2_10b_448",
  "models/paligemma2-28b-mix-448": "paligemma2_28b_448",
}
# Tokens of a repair's row in addition to the image; the recipes that are not named have 64.
TEXT = {"ai2d": 128, "forkme": 128}
RECIPES = (
  "vqav2", "gqa", "okvqa", "ai2d", "docvqa", "chartqa", "refcoco", "cococap", "forkme",
)  # fmt: skip
COMMON = {"on": tuple(SLICES), "references": ("10b", "28b"), "prompts": 32, "chips": int}
ARGS = {**COMMON, "recipe": RECIPES, "pixels": ("448", "224")}


def get_config(arg: str = "") -> ConfigDict:
  file = "configs/paligemma2.py"
  args = parse(file, arg, ARGS)
  transfer, pixels = args.pop("recipe"), args.pop("pixels")
  c = audit(file, **args)
  c.models.target = f"models/paligemma2-3b-mix-{pixels}"
  c.rectify.recipe.name = transfer if pixels == "224" else f"{transfer}-{pixels}"
  c.rectify.length = (int(pixels) // 14) ** 2 + TEXT.get(transfer, 64)
  return c


def audit(file: str, *, on: str, references: str, prompts: int, chips: int | None) -> ConfigDict:
  """Returns the audit of PaliGemma 2 at 448 pixels, repaired by VQAv2's transfer.

  Args:
    file: what errors call the config.
    on, references, prompts, chips: see ARGS above.
  """
  own, tensor = SLICES[on]
  chips = own if chips is None else chips
  if chips < 1 or chips % tensor or (chips > 64 and chips % 64):
    raise ValueError(
      f"{file}: chips={chips}, not a multiple of {tensor}, over which heads are split, and above 64"
      " of 64, over which masters are"
    )
  if prompts < 32 or prompts % 32:
    raise ValueError(f"{file}: prompts={prompts}, not a multiple of 32")
  c = ConfigDict()
  c.seed = 0
  c.world = dict(name="", gaps="")  # no oracle
  larger = ("models/paligemma2-28b-mix-448",) if references == "28b" else ()
  c.models = dict(
    auditor="models/gemma-3-4b-it",
    target="models/paligemma2-3b-mix-448",
    references=(
      "models/gemma-3-4b-it", "models/paligemma2-10b-mix-448", "models/gemma-3-12b-it", *larger,
    ),
    sibling="",
    dtype="bfloat16",
    int8=bool(larger),  # The references' decoders take half the memory.
    paged=on == "h200",  # Beside a trained auditor there is room for one of them.
  )  # fmt: skip
  c.plan = dict(architectures=FOLDERS, task_tokens=128, question_tokens=48)
  c.pool = dict(
    builder="", data_dir="data", dataset="vqav2", images="train", heldout="heldout", fresh="fresh",
  )  # fmt: skip
  c.images = dict(
    backend="diffusers", width=1024, height=1024, seed=0, error_rate=0.0,
    port=0, address="localhost:50051",  # its own machine with GPUs: launch/image_server
    # Whole-frame editors repaint every pixel; verification then tries the sham as well.
    client=dict(local_edits=True),
  )  # fmt: skip
  c.bank = dict(
    max_new_tokens=16, batch_size=512, cascade=True, dedup=True, abstentions=("unanswerable",)
  )
  c.judge = dict()

  # ---- train: AdamW, 1000 steps, 3e-6 after a tenth of warm-up, cosine to 1e-6, as in the paper;
  # which strategies in which shares is ours, and so are the lengths.
  share = prompts // 32
  c.rollout = dict(
    prompts={"question": 20 * share, "edit": 4 * share, "generate": 4 * share,
             "edit-only": 2 * share, "generate-only": 2 * share},
    max_new_tokens=dict(question=64, caption=96, instruction=64),
    task={},
    # The paper asks all samples. 64: a net picks 6 of 64, and 2 by lot (docs/search.md); measured
    # in the scenes world only, where an auditor's samples cost little.
    surrogate=dict(proposals=0),
  )  # fmt: skip
  c.grpo = dict(group_size=8)
  c.reward = dict(novelty="off")
  c.optim = dict(steps=1000, lr=3e-6, final_lr=1e-6, warmup=0.1, remat=True, head_chunk=1024)
  # Masters over all chips; beyond 64, copies over groups of 64, which divide the vocabulary.
  # The fewer rows a chip has, the more of a layer's weights stay where they are (`plan`).
  groups = max(chips // 64, 1)
  split = next(n for n in (8, 4, 2, 1) if n == 1 or n * n * prompts <= 8 * chips)
  c.mesh = dict(data=groups, fsdp=chips // groups // split, tensor=split)
  # A repair has more tokens.
  halves = 2 if chips >= 64 else 1
  c.repair_mesh = dict(data=groups, fsdp=chips // groups // halves, tensor=halves)
  # Samples and answers: each 16 chips hold a copy, for a part of the rows.
  copies = chips // 16 if chips % 16 == 0 else 1
  c.rollout_mesh = dict(data=copies, fsdp=chips // tensor // copies, tensor=tensor)
  if on == "h200":
    c.optim.micro_rows = 8
  c.rules = ()  # those of models/sharding.py
  # Auditors stored for discovery beside the last one: early ones ask about more.
  c.checkpoints = dict(
    checkpoint_every=50, keep=2, harvest=(250, 500, 750), best="", peak_tflops=0.0
  )

  # ---- discover, verify
  c.discover = dict(
    probes=20_000, batch=1024, search_probes=2_000, proposals=4,
  )  # fmt: skip
  # The auditor as it is published rewords questions. A model that is in none of the roles above
  # would give V2: --config.verify.model=models/DIR
  c.verify = dict(limit=4_000, paraphrases=2, jitters=2, model="", paraphraser="auditor")
  c.taxonomy = dict(skills="data/vqav2/skills.yaml", kinds="data/vqav2/kinds.yaml")

  # ---- rectify: a transfer of big_vision, which trains the vision tower too
  c.rectify = dict(
    recipe=dict(name="vqav2-448", remat=True),
    curate=dict(size=10_000, cap=0.15),
    length=1088, suffix=16,
  )  # fmt: skip
  if on == "h200":
    c.rectify.recipe.micro_rows = 32
  c.rounds = dict(count=2, repair_last=False, steps=200)
  return c
