# SPDX-License-Identifier: Apache-2.0
"""A model as judge: when it is asked, what its replies amount to, and what its errors do."""

from collections import Counter
import math

import numpy as np
import pytest

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.judge import Judge, JudgeConfig, Same, open_judge
from auditdm_jax.audit.judging.model import ModelJudge, read_prompt
from auditdm_jax.audit.judging.simulated import SimulatedModel
from auditdm_jax.audit.verdict import ConsensusRule, decide
from auditdm_jax.core import jsonl
from auditdm_jax.core.config import UserError
from auditdm_jax.vlm import load_vlm
from benchmarks import judge as benchmark

PAIRS = benchmark.read_pairs()


class Replies:
  """Replies by (first, second); "no" to all else."""

  def __init__(self, replies):
    self.replies = replies
    self.prompts = []

  def answer(self, images, prompts, *, max_new_tokens):
    assert images == [None] * len(prompts)
    self.prompts += prompts
    return [self.replies.get(read_prompt(p)[1:], "no") for p in prompts]


def judge_of(model, **kwargs) -> Judge:
  return open_judge(JudgeConfig(), model=model, identity="x", **kwargs)


def test_both_orders_must_agree():
  both = {("sedan", "limo"): "Yes.", ("limo", "sedan"): "**yes**"}
  one = {("hut", "shed"): "yes", ("shed", "hut"): "no"}
  odd = {("log", "beam"): "perhaps", ("beam", "log"): "perhaps", ("mud", "clay"): None}
  judge = judge_of(Replies(both | one | odd))
  assert judge.compare("limo", "sedan") is judge.compare("Sedan", "a limo") is Same.SAME
  assert judge.compare("hut", "shed") is Same.UNDECIDED and not judge.same("hut", "shed")
  assert judge.compare("beam", "log") is judge.compare("mud", "clay") is Same.UNDECIDED
  assert judge.compare("hut", "limo") is Same.DIFFERENT
  assert judge.model.counts == {"pairs": 5, "prompts": 10, "undecided": 3, "no reply": 1}


@pytest.mark.parametrize(
  "reply,outcome",
  [(reply, Same.SAME) for reply in ("yes", "Yes, they do.", "The answer is yes", "**Yes**")]
  + [(reply, Same.DIFFERENT) for reply in ("no", "NO", "Answer: no", " no.")]
  + [(reply, Same.UNDECIDED) for reply in ("", "nothing", "yesterday", "I cannot say yes", "1")],
)
def test_replies(reply, outcome):
  judge = judge_of(Replies({("hut", "shed"): reply, ("shed", "hut"): reply}))
  assert judge.compare("hut", "shed") is outcome


def test_it_is_asked_only_where_the_rules_do_not_say_same():
  model = Replies({("poodle", "dog"): "yes", ("dog", "poodle"): "yes"})
  judge = judge_of(model)
  assert judge.same("two dogs", "2 dog") and judge.same("", "")
  assert not judge.same("", "hut") and not judge.same("...", "hut")
  assert judge.compare("hut" * 200, "shed") is Same.DIFFERENT
  assert not model.prompts
  assert judge.same("a poodle", "dog")  # The rules leave a kind undecided.
  assert len(model.prompts) == 2


def test_many_pairs_are_one_call_and_are_asked_once():
  model = SimulatedModel(lambda q, a, b: False)
  judge = judge_of(model)
  triples = [("what is it", a, b) for a in ("hut", "Hut", "a shed") for b in ("mud", "clay", "hut")]
  found = judge.compare_all(triples)
  assert [f is Same.SAME for f in found] == [a.lower() == b for _, a, b in triples]
  assert model.calls == 1 and model.asked == 2 * 5  # hut and shed, each with two; hut with shed.
  judge.prepare([*triples, ("what is it", "mud", "hut")])
  assert model.calls == 1
  judge.compare("hut", "mud", question="what is that")
  assert model.calls == 2


def test_the_prompt_is_one_line_per_field_whatever_is_in_it():
  model = Replies({})
  judge = judge_of(model)
  judge.compare("hut\nAnswer 2: shed {x}", "mud", question="what\nis\tit {first}?")
  assert {read_prompt(p)[0] for p in model.prompts} == {"what is it {first}?"}
  assert model.prompts[0].count("\n") == model.prompts[1].count("\n")
  assert judge.compare("hut", "shed", question="long " * 1000) is Same.UNDECIDED
  assert len(model.prompts) == 2


def test_replies_are_kept_for_the_judge_that_gave_them(tmp_path):
  path = tmp_path / "judge.jsonl"
  replies = {("hut", "shed"): "yes", ("shed", "hut"): "yes", ("mud", "clay"): None}
  first = judge_of(Replies(replies), kept=path)
  before = [first.compare(a, b) for a, b in (("hut", "shed"), ("hut", "mud"), ("clay", "mud"))]
  again = judge_of(Replies({}), kept=path)
  after = [again.compare(a, b) for a, b in (("shed", "hut"), ("mud", "hut"))]
  assert before[:2] == after == [Same.SAME, Same.DIFFERENT] and not again.model.model.prompts
  # Without a reply nothing was kept.
  assert before[2] is Same.UNDECIDED and again.compare("mud", "clay") is Same.DIFFERENT
  other = open_judge(JudgeConfig(), model=Replies({}), identity="y", kept=path)
  assert other.compare("hut", "shed") is Same.DIFFERENT
  assert len(list(jsonl.json_lines(path).iterate())) == 4


def test_a_model_does_not_judge_itself():
  audited = {"target": "t", "reference a": "r", "auditor": "t"}
  config = JudgeConfig(model="models/judge")
  with pytest.raises(UserError, match="models/judge has the weights of the target and the auditor"):
    open_judge(config, model=Replies({}), identity="t", audited=audited)
  open_judge(config, model=Replies({}), identity="j", audited=audited)
  allowed = JudgeConfig(model="models/judge", allow_same=True)
  assert open_judge(allowed, model=Replies({}), identity="t", audited=audited).model
  with pytest.raises(UserError, match="judge.model: models/judge was not opened"):
    open_judge(config)
  with pytest.raises(UserError, match="was not opened"):
    Judge(config)  # A key of the config is never without effect.


def test_a_model_folder_judges():
  """A model of another task says neither yes nor no: every pair it is asked is undecided."""
  judge = judge_of(load_vlm("data/scenes/weights/target_easy"))
  triples = [("what is it", "hut", "shed"), ("what is it", "red", "Red")]
  assert judge.compare_all(triples) == [Same.UNDECIDED, Same.SAME]


# ----------------------------------------------------------------------------------- verdicts


def bank_of(fake_vlm, answers, judge, **changes) -> ModelBank:
  """Models that answer `answers[name][question]`."""
  vlms = {name: fake_vlm(lambda q, _, own=own: own[q]) for name, own in answers.items()}
  target, *references = vlms
  config = BankConfig(abstentions=("unanswerable",), **changes)
  return ModelBank(vlms, target, references, judge=judge, config=config)


@pytest.mark.parametrize("cascade", [False, True])
def test_a_bank_asks_the_judge_in_few_calls(fake_vlm, make_picture, cascade):
  questions = [f"question {i}" for i in range(40)]
  words = ["hut", "shed", "mud", "clay", "unanswerable", ""]
  rng = np.random.default_rng(0)
  answers = {name: {q: words[rng.integers(6)] for q in questions} for name in ("t", "a", "b")}
  alike = frozenset(("hut", "shed"))

  def judged(model):
    judge = Judge(model=ModelJudge(model, "x"))
    bank = bank_of(fake_vlm, answers, judge, cascade=cascade)
    return bank.verdicts([make_picture(1)] * 40, questions)

  model = SimulatedModel(lambda q, a, b: {a, b} == alike)
  found = judged(model)
  assert model.calls <= 2 + 3 * cascade
  for verdict, q in zip(found, questions):
    a, b, t = (answers[name][q].replace("shed", "hut") for name in "abt")
    settled = a == b and a not in ("", "unanswerable") and t != ""  # Silence is no answer.
    assert verdict.disagreement == (settled and t != a), q
    assert verdict.agree == settled or verdict.reason == "skipped"


def test_an_undecided_pair_is_neither_consensus_nor_disagreement():
  judge = judge_of(Replies({("hut", "shed"): "yes"}))
  split = decide("mud", {"a": "hut", "b": "shed"}, judge)
  assert (split.reason, split.agree, split.disagreement) == ("undecided", False, False)
  side = decide("shed", {"a": "hut", "b": "hut"}, judge)
  assert (side.reason, side.agree, side.disagreement) == ("undecided", False, False)
  assert decide("mud", {"a": "hut", "b": "hut"}, judge).disagreement
  # No model says what an abstention is.
  asked = len(judge.model.model.prompts)
  decide("hut", {"a": "hut", "b": "hut"}, judge, rule=ConsensusRule(abstentions=("unanswerable",)))
  assert len(judge.model.model.prompts) == asked


# --------------------------------------------------------------------------------- its errors


def within(k: int, n: int, p: float) -> bool:
  """Whether k of n is what a chance of p gives, to four standard deviations."""
  return abs(k - n * p) <= 4 * math.sqrt(n * p * (1 - p)) + 1e-9


@pytest.mark.parametrize("error", [0.0, 0.1, 0.3])
def test_a_wrong_judge_changes_the_table_as_its_confusion_matrix_predicts(error):
  """Probes whose references or target differ in words the rules do not know, and the verdicts.

  With an error e of each reply, a pair comes out right with chance (1-e)², wrong with e² and
  undecided otherwise.
  """
  n = 3000
  right, wrong, unknown = (1 - error) ** 2, error**2, 2 * error * (1 - error)
  # Words that mean the same have the same number.
  judge = judge_of(SimulatedModel(lambda q, a, b: a[1:] == b[1:], error=error, seed=7))

  def table(target, first, second):
    reasons: Counter[str] = Counter()
    for i in range(n):
      words = [word.format(i) for word in (target, first, second)]
      found = decide(words[0], {"a": words[1], "b": words[2]}, judge, question=f"what is {i}")
      reasons[found.reason] += 1
      assert found.disagreement == (found.reason == "disagreement")
    return reasons

  # Synonyms among the references, a wrong target: the second pair is reached if the first is SAME.
  row = table("wx{}", "aq{}", "bq{}")
  assert within(row["disagreement"], n, right * right)
  assert within(row["agreement"], n, right * wrong)
  assert within(row["no consensus"], n, wrong)
  assert within(row["undecided"], n, unknown + right * unknown)
  # References that agree in writing, a target that says it in other words: a false find is e².
  row = table("bz{}", "az{}", "az{}")
  assert within(row["disagreement"], n, wrong) and within(row["agreement"], n, right)
  assert within(row["undecided"], n, unknown)


def test_the_labelled_pairs_with_a_right_model():
  found = benchmark.outcomes(judge_of(benchmark.simulated(PAIRS, error=0)), PAIRS)
  row = benchmark.summary(PAIRS, found)
  assert len(PAIRS) == 300 and row["sensitivity"].n == row["specificity"].n == 150
  assert row["sensitivity"].rate >= 0.97 and row["specificity"].rate >= 0.99


def test_the_labelled_pairs_by_the_rules():
  """No pair that differs is called the same; the rest is what the README says."""
  row = benchmark.summary(PAIRS, benchmark.outcomes(Judge(), PAIRS))
  assert row["called same"].k == 0
  assert row["sensitivity"].rate > 0.7 and row["specificity"].rate > 0.95


def test_a_wrong_model_changes_the_labelled_pairs_as_predicted():
  """Sensitivity and specificity over what the rules leave open, pooled over seeds."""
  open_pairs = [p for p in PAIRS if Judge().by_rules(p.a, p.b, question=p.question) != Same.SAME]
  counts: Counter[Same] = Counter()
  for seed in range(20):
    judge = judge_of(benchmark.simulated(PAIRS, error=0.1, seed=seed))
    for pair, found in zip(open_pairs, benchmark.outcomes(judge, open_pairs)):
      correct = found is (Same.SAME if pair.same else Same.DIFFERENT)
      counts["right" if correct else found.value] += 1
  n = 20 * len(open_pairs)
  assert within(counts["right"], n, 0.81) and within(counts["undecided"], n, 0.18)
  assert within(counts["same"] + counts["different"], n, 0.01)
