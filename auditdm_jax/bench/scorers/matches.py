# SPDX-License-Identifier: Apache-2.0
"""Scores of one short answer against its references: equality, ANLS and relaxed numbers.

A text is right if it matches any reference.
"""

from collections.abc import Callable, Sequence
import re
import string
import unicodedata

from auditdm_jax.bench.scorers.rows import Variant, listed
from auditdm_jax.core.config import UserError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LETTER_AND_PERIOD = re.compile(r"\s*([A-Z])\.")
_ONE_SPELLING = str.maketrans(
  {**dict.fromkeys("‐‑‒–—−", "-"), **dict.fromkeys("‘’′", "'"), **dict.fromkeys("“”„″«»", '"')}
)
_WRAPPED = re.compile(r"""(["']|\*{1,3})([^"'*]*)\1""")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NO_ZERO = re.compile(r"(?<!\d)\.(?=\d)")
_NEGATIVE = re.compile(r"-[$€£¥.]\d")
_GRADE = re.compile(r"(?<!\w)[a-z]-(?!\w)")
_SIGNS = frozenset("%‰#&@§")


def exact_match(
  prediction: str, references: Sequence[str], *, variant: Variant = Variant.BIG_VISION
) -> float:
  """Returns 1 if the prediction equals a reference.

  big_vision compares the strings as they are (GQA and AI2D of the PaliGemma transfers).
  lmms-eval compares without case and ASCII punctuation, VLMEvalKit without case and outer blanks.
  """
  normal = _normal_of(variant)
  if variant is Variant.LMMS_EVAL:
    prediction = prediction.strip()
  return float(normal(prediction) in map(normal, listed(references)))


def letter_match(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 if the option's letter is right by lmms-eval's AI2D: "B. leaf" is "B", "B) leaf" not.

  Source: lmms-eval, tasks/ai2d/utils.py and exact_match.
  """
  match = _LETTER_AND_PERIOD.match(prediction.strip())
  said = match[1] if match else prediction
  return exact_match(said, references, variant=Variant.LMMS_EVAL)


def _normal_of(variant: Variant) -> Callable[[str], str]:
  if variant is Variant.BIG_VISION:
    return str
  if variant is Variant.LMMS_EVAL:
    return _lower_without_punctuation
  if variant is Variant.VLMEVALKIT:
    return _lower_stripped
  raise UserError(f"no variant {variant!r} of an exact match: big_vision, lmms-eval, vlmevalkit")


def _lower_without_punctuation(text: str) -> str:
  return text.lower().translate(_NO_PUNCTUATION)


def _lower_stripped(text: str) -> str:
  return text.strip().lower()


def normalized_match(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 if equal without case, blanks and the punctuation of words.

  Words are treated as in lmms-eval's GQA, which takes all punctuation away: "t-shirt" is "tshirt".
  What makes a number or a sign another one stays (ours): 3.5, -5, 1/2, 3:15, A+, <, 5%, 5".
  """
  return float(_bare(prediction) in map(_bare, listed(references)))


def _bare(text: str) -> str:
  text = text.translate(_ONE_SPELLING).strip().lower()
  if wrapped := _WRAPPED.fullmatch(text):
    text = wrapped[2].strip()
  text = _THOUSANDS.sub("", text)
  kept = "".join(c for i, c in enumerate(text) if not _is_punctuation(c) or _says(text, i))
  kept = _NO_ZERO.sub("0.", " ".join(kept.split()))
  return kept or text


def _is_punctuation(char: str) -> bool:
  return char == "`" or unicodedata.category(char)[0] == "P"


def _says(text: str, i: int) -> bool:
  """Returns whether the punctuation at i is part of a number or a sign."""
  char, before, after = text[i], text[i - 1 : i], text[i + 1 : i + 2]
  if char in _SIGNS or (before.isdigit() and after.isdigit()):
    return True
  if char == ".":
    return after.isdigit() and not before.isalnum()
  if char == "-":
    negative = (after.isdigit() or _NEGATIVE.match(text, i)) and not before.isalnum()
    return bool(negative) or _GRADE.search(text, i - 2 if i > 1 else 0, i + 2) is not None
  if char in "\"'":  # Inches and feet, if no quotation is open.
    return before.isdigit() and not _opens(char, text[:i])
  return char == "*" and before.isdigit()


def _opens(quote: str, text: str) -> bool:
  """Returns whether a quotation begins in this text."""
  return any(c == quote and not text[k - 1 : k].isalnum() for k, c in enumerate(text))


def relaxed_accuracy(
  prediction: str, references: Sequence[str], *, variant: Variant = Variant.OFFICIAL
) -> float:
  """ChartQA: numbers may be off by 5 per cent of the reference, others must be equal up to case.

  "12%" is read as 0.12. A reference of 0 demands its own spelling. The official form compares texts
  with their outer blanks, as big_vision does; lmms-eval and VLMEvalKit strip the prediction.
  Source: pix2struct, metrics.py.
  """
  if variant in (Variant.LMMS_EVAL, Variant.VLMEVALKIT):
    prediction = prediction.strip()
  return max(_relaxed(prediction, reference) for reference in listed(references))


def _relaxed(prediction: str, reference: str) -> float:
  got, wanted = _number(prediction), _number(reference)
  if got is not None and wanted:
    return float(abs(got - wanted) / abs(wanted) <= 0.05)
  return float(prediction.lower() == reference.lower())


def _number(text: str) -> float | None:
  try:
    return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
  except ValueError:
    return None


def anls(
  prediction: str, references: Sequence[str], *, variant: Variant = Variant.OFFICIAL
) -> float:
  """DocVQA: 1 minus the smallest normalised edit distance, and 0 when that is below one half.

  The official form compares texts without case and with single blanks, and divides the distance by
  the length of the longer text as it was given; exactly one half is kept. VLMEvalKit does the same
  and lmms-eval too, after it stripped the prediction. big_vision only lowers the case, the packages
  `anls` and `anls-star` divide by the length of the normalised texts; big_vision and `anls` give 0
  at exactly one half. Source: the Robust Reading Competition's script; lmms-eval, api/metrics.py.
  """
  if variant is Variant.LMMS_EVAL:
    prediction = prediction.strip()
  similarity = _SIMILARITIES.get(variant, _similarity)
  best = max(similarity(prediction, x) for x in listed(references))
  drops_half = variant in (Variant.BIG_VISION, Variant.ANLS)
  return best if best > 0.5 or (best == 0.5 and not drops_half) else 0.0


def _similarity(prediction: str, reference: str) -> float:
  longest = max(len(prediction.upper()), len(reference.upper()))  # The case can change a length.
  return _share(_single_blanks(prediction), _single_blanks(reference), longest)


def _similarity_of_normal(prediction: str, reference: str) -> float:
  return _similarity(_single_blanks(prediction), _single_blanks(reference))


def _similarity_of_lower(prediction: str, reference: str) -> float:
  a, b = _single_blanks(prediction), _single_blanks(reference)
  return _share(a, b, max(len(a), len(b)))


def _similarity_as_given(prediction: str, reference: str) -> float:
  if not reference:
    return float(prediction == "")
  a, b = prediction.lower(), reference.lower()
  return _share(a, b, max(len(a), len(b)))


def _share(a: str, b: str, longest: int) -> float:
  return 1 - edit_distance(a, b) / longest if longest else 1.0


_SIMILARITIES = {
  Variant.BIG_VISION: _similarity_as_given,
  Variant.ANLS: _similarity_of_normal,
  Variant.ANLS_STAR: _similarity_of_lower,
}


def _single_blanks(text: str) -> str:
  return " ".join(text.lower().split())


def edit_distance(a: str, b: str) -> int:
  """Levenshtein distance over code points."""
  if a == b:
    return 0
  previous = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    row = [i]
    for j, y in enumerate(b, 1):
      row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    previous = row
  return previous[-1]
