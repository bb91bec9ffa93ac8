# SPDX-License-Identifier: Apache-2.0
"""The stage verify with models of the scenes world: who decides, and what the report says of it."""

import importlib.util
import json
import pathlib

from PIL import Image
import pytest

from auditdm_jax.audit.rates import NOTHING
from auditdm_jax.audit.verify import Tally
from auditdm_jax.scenes.mix import Mix
from auditdm_jax.stages import asking, verify
from auditdm_jax.stages.context import Context

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = 40  # Of every second one the questions have labels.


def _pool(folder: pathlib.Path) -> None:
  mix = Mix(seed=5, scenes=1000, images=IMAGES, per_image=8)
  draw = mix.draw(0)
  folder.mkdir(parents=True)
  for i in set(draw.image.tolist()):
    Image.fromarray(mix.pixels(i, i + 1)[0]).save(folder / f"{i:03d}.png")
  rows = [
    {"image": f"{i:03d}.png", "question": q, "answer": [a] * 10 if i % 2 else None}
    for i, q, a in zip(draw.image.tolist(), draw.texts, draw.answers, strict=True)
  ]
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def context(tmp_path):
  """A run on a folder without an oracle, whose V2 is by labels and by a model outside."""
  spec = importlib.util.spec_from_file_location("scenes", ROOT / "configs/scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  _pool(tmp_path / "data/own/train")
  config.pool.update(builder="", data_dir=str(tmp_path / "data"), dataset="own")
  config.pool.update(images="train", heldout="train", fresh="train")
  config.world.name = config.world.gaps = ""
  inside, outside = config.models.references
  config.models.references = (inside,)
  config.verify.update(model=outside, jitters=1)
  with Context(config, tmp_path / "run", "verify") as ctx:
    yield ctx


def test_labels_then_a_model_outside_the_ensemble_decide_v2(context):
  ctx, pool = context, context.pool("images")
  attempts = asking.ask_questions(ctx, ctx.models.bank(), pool, pool.asked(), arm="random")
  failures, funnel, *_ = verify.audit(ctx, attempts)
  labelled = {pool.image_id(i) for i in range(len(pool)) if any(pool.answers(i))}
  assert 0 < len(labelled) < len(pool)
  by = {True: "labels", False: "model ref_gemma3"}
  assert [f.opinion.by for f in failures] == [by[f.probe.image_id in labelled] for f in failures]
  decided = [f for f in failures if f.verified]
  assert len(decided) > 10 and {f.opinion.by for f in decided} == set(by.values())
  agree = [f for f in decided if f.opinion.side == "consensus"]
  assert len(agree) > 0.8 * len(decided) and all(f.grade == "V2" for f in agree)
  assert funnel["independent_agrees"] == len(agree)
  # The auditor knows three words and rewords nothing, so nothing is taken for passed.
  gates = verify.verify_lib.tally(failures, ctx.settings.verify.required)
  assert gates["answerable"] == Tally(NOTHING, len(failures), required=True)
  assert gates["both_ways"].passed.k == len(failures)
