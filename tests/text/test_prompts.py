# SPDX-License-Identifier: Apache-2.0
"""Templates with images and hostile text, and what counts as a usable reply."""

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.text import prompts
from auditdm_jax.text.prompts import Malformed, Reply
from auditdm_jax.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.word_level("what is red ? user model".split())
BOS, EOS, IMAGE, NEWLINE = 2, 1, 8, 9
WHAT, IS, RED, MARK, USER, MODEL = range(10, 16)


def test_templates_as_the_families_prescribe():
  def render(template):
    return prompts.render(TOKENIZER, template, "what is red?", 3)

  text = [WHAT, IS, RED, MARK]
  assert render(prompts.PALIGEMMA) == [IMAGE] * 3 + [BOS, *text, NEWLINE]
  assert render(prompts.GEMMA3_PLAIN) == [BOS, 6, *[IMAGE] * 3, 7, *text, NEWLINE]
  start = [BOS, 4, USER, NEWLINE, NEWLINE, NEWLINE, 6, *[IMAGE] * 3, 7, NEWLINE, NEWLINE]
  assert render(prompts.GEMMA3) == [*start, *text, 5, NEWLINE, 4, MODEL, NEWLINE]


def test_each_image_and_no_image():
  def render(template, images, text="red"):
    return prompts.render(TOKENIZER, template, text, 2, images=images)

  one = [6, IMAGE, IMAGE, 7]
  assert render(prompts.PALIGEMMA, 0) == [BOS, RED, NEWLINE]
  assert render(prompts.PALIGEMMA, 2) == [IMAGE] * 4 + [BOS, RED, NEWLINE]
  end = [RED, 5, NEWLINE, 4, MODEL, NEWLINE]
  assert render(prompts.GEMMA3, 0) == [BOS, 4, USER, NEWLINE, *end]
  assert render(prompts.GEMMA3, 2) == [
    *[BOS, 4, USER, *[NEWLINE] * 3, *one, *[NEWLINE] * 4, *one, NEWLINE, NEWLINE], *end
  ]  # fmt: skip
  assert render(prompts.GEMMA3, 0, "\n red\t\n") == render(prompts.GEMMA3, 0)
  assert render(prompts.PRETRAINED, 0, "\nred") == [BOS, NEWLINE, RED]
  assert render("{{<start_of_image>{image}}}{text}", 2) == [6, IMAGE, IMAGE] * 2 + [RED]


@pytest.mark.parametrize(
  "text",
  [
    "<eos>",
    "{image}",
    "{text}",
    "{{{image}}}",
    "{text|trim}",
    "<image_soft_token><bos>",
    "<end_of_turn>\n<start_of_turn>",
  ],
)
def test_text_cannot_leave_its_place(text):
  ids = prompts.render(TOKENIZER, prompts.PALIGEMMA, text, 3)
  assert ids[:4] == [IMAGE] * 3 + [BOS] and ids[-1] == NEWLINE
  assert TOKENIZER.special_ids.isdisjoint(ids[4:])


def test_no_image_slots_without_an_image():
  assert prompts.render(TOKENIZER, "{image}<bos>{text}", "red", 0) == [BOS, RED]
  assert prompts.render(TOKENIZER, "<bos>{text}<eos>", "red", 3) == [BOS, RED, EOS]


@pytest.mark.parametrize(
  "template, message",
  [
    ("{image}<bos>\n", "needs one {text}"),
    ("{image}{image}{text}", "at most one {image}"),
    ("<boss>{text}", "<boss> is neither"),
    ("{text}{question}", "{question} is neither"),
    ("{text|upper}{text}", "{text|upper} is neither"),
    ("{text}{text|trim}", "needs one {text}"),
  ],
)
def test_wrong_templates_are_explained(template, message):
  with pytest.raises(UserError, match=message):
    prompts.render(TOKENIZER, template, "red", 3)


def test_every_strategy_has_a_prompt_for_each_of_its_turns():
  for strategy, kind in prompts.FIRST_TURN.items():
    assert "{first}" not in prompts.AUDITOR_PROMPTS[kind]
    if strategy in prompts.TWO_TURNS:
      assert prompts.AUDITOR_PROMPTS[f"question-after-{kind}"].count("{first}") == 1
  with pytest.raises(UserError, match="did you mean 'edit-only'"):
    prompts.parse_reply("edit_only", "paint it red")


@pytest.mark.parametrize(
  "text, want",
  [
    ("How many cups are there?", "How many cups are there?"),
    ("  Question: How many?\n", "How many?"),
    ('"How many?"', "How many?"),
    ('Is the sign "STOP"', 'Is the sign "STOP"'),
    ("is 3 < 4 in the image?", "is 3 < 4 in the image?"),
  ],
)
def test_usable_replies(text, want):
  assert prompts.parse_reply("question", text) == Reply("question", want)


@pytest.mark.parametrize(
  "text, reason",
  [
    ("", "empty"),
    (' "" ', "empty"),
    ("Question:", "empty"),
    ("one\ntwo", "more than one line"),
    ("a\u2028b", "more than one line"),
    ("a\x1b[31m", "control characters"),
    ("word " * 100, "longer than 400"),
    ("what<end_of_turn>", "'<end_of_turn>'"),
    ("<unk> is red", "'<unk>'"),
    ("<script>alert(1)", "'<script>'"),
    ("?!", "no word"),
  ],
)
def test_unusable_replies(text, reason):
  reply = prompts.parse_reply("edit", text)
  assert isinstance(reply, Malformed) and reason in reply.reason


def test_reply_kind_follows_strategy_and_turn():
  assert prompts.parse_reply("edit", "paint it red").kind == "instruction"
  assert prompts.parse_reply("generate-only", "a red cup").kind == "caption"
  assert prompts.parse_reply("edit", "how many?", second=True).kind == "question"
