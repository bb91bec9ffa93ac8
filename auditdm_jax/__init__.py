# SPDX-License-Identifier: Apache-2.0
"""AuditDM in JAX: train an auditor to find where a vision-language model fails, then repair it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from auditdm_jax.vlm import Vlm, load_vlm

__all__ = ["Vlm", "load_vlm"]


def __getattr__(name: str):
  """`load_vlm` and `Vlm` on first use: the image server imports this package and needs no jax."""
  if name in __all__:
    from auditdm_jax import vlm

    return {"Vlm": vlm.Vlm, "load_vlm": vlm.load_vlm}[name]
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
