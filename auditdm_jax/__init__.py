# SPDX-License-Identifier: Apache-2.0
"""AuditDM in JAX: train an auditor to find where a vision-language model fails, then repair it."""


def __getattr__(name: str):
  """`load_vlm` and `Vlm` on first use: the image server imports this package and needs no jax."""
  if name not in ("load_vlm", "Vlm"):
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from auditdm_jax import vlm

  return vars(vlm)[name]
