# SPDX-License-Identifier: Apache-2.0
"""Takes off what chat models wrap around an answer: thinking, tags, JSON, LaTeX, Markdown.

Every function is linear in its text, and the caller bounds it: what a model says is hostile.
"""

import json
import re

# Opening and closing marks of a model's thinking, which is never its answer.
_THINKING = (
  ("<think>", "</think>"),  # DeepSeek-R1, Qwen 3, GLM
  ("<thinking>", "</thinking>"),
  ("<thought>", "</thought>"),
  ("<reasoning>", "</reasoning>"),
  ("[THINK]", "[/THINK]"),  # Magistral
  ("◁think▷", "◁/think▷"),  # Kimi-VL
  ("<|begin_of_thought|>", "<|end_of_thought|>"),
  ("<unused94>", "<unused95>"),  # MedGemma
)
_ANSWER_TAGS = (("<answer>", "</answer>"), ("<|begin_of_box|>", "<|end_of_box|>"))
_ANSWER_KEYS = ("answer", "final_answer", "short_answer")
_FENCE = "```"
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}\\]{1,40})\}\{([^{}\\]{1,40})\}")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\{([^{}\\]{0,200})\}")
_LATEX_SIGNS = {
  r"\%": "%",
  r"\$": "$",
  r"\times": "×",
  r"\cdot": "·",
  r"\circ": "°",
  r"\,": " ",
  r"\ ": " ",
  r"\left": "",
  r"\right": "",
  r"\(": "",
  r"\)": "",
  r"\[": "",
  r"\]": "",
}
_MATH = re.compile(r"\$\$?([^$\n]{1,200}?)\$\$?(?![\d.,])")
_BULLET = re.compile(r"^\s{0,8}(?:#{1,6}|[-*•+](?=\s))\s*", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*\*|\*\*|\*|___|__|_|`)(?=\S)([^*_`\n]{1,400}?)(?<=\S)\1(?!\w)")


def without_thinking(text: str) -> str | None:
  """Returns what follows the last thinking block, or None if a block was not closed.

  A closing mark without an opening one ends a block that the prompt has opened.
  """
  end, start = 0, -1
  for opening, closing in _THINKING:
    start = max(start, text.rfind(opening))
    if (at := text.rfind(closing)) >= 0:
      end = max(end, at + len(closing))
  return None if start >= end and start >= 0 else text[end:]


def framed(text: str) -> str | None:
  """Returns the answer that a reply marks by tags, JSON or a LaTeX box, or None."""
  for opening, closing in _ANSWER_TAGS:
    start = text.rfind(opening)
    if start >= 0:
      inner = text[start + len(opening) :]
      return inner.partition(closing)[0]
  return _from_json(text) or _from_box(text)


def _from_json(text: str) -> str | None:
  """Returns the answer in a JSON object that is the reply, or a fenced part of it."""
  start, end = text.find("{"), text.rfind("}")
  outside = f"{text[:start]}{text[end + 1 :]}".strip()
  if start < 0 or end < start or (outside and _FENCE not in outside):
    return None
  try:
    found = json.loads(text[start : end + 1])
  except (ValueError, RecursionError):  # The latter by brackets in brackets without end.
    return None
  by_key = {str(key).lower().replace(" ", "_"): value for key, value in found.items()}
  for key in _ANSWER_KEYS:
    if key in by_key:
      return _plain(by_key[key])
  return None


def _plain(value: object) -> str | None:
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, str | int | float):
    return str(value)
  if isinstance(value, list) and value and all(isinstance(v, str | int | float) for v in value):
    return ", ".join(map(str, value))
  return None


def _from_box(text: str) -> str | None:
  r"""Returns the contents of the last \boxed{…}, braces inside it included."""
  start = text.rfind("\\boxed{")
  if start < 0:
    return None
  start += len("\\boxed{")
  depth = 1
  for i in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[i], 0)
    if not depth:
      return text[start:i]
  return None


def plain(text: str) -> str:
  """Returns a text without Markdown and LaTeX, line by line."""
  text = _unfenced(text)
  if "\\" in text:
    text = _FRACTION.sub(r"\1/\2", _TEXT.sub(r"\1", text))
    text = _TEXT.sub(r"\1", text)
    for sign, meaning in _LATEX_SIGNS.items():
      text = text.replace(sign, meaning)
  if text.count("$") >= 2:
    text = _MATH.sub(r"\1", text)
  text = _BULLET.sub("", text)
  for _ in range(3):  # Emphasis in emphasis.
    text = _EMPHASIS.sub(r"\2", text)
  return text.strip()


def _unfenced(text: str) -> str:
  """Returns the contents of a fenced block, if that is the reply."""
  parts = text.split(_FENCE)
  if len(parts) == 3 and not parts[0].strip() and not parts[2].strip():
    first, _, rest = parts[1].partition("\n")
    # The language stands on the first line.
    return rest if rest and not first.strip().count(" ") else parts[1]
  return text
