# SPDX-License-Identifier: Apache-2.0
"""The sweep on a folder of images: resumed as straight, nothing twice, without questions."""

import collections
import itertools
import pathlib
import runpy

import pytest

from auditdm_jax.audit.mutating import Mutations
from auditdm_jax.audit.skills import Seeds, Skill
from auditdm_jax.core.config import UserError
from auditdm_jax.rl.surrogate import Surrogate
from auditdm_jax.stages import discover, proposing, rewording
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.wordings import Wordings
from tests.stages.folders import images_of_scenes

ROOT = pathlib.Path(__file__).parents[2]


class Killed(Exception):
  """Stands for the end of a process."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """Images of scenes at data/asked with questions, and at data/mute without."""
  folder = tmp_path_factory.mktemp("home")
  for name in ("asked", "mute"):
    images_of_scenes(folder / "data" / name / "train", images=40, seed=0)
  (folder / "data/mute/train/questions.jsonl").unlink()
  return folder


def _config(home, dataset="asked", **discover):
  config = runpy.run_path(str(ROOT / "configs/scenes.py"))["get_config"]()
  config.pool.update(builder="", data_dir=str(home / "data"), dataset=dataset, images="train")
  config.pool.update(heldout="train", fresh="")
  config.rollout = config.rollout.to_dict() | {
    "prompts": {"question": 4},
    "surrogate": {"least": 40, "fits": 4, "batch": 32, "width": 24},
  }
  config.optim.steps = 0
  config.discover.update(dict(probes=120, batch=48, proposals=4) | discover)
  return config


def _sweep(config, workdir):
  """Runs the stage; returns its result and its attempts by batch."""
  with Context(config, workdir, "discover") as ctx:
    result = discover.run(ctx)
    return result, list(ctx.folder.sweep()), ctx.folder.ranked()


def _kill_after_two_batches(monkeypatch, config, workdir):
  """Runs the stage until the third batch is half written."""
  append = RunFolder.append_sweep

  def cut(folder, ranked, attempts):
    append(folder, ranked, attempts)
    if ranked.batch == 2:
      path = folder.path / "discover/attempts-0.jsonl"
      path.write_bytes(path.read_bytes()[:-700])  # The last rows are lost.
      raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(RunFolder, "append_sweep", cut)
    _sweep(config, workdir)


def test_a_sweep_with_made_images_and_their_mutations_goes_on_to_the_same_end(
  home, tmp_path, monkeypatch
):
  config = _config(home, batch=30, sources=("untrained", "mutated"), proposals=8)
  config.rollout["prompts"] = {"question": 1, "generate": 2, "edit": 1}
  kinds, add = collections.defaultdict(set), Mutations.add

  def spied(self, find, kind):
    kinds[kind].add(find.question)
    add(self, find, kind)

  with monkeypatch.context() as patch:
    patch.setattr(Mutations, "add", spied)
    straight = _sweep(config, tmp_path / "straight")
  _kill_after_two_batches(monkeypatch, config, tmp_path / "killed")
  assert _sweep(config, tmp_path / "killed") == straight
  result, batches, ranked = straight
  assert result.queries == 120 and ranked[0].made <= 23, "three of four probes, not of 240 samples"
  first = [a.probe for a in batches[0][1]]
  made = collections.Counter(p.image_id for p in first if p.image_id != p.origin_id)
  assert max(made.values()) > 1, "several questions are about one made image"
  finds = [find for _, own in batches for a in own if (find := a.find)]
  told = {(k.partition(": ")[2], q) for k, questions in kinds.items() for q in questions}
  assert told == {(f.consensus, f.probe.question) for f in finds}, "a kind has one consensus"
  parents, remade, again, fresh = set(), 0, 0, 0
  for _, attempts in batches:
    for p in (a.probe for a in attempts if a.probe.arm == "mutated"):
      text = p.caption or p.instruction
      same = [f for f in parents if (f.caption or f.instruction) and f.strategy == p.strategy]
      if text and p.image_id in {f.image_id for f in same}:
        again += 1
        assert any(_words_apart(p.question, f.question) == 1 for f in same)
      elif text and any(
        p.question == f.question and _words_apart(text, f.caption or f.instruction) <= 1
        for f in same
      ):
        remade += 1
      elif text:
        fresh += 1
        assert any(_words_apart(p.question, f.question) <= 1 for f in parents)
    parents |= {a.probe for a in attempts if a.find}
  assert remade and again and fresh


@pytest.mark.parametrize("killed", [False, True])
def test_images_are_made_for_the_drafts_that_say_what_was_said_least(
  home, tmp_path, monkeypatch, killed
):
  configs = {n: _config(home, batch=30, sources=("untrained",), drafts=n) for n in (1, 6)}
  for config in configs.values():
    config.rollout["prompts"] = {"generate": 4}
  if killed:
    _kill_after_two_batches(monkeypatch, configs[6], tmp_path / "6")
    straight = _sweep(configs[6], tmp_path / "straight")
    assert _sweep(configs[6], tmp_path / "6") == straight
    return
  runs = {n: _sweep(config, tmp_path / str(n)) for n, config in configs.items()}
  pairs = {}
  for n, (result, batches, ranked) in runs.items():
    asked = {a.probe.image_id: a.probe.caption for _, own in batches for a in own}
    made = sum(row.made for row in ranked)
    assert made <= result.arms["untrained"]["proposals"] / 4 == 120, "four are about each"
    words = [sorted(set(text.split())) for text in asked.values()]
    pairs[n] = {pair for own in words for pair in itertools.combinations(own, 2)}
  assert len(pairs[6]) > 1.1 * len(pairs[1]), "more is shown together"
  work = {n: sum(row.flops["auditors"] for row in ranked) for n, (*_, ranked) in runs.items()}
  assert work[6] > 1.05 * work[1], "what was written and left out is work too"


@pytest.mark.parametrize("reader", ["", "auditor"])
def test_a_sweep_that_is_killed_goes_on_to_the_same_end(home, tmp_path, monkeypatch, reader):
  config = _config(home, ranking=dict(new=0.25 if reader else 0.0))
  config.rollout.surrogate["reader"] = reader
  straight, batches, ranked = _sweep(config, tmp_path / "straight")
  _kill_after_two_batches(monkeypatch, config, tmp_path / "killed")
  again, other, chosen_from = _sweep(config, tmp_path / "killed")
  assert [batch for batch, _ in batches] == [0, 1, 2]
  assert (again, other, chosen_from) == (straight, batches, ranked)

  attempts = [a for _, own in batches for a in own]
  assert len({a.probe.probe_id for a in attempts}) == len(attempts) == straight.queries == 120
  assert {a.probe.way for a in batches[0][1]} == {"lot"}, "before any verdict all is by lot"
  assert {a.probe.way for a in batches[2][1]} & {"kind", "rank"}, "then it ranks"
  new = sum(a.probe.way == "new" for a in batches[2][1])
  assert new == (6 if reader else 0), "a quarter of 24 is what is least like the others"
  distinct = [len({a.probe.score for a in own}) / len(own) for _, own in batches]
  assert distinct[1] > 0.9 > 0.6 > distinct[2], "corrected by shares of what batch 1 predicted"

  attempts = [a for _, own in batches for a in own]
  assert len({a.probe.probe_id for a in attempts}) == len(attempts) == straight.queries == 120
  assert {a.probe.way for a in batches[0][1]} == {"lot"}, "before any verdict all is by lot"
  assert {a.probe.way for a in batches[2][1]} & {"kind", "rank"}, "then it ranks"
  several = {a.probe.score for a in batches[1][1]}, {a.probe.score for a in batches[2][1]}
  assert len(several[1]) < len(several[0]), "isotonic regression makes equal shares of batch 2"
  assert {a.probe.arm for a in attempts} == {"untrained", "random"}
  row = ranked[2]
  assert row.images <= 40 and row.candidates > 24 and row.made == 0
  assert sum(straight.arms[arm]["proposals"] for arm in straight.arms) == sum(
    sum(r.proposals.values()) for r in ranked
  )


def test_the_auditor_alone_asks_about_images_without_questions(home, tmp_path):
  result, batches, _ = _sweep(_config(home, "mute", probes=48), tmp_path)
  assert set(result.arms) == {"untrained"} and result.queries == 48
  assert all(a.verdict is not None and a.probe.question for _, own in batches for a in own)


def test_with_one_proposal_each_nothing_is_left_out(home, tmp_path):
  result, batches, ranked = _sweep(_config(home, probes=48, proposals=0), tmp_path)
  assert ranked[0].candidates == len(batches[0][1]) <= 48
  assert result.queries == sum(len(own) for _, own in batches) == 48, "another batch makes up"
  assert sum(ranked[0].proposals.values()) == 48


@pytest.mark.parametrize(
  "sources", [("random",), ("untrained",), ("random", "mutated")], ids="-".join
)
def test_an_arm_of_some_sources_spends_exactly_its_queries(home, tmp_path, sources):
  config = _config(home, probes=100, proposals=0, start=0, fits=0, sources=sources)
  result, batches, _ = _sweep(config, tmp_path)
  attempts = [a for _, own in batches for a in own]
  assert set(result.arms) == set(sources) and result.queries == len(attempts) == 100
  assert len({a.probe.probe_id for a in attempts}) == 100, "nothing is asked twice"
  assert all(a.probe.score is None for a in attempts), "nothing was predicted"
  finds = {a.probe.question for _, own in batches[:-1] for a in own if a.find}
  children = [a.probe for _, own in batches for a in own if a.probe.arm == "mutated"]
  assert ("mutated" in sources) == bool(children) and finds
  near = [any(_words_apart(p.question, q) <= 1 for q in finds) for p in children]
  assert all(near), "a child has one word of a find's question changed, or none"


def _words_apart(a, b):
  a, b = a.split(), b.split()
  return sum(x != y for x, y in zip(a, b)) if len(a) == len(b) else len(a)


@pytest.mark.parametrize("killed", [False, True])
def test_a_disagreement_that_does_not_return_in_other_words_is_no_find(
  home, tmp_path, monkeypatch, killed
):
  learned = []
  real, observe, add = rewording._returned, Surrogate.observe, Mutations.add

  def sometimes(find, verdict, judge, *, question):
    if "dial" in question:
      return None
    return real(find, verdict, judge, question=question) and "color" not in question

  def observed(self, questions, images, finds):
    learned.extend(q for q, find in zip(questions, finds) if find)
    observe(self, questions, images, finds)

  def added(self, find, kind):
    learned.append(find.question)
    add(self, find, kind)

  monkeypatch.setattr(rewording, "_returned", sometimes)
  config = _config(home, again=True, sources=("random", "mutated"), batch=40)
  if killed:
    _kill_after_two_batches(monkeypatch, config, tmp_path / "killed")
    assert _sweep(config, tmp_path / "killed") == _sweep(config, tmp_path / "straight")
    return
  monkeypatch.setattr(Surrogate, "observe", observed)
  monkeypatch.setattr(Mutations, "add", added)
  result, batches, _ = _sweep(config, tmp_path)
  attempts = [a for _, own in batches for a in own]
  disagreed = [a for a in attempts if a.verdict.disagreement]
  tried = [a for a in disagreed if a.again]
  assert len(tried) > 0.8 * len(disagreed) > 10, "all but a few of the last batches"
  assert all(a.again.question != a.probe.question for a in tried)
  assert result.queries == sum(a.queries for a in attempts) == 120 == len(attempts) + len(tried)
  asked = [a.probe.probe_id for a in attempts]
  assert len({*asked}) == len(asked), "nothing is asked twice"
  for i, (_, own) in enumerate(batches):
    later = {a.probe.probe_id for _, more in batches[i + 1 :] for a in more}
    assert not later & {a.again.verdict.probe_id for a in own if a.again}, "nor in other words"
  dropped = [a for a in tried if a.again.returned is False]
  assert dropped and any("color" in a.again.question for a in dropped)
  assert all(a.find is None for a in dropped) and all(a.find for a in tried if a not in dropped)
  kept = {a.probe.question for a in attempts if a.find}
  assert {*learned} == kept, "nothing learns from what did not return"


def test_what_has_no_other_words_stands_and_is_told(home, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(Wordings, "of", lambda self, questions, count: lambda question, k: None)
  _, batches, _ = _sweep(_config(home, again=True, probes=60, sources=("random",)), tmp_path)
  finds = [a for _, own in batches for a in own if a.find]
  assert finds and not any(a.again for a in finds)
  assert f"{len(finds)} of {len(finds)} disagreements are finds in one wording" in caplog.text


def test_somebody_must_word_questions_otherwise(home, tmp_path):
  config = _config(home, again=True)
  config.world.update(name="", gaps="")
  config.verify.paraphraser = ""
  with pytest.raises(UserError, match="nobody words questions otherwise.*verify.paraphraser"):
    _sweep(config, tmp_path)


def test_the_untrained_auditor_is_shown_the_first_finds_of_new_kinds(home, tmp_path, monkeypatch):
  told = []
  make = proposing.make_prober

  def spy(ctx, sight, **more):
    prober = make(ctx, sight, **more)
    told.append((tuple(more.get("shots", ())), prober.config.task["question"]))
    return prober

  monkeypatch.setattr(proposing, "make_prober", spy)
  config = _config(home, probes=60, proposals=0, sources=("untrained",), shots=2)
  result, batches, _ = _sweep(config, tmp_path)
  (none, plain), (shots, task) = told
  assert none == () and len(shots) == 2 and task.endswith(plain)
  finds = [(a.probe.question, a.find.consensus) for _, own in batches for a in own if a.find]
  assert finds[0] == shots[0] and set(shots) <= set(finds)
  assert all(f"- {question} ({answer})" in task for question, answer in shots)


def test_an_unknown_source_and_sources_without_questions_are_said(home, tmp_path):
  with pytest.raises(UserError, match="'mutatd' is no source.*mutated"):
    _sweep(_config(home, sources=("mutatd",)), tmp_path / "a")
  with pytest.raises(UserError, match="none of them has a question to propose"):
    _sweep(_config(home, "mute", sources=("random", "mutated")), tmp_path / "b")


def test_no_probes_ask_nothing(home, tmp_path):
  result, batches, _ = _sweep(_config(home, probes=0), tmp_path)
  assert result.queries == 0 and not batches


def test_a_trained_run_needs_its_auditors(home, tmp_path):
  config = _config(home)
  config.optim.steps = 2
  with pytest.raises(UserError, match="no trained auditor; run the stage train first"):
    _sweep(config, tmp_path)


def test_kinds_are_skills_or_the_first_words():
  kind = discover.Kinds(Seeds((Skill("gauge", "How full a gauge is.", (), r"^how full"),)))
  assert kind("How full is the gauge?") == "gauge"
  assert kind("What color is the cup?") == kind("what color are the shoes") == "what color"
