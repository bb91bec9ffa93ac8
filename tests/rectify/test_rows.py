# SPDX-License-Identifier: Apache-2.0
"""Rows: what is supervised, where it is predicted, and what sees what."""

import dataclasses

import numpy as np
import pytest

from auditdm_jax.models import multimodal
from auditdm_jax.rectify import rows
from auditdm_jax.text import prompts
from tests import tiny_vlm

QUESTIONS, LABELS = ["what is red ?", "where is the blue thing ?"], ["a b", "cup"]
TOKENIZER = tiny_vlm.TOKENIZER
EOS, END = map(TOKENIZER.id, ("<eos>", "<end_of_turn>"))


def layout(kind, template, **options):
  vlm = dataclasses.replace(tiny_vlm.make(kind), template=template, stop_ids=(EOS, END))
  return vlm, rows.RowLayout.of(vlm, **(dict(length=40, suffix=4) | options))


@pytest.mark.parametrize(
  ("kind", "template", "end"),
  [
    ("paligemma", prompts.PALIGEMMA, EOS),
    ("gemma3", prompts.GEMMA3_PLAIN, EOS),
    ("gemma3", "<bos><start_of_turn>{image}{text|trim}<end_of_turn>\n<start_of_turn>", END),
  ],
)
def test_rows_of_each_family(kind, template, end):
  vlm, own = layout(kind, template)
  got = own.rows(QUESTIONS, LABELS)
  # Prompts see what the architecture prescribes, and what is said sees what came before it.
  prescribed = np.array(multimodal.default_ar(vlm.config, got["tokens"]))
  for i, (question, label) in enumerate(zip(QUESTIONS, LABELS)):
    prompt = prompts.render(TOKENIZER, template, question, vlm.config.num_image_tokens)
    said = [*TOKENIZER.encode(label), end]
    p, n = len(prompt), len(prompt) + len(said) - 1
    assert got["tokens"][i, :n].tolist() == [*prompt, *said[:-1]]
    assert got["valid"][i].tolist() == [True] * n + [False] * (own.length - n)
    assert got["targets"][i, got["mask"][i]].tolist() == said
    assert got["position"][i, got["mask"][i]].tolist() == list(range(p - 1, n))
    assert got["ar"][i, :p].tolist() == prescribed[i, :p].tolist()
    assert (got["ar"][i, p:] == 1).all()
    inside = vlm.config.num_image_tokens - 1
    assert np.sum(got["ar"][i, :p] == 0) == (p if kind == "paligemma" else inside)


def test_what_does_not_fit_is_an_error_that_names_it():
  vlm, own = layout("paligemma", prompts.PALIGEMMA, suffix=2)
  with pytest.raises(ValueError, match="3 suffix tokens do not fit in 40 with 2: 'what is red"):
    own.rows(QUESTIONS, LABELS)
  short = rows.RowLayout.of(vlm, length=8, suffix=4)
  with pytest.raises(ValueError, match="prompt and 3 suffix tokens do not fit in 8 with 4"):
    short.rows(QUESTIONS, LABELS)
