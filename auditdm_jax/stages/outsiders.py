# SPDX-License-Identifier: Apache-2.0
"""The model outside the ensemble must be outside: none of those that are audited, nor a copy."""

from auditdm_jax.core.config import UserError
from auditdm_jax.models.weights import content_hash
from auditdm_jax.stages.sections import AuditConfig


def check(settings: AuditConfig) -> None:
  """Compares the weights of `verify.model` with those of target, references and auditor.

  Raises:
    UserError: they are the same, and the config does not allow it.
  """
  outside = settings.verify.model
  if not outside or settings.verify.allow_same:
    return
  identity, models = content_hash(outside), settings.models
  roles = {"target": models.target, "auditor": models.auditor}
  roles |= {f"reference {path}": path for path in models.references}
  same = [role for role, path in roles.items() if content_hash(path) == identity]
  if same:
    raise UserError(
      f"config.verify.model: {outside} has the weights of the {' and the '.join(same)}, which"
      " confirms itself; name another model, or set config.verify.allow_same=True"
    )
