# SPDX-License-Identifier: Apache-2.0
"""References that are worse than the target: the report must say so before anything else."""

import importlib.util
import json
import pathlib
import re

from PIL import Image
import pytest

from auditdm_jax.scenes.mix import Mix
from auditdm_jax.stages import asking, labelled, report, screen, verify
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Discovered

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = "data/scenes/weights"


def _split(folder: pathlib.Path, *, images: int, seed: int, answers: bool = True) -> None:
  mix = Mix(seed=seed, scenes=1000, images=images, per_image=8)
  draw = mix.draw(0)
  folder.mkdir(parents=True)
  for i in set(draw.image.tolist()):
    Image.fromarray(mix.pixels(i, i + 1)[0]).save(folder / f"{i:03d}.png")
  rows = [
    {"image": f"{i:03d}.png", "question": q, "answer": a if answers else None}
    for i, q, a in zip(draw.image.tolist(), draw.texts, draw.answers, strict=True)
  ]
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _config(data: pathlib.Path):
  """A target that is right about 99 % of the questions, two references with gaps, no oracle."""
  spec = importlib.util.spec_from_file_location("scenes", ROOT / "configs/scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.pool.update(builder="", data_dir=str(data), dataset="own")
  config.pool.update(images="train", heldout="heldout", fresh="")
  config.world.name = config.world.gaps = ""
  config.models.target = f"{WEIGHTS}/ref_gemma3"
  config.models.references = (f"{WEIGHTS}/target_easy", f"{WEIGHTS}/sibling")
  config.verify.update(jitters=1, paraphrases=0, blank_image=False)
  config.optim.steps = 0
  return config


def _audit(ctx: Context):
  pool = ctx.pool("images")
  attempts = asking.ask_questions(ctx, ctx.models.bank(), pool, pool.asked(), arm="random")
  ctx.folder.append_batch("discover", 0, attempts)
  ctx.folder.finish("discover", Discovered({}, len(attempts)))
  verify.run(ctx)
  return report.run(ctx)


def test_bad_references_are_told_in_red_on_page_one(tmp_path, capsys):
  for seed, (split, images) in enumerate({"train": 40, "heldout": 80}.items()):
    _split(tmp_path / "data/own" / split, images=images, seed=seed)
  with Context(_config(tmp_path / "data"), tmp_path / "run", "verify") as ctx:
    summary = _audit(ctx)
    asked = ctx.models.answers()["answers/ref_gemma3"]
    assert len(labelled.heldout_attempts(ctx)) > 500
    assert ctx.models.answers()["answers/ref_gemma3"] == asked, "they are asked once"
  found = summary.find_precision
  assert found.by == "labels" and found.real.n > 15 and found.mostly_wrong
  assert found.real.ci95[0] < 0.03 and "mostly wrong" in summary.alarms[0]
  # The labels of the audit's own questions, which are in the data set, tell the same.
  (grades,) = summary.grades
  assert grades.by == "labels" and grades.finds.ci95[1] < 0.5
  # Nearly every conflict is the references' fault, and so it is corrected.
  assert summary.corrected.flagged.rate > 0.03 > summary.corrected.ci95[0]
  assert summary.corrected.rate < summary.corrected.flagged.rate
  page = (tmp_path / "run/report/index.html").read_text(encoding="utf-8")
  alarm, tile = page.index('class="alarm"'), page.index('class="tile alarm"')
  assert alarm < tile < page.index("What finds are worth")
  first = page[tile:].partition("</div>")[0]
  assert "Finds that are real" in first and re.search(r"\d\.\d\u202f%|0\u202f%", first)
  screen.show(summary, tmp_path, spent={})
  assert "of the finds" not in (shown := capsys.readouterr().out)
  assert "finds are real, by labels" in shown and "corrected by labels" in shown


def test_without_labels_all_is_conditional_and_the_report_says_so(tmp_path, capsys):
  for split in ("train", "heldout"):
    _split(tmp_path / "data/own" / split, images=8, seed=1, answers=False)
  with Context(_config(tmp_path / "data"), tmp_path / "run", "verify") as ctx:
    summary = _audit(ctx)
  assert summary.find_precision is summary.corrected is None and not summary.grades
  page = (tmp_path / "run/report/index.html").read_text(encoding="utf-8")
  assert "conditional on the references" in page.partition("<table")[0]
  assert "How many finds are real" in page.partition('id="not-measured"')[2]
  screen.show(summary, tmp_path, spent={})
  assert "conditional on the references" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["heldout", "nowhere"])
def test_no_held_out_split_is_no_label(tmp_path, split):
  _split(tmp_path / "data/own/train", images=4, seed=1)
  config = _config(tmp_path / "data")
  config.pool.heldout = split
  with Context(config, tmp_path / "run", "verify") as ctx:
    assert labelled.heldout_attempts(ctx) == [] and labelled.find_precision(ctx) is None
