# SPDX-License-Identifier: Apache-2.0
"""Both sides of test_answer run and say the same: whoever measures them finds nothing moved on."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from auditdm_jax.vlm import load_vlm  # noqa: E402
from tests.perf import answer_speed  # noqa: E402

SIZES = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, head_dim=16)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
  """The model of transformers, and ours of the same checkpoint, much smaller than the measured."""
  folder = tmp_path_factory.mktemp("gemma3")
  config = transformers.Gemma3TextConfig
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(answer_speed, "WORDS", answer_speed.WORDS[:300])
    patch.setattr(answer_speed, "NEW", 3)
    patch.setattr(transformers, "Gemma3TextConfig", lambda **sizes: config(**(sizes | SIZES)))
    answer_speed.make(folder)
    yield transformers.Gemma3ForCausalLM.from_pretrained(folder).eval(), load_vlm(folder)


def test_greedy_answers_are_equal(sides):
  row = answer_speed.measure(*answer_speed.answers(*sides, 4, 16), 1)
  assert row["equal"] == 1.0 and len(row["ours"]) == len(row["theirs"]) == 1


def test_groups_are_sampled(sides):
  row = answer_speed.measure(*answer_speed.groups(*sides, 2, 16, 2), 1)
  assert "equal" not in row and row["first"].keys() == {"theirs", "ours"}
