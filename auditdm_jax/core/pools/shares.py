# SPDX-License-Identifier: Apache-2.0
"""Splits where a source gives none: each image goes by a hash of its pixels.

So it depends on nothing but the image, the seed and the shares: copies of a picture are in one
split whatever they are called, and images that are added move no other.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import types

from auditdm_jax.core.config import UserError, did_you_mean


class NoSplit(UserError):
  """A data set has no split of that name, or nothing is in it."""


@dataclasses.dataclass(frozen=True)
class Shares:
  """How images are shared out.

  Attributes:
    of: the share of each split; they add up to 1.
    seed: another one shares the images out another way.
  """

  of: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: types.MappingProxyType({"train": 0.8, "heldout": 0.1, "fresh": 0.1})
  )
  seed: int = 0

  def __post_init__(self):
    right = self.of and all(share >= 0 for share in self.of.values())
    if not right or not abs(sum(self.of.values()) - 1) <= 1e-6:
      raise UserError(f"shares {dict(self.of)}: must not be negative, and add up to 1")

  def split(self, image_id: str) -> str:
    """Returns the split of an image."""
    digest = hashlib.sha256(f"{self.seed}:{image_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in self.of.items():
      place -= share
      if place < 0:
        return split
    return next(split for split in reversed([*self.of]) if self.of[split])

  def check(self, split: str, where: str) -> None:
    """Checks that there is such a split.

    Raises:
      NoSplit: there is none.
    """
    if split not in self.of:
      known = ", ".join(f"{name} {share:.0%}" for name, share in self.of.items())
      raise NoSplit(
        f"{where}: no split {split!r}{did_you_mean(split, self.of)}; by shares: {known}"
      )
