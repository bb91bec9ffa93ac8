# SPDX-License-Identifier: Apache-2.0
"""AuditDM in the scenes world: the whole loop in minutes on two CPU cores.

COMMAND
  python -m auditdm_jax loop --config=configs/scenes.py --workdir=runs/scenes

ARGS, as configs/scenes.py:target=rare,reward=plain,seed=1
  target      easy (a fifth of random questions fail) | rare (a twentieth do); the shipped targets
  reward      novelty (finds of new kinds weigh more) | plain (the paper's binary signal)
  seed        of everything that is drawn
  error_rate  share of images that the image service gets wrong
  images      exact (drawn by the world's renderer) | diffusion (by a FLUX pipeline that was trained
              on scenes; needs launch/image_server/requirements.txt)
  rounds      most rounds; of several, the last one audits and does not repair
  strategy    what the repaired target is trained on: audit (its verified failures) | labelled |
              bootstrapped | both; all trains the other three beside the first. See docs/rounds.md
  gaps        those of another target, which config.models.target then names: seed:N
  talk        off | sentences | synonyms | letters | all: how the models say their answers. With
              --config.bank.styles="(('target_easy','plain'),…)" for every model, what they say is
              compared as it is

Everything else is an override: --config.optim.steps=60
"""

import pathlib
import runpy

from ml_collections import ConfigDict

parse = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))["parse"]
WEIGHTS = "data/scenes/weights"
SYNONYMS = "data/scenes/synonyms.yaml"
# Made by: python data/scenes/diffusion/train.py --workdir=runs/diffusion
DIFFUSION = "runs/diffusion/pipeline"
# Shares of the answers that are said in such a way.
VOICES = {
  "off": {},
  "sentences": {"sentences": 0.8},
  "synonyms": {"synonyms": 0.5},
  "letters": {"letters": 0.5},
  "all": {"sentences": 0.6, "synonyms": 0.3, "letters": 0.15, "refusals": 0.005},
}

# Shares of what a repair is trained on. The labelled questions are the pool's own.
STRATEGIES = {
  "audit": {"probes": 1.0},
  "labelled": {"labelled": 0.5, "probes": 0.5},
  "bootstrapped": {"bootstrapped": 1.0, "probes": 0.0},
  "both": {"labelled": 0.34, "bootstrapped": 0.33, "probes": 0.33},
}

ARGS = {
  "target": ("easy", "rare"), "reward": ("novelty", "plain"), "seed": 0, "error_rate": 0.0,
  "rounds": 2, "strategy": (*STRATEGIES, "all"), "gaps": "", "images": ("exact", "diffusion"),
  "talk": ("off", "sentences", "synonyms", "letters", "all"),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
  args = parse("configs/scenes.py", arg, ARGS)
  seed, rare = args["seed"], args["target"] == "rare"
  c = ConfigDict()
  c.seed = seed
  c.judge = dict()
  c.world = dict(
    name="scenes", gaps=args["gaps"] or args["target"]
  )  # the oracle: for checking, never for reward
  if args["talk"] != "off":
    c.world.talk = VOICES[args["talk"]] | {"seed": seed}
    c.judge = dict(synonyms=SYNONYMS)  # What the judge's own table keeps apart.

  c.models = dict(
    auditor=f"{WEIGHTS}/auditor",
    target=f"{WEIGHTS}/target_{args['target']}",
    references=(f"{WEIGHTS}/ref_paligemma2", f"{WEIGHTS}/ref_gemma3"),
    sibling=f"{WEIGHTS}/sibling",  # the larger, unrepaired model a repair is compared with
  )
  c.pool = dict(
    builder="data/scenes/scenes_dataset_builder.py",
    data_dir="",  # "" = <workdir>/data
    dataset="scenes/default/1.1.0",
    images="pool", heldout="heldout", fresh="rounds",
  )  # fmt: skip
  c.images = dict(
    backend="scenes", error_rate=args["error_rate"], seed=seed, width=64, height=64,
    port=0,  # of `serve-images`; 0 = any free one
    address="",  # "" = a service of its own; "host:port" = one that runs already
  )  # fmt: skip
  if args["images"] == "diffusion":
    c.images.backend = "diffusers"
    c.images.model = dict(
      generate=DIFFUSION, edit=DIFFUSION, device="", steps=12, guidance=2.0, max_sequence_length=24
    )
    c.images.batching = dict(max_batch=16, max_wait_ms=50.0)
    # Bitwise the same image in a run that is killed and goes on.
    c.images.client = dict(deadline_s=600.0, deterministic=True)
  c.bank = dict(
    max_new_tokens=3, batch_size=512, cascade=False, dedup=True, abstentions=("unanswerable",)
  )

  # ---- train: GRPO. The paper: 32 prompts x 8, lr 3e-6, 1000 steps; a tiny model wants more.
  c.rollout = dict(
    prompts={"question": 12, "edit": 2, "generate": 1, "edit-only": 1},
    max_new_tokens=dict(question=11, caption=24, instruction=14),
    task={  # the tiny auditor knows three words; {} = the full instructions of rl/strategy.py
      "question": "ask", "caption": "describe", "instruction": "edit",
      "question-after-caption": "ask", "question-after-instruction": "ask",
    },
  )  # fmt: skip
  # Off, as in the paper: topping a batch up with live groups, and gauges of reward hacking.
  c.rollout.dynamic = dict(rounds=0, max_age=0)
  # 64: a net picks which of so many samples are asked (docs/search.md); 0 = all are.
  c.rollout.surrogate = dict(proposals=64 if rare else 0, random=2)
  c.rollout.gauges = dict(every=0, sample=64, heldout="")
  c.grpo = dict(group_size=8, kl="k2", kl_coef=0.02, entropy_coef=0.003, aggregation="token")
  c.optim = dict(steps=150, lr=3e-4, final_lr=1e-4, warmup=0.05, weight_decay=0.0, micro_rows=8)
  c.reward = dict(novelty="archive", novelty_power=0.3)
  if args["reward"] == "plain":
    c.reward = dict(novelty="off")
  c.mesh = dict(data=-1)
  c.rules = ((".*", ()),)  # tiny: every parameter on every device
  # Auditors stored for discovery beside the last one: early ones ask about more.
  c.checkpoints = dict(
    checkpoint_every=10, keep=2, harvest=(30, 60, 90, 120), best="", peak_tflops=0.0
  )

  # ---- discover, verify
  c.discover = dict(
    probes=12_000, batch=480, proposals=16,
    search_probes=2_000,  # for the rates of prompt-only against trained
    ranking=dict(per_kind=0.2),  # Or two kinds that never run out are 16 finds of 20.
  )  # fmt: skip
  c.verify = dict(
    limit=4_000, paraphrases=2, jitters=2,
    # Not language_prior: "none" is the true answer about an empty image too.
    required=(
      "well_formed", "answerable", "both_ways", "near_duplicate", "image_sane",
    ),
  )  # fmt: skip
  c.taxonomy = dict(skills="data/scenes/skills.yaml")

  # ---- rectify, evaluate, further rounds
  c.rectify = dict(
    recipe=dict(name="scenes", steps=1_000, micro_rows=8),
    curate=dict(size=3_000, cap=0.15),
    length=30, suffix=3, alike=0.5,
  )  # fmt: skip
  if args["strategy"] == "all":
    c.rectify.beside = {k: v for k, v in STRATEGIES.items() if k != "audit"}
  elif args["strategy"] != "audit":
    c.rectify.strategy = STRATEGIES[args["strategy"]]
  c.rounds = dict(count=args["rounds"], repair_last=args["rounds"] == 1, steps=60)
  if rare:
    c.optim.steps = 240
    c.rollout.surrogate.prompts = 3  # Of three images, the one with most finds by its word.
    # A trained auditor soon has three questions for an image; the untrained one asks the others.
    c.rollout.surrogate.untrained, c.grpo.tis_cap = 24, 2.0
    c.grpo.entropy_coef = 0.02  # Chosen images reward few questions and starve others.
    # One random question in twenty is a find: many are proposed for each that is asked.
    c.discover.proposals, c.discover.probes = 64, 6_000
    c.discover.ranking.per_kind = 1.0  # Likely ones run out by themselves.
    # A twentieth of the questions fails: many more examples would repair it at random too.
    c.rectify.curate.size = 1_000
    if args["reward"] == "novelty":
      c.reward.novelty_power = 0.2  # rare finds leave less room to be choosy
    c.checkpoints.harvest = (60, 120, 180)
  return c
