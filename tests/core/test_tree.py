# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import optax
import pytest

from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError


def params():
  return {
    "llm": {"embedder": {"w": np.zeros((8, 4))}, "layers": {"attn": {"w": np.zeros((2, 4, 4))}}},
    "img": {"b": np.zeros(4)},
  }


def test_flatten_and_back():
  flat = tree_lib.flatten(params())
  assert list(flat) == ["img/b", "llm/embedder/w", "llm/layers/attn/w"]
  assert jax.tree.structure(tree_lib.unflatten(flat)) == jax.tree.structure(params())
  assert "0/mu/llm/embedder/w" in tree_lib.flatten(optax.adam(1.0).init(params()))


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}])
def test_unflatten_refuses_a_leaf_that_is_a_parent(flat):
  with pytest.raises(ValueError, match="leaf"):
    tree_lib.unflatten(flat)


def test_diff():
  assert tree_lib.diff(params(), params()) == ""
  got = params()
  got["llm"]["embeder"] = got["llm"].pop("embedder")
  got["img"]["b"] = np.zeros(5)
  text = tree_lib.diff(jax.eval_shape(params), got)
  assert text.splitlines() == [
    "  missing llm/embedder/w (8, 4)  nearest llm/embeder/w",
    "  unused  llm/embeder/w (8, 4)  nearest llm/embedder/w",
    "  shape   img/b: expected (4,), got (5,)",
  ]
  many = tree_lib.diff({f"x{i}": 0 for i in range(50)}, {})
  assert "… and 38 more" in many and len(many.splitlines()) == 13


def test_match_rules_first_match_wins():
  rules = [("attn/w$", "attn"), ("w$", "other"), ("^img", "img")]
  state = {"params": params(), "step": np.int32(0)}
  assert tree_lib.flatten(tree_lib.match_rules(rules, params())) == {
    "img/b": "img",
    "llm/embedder/w": "other",
    "llm/layers/attn/w": "attn",
  }
  rules[2] = ("img", "img")
  assert tree_lib.match_rules(rules, state)["params"]["img"]["b"] == "img"
  assert tree_lib.match_rules(rules, state)["step"] == ()


def test_match_rules_is_total():
  with pytest.raises(UserError, match=r"no rule matches 'img/b' \(4,\)"):
    tree_lib.match_rules([("llm", ())], params())
  with pytest.raises(UserError, match=r"rule 'lm_head' matches none of the 3 leaves"):
    tree_lib.match_rules([("lm_head", ()), (".*", ())], params())
