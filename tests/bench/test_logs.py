# SPDX-License-Identifier: Apache-2.0
"""Logs as lmms-eval writes them; Inspect's are read back by its own library where it is."""

import importlib.util
import json

import pytest

from auditdm_jax.bench import logs
from auditdm_jax.bench.predictions import PredictionStore
from auditdm_jax.core.config import UserError
from tests.bench import asked as made

_HAS_INSPECT = importlib.util.find_spec("inspect_ai") is not None


def _log(folder, **changes):
  asked, store = made.questions(made.items(4, **changes), entry="my/task"), PredictionStore(folder)
  model = made.Said(lambda p: "yes" if "0" in p else 'no\n"<b>\ud800')
  rows = made.scored(model, asked, store)
  return logs.log_of(rows, asked, store.find({asked.key(model.model, x) for x in asked.items}))


def test_lmms_evals_files(tmp_path):
  (path,) = logs.write_lmms_eval(tmp_path / "logs", [_log(tmp_path)], date="20260101_000000")
  results = json.loads(path.read_text())
  (task,) = results["results"]
  assert "/" not in task and results["results"][task]["mean,none"] == 0.25
  assert results["n-samples"][task] == {"original": 4, "effective": 4}
  samples = path.with_name(f"20260101_000000_samples_{task}.jsonl")
  rows = [json.loads(line) for line in samples.open()]
  assert [r["doc_id"] for r in rows] == [0, 1, 2, 3]
  assert [r["exact_match"] for r in rows] == [1, 0, 0, 0]
  assert rows[0]["target"] == "yes" and rows[0]["input"] == "Q: question 0?"
  assert rows[1]["filtered_resps"] == 'no\n"<b>?'


def test_items_that_count_together_have_their_units_score(tmp_path):
  found = _log(tmp_path, group=2)
  assert [x.score for x in found.samples] == [1, 0, 0, 0], "exact match knows no groups"
  assert logs.safe("../../etc/passwd") != logs.safe("..-..-etc-passwd")
  assert "/" not in logs.safe("../../etc/passwd") and logs.safe("vqav2") == "vqav2"


@pytest.mark.skipif(_HAS_INSPECT, reason="inspect_ai is installed")
def test_without_inspects_library_the_error_says_what_to_do(tmp_path):
  with pytest.raises(UserError, match="no module 'inspect_ai'; pip install inspect_ai"):
    logs.write_inspect(tmp_path, [_log(tmp_path)], created="2026-01-01T00:00:00+00:00")


@pytest.mark.skipif(not _HAS_INSPECT, reason="inspect_ai is not installed")
def test_inspect_reads_its_files(tmp_path):
  log_lib = importlib.import_module("inspect_ai.log")
  created = "2026-01-01T00:00:00+00:00"
  (path,) = logs.write_inspect(tmp_path, [_log(tmp_path)], created=created)
  found = log_lib.read_eval_log(str(path))
  assert found.status == "success" and len(found.samples) == 4
  assert [s.scores["exact_match"].value for s in found.samples] == [1, 0, 0, 0]
  assert found.results.scores[0].metrics["mean"].value == 0.25
