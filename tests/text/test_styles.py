# SPDX-License-Identifier: Apache-2.0
"""How models are asked, by their origin and by the config."""

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.text import styles
from auditdm_jax.text.short import Short
from auditdm_jax.text.styles import RawReply, Style

OPTIONS = "Which one?\nA. red\nB. blue"


def test_questions_are_put_as_the_origin_wants():
  assert styles.PLAIN.put("what is it ?") == "what is it ?"
  assert styles.PALIGEMMA.put("what is it?") == "answer en what is it?"
  assert styles.CHAT.put("What is it?").splitlines()[1].endswith("single word or phrase.")
  assert "letter" in styles.CHAT.put(OPTIONS) and "word" not in styles.CHAT.put(OPTIONS)


def test_a_system_text_is_folded_in_where_there_is_no_turn_for_it():
  style = Style(system="Be brief.", suffix=" Please.")
  assert style.put("What?") == "Be brief.\n\nWhat? Please."
  assert style.put("What?", has_system_turn=True) == "What? Please."


@pytest.mark.parametrize(
  ("name", "paligemma", "has_turns", "style"),
  [
    ("paligemma2-3b-mix-448", True, False, styles.PALIGEMMA),
    ("paligemma-3b-pt-224", True, False, styles.PALIGEMMA),
    ("paligemma-3b-ft-vqav2-448", True, False, styles.PALIGEMMA),
    ("paligemma-3b-ft-docvqa-896", True, False, styles.BARE),
    ("gemma-3-4b-it", False, True, styles.CHAT),
    ("gemma-3-4b-pt", False, False, styles.COMPLETION),
  ],
)
def test_style_of_published_checkpoints(name, paligemma, has_turns, style):
  assert styles.style_for(name, paligemma=paligemma, has_turns=has_turns) is style


def test_plain_takes_the_reply_as_it_is():
  take = lambda text, finish="stop": styles.PLAIN.short(RawReply(text, finish), "is it red ?")  # noqa: E731
  assert take("Yes, it is. ") == Short("Yes, it is. ", "answer")
  assert take("unanswerable") == Short("unanswerable", "answer")
  assert take("red red", "length") == Short(None, "truncated")
  assert take("") == Short(None, "empty")


def test_a_completion_ends_with_its_first_line():
  take = lambda text: styles.COMPLETION.short(RawReply(text, "length"), "q")  # noqa: E731
  assert take(" red\nQuestion: and now?") == Short("red", "answer")
  assert take(" red and") == Short(None, "truncated")


def test_no_reply_has_no_answer():
  for style in styles.BUILT_IN.values():
    assert style.short(RawReply(None, failure="timeout"), "q") == Short(None, "failed")


def test_styles_are_found_by_name_or_made():
  assert styles.find("chat", where="x") is styles.CHAT
  assert styles.find({"prefix": "Q: ", "take": "line"}, where="x").put("a") == "Q: a"
  with pytest.raises(UserError, match=r"x: no style 'chatt' \(did you mean 'chat'\?\)"):
    styles.find("chatt", where="x")
  with pytest.raises(UserError, match="x.prefx: unknown key"):
    styles.find({"prefx": "Q"}, where="x")
  with pytest.raises(UserError, match="max_new_tokens=0"):
    styles.find({"max_new_tokens": 0}, where="x")
