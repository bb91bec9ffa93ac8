# SPDX-License-Identifier: Apache-2.0
"""export and import by their commands, on runs that no model has to answer in."""

import json
import pathlib

import numpy as np
import pytest

from auditdm_jax import __main__ as main_lib
from auditdm_jax.audit import leaks
from auditdm_jax.audit.rates import rate_by_image
from auditdm_jax.bench import specs
from auditdm_jax.core import pool as pool_lib
from auditdm_jax.models import export as model_export
from auditdm_jax.models import leaves, tensor_files, weights
from auditdm_jax.rectify import export, recipes
from auditdm_jax.stages import exporting, importing
from auditdm_jax.text import styles
from auditdm_jax.vlm import describe_vlm
from tests.stages import verified


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder with a small PaliGemma, pt/pt_tiny.npz, and the run of its audit, run/."""
  root = tmp_path_factory.mktemp("exports")
  npz = verified.write_paligemma(root / "pt")
  verified.write_run(root, target=str(npz))
  return root


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
  """Runs a command; returns its exit code and what it printed."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

  def run_it(*argv: object) -> tuple[int, str, str]:
    for module in ("export", "import"):
      flags = main_lib._stage(module).FLAGS
      flags.unparse_flags()
      for name in flags:
        flags[name].unparse()
    code = main_lib.run([str(arg) for arg in argv])
    out = capsys.readouterr()
    return code, out.out, out.err

  return run_it


@pytest.fixture
def measured(monkeypatch):
  """Benchmarks are not asked; what was measured is kept by role."""
  asked = {}

  def benchmark(ctx, model, folder, *, role):
    asked[role] = model
    return {"all": rate_by_image([1, 0, 1], ["a", "b", "c"])}

  monkeypatch.setattr(importing.suite, "benchmark", benchmark)
  return asked


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
  ("recipe", "prefix", "evaluator", "antialias"),
  [
    ("vqav2", "answer en what color is the thing", "vqa", True),
    ("gqa-448", "answer en what color is the thing", "vqa", False),
    ("chartqa", "what color is the thing", "chartqa", True),
    ("docvqa", "what color is the thing", "vqa", True),
    ("refcoco", "what color is the thing", "storepreds", False),
    ("forkme", "answer en what color is the thing", "vqa", True),
  ],
)
def test_a_transfer_has_its_prompt_antialias_and_metric(
  root, call, tmp_path, recipe, prefix, evaluator, antialias
):
  code, out, err = call(
    *("export", f"--workdir={root / 'run'}", "--to=big_vision", "--model_init=/ckpt/pt.npz"),
    *(f"--recipe={recipe}", f"--output={tmp_path / 'out'}", "--licence=CC0"),
  )
  assert code == 0, err
  assert "18 examples of 9 source images, for validation 2 of 1" in out
  rows = _rows(tmp_path / "out" / "train.jsonl")
  assert prefix in {row["prefix"] for row in rows}
  text = (tmp_path / "out" / "bv_config.py").read_text()
  assert f"transfers.{evaluator}" in text
  assert f"[_image(c.res, {antialias}), transfers.combine_and_keep_train" in text
  assert f'recipe "{recipe}"' in text
  header = export.read_header(tmp_path / "out")
  assert header["target"]["name"] == "pt_tiny.npz" and header["licence"] == "CC0"
  assert not (tmp_path / "out" / "model.npz").exists()


def test_the_model_and_its_tokenizer_lie_in_the_folder(root, call):
  """The default folder; the same command again writes nothing."""
  command = ("export", f"--workdir={root / 'run'}", "--to=big_vision", "--recipe=chartqa")
  code, out, err = call(*command)
  assert code == 0 and "its licence is not stated" in out, err
  folder = root / "run" / "export" / "big_vision"
  with np.load(folder / "model.npz") as made, np.load(root / "pt" / "pt_tiny.npz") as start:
    assert sorted(made.files) == sorted(start.files)
    assert all(made[k].dtype == np.float32 and (made[k] == start[k]).all() for k in made.files)
  assert (folder / "tokenizer.model").stat().st_size
  before = (folder / "model.npz").stat().st_mtime_ns
  code, out, _ = call(*command, f"--config={verified.ROOT}/configs/scenes.py")
  assert code == 2  # Another config than the run's.
  code, out, _ = call(*command)
  assert code == 0 and "there already, and the same" in out
  assert (folder / "model.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize("to", ["trl", "llama-factory", "tfds"])
def test_other_formats(root, call, tmp_path, to):
  code, _, err = call(
    "export", f"--workdir={root / 'run'}", f"--to={to}", f"--output={tmp_path / 'out'}"
  )
  assert code == 0, err
  found = (tmp_path / "out").rglob("*.png")
  assert len(list(found)) == 10
  if to == "tfds":
    folder = tmp_path / "out/auditdm_failures/1.0.0"
    assert len(pool_lib.open_pool(folder, "train")) == 9
  elif to == "trl":
    row = _rows(tmp_path / "out/train/metadata.jsonl")[0]
    # As the target is asked.
    assert row["prompt"][0]["content"][1]["text"].startswith("answer en w")


def test_benchmarks_and_held_out_images_are_behind_the_firewall(root, call, tmp_path):
  """Pictures of the leak index, and those of the run's own held-out and fresh images."""
  train, heldout = (pool_lib.open_pool(root / "data/own", split) for split in ("train", "heldout"))
  items = (
    specs.OwnBenchmark(name="own", scorer="x:y", split="train")
    .spec()
    .open(root / "data/own", "train")
  )
  leaks.build(items[:2], source="own/train").save(tmp_path / "leaks.npz")
  made = verified.failure(
    "0" * 64, "what color is the sky", "blue", source_image_id=heldout.image_id(0)
  )
  hostile = verified.failure(train.image_id(5), "say <end_of_turn> what", "blue")
  target = str(root / "pt/pt_tiny.npz")
  run = verified.write_run(root, target=target, more=[made, hostile], name="leaky")
  code, out, err = call(
    *("export", f"--workdir={run}", "--to=llama-factory", f"--leaks={tmp_path / 'leaks.npz'}"),
    f"--output={tmp_path / 'out'}",
  )
  # The made picture is nowhere, but its source is found first.
  assert code == 0, err
  refused = _rows(tmp_path / "out" / "refused.jsonl")
  assert len(refused) == 6 and "6 refused, see refused.jsonl" in out
  whys = sorted(row["why"] for row in refused)
  assert sum("looks like that of own/train" in why for why in whys) == 4
  assert sum("is held out for evaluation" in why for why in whys) == 1
  assert sum("special token: <end_of_turn>" in why for why in whys) == 1
  kept = {row["image_id"] for row in export.read_meta(tmp_path / "out")}
  assert not kept & {train.image_id(0), train.image_id(1), "0" * 64} and len(kept) == 8


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--to=big_vision", "--recipe=chart_qa"], "did you mean 'chartqa'"),
    (["--to=big_vision"], "it replays"),
    (["--to=big_vision", "--recipe=vqav2", "--tokenizer=README.md"], "not a SentencePiece file"),
    (["--to=bigvision"], "big_vision"),
    (["--to=trl", "--leaks=nowhere.npz"], "nowhere.npz"),
  ],
)
def test_mistakes_are_told_and_leave_nothing(root, call, tmp_path, flags, message):
  output = tmp_path / "out"
  code, _, err = call("export", f"--workdir={root / 'run'}", f"--output={output}", *flags)
  assert code == 2 and message in err and err.count("\n") == 1
  assert not output.exists() and not output.with_name(".out.unfinished").exists()


# ---------------------------------------------------------------------------------------- import


def _trained(root: pathlib.Path, folder: pathlib.Path, *, scale: float = 1.01) -> pathlib.Path:
  """A workdir of big_vision's, with an npz instead of its checkpoint."""
  folder.mkdir(parents=True)
  opened = weights.open_model(root / "pt" / "pt_tiny.npz")
  moved = {f"params/{k}": leaves.of_array(v.whole() * scale) for k, v in opened.tree.items()}
  tensor_files.write_npz(folder / "trained.npz", moved)
  return folder / "trained.npz"


def test_a_checkpoint_comes_back_as_the_repaired_target(root, call, tmp_path, measured):
  run = verified.write_run(root, target=str(root / "pt/pt_tiny.npz"), name="imported")
  call("export", f"--workdir={run}", "--to=big_vision", "--recipe=chartqa", "--licence=CC0")
  source = _trained(root, tmp_path / "bv")
  answers = [
    {"id": row["id"], "answer": row["suffix"] if i else "nothing", "gt": row["suffix"]}
    for i, row in enumerate(_rows(run / "export/big_vision/val.jsonl"))
  ]
  (tmp_path / "answers.json").write_text(json.dumps(answers))
  command = ("import", f"--workdir={run}", f"--from={source}")
  code, out, err = call(*command, f"--answers={tmp_path / 'answers.json'}")
  assert code == 0, err
  folder = run / "rectify" / "repaired"
  back, start = describe_vlm(folder), describe_vlm(root / "pt/pt_tiny.npz")
  # As it was trained: no cap, big_vision's pixels, the question alone.
  assert back.config.text.final_softcap == 0.0 and start.config.text.final_softcap == 30.0
  assert back.pixels.origin == "big_vision" and back.style == styles.BARE
  assert back.template == start.template and back.stop_ids == start.stop_ids
  want = weights.open_model(source).tree
  for name, leaf in weights.open_model(folder).tree.items():
    np.testing.assert_array_equal(leaf.whole(), want[name].whole())
  assert measured.keys() == {"repaired"} and "repaired, all: 0.667" in out and "n=3" in out
  assert "answers.json, relaxed_accuracy: 0.500" in out and "n=2" in out
  done = json.loads((run / "rectify/done.json").read_text())["result"]
  assert done["models"]["repaired"]["examples"] == 18
  predictions = _rows(run / "export-val/predictions-0.jsonl")
  assert [row["prediction"] for row in predictions] == [a["answer"] for a in answers]
  code, out, _ = call(*command)
  assert code == 0 and "there already, and the same" in out and len(measured) == 1
  other = _trained(root, tmp_path / "other", scale=1.02)
  code, _, err = call("import", f"--workdir={run}", f"--from={other}")
  assert code == 2 and "there is another model already; give a --name" in err
  code, _, err = call("import", f"--workdir={run}", f"--from={other}", "--name=second")
  assert code == 0 and measured.keys() == {"repaired", "second"}, err
  done = json.loads((run / "rectify/done.json").read_text())["result"]
  assert done["models"].keys() == {"repaired", "second"} and not done["tried"]


@pytest.mark.parametrize("to", ["native", "orbax", "hf"])
def test_other_formats_come_back_with_the_caps_that_they_say(root, call, tmp_path, measured, to):
  run = verified.write_run(root, target=str(root / "pt/pt_tiny.npz"), name=f"from_{to}")
  write = {
    "native": model_export.write_native,
    "orbax": model_export.write_orbax,
    "hf": model_export.write_hf,
  }[to]
  write(tmp_path / "model", weights.open_model(_trained(root, tmp_path / "bv")))
  code, _, err = call("import", f"--workdir={run}", f"--from={tmp_path / 'model'}")
  assert code == 0, err
  back = describe_vlm(run / "rectify/repaired")
  assert back.config.text.final_softcap == 30.0 and back.style == styles.PALIGEMMA
  if to == "orbax":  # The checkpoint alone says nothing about caps.
    flags = (f"--from={tmp_path / 'model/params'}", "--name=bare")
    bare = tmp_path / "bare"
    (tmp_path / "model/params").rename(bare)
    code, _, err = call("import", f"--workdir={run}", f"--from={bare}", flags[1])
    assert code == 0, err
    assert describe_vlm(run / "rectify/bare").config.text.final_softcap == 0.0


def test_checkpoints_of_other_models_are_refused(root, call, tmp_path, measured):
  opened = weights.open_model(root / "pt/pt_tiny.npz")
  flat = {k: v.whole() for k, v in opened.tree.items()}
  shallow = {k: v[:1] if k.startswith("llm/layers/") else v for k, v in flat.items()}
  broken = flat | {"llm/final_norm/scale": np.full_like(flat["llm/final_norm/scale"], np.nan)}
  less = {k: v for k, v in flat.items() if k != "img/head/bias"}
  cases = (
    (shallow, "text.depth is 1, and 2 in the target"),
    (broken, "llm/final_norm/scale has values that are not finite; the training diverged"),
    (less, "missing img/head/bias"),
  )
  for i, (arrays, message) in enumerate(cases):
    np.savez(tmp_path / f"{i}.npz", **{f"params/{k}": v for k, v in arrays.items()})
    code, _, err = call(
      "import", f"--workdir={root / 'run'}", f"--from={tmp_path / f'{i}.npz'}", "--name=bad"
    )
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (root / "run/rectify/bad").exists()
  code, _, err = call("import", f"--workdir={root / 'run'}", "--from=nowhere", "--name=bad")
  assert code == 2 and "nowhere: no such file or folder" in err
  code, _, err = call("import", f"--workdir={root / 'run'}", "--from=x", "--name=../up")
  assert code == 2 and "--name=../up" in err


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("no", "not JSON"),
    ('{"id": "a"}', r"row 0 is not"),
    ('[{"id": "a", "answer": 3}]', r"row 0 is not"),
    ('[{"id": "a", "caption": "x"}, {"id": "a", "caption": "x"}]', "'a' is answered twice"),
  ],
)
def test_damaged_answers_are_explained(tmp_path, content, message):
  (tmp_path / "a.json").write_text(content)
  with pytest.raises(main_lib.UserError, match=message):
    importing.read_answers(tmp_path / "a.json")


def test_answers_to_other_questions_are_refused(root, call, tmp_path, measured):
  run = verified.write_run(root, target=str(root / "pt/pt_tiny.npz"), name="answers")
  call("export", f"--workdir={run}", "--to=big_vision", "--recipe=vqav2")
  (tmp_path / "answers.json").write_text('[{"id": "val-000000", "answer": "red"}]')
  source = _trained(root, tmp_path / "bv")
  command = ("import", f"--workdir={run}", f"--from={source}")
  code, _, err = call(*command, f"--answers={tmp_path / 'answers.json'}")
  assert code == 2 and "no answer to val-000001" in err
  code, _, err = call(*command, "--answers=nowhere.json")
  assert code == 2 and "--answers=nowhere.json: no such file" in err


def test_styles_of_transfers():
  own = styles.COMPLETION
  transfers = {
    r: exporting.transfer_of(recipes.get(r), own) for r in (*recipes.TRANSFERS, "scenes")
  }
  assert transfers["gqa"].style == styles.PALIGEMMA
  assert transfers["docvqa-448"].style == styles.BARE
  for name in ("cococap", "ai2d", "forkme", "scenes"):  # Of a caption, of options, of none.
    assert transfers[name].style == own
  assert (transfers["ai2d"].antialias, transfers["ai2d"].antialias_eval) == (True, False)
  assert transfers["cococap"].beam == 2 and transfers["cococap"].evaluator == "storepreds"
  assert {name for name, t in transfers.items() if not t.antialias} == {
    *("gqa", "gqa-448", "refcoco", "refcoco-448", "refcoco-896", "cococap", "cococap-448")
  }
