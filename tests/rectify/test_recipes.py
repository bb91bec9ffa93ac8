# SPDX-License-Identifier: Apache-2.0
"""Recipes are complete, consistent and found by name."""

import pytest

from auditdm_jax.core import config
from auditdm_jax.rectify import recipes


def test_published_values():
  chartqa = recipes.get("chartqa")
  assert (chartqa.epochs, chartqa.batch_size, chartqa.lr, chartqa.label_smoothing) == (
    30,
    256,
    1e-5,
    0.2,
  )
  assert recipes.get("gqa").freeze == () and recipes.get("gqa-448").freeze == ("img",)
  assert recipes.get("forkme").wd == 3e-7 and recipes.get("refcoco").lr == 3e-5


def test_steps_count_new_examples():
  assert recipes.get("forkme").num_steps(320) == 150
  half = recipes.Recipe(epochs=2, batch_size=64, lr=1e-3, replay=0.5)
  assert half.new_per_batch == 32 and half.num_steps(320) == 20
  assert recipes.get("scenes").num_steps(7) == 1200
  assert recipes.Recipe(epochs=1, batch_size=64, lr=1e-3).num_steps(1) == 1


@pytest.mark.parametrize("bad", [{}, {"steps": 1, "epochs": 1}, {"steps": 1, "replay": 1.0}])
def test_inconsistent_recipes_are_refused(bad):
  with pytest.raises(ValueError):
    recipes.Recipe(batch_size=8, lr=1e-3, **bad)


def test_names_are_suggested():
  with pytest.raises(config.UserError, match="did you mean 'chartqa'"):
    recipes.get("chart_qa")
