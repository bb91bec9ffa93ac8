# SPDX-License-Identifier: Apache-2.0
"""Which server, version and model answers, and how it answers fixed questions: for the manifest.

The same weights are another model on another server. What is said about a server may stay as it is
while its answers change, and the other way round: both are written down.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from auditdm_jax.core.jsonio import canonical_hash, plain
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.failures import one_line
from auditdm_jax.endpoints.sight import pictures

# Part of every fingerprint: another list makes another fingerprint.
_PROBES = (
  "What is in this picture? Answer in one short sentence.",
  "answer en what is in the picture?",
  "Is there a circle in the picture? Answer yes or no.",
  "What color is the picture?",
)
_MAX_TOKENS = 16
_SIDE = 224
_CHANGING = {"created", "permission", "loaded_at", "expires_at"}  # At every request, on some.
_MAX_ENTRY = 4000  # characters


@dataclasses.dataclass(frozen=True)
class Fingerprint:
  """What answers under a name.

  Attributes:
    server: Server header.
    version: what the server says of itself under /version (vLLM) or /props (llama.cpp).
    entry: the model's entry in /models, less what changes at every request.
    origin: model and build that the answers name.
    texts: answers to the fixed questions, for people.
    answers: hash of these; of several answers that differ, of the first.
    repeatable: the same answers came twice. If they did not, at temperature 0, answers are no
      evidence of a change. If they did at another temperature, the server ignores it: then equal
      answers of several draws say nothing about certainty.
  """

  server: str
  version: str
  entry: Mapping[str, Any]
  origin: str
  texts: tuple[str | None, ...]
  answers: str
  repeatable: bool


def fingerprint(endpoint: Endpoint, *, sees: bool = True) -> Fingerprint:
  """Asks an endpoint who it is and the fixed questions, twice.

  Args:
    endpoint: the endpoint.
    sees: whether the questions are about pictures; a judge is asked in words alone.

  Raises:
    EndpointDown, EndpointRefused, BudgetSpent: as `Endpoint.answer`.
  """
  red, blue = pictures(endpoint.config.pictures.size or _SIDE) if sees else (None, None)
  images = [red, blue] * (len(_PROBES) // 2)
  once, twice = (
    endpoint.answer(images, _PROBES, max_new_tokens=_MAX_TOKENS, fresh=True) for _ in range(2)
  )
  texts = tuple(reply.text for reply in once)
  return Fingerprint(
    server=endpoint.server,
    version=_version(endpoint),
    entry=_entry(endpoint),
    origin=next((reply.origin for reply in once if reply.origin), ""),
    texts=texts,
    answers=canonical_hash(texts),
    repeatable=texts == tuple(reply.text for reply in twice),
  )


def changes(old: Mapping[str, Any], new: Fingerprint) -> list[str]:
  """Returns one line per difference from a fingerprint in a manifest; [] if it is the same model.

  Args:
    old: `jsonio.plain` of the earlier fingerprint, as the manifest has it.
    new: the present one.
  """
  now = plain(new)
  found = [
    f"{field} was {one_line(old.get(field), 80)}, is {one_line(now[field], 80)}"
    for field in ("server", "version", "entry", "origin")
    if old.get(field) != now[field]
  ]
  repeatable = new.repeatable and old.get("repeatable") is True
  if repeatable and old.get("answers") != new.answers:
    pairs = zip(_PROBES, old.get("texts") or (), new.texts)
    shown = [f"{q!r}: {one_line(a, 60)} → {one_line(b, 60)}" for q, a, b in pairs if a != b]
    found.append(f"answers to fixed questions changed, such as {''.join(shown[:1])}")
  return found


def _version(endpoint: Endpoint) -> str:
  root = endpoint.config.base_url.rstrip("/").removesuffix("/v1")
  for path, field in (("/version", "version"), ("/props", "build_info")):
    said = endpoint.get(root + path).get(field)
    if isinstance(said, str) and said:
      return one_line(said, 100)
  return ""


def _entry(endpoint: Endpoint) -> dict[str, Any]:
  """Returns the model's entry in /models; {} if it is not listed there."""
  listed = endpoint.get("/models").get("data")
  for model in listed if isinstance(listed, list) else []:
    if isinstance(model, dict) and model.get("id") == endpoint.config.model:
      entry = {k: v for k, v in model.items() if k not in _CHANGING}
      return entry if len(repr(entry)) <= _MAX_ENTRY else {"hash": canonical_hash(entry)}
  return {}
