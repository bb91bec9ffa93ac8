# SPDX-License-Identifier: Apache-2.0
"""AuditDM in JAX: train an auditor to find where a vision-language model fails, then repair it.

config = auditdm_jax.load_config("configs/scenes.py", seed=1)
summary = auditdm_jax.run_loop(config, "runs/first")

vlm = auditdm_jax.load_vlm("models/gemma-3-4b-it")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from auditdm_jax.core.overrides import load_config
  from auditdm_jax.stages.loop import run_loop
  from auditdm_jax.vlm import Vlm, load_vlm

__all__ = ["Vlm", "load_config", "load_vlm", "run_loop"]


def __getattr__(name: str) -> Any:
  """Imports a public name on first use: the image server imports this package and has no jax."""
  if name in ("Vlm", "load_vlm"):
    from auditdm_jax import vlm

    return vlm.Vlm if name == "Vlm" else vlm.load_vlm
  if name == "load_config":
    from auditdm_jax.core.overrides import load_config

    return load_config
  if name == "run_loop":
    from auditdm_jax.stages.loop import run_loop

    return run_loop
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
