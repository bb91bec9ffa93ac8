# SPDX-License-Identifier: Apache-2.0
"""Gates: pure functions that return pass or fail together with the number they looked at.

A gate without anything to look at is not measured: it neither passes nor fails.
"""

from collections.abc import Mapping, Sequence
import re

import numpy as np

from auditdm_jax.audit.attempt import Gate
from auditdm_jax.audit.duplicates import DuplicateIndex, ImagePrint
from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.audit.verdict import UNANIMOUS, ConsensusRule
from auditdm_jax.audit.words import count_words

EDITS = ("edit_outside", "edit_fraction", "sham_control")  # About edited images only.
_SEVERAL = re.compile(r"\?.*\?|[\n\r]")
_SPECIAL = re.compile(r"<[a-z_/]+>", re.IGNORECASE)


def well_formed(question: str, *, max_words: int = 40) -> Gate:
  """One question on one line, without special tokens; value = number of words."""
  count = count_words(question)
  note = ""
  if not 2 <= count <= max_words:
    note = "length"
  elif _SEVERAL.search(question.strip()):
    note = "more than one question"
  elif _SPECIAL.search(question):
    note = "special token"
  return Gate(
    name="well_formed", passed=not note, value=count, limit=f"2..{max_words} words", note=note
  )


def answerable(
  consensus: str,
  paraphrased: Sequence[str | None],
  judge: Judge,
  *,
  question: str = "",
  least: float = 1.0,
) -> Gate:
  """The references keep their consensus over paraphrases.

  Args:
    consensus: the consensus on the original wording.
    paraphrased: the consensus on each paraphrase, None where there is none; without any paraphrase
      it is not measured.
    judge: decides sameness.
    question: in its original wording.
    least: share of paraphrases that must keep it.
  """
  if not paraphrased:
    return Gate.unmeasured("answerable", "no other wording of the question")
  kept = [a is not None and judge.same(consensus, a, question=question) for a in paraphrased]
  share = sum(kept) / len(kept)
  return Gate(name="answerable", passed=share >= least, value=share, limit=f">= {least}")


def both_ways(target_answer: str, consensus: str, judge: Judge, *, question: str = "") -> Gate:
  """The judge calls the answers different in both orders; value = orders that do."""
  orders = ((target_answer, consensus), (consensus, target_answer))
  different = sum(judge.compare(a, b, question=question) is Same.DIFFERENT for a, b in orders)
  return Gate(name="both_ways", passed=different == 2, value=different, limit="== 2")


def language_prior(
  with_image: Mapping[str, str],
  without_image: Mapping[str, str],
  judge: Judge,
  *,
  rule: ConsensusRule = UNANIMOUS,
  question: str = "",
) -> Gate:
  """Too few references for a consensus give their image answer to a blank image as well.

  The value is the share of the references' weight that does. A question that any image answers the
  same way does not test sight. Questions about absent things legitimately keep their answer on a
  blank image: leave the gate out of `required` there.
  """
  kept = sum(
    rule.weight(name)
    for name, said in with_image.items()
    if judge.same(said, without_image[name], question=question)
  )
  enough, all_of_them = rule.needs(with_image), sum(map(rule.weight, with_image))
  limit = f"< {rule.share:g}"
  return Gate(name="language_prior", passed=kept < enough, value=kept / all_of_them, limit=limit)


def image_sane(image: np.ndarray, *, least_std: float = 4.0, least_side: int = 16) -> Gate:
  """Not blank, not tiny; value = standard deviation of the pixels in grey levels."""
  std = float(image.astype(np.float32).std())
  size_ok = min(image.shape[:2]) >= least_side
  return Gate(
    name="image_sane",
    passed=std >= least_std and size_ok,
    value=std,
    limit=f">= {least_std}",
    note="" if size_ok else "too small",
  )


def near_duplicate(
  image: ImagePrint,
  question: str,
  index: DuplicateIndex,
  *,
  answer: str = "",
  name: str = "near_duplicate",
) -> Gate:
  """No remembered probe has the same image, (nearly) the same words and the same answer, if any."""
  value = index.similarity(image, question, answer)
  return Gate(name=name, passed=value < index.overlap, value=value, limit=f"< {index.overlap}")


def edit_locality(
  source: np.ndarray,
  image: np.ndarray,
  mask: np.ndarray,
  *,
  least: float = 0.005,
  most: float = 0.60,
) -> tuple[Gate, Gate]:
  """The two facts of a local edit, measured on the image as reloaded from disk.

  Args:
    source: u8[H,W,3].
    image: u8[H,W,3], the composite after a round trip through its file.
    mask: bool[H,W].
    least: smallest mask fraction (below: nothing was edited).
    most: largest mask fraction (above: a new image).

  Returns:
    (outside unchanged: value = largest difference outside the mask; mask fraction).
  """
  outside = np.abs(source.astype(np.int16) - image.astype(np.int16))[~mask]
  worst = int(outside.max()) if outside.size else 0
  fraction = float(mask.mean())
  return (
    Gate(name="edit_outside", passed=worst == 0, value=worst, limit="== 0"),
    Gate(
      name="edit_fraction",
      passed=least <= fraction <= most,
      value=fraction,
      limit=f"{least}..{most}",
    ),
  )


def sham_control(
  on_source: Mapping[str, str], on_sham: Mapping[str, str], judge: Judge, *, question: str
) -> Gate:
  """Answers must not flip on the sham; value = models that do flip, for certain."""
  found = [
    judge.compare(said, on_sham[name], question=question) for name, said in on_source.items()
  ]
  flips = found.count(Same.DIFFERENT)
  if not flips and Same.UNDECIDED in found:
    return Gate.unmeasured("sham_control", "undecided whether an answer flips on the sham")
  return Gate(name="sham_control", passed=flips == 0, value=flips, limit="== 0")
