# SPDX-License-Identifier: Apache-2.0
"""The two kinds of tokenizer files: Hugging Face's tokenizer.json and SentencePiece's .model.

Both come down to pieces of a vocabulary, some of them special. What `tokenizer.Tokenizer` makes of
them is the same for both.
"""

from collections.abc import Mapping, Sequence, Set
import json
import pathlib
import re
from typing import Protocol

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
import tokenizers

from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError

IMAGE_TOKENS = ("<image_soft_token>", "<image>")  # Gemma 3's name and PaliGemma's.
# PaliGemma's places and shapes: what an answer may be made of, so not special.
LOCATIONS = (*(f"<loc{i:04}>" for i in range(1024)), *(f"<seg{i:03}>" for i in range(128)))
_LOCATION = re.compile(r"<loc\d{4}>|<seg\d{3}>")
# SentencePiece knows turns and images as user-defined symbols, like any other.
_CONTROL = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")


class TokenizerFile(Protocol):
  """Reads one kind of tokenizer file.

  Attributes:
    filename: what the file is called in a model's folder.
    specials: the special tokens and their ids, without <unk>.
    size: number of ids, specials included.
  """

  filename: str

  @property
  def specials(self) -> Mapping[str, int]: ...

  @property
  def size(self) -> int: ...

  def encode(self, text: str) -> list[int]:
    """Returns ids, none of them added; a special is one only if the model itself knows it."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids without the specials. Ids outside the vocabulary are left out."""
    ...

  def id(self, token: str) -> int | None:
    """Returns the id of a token, special or not."""
    ...

  def token(self, i: int) -> str | None:
    """Returns the token of an id."""
    ...

  def append(self, tokens: Sequence[str]) -> "TokenizerFile":
    """Returns a backend with more tokens, none of them special, after the last."""
    ...

  def to_bytes(self) -> bytes:
    """Returns the file."""
    ...


class JsonBackend:
  """A tokenizer.json."""

  filename = "tokenizer.json"

  def __init__(self, backend: tokenizers.Tokenizer):
    self._backend = backend
    self._backend.encode_special_tokens = True  # Specials in text are text.
    # Limits of a batch that it was once used for, which transformers ignores too.
    self._backend.no_truncation()
    self._backend.no_padding()
    added = backend.get_added_tokens_decoder()
    # <unk> is what encode gives for an unknown word, so it is not one of the forbidden ids.
    self.specials = {t.content: i for i, t in added.items() if t.special and t.content != "<unk>"}
    self.size = backend.get_vocab_size(with_added_tokens=True)

  @classmethod
  def read(cls, path: pathlib.Path) -> "JsonBackend":
    try:
      text = path.read_text(encoding="utf-8")
      backend = cls(tokenizers.Tokenizer.from_str(text))
      if any(map(_LOCATION.fullmatch, backend.specials)):
        backend = cls(tokenizers.Tokenizer.from_str(_free_locations(text)))
    except Exception as e:  # The library raises bare Exceptions.
      raise UserError(f"{path}: not a tokenizer.json: {e}") from e
    return backend

  def encode(self, text: str) -> list[int]:
    return self._backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    return self._backend.decode(ids, skip_special_tokens=True)

  def id(self, token: str) -> int | None:
    return self._backend.token_to_id(token)

  def token(self, i: int) -> str | None:
    return self._backend.id_to_token(i)

  def append(self, tokens: Sequence[str]) -> "JsonBackend":
    copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
    copy.add_tokens(list(tokens))
    return JsonBackend(copy)

  def to_bytes(self) -> bytes:
    return self._backend.to_str(pretty=False).encode()


class PieceBackend:
  """A SentencePiece .model."""

  filename = "tokenizer.model"

  def __init__(self, model: bytes):
    self._model = model
    self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.size = self._pieces.get_piece_size()
    names = {self._pieces.id_to_piece(i): i for i in range(self.size) if self._pieces.is_control(i)}
    known = {token: self.id(token) for token in (*_CONTROL, *IMAGE_TOKENS)}
    self.specials = names | {token: i for token, i in known.items() if i is not None}

  @classmethod
  def read(cls, path: pathlib.Path) -> "PieceBackend":
    """Reads a .model and the tokens that files next to it add, see `_added_tokens`."""
    model = path.read_bytes()
    try:
      if not model:  # The library takes it for one without pieces.
        raise ValueError("the file is empty")
      backend = cls(model)
    except (RuntimeError, ValueError) as e:
      raise UserError(f"{path}: not a SentencePiece model: {e}") from e
    added, special = _added_tokens(path.parent, backend.size)
    new = sorted((i, token) for token, i in added.items() if backend.token(i) != token)
    for want, (i, token) in enumerate(new, backend.size):
      if i != want or backend.id(token) is not None:
        raise UserError(
          f"{path.parent}: the added token {token!r} is {i}, but new ones must follow on the"
          f" {backend.size} pieces of {path.name}"
        )
    return backend.append([token for _, token in new], special=special) if new else backend

  def encode(self, text: str) -> list[int]:
    return self._pieces.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    specials = set(self.specials.values())
    return self._pieces.decode([i for i in ids if 0 <= i < self.size and i not in specials])

  def id(self, token: str) -> int | None:
    i = self._pieces.piece_to_id(token)
    # What is unknown has the id of the unknown piece.
    return i if self._pieces.id_to_piece(i) == token else None

  def token(self, i: int) -> str | None:
    return self._pieces.id_to_piece(i) if 0 <= i < self.size else None

  def append(self, tokens: Sequence[str], *, special: Set[str] = frozenset()) -> "PieceBackend":
    """Appends tokens as big_vision does (pp/ops_text.py): user-defined, with score 0.

    Args:
      tokens: in the order of their ids.
      special: which of them text can never spell.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(self._model)
    kinds = proto.SentencePiece.Type
    proto.pieces.extend(
      proto.SentencePiece(
        piece=t, score=0.0, type=kinds.CONTROL if t in special else kinds.USER_DEFINED
      )
      for t in tokens
    )
    return PieceBackend(proto.SerializeToString())

  def to_bytes(self) -> bytes:
    return self._model


def read(path: pathlib.Path) -> TokenizerFile:
  """Reads a tokenizer.json or a .model.

  Raises:
    UserError: there is no such file, or it is not a tokenizer.
  """
  if not path.is_file():
    raise UserError(f"{path}: no such file")
  return PieceBackend.read(path) if path.suffix == ".model" else JsonBackend.read(path)


def _added_tokens(folder: pathlib.Path, size: int) -> tuple[dict[str, int], frozenset[str]]:
  """Returns the tokens that transformers' slow tokenizers added to a .model, and which are special.

  They are in added_tokens.json or, together with those of the .model and with their kind, in
  tokenizer_config.json.

  Args:
    folder: where the files are.
    size: number of pieces of the .model.

  Raises:
    UserError: a file that is damaged.
  """
  path = folder / "added_tokens.json"
  added = jsonio.read_json(path) if path.is_file() else {}
  if not isinstance(added, dict) or not all(type(i) is int for i in added.values()):
    raise UserError(f"{path}: not an object of tokens and ids")
  path = folder / "tokenizer_config.json"
  config = jsonio.read_json(path) if path.is_file() else {}
  described = config.get("added_tokens_decoder") if isinstance(config, dict) else None
  special = set(IMAGE_TOKENS)
  for i, token in (described or {}).items():
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
      raise UserError(f"{path}: added_tokens_decoder[{i!r}] has no content")
    if i.isdecimal() and int(i) >= size:
      added.setdefault(token["content"], int(i))
    if token.get("special") and not _LOCATION.fullmatch(token["content"]):
      special.add(token["content"])
  return added, frozenset(special)


def _free_locations(text: str) -> str:
  """Returns a tokenizer.json whose places and shapes are no longer marked as special."""
  tokenizer = json.loads(text)
  for token in tokenizer["added_tokens"]:
    token["special"] = token["special"] and not _LOCATION.fullmatch(token["content"])
  return json.dumps(tokenizer, ensure_ascii=False)
