# SPDX-License-Identifier: Apache-2.0
"""AuditDM in JAX: train an auditor to find where a vision-language model fails, then repair it."""


def __getattr__(name: str):
  """`load_vlm` and `Vlm` on first use: the image server imports this package and needs no jax."""
  if name == "load_vlm":
    from auditdm_jax.vlm_loading import load_vlm

    return load_vlm
  if name == "Vlm":
    from auditdm_jax.vlm import Vlm

    return Vlm
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
