# SPDX-License-Identifier: Apache-2.0
"""Short answers out of what models say."""

import random
import time

import pytest

from auditdm_jax.text import english, markup
from auditdm_jax.text.short import MAX_CHARS, Short, options_of, short_answer
from benchmarks import short_answers

HOLDING = "What is the man holding?"
COLOR = "What color is the car?"
OPTIONS = f"{COLOR}\nA. red\nB. blue\nC. green"


def test_labelled_replies_are_read_as_a_person_reads_them():
  rows = list(short_answers.measure(short_answers.load()))
  assert len(rows) > 800
  wrong = [(item.question, item.raw, got) for item, got, result in rows if result == "wrong"]
  missed = [(item.question, item.raw) for item, _, result in rows if result == "missed"]
  # Each label was given by hand; a rule that is changed for one reply must not cost others.
  assert len(wrong) <= 0.01 * len(rows), wrong
  assert len(missed) <= 0.02 * len(rows), missed


@pytest.mark.parametrize(
  ("question", "raw", "text"),
  [
    (HOLDING, "The man is holding a phone.", "phone"),
    ("Is there a dog?", "Yes, there is a dog.", "yes"),
    ("How many cats are there?", "There are three cats.", "three"),
    ("Where is the cat?", "It is on the left.", "on the left"),
    (OPTIONS, "The answer is **B**.", "B"),
    (OPTIONS, "The car is blue.", "B"),
    (COLOR, "Answer: red", "red"),
    (COLOR, "(B) red", "red"),
    (COLOR, '```json\n{"answer": "red"}\n```', "red"),
    (COLOR, "<think>Blue? No.</think>\nThe car is red.", "red"),
    ("What is 2+3?", r"$\boxed{5}$", "5"),
  ],
)
def test_taken(question, raw, text):
  assert short_answer(raw, question=question) == Short(text, "answer")


@pytest.mark.parametrize(
  ("raw", "kind"),
  [
    ("I'm sorry, I can't help with that.", "refusal"),
    ("Sorry, as a base VLM I am not trained to answer this question.", "refusal"),
    ("I cannot tell.", "abstention"),
    ("unanswerable", "abstention"),
    ("The car is not visible.", "abstention"),
    ("The car isn't visible.", "abstention"),
    ("The cars weren’t visible.", "abstention"),
    ("The number isn't legible in this picture.", "abstention"),
    ("It's not visible.", "abstention"),
    ("The clock's not visible.", "abstention"),
    ("That's not clearly shown.", "abstention"),
    ("There isn't enough information.", "abstention"),
    ("<think>The car", "thinking"),
    (" ", "empty"),
    ("...", "empty"),
  ],
)
def test_no_answer(raw, kind):
  assert short_answer(raw, question=COLOR) == Short(None, kind)


def test_a_reply_that_was_cut_is_no_answer_however_it_looks():
  for raw in ("The car in the picture is", "red", "Answer: red\nExplanation: the"):
    assert short_answer(raw, question=COLOR, truncated=True) == Short(None, "truncated")
    assert short_answer(raw, question=COLOR, finish="length") == Short(None, "truncated")
  assert short_answer("red", question=COLOR, finish="stop") == Short("red", "answer")
  assert short_answer("", question=COLOR, finish="content_filter") == Short(None, "refusal")


@pytest.mark.parametrize(
  ("question", "raw"),
  [
    (COLOR, "The car is either red or orange."),
    (COLOR, "It looks red. However, it is orange."),
    (OPTIONS, "B. red"),
    (OPTIONS, "A or B"),
    ("Are there more cats than dogs?", "There are more dogs than cats."),
    ("How many cats are there?", "One cat is on the sofa and another one is on the floor."),
    ("Is the man without a hat?", "The man is without a hat."),
  ],
)
def test_what_is_not_sure_stays_whole(question, raw):
  got = short_answer(raw, question=question)
  assert got == Short(raw.rstrip("."), "whole")


@pytest.mark.parametrize(
  ("question", "raw"),
  [
    ("What does the sign say?", "No left turn, trucks"),
    ("What does the sign say?", "Sorry, we're closed"),
    ("What does the sign say?", "Do not disturb"),
    ("What is the bus number?", "No. 5"),
    ("Which sign is it?", "<"),
    ("What grade is it?", "A+"),
    ("What is the temperature?", "-5 °C"),
    ("What is this card?", "Credit card"),
    ("¿Dónde está el gato?", "A la izquierda"),
    ("この車は何色ですか?", "赤"),
    ("ในภาพคืออะไร", "เสือ"),
    ("What is in the picture?", "🚗"),
  ],
)
def test_short_replies_stay_as_they_are(question, raw):
  assert short_answer(raw, question=question) == Short(raw, "answer")


def test_options_of_a_question():
  assert options_of(OPTIONS) == {"A": "red", "B": "blue", "C": "green"}
  assert options_of("How many? (A) two (B) three") == {"A": "two", "B": "three"}
  assert options_of("Which grade is it, A. or C.?") == {}
  assert options_of("What is in B. and C. here?") == {}


def test_hostile_replies_are_bounded_in_time_and_length():
  rng = random.Random(0)
  atoms = [
    "a", "A ", "*", "**a", "_", "`", "$1", "{", "}", '{"a":[', "\\boxed{", "\\frac{", "<think>",
    "</think>", "'", '"', "“", "(", "A) ", "no ", "not ", "the ", "is ", "answer is ", "Answer to ",
    "\n", "one ", "1. ", ", a ", " or ", "sorry, i ", "as an ai ", "in the ", "\u202e", "\x00",
    "\ud800", "。", "it says ",
  ]  # fmt: skip
  questions = [
    HOLDING,
    "Is it a dog or a cat?",
    "How many a?",
    "What does it say?",
    "A. b B. c",
    "",
  ]
  questions += ["a" * 5000, "or " * 2000, "'" * 3000]
  raws = [atom * (100_000 // len(atom)) for atom in atoms]
  raws += ["".join(rng.choices(atoms, k=k)) for k in (5, 50, 2000) for _ in range(60)]
  slowest = 0.0
  for raw in raws:
    question = rng.choice(questions)
    start = time.thread_time()
    got = short_answer(raw, question=question)
    slowest = max(slowest, time.thread_time() - start)
    assert got.text is None or (got.text and len(got.text) <= MAX_CHARS)
    assert got.text is None or not set(got.text) & set("\x00\u202e\ud800")
  assert slowest < 1.0  # CPU seconds, 0.03 here; a pattern that backtracks takes minutes.


def test_of_a_long_reply_both_ends_are_read():
  words = "blah " * 3000
  for raw in (f"Answer: red\n{words}", f"{words}\nAnswer: red", f"<think>{words}</think>red"):
    assert short_answer(raw, question=COLOR) == Short("red", "answer")
  assert short_answer(f"{words}\nAnswer: red\n{words}", question=COLOR).kind == "whole"


def test_thinking_is_what_stands_before_its_last_mark():
  assert markup.without_thinking("<think>a</think>b") == "b"
  assert markup.without_thinking("a</think>b") == "b"
  assert markup.without_thinking("<think>a</think>b<think>c") is None
  assert markup.without_thinking("plain") == "plain"


def test_a_full_stop_in_a_word_ends_no_sentence():
  assert english.sentences("It is 3.5 m. Dr. Smith said so.") == [
    "It is 3.5 m.",
    "Dr. Smith said so.",
  ]
  assert english.sentences("By J. K. Rowling. B. red") == ["By J. K. Rowling.", "B. red"]
  assert english.sentences("红色。蓝色") == ["红色。", "蓝色"]
