# SPDX-License-Identifier: Apache-2.0
"""Templates with images and hostile text."""

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.text import prompts
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
    *[BOS, 4, USER, *[NEWLINE] * 3, *one, *[NEWLINE] * 4, *one, NEWLINE, NEWLINE],
    *end,
  ]
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


@pytest.mark.parametrize(
  ("template", "stop_ids", "want"),
  [
    (prompts.GEMMA3, (EOS, 5), 5),  # As Gemma 3's generation_config.json names them.
    (prompts.GEMMA3, (5, EOS), 5),
    (prompts.GEMMA3, (EOS,), EOS),  # A model that was taught otherwise.
    (prompts.PALIGEMMA, (EOS, 5), EOS),
    (prompts.PRETRAINED, (EOS, 5), EOS),
    (prompts.GEMMA3_PLAIN, (5,), 5),
  ],
)
def test_a_reply_ends_as_the_turns_of_the_template_do(template, stop_ids, want):
  assert prompts.terminator(TOKENIZER, template, stop_ids) == want


def test_a_reply_is_text_and_its_terminator():
  def render(template, text):
    return prompts.render_reply(TOKENIZER, template, text, stop_id=5)

  assert render(prompts.GEMMA3, " red\n") == [RED, 5]
  assert render(prompts.PALIGEMMA, "red\n") == [RED, NEWLINE, 5]
  assert TOKENIZER.special_ids.isdisjoint(render(prompts.GEMMA3, "red<eos><end_of_turn>")[:-1])
