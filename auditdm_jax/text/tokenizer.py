# SPDX-License-Identifier: Apache-2.0
"""Tokenizers behind one small interface, safe for text that a model or a stranger wrote.

`encode` never gives the id of a special token, whatever the text says: a reply that spells out
"<end_of_turn>" must not end a turn when it is put into the next prompt. Specials enter only through
a template, in `prompts.render`. PaliGemma's <loc0123> and <seg012> are not special: questions and
answers are made of them.
"""

from collections.abc import Iterable, Sequence
import functools
import os
import pathlib
import re

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.text import backends
from auditdm_jax.text.backends import IMAGE_TOKENS, LOCATIONS, TokenizerFile

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
# In a model's folder the first of these that is there; the last is big_vision's.
FILENAMES = ("tokenizer.json", "tokenizer.model", "gemma_tokenizer.model")
_PUNCTUATION = "?.,;"
_NEARBY = 10_000  # Ids whose tokens an error may suggest.
_WORD = r"\n|[?.,;<>]|[^\s?.,;<>]+"


class Tokenizer:
  """Converts text to ids and back, by a tokenizer file.

  Args:
    backend: the file.
    image_id: the id of an image slot, where the file knows none.
  """

  def __init__(self, backend: TokenizerFile, *, image_id: int | None = None):
    self._backend = backend
    self._image_id = image_id
    # Slots are specials even where the file takes their token for an ordinary one, or has none.
    slots = {name: i for name in IMAGE_TOKENS if (i := backend.id(name)) is not None}
    self._specials = {**backend.specials, **slots}
    self.special_ids = frozenset(self._specials.values()) | (
      frozenset() if image_id is None else {image_id}
    )

  @classmethod
  def from_file(cls, path: str | os.PathLike) -> "Tokenizer":
    """Reads a `tokenizer.json`, or a SentencePiece `.model`.

    Raises:
      UserError: there is no such file, or it is not a tokenizer.
    """
    return cls(backends.read(pathlib.Path(path)))

  @classmethod
  def in_folder(cls, folder: str | os.PathLike) -> "Tokenizer | None":
    """Reads the tokenizer of a model's folder; None if there is none."""
    for name in FILENAMES:
      if (path := pathlib.Path(folder) / name).is_file():
        return cls.from_file(path)
    return None

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
    return cls(backends.JsonBackend(backend))

  def for_model(self, *, image_id: int, rows: int, locations: bool) -> "Tokenizer":
    """Returns this tokenizer as a model with images wants it.

    Args:
      image_id: the model's id of an image slot; the file may know none, as big_vision's.
      rows: size of the model's vocabulary.
      locations: whether the model was taught <loc0123> and <seg012>. If they are not in the file
        they come after its last token, where big_vision and transformers put them.

    Raises:
      UserError: the file's image token has another id.
    """
    backend, last = self._backend, self.vocab_size + len(LOCATIONS)
    if locations and backend.id(LOCATIONS[0]) is None and last <= min(rows, image_id):
      backend = backend.append(LOCATIONS)
    for name in IMAGE_TOKENS:
      if backend.id(name) not in (None, image_id):
        raise UserError(f"{name} is {backend.id(name)} to the tokenizer, {image_id} to the model")
    return Tokenizer(backend, image_id=image_id)

  @property
  def vocab_size(self) -> int:
    """Number of ids, specials included."""
    return self._backend.size

  @functools.cached_property
  def specials(self) -> tuple[str, ...]:
    return tuple(self._specials)

  @functools.cached_property
  def image_id(self) -> int:
    """The id that marks an image slot.

    Raises:
      UserError: the tokenizer has none.
    """
    known = [i for name in IMAGE_TOKENS if (i := self._backend.id(name)) is not None]
    known += [] if self._image_id is None else [self._image_id]
    if not known:
      raise UserError(f"the tokenizer has no image token ({' or '.join(IMAGE_TOKENS)})")
    return known[0]

  def id(self, token: str) -> int:
    """Returns the id of one token, special or not.

    Raises:
      UserError: there is no such token.
    """
    i = self._backend.id(token)
    if i is None:
      # A real vocabulary is too large to be compared with.
      names = map(self._backend.token, range(min(self.vocab_size, _NEARBY)))
      near = did_you_mean(token, [*self.specials, *(n for n in names if n)])
      raise UserError(f"no token {token!r} in the tokenizer{near}")
    return i

  def __contains__(self, token: str) -> bool:
    return self._backend.id(token) is not None

  def token(self, i: int) -> str:
    """Returns the token of an id; the inverse of `id`."""
    token = self._backend.token(i)
    if token is None:
      raise UserError(f"no token {i} in the tokenizer of {self.vocab_size}")
    return token

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`; none of them is special and none is added.

    Raises:
      UserError: it has half of a surrogate pair, as arguments that are not UTF-8 have.
    """
    try:
      text.encode()
    except UnicodeEncodeError as e:
      raise UserError(f"text that is not UTF-8: {text[max(0, e.start - 10) : e.end]!r}") from e
    ids = self._backend.encode(text)
    if self.special_ids.isdisjoint(ids):
      return ids
    # A backend whose model itself knows a special as one piece: encode its two ends apart.
    names = sorted(self.specials, key=len, reverse=True)
    cut = re.sub(
      "|".join(map(re.escape, names)), lambda m: f"{m[0][0]}\0{m[0][1:]}", text.replace("\0", "")
    )
    parts = (self._backend.encode(p) for p in cut.split("\0"))
    return [i for part in parts for i in part if i not in self.special_ids]

  def unsampled_ids(self, stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the ids that a sampler must not draw: <unk> and all specials except `stop_ids`."""
    unk = self._backend.id("<unk>")
    ids = self.special_ids | ({unk} if unk is not None else set())
    return tuple(sorted(ids - set(stop_ids)))

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids` without the specials, places and shapes included."""
    return self._backend.decode([int(i) for i in ids])

  def save(self, path: str | os.PathLike) -> None:
    """Writes `tokenizer.json` or `tokenizer.model` into a folder, or the file of that name."""
    path = pathlib.Path(path)
    file = path / self._backend.filename if path.is_dir() else path
    file.write_bytes(self._backend.to_bytes())
