# SPDX-License-Identifier: Apache-2.0
"""From a run to a regression pack: which failures and which controls it holds."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import datetime
import shlex
import sys

from auditdm_jax.audit import pack as pack_lib
from auditdm_jax.audit.attempt import Attempt, Failure, unique_attempts
from auditdm_jax.audit.pack import Pack, PackedMode, PackedModel, PackedProbe, PackHeader
from auditdm_jax.audit.skills import Assigner
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.core import streams
from auditdm_jax.core.config import UserError
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Verified
from auditdm_jax.text.styles import PLAIN


def collect(ctx: Context, *, failures: int, controls: int, licence: str) -> Pack:
  """Returns the verified failures of a run and controls for them.

  Controls are drawn from all attempts outside the modes on which the references agreed, whatever
  the target said: if those that it failed were left out, every model that is merely unsteady would
  seem to have forgotten something. First come questions about images of the failures, then those of
  their skills.

  Args:
    ctx: a run whose failures are verified.
    failures: how many at most, evenly over modes.
    controls: how many at most.
    licence: of images and questions.

  Raises:
    UserError: it has no verified failure.
  """
  verified = ctx.folder.done("verify", Verified)
  found = [f for f in ctx.folder.failures() if f.verified]
  if verified is None or not found:
    raise UserError(f"{ctx.folder.path}: no verified failure to pack")
  ctx.pool("images")  # Where images are found by id.
  tax = verified.taxonomy
  chosen = _even(found, failures, seed=ctx.settings.seed)
  drawn = _controls(ctx, tax, chosen, controls)
  taken = {c.probe_id for c in drawn}
  modes = {mode.mode_id for mode in tax.modes}
  failed = [
    dataclasses.replace(p, is_control=not p.mode_id and p.probe_id in taken)
    for p in (_failure(f, modes) for f in chosen)
  ]
  known = {p.probe_id for p in failed}
  probes = failed + [p for p in drawn if p.probe_id not in known]
  used = {p.mode_id for p in probes}
  header = dataclasses.replace(
    header_of(ctx),
    licence=licence,
    modes=tuple(
      PackedMode(mode_id=m.mode_id, name=m.name, definition=m.definition)
      for m in tax.modes
      if m.mode_id in used
    ),
  )
  return Pack(header, tuple(p for p in probes if pack_lib.is_bounded(p)), ctx.images)


def _even(failures: Sequence[Failure], limit: int, *, seed: int) -> list[Failure]:
  """At most `limit` failures: of each mode as many, unless it has fewer."""
  order = streams.rng(seed, "pack failures").permutation(len(failures)).tolist()
  turn: Counter[str | None] = Counter()
  rank: dict[int, int] = {}
  for i in order:
    rank[i] = turn[failures[i].mode_id]
    turn[failures[i].mode_id] += 1
  return [failures[i] for i in sorted(sorted(order, key=rank.__getitem__)[:limit])]


def header_of(ctx: Context) -> PackHeader:
  """What a pack says of the run itself."""
  models, judge = ctx.models, ctx.settings.judge
  bank, name = ctx.settings.bank, models.target_name
  stages = ctx.folder.manifest.read()["stages"]
  return PackHeader(
    target=_model(ctx, models.config.target),
    references=tuple(_model(ctx, spec) for spec in models.config.references),
    judge=dataclasses.replace(judge, model="", rules=""),
    judge_rules=judge.rules,
    judge_model=judge.model,
    # Only where the config says so; otherwise a model's origin does.
    style=bank.style_of(name, PLAIN) if name in dict(bank.styles) else None,
    max_new_tokens=bank.max_new_tokens,
    abstentions=bank.abstentions,
    code=next(iter(stages.values()))["git"],  # Of the first stage: what came later packs and asks.
    command="python -m auditdm_jax " + shlex.join(sys.argv[1:]),
    created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  )


def _model(ctx: Context, spec: str) -> PackedModel:
  return PackedModel(name=ctx.models.name_of(spec), identity=ctx.models.identity(spec))


def _failure(failure: Failure, modes: set[str]) -> PackedProbe:
  stability = failure.stability
  return dataclasses.replace(
    _packed(Attempt(probe=failure.probe, verdict=failure.verdict), failure.consensus),
    role="failure",
    mode_id=failure.mode_id if failure.mode_id in modes else "",
    grade=failure.grade,
    k=stability.k if stability else 0,
    n=stability.n if stability else 0,
  )


def _packed(attempt: Attempt, consensus: str) -> PackedProbe:
  """An attempt as a control."""
  probe, verdict = attempt.probe, attempt.verdict
  answers = verdict.answers if verdict else {}
  return PackedProbe(
    probe_id=probe.probe_id,
    image_id=probe.image_id,
    question=probe.question,
    role="control",
    expected=consensus,
    said=answers.get(verdict.target) or "" if verdict else "",
    references={n: a for n, a in answers.items() if a and verdict and n != verdict.target},
    source=probe.source,
    made=probe.source_image_id not in (None, probe.image_id),
  )


def _controls(
  ctx: Context, tax: Taxonomy, failures: Sequence[Failure], n: int
) -> list[PackedProbe]:
  attempts = unique_attempts(ctx.folder.asked())
  modes = tax.match_attempts(attempts, ctx.gallery)
  outside = [
    (a, consensus)
    for a, mode in zip(attempts, modes, strict=True)
    if mode is None and (consensus := a.consensus) is not None
  ]
  assign = Assigner(ctx.seeds)
  images = {f.probe.image_id for f in failures}
  skills = {skill for skill, _ in assign([f.probe.question for f in failures])}
  own = [skill for skill, _ in assign([a.probe.question for a, _ in outside])]

  def near(i: int) -> tuple[bool, bool]:
    return outside[i][0].probe.image_id not in images, own[i] not in skills

  order = streams.rng(ctx.settings.seed, "pack controls").permutation(len(outside)).tolist()
  return [_packed(*outside[i]) for i in sorted(order, key=near)[:n]]


def told(probes: Sequence[PackedProbe]) -> str:
  """One line about probes for the screen."""
  roles = pack_lib.roles_of(probes)
  return f"{roles['failure']} verified failures and {roles['control']} controls"
