# SPDX-License-Identifier: Apache-2.0
"""The endpoints of a run: each opened when a role names it, and proven before it is asked.

config.endpoints.NAME    what it is; the roles of config.models, judge.model … may be NAME
<workdir>/endpoints      what was answered, so that a run that goes on asks nothing twice
manifest.json            who answers (server, version, fingerprint, sight) and what that cost
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import logging
import os
import re
from typing import Any, ClassVar, Literal

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.core import jsonio, runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.endpoints.config import EndpointConfig, LimitConfig
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.fingerprint import Fingerprint, changes, fingerprint
from auditdm_jax.endpoints.replies import Reply
from auditdm_jax.endpoints.sight import SightCheck, prove_sight
from auditdm_jax.text import styles
from auditdm_jax.text.styles import Style

# What decides whether and at what price it answers, but not what.
_NO_PART_OF_ANSWERS = ("limits", "price", "key_file", "key_env")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


@dataclasses.dataclass(frozen=True)
class RemoteConfig(EndpointConfig):
  """A model behind an OpenAI-compatible endpoint, and how it is asked.

  Attributes:
    style: how it is asked for a short answer: a built-in style's name, or a section of
      `text.styles.Style`. Its `system` goes into a turn of its own, see `ask.system_role`.
  """

  style: Style | str = "chat"

  def __post_init__(self):
    super().__post_init__()
    style = styles.find(self.style, where="endpoint.style")
    if style.system and self.ask.system:
      raise UserError("endpoint.style.system and endpoint.ask.system are both set: one is enough")


def check_names(endpoints: Mapping[str, RemoteConfig]) -> None:
  """Checks that each name can be told from a folder, and that each endpoint has one name.

  Raises:
    UserError: one cannot, or has two.
  """
  known: dict[str, str] = {}
  for name, config in endpoints.items():
    if not _NAME.fullmatch(name):
      raise UserError(
        f"config.endpoints: {name!r} is no name for an endpoint; letters, digits, _, - and . are"
      )
    if (other := known.setdefault(config.identity, name)) != name:
      raise UserError(
        f"config.endpoints: {other} and {name} are one model of one endpoint; a second revision"
        " needs a `revision` of its own"
      )


def without_limits(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config as a dict without what changes no result.

  A run goes on with a larger budget, a longer patience or a new key of an endpoint, and with or
  without wandb.
  """
  config = {key: section for key, section in config.items() if key != "wandb"}
  endpoints = {
    name: {k: v for k, v in section.items() if k not in _NO_PART_OF_ANSWERS}
    for name, section in (config.get("endpoints") or {}).items()
  }
  return {**config, "endpoints": endpoints} if endpoints else config


def config_hash(config: ConfigDict) -> str:
  """Returns the hash by which a run knows its config again."""
  return jsonio.canonical_hash(without_limits(config.to_dict()))


def decisive(endpoints: Mapping[str, RemoteConfig]) -> list[tuple[str, RemoteConfig]]:
  """Returns the same of sections that are built: each with its name, without what is left out."""
  return [
    (name, dataclasses.replace(c, limits=LimitConfig(), price=None, key_file="", key_env=""))
    for name, c in sorted(endpoints.items())
  ]


@dataclasses.dataclass(frozen=True)
class Proof:
  """What is known of an endpoint before it is asked.

  Attributes:
    sight: how it is known to see; None where it is asked without images.
    fingerprint: who answers, and how.
    changes: from what an earlier run of the same folder found under the same name.
  """

  sight: SightCheck | None
  fingerprint: Fingerprint
  changes: tuple[str, ...] = ()


class Remote:
  """A model behind an endpoint, as a bank asks it.

  Attributes:
    name: the key of config.endpoints.
    style: how it is asked.
    identity: of the endpoint, its model and revision.
  """

  takes: ClassVar[Literal["pixels"]] = "pixels"

  def __init__(self, endpoint: Endpoint, *, style: Style, known: Mapping[str, Any] | None = None):
    """Takes an endpoint.

    Args:
      endpoint: opened.
      style: how it is asked.
      known: what the folder's manifest says of it since an earlier run, see `facts`.
    """
    self._endpoint, self.style, self._known = endpoint, style, known or {}
    self.name, self.identity = endpoint.name, endpoint.config.identity

  @functools.cached_property
  def proof(self) -> Proof:
    """Its sight and fingerprint, taken now if they were not before.

    Each process has a way of its own to the endpoint, and proves it for itself.

    Raises:
      BlindEndpoint: it does not see.
      EndpointDown, EndpointRefused, BudgetSpent: as `Endpoint.answer`.
    """
    return self._prove(sees=True)

  @functools.cached_property
  def text_proof(self) -> Proof:
    """The same of an endpoint that is asked without images."""
    return self._prove(sees=False)

  def _prove(self, *, sees: bool) -> Proof:
    sight = prove_sight(self._endpoint) if sees else None
    found = fingerprint(self._endpoint, sees=sees)
    before = self._known.get("fingerprint")
    alike = sees == ("sight" in self._known)  # The fixed questions are the same.
    changed = tuple(changes(before, found)) if before and alike else ()
    for change in changed:
      logging.warning("%s is not what it was when this run began: %s", self.name, change)
    return Proof(sight, found, changed)

  def answer(
    self, images: Sequence[np.ndarray], prompts: Sequence[str], *, max_new_tokens: int
  ) -> list[Reply]:
    """Replies about u8[H,W,3] images, each a text or a reason; see `Endpoint.answer`."""
    _ = self.proof
    return self._endpoint.answer(images, prompts, max_new_tokens=max_new_tokens)

  def answer_text(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[Reply]:
    """Replies to prompts without images."""
    _ = self.text_proof
    return self._endpoint.answer([None] * len(prompts), prompts, max_new_tokens=max_new_tokens)

  def facts(self) -> dict[str, Any]:
    """Returns what the manifest says of it; what was not proven is left out."""
    config = self._endpoint.config
    cost = self._endpoint.cost()
    facts = {
      "base_url": config.base_url,
      "model": config.model,
      "revision": config.revision,
      "identity": self.identity,
      **({} if cost is None else {"cost_of_this_run": cost}),
    }
    # What a cached property holds; to ask for it here would ask the endpoint.
    for proof in (vars(self).get("text_proof"), vars(self).get("proof")):
      if proof is not None:
        facts |= {k: v for k, v in vars(proof).items() if v is not None}
    return facts

  def usage(self) -> dict[str, int]:
    """Returns what this process asked and got."""
    return self._endpoint.usage()

  def close(self) -> None:
    """Closes the connections."""
    self._endpoint.close()


class RemoteText:
  """An endpoint as the judge asks it: texts only, and None for what was not answered."""

  def __init__(self, remote: Remote):
    self._remote = remote

  def answer(
    self, images: Sequence[None], prompts: Sequence[str], *, max_new_tokens: int
  ) -> list[str | None]:
    """Replies to prompts; of several processes each asks for its share, and all learn all."""
    del images
    own = runtime.mine(prompts)
    replies = self._remote.answer_text(own, max_new_tokens=max_new_tokens)
    shares = runtime.gather([reply.text for reply in replies])
    return [shares[i % len(shares)][i // len(shares)] for i in range(len(prompts))]


class Remotes:
  """The endpoints of a config, each opened once."""

  def __init__(
    self,
    sections: Mapping[str, RemoteConfig],
    *,
    cache: str | os.PathLike,
    known: Mapping[str, Mapping[str, Any]] | None = None,
  ):
    """Connects to nothing.

    Args:
      sections: config.endpoints.
      cache: folder of the answers.
      known: what the manifest says of them, by identity.
    """
    self._sections, self._cache, self._known = sections, cache, known or {}
    self._opened: dict[str, Remote] = {}

  def __contains__(self, name: str) -> bool:
    return name in self._sections

  def names(self) -> list[str]:
    """Returns the names that a role may have."""
    return list(self._sections)

  def identity(self, name: str) -> str:
    """Returns the identity of an endpoint, its model and revision."""
    return self._sections[name].identity

  def open(self, name: str) -> Remote:
    """Returns the model of this name; nothing is sent.

    Raises:
      UserError: its key cannot be read, or its cache is damaged.
    """
    if name not in self._opened:
      config = self._sections[name]
      style = styles.find(config.style, where=f"config.endpoints.{name}.style")
      if style.system:
        ask = dataclasses.replace(config.ask, system=style.system)
        config = dataclasses.replace(config, ask=ask, style=styles.BARE)  # Read from `style`.
      endpoint = Endpoint(config, name=name, cache=self._cache, process=runtime.index())
      known = self._known.get(config.identity)
      self._opened[name] = Remote(endpoint, style=style, known=known)
    return self._opened[name]

  def facts(self) -> dict[str, Any]:
    """Returns what the manifest says of those that were opened, by name."""
    return {name: remote.facts() for name, remote in self._opened.items()}

  def usage(self) -> dict[str, int]:
    """Returns counts by "endpoint/NAME/WHAT" of what this process asked and got."""
    return {
      f"endpoint/{name}/{what}": n
      for name, remote in self._opened.items()
      for what, n in remote.usage().items()
    }

  def close(self) -> None:
    """Closes those that were opened."""
    for remote in self._opened.values():
      remote.close()
