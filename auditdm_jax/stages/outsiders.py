# SPDX-License-Identifier: Apache-2.0
"""The model outside the ensemble must be outside: none of those that are audited, nor a copy."""

from auditdm_jax.core.config import UserError
from auditdm_jax.stages.models import Models
from auditdm_jax.stages.sections import AuditConfig


def check(settings: AuditConfig, opened: Models) -> None:
  """Compares the identity of `verify.model` with those of target, references and auditor.

  Raises:
    UserError: they are the same, and the config does not allow it.
  """
  outside = settings.verify.model
  if not outside or settings.verify.allow_same:
    return
  identity, models = opened.identity(outside), settings.models
  roles = {"target": models.target, "auditor": models.auditor}
  roles |= {f"reference {path}": path for path in models.references}
  remote = outside in settings.endpoints
  # An endpoint is none of the folders, whose weights need not be read then.
  alike = {role: spec for role, spec in roles.items() if (spec in settings.endpoints) == remote}
  same = [role for role, spec in alike.items() if opened.identity(spec) == identity]
  if same:
    raise UserError(
      f"config.verify.model: {outside} is the same model as the {' and the '.join(same)}, which"
      " confirms itself; name another model, or set config.verify.allow_same=True"
    )
