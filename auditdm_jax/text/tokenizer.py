# SPDX-License-Identifier: Apache-2.0
"""Tokenizers behind one small interface, safe for text that a model or a stranger wrote.

`encode` never gives the id of a special token, whatever the text says: a reply that spells out
"<end_of_turn>" must not end a turn when it is put into the next prompt. Specials enter only through
a template, in `prompts.render`.
"""

from collections.abc import Iterable, Sequence
import functools
import pathlib
import re

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from auditdm_jax.core.config import UserError, did_you_mean

# Of the word-level tokenizer; the ids are Gemma's where Gemma has low ones.
SPECIALS = (
  "<pad>",
  "<eos>",
  "<bos>",
  "<unk>",
  "<start_of_turn>",
  "<end_of_turn>",
  "<start_of_image>",
  "<end_of_image>",
  "<image_soft_token>",
)
_IMAGE_TOKENS = ("<image_soft_token>", "<image>")  # Gemma 3's name and PaliGemma's.
_PUNCTUATION = "?.,;"
_WORD = r"\n|[?.,;<>]|[^\s?.,;<>]+"


class Tokenizer:
  """Text to ids and back over a Hugging Face `tokenizers.Tokenizer`."""

  def __init__(self, backend: tokenizers.Tokenizer):
    self._backend = backend
    self._backend.encode_special_tokens = True  # Specials in text are text.
    added = backend.get_added_tokens_decoder()
    # <unk> is what encode gives for an unknown word, so it is not one of the forbidden ids.
    self._specials = {t.content: i for i, t in added.items() if t.special and t.content != "<unk>"}
    self.special_ids = frozenset(self._specials.values())

  @classmethod
  def from_file(cls, path) -> "Tokenizer":
    """Reads a `tokenizer.json`.

    Raises:
      UserError: there is no such file, or it is not a tokenizer.
    """
    path = pathlib.Path(path)
    if not path.is_file():
      raise UserError(f"{path}: no such file")
    try:
      return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except Exception as e:  # The library raises bare Exceptions.
      raise UserError(f"{path}: not a tokenizer.json: {e}") from e

  @classmethod
  def word_level(cls, words: Iterable[str]) -> "Tokenizer":
    """Builds a tokenizer of whole words: specials 0 to 8, newline 9, then `words` in order.

    Words are separated by blanks; each of `? . , ;` is a token of its own.

    Raises:
      ValueError: a word is given twice, or is one that text can never contain as one word.
    """
    vocab = {w: i for i, w in enumerate((*SPECIALS, "\n"))}
    for word in words:
      if word in vocab:
        raise ValueError(f"word {word!r} is given twice or special")
      if re.findall(_WORD, word) != [word]:
        raise ValueError(f"{word!r} is not one word: the tokenizer would split it")
      vocab[word] = len(vocab)
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    # Not <unk>: a word the model does not know must be seen in what is decoded, not vanish.
    backend.add_special_tokens([s for s in SPECIALS if s != "<unk>"])
    backend.pre_tokenizer = pre_tokenizers.Split(
      tokenizers.Regex(_WORD), behavior="removed", invert=True
    )
    # Joins words by blanks, then takes off those before punctuation and around newlines.
    backend.decoder = decoders.Sequence(
      [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse()]
      + [decoders.Replace(f" {p}", p) for p in _PUNCTUATION]
      + [decoders.Replace(tokenizers.Regex(" ?\n ?"), "\n")]
    )
    return cls(backend)

  @property
  def vocab_size(self) -> int:
    """Number of ids, specials included."""
    return self._backend.get_vocab_size(with_added_tokens=True)

  @property
  def specials(self) -> tuple[str, ...]:
    return tuple(self._specials)

  @functools.cached_property
  def image_id(self) -> int:
    """The id that marks an image slot.

    Raises:
      UserError: the tokenizer has none.
    """
    for name in _IMAGE_TOKENS:
      if self._backend.token_to_id(name) is not None:
        return self._backend.token_to_id(name)
    raise UserError(f"the tokenizer has no image token ({' or '.join(_IMAGE_TOKENS)})")

  @functools.cached_property
  def pad_id(self) -> int:
    return self.id("<pad>")

  def id(self, token: str) -> int:
    """Returns the id of one token, special or not.

    Raises:
      UserError: there is no such token.
    """
    i = self._backend.token_to_id(token)
    if i is None:
      near = did_you_mean(token, self._backend.get_vocab())
      raise UserError(f"no token {token!r} in the tokenizer{near}")
    return i

  def token(self, i: int) -> str:
    """Returns the token of an id; the inverse of `id`."""
    token = self._backend.id_to_token(i)
    if token is None:
      raise UserError(f"no token {i} in the tokenizer of {self.vocab_size}")
    return token

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`; none of them is special and none is added."""
    ids = self._backend.encode(text, add_special_tokens=False).ids
    if self.special_ids.isdisjoint(ids):
      return ids
    # A backend whose model itself knows a special as one piece: encode its two ends apart.
    names = sorted(self._specials, key=len, reverse=True)
    cut = re.sub(
      "|".join(map(re.escape, names)), lambda m: f"{m[0][0]}\0{m[0][1:]}", text.replace("\0", "")
    )
    parts = (self._backend.encode(p, add_special_tokens=False).ids for p in cut.split("\0"))
    return [i for part in parts for i in part if i not in self.special_ids]

  def unsampled_ids(self, stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the ids a sampler should be banned from: <unk> and the specials but `stop_ids`."""
    unk = self._backend.token_to_id("<unk>")
    ids = self.special_ids | ({unk} if unk is not None else set())
    return tuple(sorted(ids - set(stop_ids)))

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids` without the specials."""
    return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def save(self, path) -> None:
    """Writes a `tokenizer.json`."""
    pathlib.Path(path).write_text(self._backend.to_str(pretty=False), encoding="utf-8")
