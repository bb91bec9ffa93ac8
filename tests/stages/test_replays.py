# SPDX-License-Identifier: Apache-2.0
"""pack, compare, repro and minimise, with models behind endpoints: nothing is compiled."""

from collections.abc import Callable
import importlib.util
import json
import pathlib
import shutil
import sys

import junitparser
import numpy as np
from PIL import Image
import pytest

from auditdm_jax import __main__ as main_lib
from auditdm_jax.audit import pack as pack_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.endpoints import endpoint as endpoint_lib
from auditdm_jax.stages import asking, past, verify
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Discovered
from tests.endpoints.fake_server import Answer, Asked, FakeServer, completion

ROOT = pathlib.Path(__file__).parents[2]
# Words of the questions; the target is wrong about hats.
THINGS = ("hat", "shoe", "coat")
PROVING = ("color", "picture", "white squares", "Say yes")
IMAGES = 16


def talks(server: FakeServer, *wrong: str) -> Callable[[Asked], Answer]:
  """Says red of every thing and blue of those that it is wrong about; nothing of a blank image."""

  def respond(asked: Asked) -> Answer:
    if any(word in asked.text for word in PROVING):
      return server._right(asked)
    if asked.picture is None or asked.picture.std() < 1:
      return completion("nothing")
    return completion("blue" if any(word in asked.text for word in wrong) else "red")

  return respond


def _folder(folder: pathlib.Path) -> None:
  folder.mkdir(parents=True)
  rng, rows = np.random.default_rng(len(folder.name)), []
  for i in range(IMAGES):
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    rows += [
      {"image": f"{i}.png", "question": f"please say how the old {thing} there looks"}
      for thing in THINGS
    ]
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  monkeypatch.setattr(endpoint_lib, "_BACKOFF_S", 0.02)


@pytest.fixture(scope="module")
def servers():
  """Target and reference."""
  with FakeServer() as target, FakeServer() as reference:
    yield target, reference


@pytest.fixture(scope="module")
def runs(servers, tmp_path_factory):
  """The folders of two audits whose failures are verified: first of hats, then of shoes as well."""
  root = tmp_path_factory.mktemp("replays")
  for split in ("train", "heldout", "fresh"):
    _folder(root / "data/own" / split)
  return _audit(root, servers, "run", "hat"), _audit(root, servers, "later", "hat", "shoe")


@pytest.fixture(scope="module")
def run(runs):
  return runs[0]


def _audit(root: pathlib.Path, servers, name: str, *wrong: str) -> pathlib.Path:
  spec = importlib.util.spec_from_file_location("scenes", ROOT / "configs/scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.world.update(name="", gaps="")
  config.pool.update(builder="", data_dir=str(root / "data"), dataset="own", images="train")
  config.pool.update(heldout="heldout", fresh="fresh")
  config.taxonomy.skills = ""
  config.models.update(target="far", references=("ref",), sibling="")
  config.models.auditor = str(ROOT / config.models.auditor)
  config.bank.abstentions = ()
  config.endpoints = {
    role: {"base_url": server.url, "model": "fake", "style": "plain", "revision": name}
    for role, server in zip(("far", "ref"), servers)
  }
  target, reference = servers
  target.respond, reference.respond = talks(target, *wrong), talks(reference)
  with Context(config, root / name, "verify") as ctx:
    pool = ctx.pool("images")
    attempts = asking.ask_questions(ctx, ctx.models.bank(), pool, pool.asked(), arm="random")
    ctx.folder.append_batch("discover", 0, attempts)
    ctx.folder.finish("discover", Discovered(arms={}, queries=len(attempts)))
    verify.run(ctx)
  return root / name


@pytest.fixture
def call(servers, tmp_path, monkeypatch, capsys):
  """Runs a command in a folder of its own; returns its exit code and what it printed."""
  target, reference = servers
  target.respond, reference.respond = talks(target, "hat"), talks(reference)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["auditdm_jax"])

  def run_it(*argv: object) -> tuple[int, str, str]:
    for module in ("compare", "pack", "repro", "minimise"):
      main_lib._stage(module).FLAGS.unparse_flags()
      for name in main_lib._stage(module).FLAGS:
        main_lib._stage(module).FLAGS[name].unparse()
    code = main_lib.run([str(arg) for arg in argv])
    out = capsys.readouterr()
    return code, out.out, out.err

  return run_it


@pytest.fixture
def packed(run, call, tmp_path):
  code, out, _ = call("pack", f"--workdir={run}", f"--output={tmp_path}/p", "--licence=CC0")
  assert code == 0 and f"{IMAGES} verified failures" in out
  return tmp_path / "p"


def _yaml(path: pathlib.Path, server: FakeServer) -> str:
  path.write_text(f"base_url: {server.url}\nmodel: fake\nstyle: plain\n")
  return f"endpoint:{path}"


def _statuses(folder: pathlib.Path) -> set[str]:
  """Of the modes; nothing changes outside them."""
  entries = json.loads((folder / "ledger.json").read_text())["entries"]
  status = {e["mode_id"]: e["status"] for e in entries}
  assert status.pop(pack_lib.CONTROLS) in ("unchanged", "unsure")
  return set(status.values())


def test_a_pack_holds_failures_and_controls(packed, run):
  pack = pack_lib.read(packed)
  failures = [p for p in pack.probes if p.role == "failure"]
  controls = [p for p in pack.probes if p.role == "control"]
  assert {(p.expected, p.said) for p in failures} == {("red", "blue")}
  assert all("hat" in p.question and p.mode_id and p.grade == "V1" for p in failures)
  assert len(controls) == IMAGES * (len(THINGS) - 1)
  assert not any("hat" in p.question for p in controls)
  # Pictures of the failures come first.
  assert {p.image_id for p in controls} == {p.image_id for p in failures}
  header = pack.header
  assert (header.target.name, header.references[0].name) == ("far", "ref")
  assert header.licence == "CC0" and "compare MODEL --pack=" in (packed / "README.md").read_text()


def test_a_pack_may_be_small(run, call, tmp_path):
  flags = ["--failures=3", "--controls=5", f"--output={tmp_path}/small"]
  code, out, _ = call("pack", f"--workdir={run}", *flags)
  assert code == 0 and "3 verified failures and 5 controls" in out
  assert "licence is not stated" in out
  assert len(pack_lib.read(tmp_path / "small").probes) == 8


def test_a_pack_in_ci(packed, servers, call, tmp_path):
  """The same model, a repaired one, one that has forgotten something, and one that is silent."""
  target, _ = servers
  model = _yaml(tmp_path / "mine.yaml", target)
  before = len(target.asked)
  code, out, _ = call("compare", model, f"--pack={packed}")
  # Each question once, in addition to the proof of the endpoint.
  asked = [a for a in target.asked[before:] if not any(w in a.text for w in PROVING)]
  assert code == 0 and len(asked) == IMAGES * len(THINGS)
  ledger = json.loads((tmp_path / "compared/ledger.json").read_text())
  assert _statuses(tmp_path / "compared") == {"unsure"}
  assert not ledger["changes"] and not ledger["old"]["asked"]
  target.respond = talks(target)
  code, out, _ = call("compare", model, f"--pack={packed}", "--output=repaired")
  assert code == 0 and _statuses(tmp_path / "repaired") == {"improved"}
  # So few controls leave open whether something was forgotten.
  assert call("compare", model, f"--pack={packed}", "--strict")[0] == 3
  target.respond = talks(target, "hat", "shoe")
  code, out, _ = call("compare", model, f"--pack={packed}", "--output=forgot")
  assert code == 1 and "regressed" in out
  xml = junitparser.JUnitXml.fromfile(str(tmp_path / "forgot/junit.xml"))
  assert xml.failures == 1 and "shoe" in (tmp_path / "forgot/ledger.md").read_text()
  target.respond = lambda asked: (
    target._right(asked) if any(w in asked.text for w in PROVING) else completion("")
  )
  code, _, err = call("compare", model, f"--pack={packed}", "--output=silent")
  assert code == 2 and "none of the 48 questions can be compared" in err
  assert not (tmp_path / "silent").exists()


def test_two_models_on_a_pack(packed, servers, call, tmp_path):
  target, reference = servers
  old, new = _yaml(tmp_path / "old.yaml", reference), _yaml(tmp_path / "new.yaml", target)
  code, out, _ = call("compare", old, new, f"--pack={packed}")
  assert code == 1 and "regressed" in out
  ledger = json.loads((tmp_path / "compared/ledger.json").read_text())
  assert (ledger["old"]["name"], ledger["new"]["name"]) == ("old", "new") and ledger["old"]["asked"]
  assert call("compare", new, old, f"--pack={packed}")[0] == 0
  code, out, _ = call("compare", old, f"--pack={packed}", "--against-itself")
  assert code == 0 and "3 unsure" in out
  shown = {a.url for a in reference.asked[-2 * IMAGES * len(THINGS) :]}
  assert len(shown) == 2 * IMAGES  # Two changes of each image.


def test_runs_are_compared_on_fresh_questions(run, servers, call, tmp_path):
  _, reference = servers
  model = _yaml(tmp_path / "other.yaml", reference)
  code, out, _ = call("compare", run, model)
  ledger = json.loads((tmp_path / "compared/ledger.json").read_text())
  assert code == 0 and "fresh questions of run" in ledger["probes"]
  assert _statuses(tmp_path / "compared") == {"improved"}
  assert call("compare", run, run)[0] == 0
  # The endpoint by its name in the run's config.
  assert call("compare", run, "endpoint:ref")[0] == 0


def test_what_a_second_audit_found_is_new(runs, servers, call, tmp_path):
  """One server is both targets: from when the second one is asked, it is wrong about shoes."""
  target, reference = servers
  first, second = runs
  asked = []

  def respond(asked_now):
    asked.append(asked_now.text)
    later = sum("shoe" in text for text in asked) > IMAGES
    return talks(target, "hat", *(["shoe"] if later else []))(asked_now)

  target.respond = respond
  code, out, _ = call("compare", first, second)
  entries = json.loads((tmp_path / "compared/ledger.json").read_text())["entries"]
  assert code == 1 and [e["status"] for e in entries if "shoe" in e["name"]] == ["new"], out
  assert [e["status"] for e in entries if "hat" in e["name"]] == ["unsure"]


def _id(run: pathlib.Path) -> str:
  return json.loads((run / "verify/failures-0.jsonl").read_text().splitlines()[0])["key"]


def test_a_failure_is_asked_again(run, servers, call):
  target, _ = servers
  wanted = _id(run)
  code, out, _ = call("repro", wanted[:8], f"--workdir={run}")
  assert code == 0 and out.rstrip().endswith("reproduced")
  for line in ("expected  red", "it said   blue", "  far: blue", "  ref: red", "  ref: nothing"):
    assert line in out.splitlines(), line
  assert "shows in 3 of 3 trials, 3 of 3 then" in out
  target.respond = talks(target)
  code, out, _ = call("repro", wanted, f"--workdir={run}")
  assert code == 1 and out.rstrip().endswith("not reproduced") and "  far: red" in out


def test_the_shortest_question_is_kept(run, servers, call):
  target, _ = servers
  wanted = _id(run)
  code, out, _ = call("minimise", wanted, f"--workdir={run}")
  assert code == 0 and "nothing more can be left out" in out
  with past.opened(run, "test") as ctx:
    found = ctx.folder.minimised(wanted)
  assert found is not None and "hat" in found.question.split()
  # A question has two words at least.
  assert (found.words, found.words_before) == (2, 8) and (found.k, found.n) == (3, 3)
  assert found.is_minimal and found.note == "the image was not made" and found.queries > 10
  target.respond = talks(target)
  code, out, _ = call("minimise", wanted, f"--workdir={run}")
  assert code == 1 and "does not show any more: 0 of 3 trials" in out


def test_a_model_may_judge(packed, servers, call, tmp_path):
  """The target says ruddy for red; a judge that knows the word hears no difference."""
  target, reference = servers
  model = _yaml(tmp_path / "mine.yaml", target)
  judge = _yaml(tmp_path / "judge.yaml", reference)

  def ruddy(asked):
    proves = any(word in asked.text for word in PROVING)
    return target._right(asked) if proves else completion("ruddy")

  target.respond = ruddy
  code, _, err = call("compare", model, f"--pack={packed}")
  assert code == 1, err
  reference.respond = lambda asked: (
    completion("yes" if "ruddy" in asked.text else "no")
    if "mean the same" in asked.text
    else talks(reference)(asked)
  )
  code, out, _ = call("compare", model, f"--pack={packed}", f"--judge={judge}")
  assert code == 0 and "improved" in out
  code, _, err = call("compare", model, f"--pack={packed}", f"--judge={model}")
  assert code == 2 and "must not judge its own answers" in err


def test_the_shipped_pack_tells_two_shipped_models_apart(call, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  weights, pack = "data/scenes/weights", "--pack=data/scenes/pack"
  sides = f"{weights}/sibling", f"{weights}/target_easy"
  assert call("compare", *sides, pack, f"--output={tmp_path}/worse")[0] == 1
  xml = junitparser.JUnitXml.fromfile(str(tmp_path / "worse/junit.xml"))
  assert xml.failures >= 1
  changes = json.loads((tmp_path / "worse/ledger.json").read_text())["changes"]
  assert len({c["probe_id"] for c in changes if c["worse"]}) > 20


def test_mistakes_are_told_in_one_line(run, packed, servers, call, tmp_path):
  model = _yaml(tmp_path / "m.yaml", servers[0])
  (tmp_path / "odd.yaml").write_text("base_url: [")
  (tmp_path / "more.yaml").write_text("base_url: http://x/v1\nmodel: m\nkey: sk-1\n")
  (tmp_path / "empty").mkdir()
  said = {
    ("compare",): "compare takes one model or two",
    ("compare", "a", "b", "c"): "not 3",
    ("compare", "a", "b", f"--pack={packed}", "--against_itself"): "compare takes one model, not 2",
    ("compare", model): "no folder of a run",
    ("compare", run): "with what?",
    ("compare", model, "--pack=nowhere"): "nowhere: no pack",
    ("compare", "nowhere", f"--pack={packed}"): "nowhere: no folder of a model or of a run",
    ("compare", packed, f"--pack={packed}"): "is a pack: --pack=",
    ("compare", "endpoint:gone", f"--pack={packed}"): "no such file, and no endpoint",
    ("compare", f"endpoint:{tmp_path}/odd.yaml", f"--pack={packed}"): "not YAML",
    ("compare", f"endpoint:{tmp_path}/more.yaml", f"--pack={packed}"): "key: unknown key",
    ("compare", model, f"--pack={packed}", "--marin=1"): "Did you mean: margin",
    ("pack", f"--workdir={tmp_path}/empty", "--output=q"): "it has no manifest.json",
    ("pack", f"--workdir={run}", f"--output={packed}"): "is there already",
    ("pack", f"--workdir={run}"): "output",
    ("pack", "x", f"--workdir={run}", "--output=q"): "not a flag: x",
    ("repro", f"--workdir={run}"): "repro takes one ID",
    ("repro", "zz", f"--workdir={run}"): "no failure 'zz'",
    ("minimise", "0" * 40, f"--workdir={run}"): "no failure '000",
  }
  for argv, message in said.items():
    code, _, err = call(*argv)
    assert code == 2 and message in err, (argv, err)
    assert err.count("\n") == 1 and err.startswith("auditdm_jax: "), (argv, err)
  old = tmp_path / "old"
  shutil.copytree(run, old)
  done = json.loads((old / "verify/done.json").read_text())
  done["result"]["taxonomy"]["modes"] = {"m-1": 3}
  (old / "verify/done.json").write_text(json.dumps(done))
  code, _, err = call("repro", "0" * 8, f"--workdir={old}")
  assert code == 2 and "not what this version writes" in err
  with pytest.raises(UserError, match="nothing is verified"):
    (tmp_path / "empty/manifest.json").write_text('{"stages": {}}')
    past.config_of(tmp_path / "empty")
