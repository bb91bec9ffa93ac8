# SPDX-License-Identifier: Apache-2.0
"""Words of short questions and answers: tokens, content terms, TF-IDF. No model, no download."""

from collections.abc import Mapping, Sequence
import functools
import math
import re

import numpy as np
import regex
from scipy import sparse

from auditdm_jax.audit.judging.plurals import singular

_ASCII = re.compile(r"[a-z0-9]+(?:[.:][0-9]+)?")
# Scripts that leave no blanks between words: each sign is a token.
_DENSE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_SIGN = regex.compile(rf"[{_DENSE}]", regex.V1)
_TOKEN = regex.compile(
  rf"[{_DENSE}&&\p{{L}}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_DENSE}]]+(?:[.:]\p{{N}}+)?", regex.V1
)
_ASKING = "what which who whose where when why how many much"
STOP = frozenset(
  "a an the is are was were be been do does did has have had can could will would of in on at to"
  " from by with for and or if it its this that these those there here you your see image picture"
  f" photo shown please any some {_ASKING}".split()
)
_ASKING_WORDS = frozenset(_ASKING.split())


def tokens(text: str) -> list[str]:
  """Lower-case word tokens in order; punctuation is dropped, `3:15` and `2.5` stay whole.

  Of a script without blanks, such as Chinese, each sign is one.
  """
  return (_ASCII if text.isascii() else _TOKEN).findall(text.lower())


def count_words(text: str) -> int:
  """Returns about how many words a text has: of a script without blanks, half as many as signs."""
  found = tokens(text)
  signs = 0 if text.isascii() else sum(_SIGN.match(token) is not None for token in found)
  return len(found) - signs // 2


@functools.lru_cache(maxsize=65536)
def content_words(text: str) -> tuple[str, ...]:
  """Singular tokens that are not function words, in order, with repeats."""
  return tuple(singular(t) for t in tokens(text) if t not in STOP)


@functools.lru_cache(maxsize=65536)
def terms(text: str) -> frozenset[str]:
  """Content words and their neighbours in pairs.

  Pairs keep `row four` apart from `column four`, which no single word does.
  """
  words = content_words(text)
  return frozenset(words) | {f"{a} {b}" for a, b in zip(words, words[1:])}


@functools.lru_cache(maxsize=65536)
def asked(question: str) -> frozenset[str]:
  """What a question asks, however it is worded: how (`how many`, `where`), about which words."""
  asking = {"what" if t == "which" else t for t in tokens(question) if t in _ASKING_WORDS}
  return frozenset(content_words(question)) | asking


_NUMERALS = {
  word: i
  for i, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split()
  )
}
_CUTS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)


def number_terms(text: str) -> list[str]:
  """On which side of some whole numbers the only number of a text lies: `number > 3`."""
  values = {
    _NUMERALS[t] if t in _NUMERALS else int(t)
    for t in tokens(text)
    if t in _NUMERALS or (t.isdecimal() and len(t) < 10)
  }
  if len(values) != 1:
    return []
  value = values.pop()
  return [f"number > {c}" if value > c else f"number < {c + 1}" for c in _CUTS]


def kind_term(kind: str) -> str:
  """The term of texts that name a thing of a kind; no token has brackets."""
  return f"[{kind}]"


class TermLexicon:
  """The terms of texts, with kinds of things (`[vehicle]`) beside the words themselves."""

  def __init__(self, kinds: Mapping[str, Sequence[str]]):
    """Takes the words of each kind; an entry may have two words."""
    self._kinds: dict[str, set[str]] = {}
    for kind, words in kinds.items():
      for word in words:
        self._kinds.setdefault(" ".join(content_words(word)), set()).add(kind_term(kind))
    self._terms = functools.lru_cache(maxsize=65536)(self._find)

  def terms(self, text: str) -> frozenset[str]:
    """Content words, pairs of neighbours, and kinds."""
    return self._terms(text)

  def kinds(self, word: str) -> frozenset[str]:
    """The terms of the kinds that list a word."""
    return frozenset(self._kinds.get(word, ()))

  def _find(self, text: str) -> frozenset[str]:
    plain = terms(text)
    return plain.union(*(self._kinds[t] for t in plain if t in self._kinds))


@functools.lru_cache(maxsize=65536)
def ngrams(text: str) -> tuple[str, ...]:
  """All words and word pairs, function words included: `how many` is what makes a skill."""
  words = [singular(t) for t in tokens(text)]
  return tuple(words) + tuple(f"{a} {b}" for a, b in zip(words, words[1:]))


class TfIdf:
  """Rows of unit length over the n-grams of a corpus; unseen n-grams are ignored."""

  def __init__(self, corpus: Sequence[str]):
    grams = [frozenset(ngrams(text)) for text in corpus]
    self._index = {g: i for i, g in enumerate(sorted(set().union(*grams)))}
    counts = np.zeros(len(self._index))
    for row in grams:
      for gram in row:
        counts[self._index[gram]] += 1
    self._idf = np.log((1 + len(corpus)) / (1 + counts)) + 1
    # What a text would weigh for one n-gram outside the corpus: unknown words must count
    # against a match, otherwise one shared word would give similarity 1.
    self._unseen = math.log(1 + len(corpus)) + 1

  def rows(self, texts: Sequence[str]) -> sparse.csr_matrix:
    """f64[N, n-grams] sparse rows of norm <= 1."""
    data, cols, ends = [], [], [0]
    for text in texts:
      counts: dict[int, int] = {}
      unseen = 0
      for gram in ngrams(text):
        if (i := self._index.get(gram)) is None:
          unseen += 1
        else:
          counts[i] = counts.get(i, 0) + 1
      values = np.array([(1 + math.log(c)) * self._idf[i] for i, c in counts.items()])
      # Unknown words weigh half: slot values (a colour the examples lack) are often unknown.
      norm = math.sqrt(float(values @ values) + unseen * (0.5 * self._unseen) ** 2) or 1.0
      data.extend(values / norm)
      cols.extend(counts)
      ends.append(len(cols))
    shape = (len(texts), len(self._index))
    return sparse.csr_matrix((np.asarray(data), cols, ends), shape=shape)
