# SPDX-License-Identifier: Apache-2.0
"""How failure modes are found and confirmed, in worlds whose failures are drawn: no model is asked.

COMMAND
  python -m benchmarks.modes --runs=200 --workers=2 --out=modes.json

  null     a target that fails at one rate everywhere, with and without images that fail together:
           audits that confirm a mode
  power    one planted gap in questions of the scenes world: gaps found, and modes for each
  text     questions about photographs with planted words, answers, skills, kinds of things and
           images: recall, modes for each weakness, mode precision, stability
  pairs    two audits of one target: modes of the second that are called new

Questions are read into a table once for each world. A run draws images for discovery, other images
as fresh probes, and failures.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import time
from typing import cast

import numpy as np

from auditdm_jax.audit import confirm, rates, rounds, skills, stability
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.looks import Gallery, Looks
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.taxonomy import Evidence, Taxonomy, gather, members, name_modes
from auditdm_jax.core import streams
from auditdm_jax.scenes import gaps, questions, world
from benchmarks import photographs

# (a run, cells, runs of each) -> (cell, what its runs gave)
Go = Callable[[Callable[..., dict], Sequence[tuple], int], Iterable[tuple[tuple, list[dict]]]]

ROOT = pathlib.Path(__file__).parents[1]
BASE = 0.05
FRESH = 4_000
IMAGES = 3_500
GAPS = {
  "purple": gaps.EASY[1],
  "column four": gaps.EASY[5],
  "counts above three": gaps.EASY[0],
  "dial": gaps.EASY[3],
  "brown background": gaps.RARE[9],
  "row three": gaps.RARE[8],
  "dial reads north": gaps.RARE[2],
}


class Seen:
  """As `Gallery`, of images whose measures and features are drawn."""

  def __init__(self, measures: dict[str, dict[str, float]], features: dict[str, np.ndarray]):
    self._measures, self._features = measures, features

  def fit(self, probes: Sequence[Probe]) -> Looks:
    """Fixes cut points on these images."""
    ids = sorted({p.image_id for p in probes})
    rows = np.stack([self._features[i] for i in ids])
    return Looks.fit([self._measures[i] for i in ids], rows, cells=16)

  def terms(self, looks: Looks, probes: Sequence[Probe]) -> list[frozenset[str]]:
    """The terms of each probe's image."""
    of = {i: looks.terms(self._measures[i], self._features[i]) for i in self._measures}
    return [of[p.image_id] for p in probes]


@dataclasses.dataclass(frozen=True)
class World:
  """Questions of one world.

  Attributes:
    evidence: all of them, in one table.
    inside: bool[N] of each planted weakness.
  """

  evidence: Evidence
  inside: dict[str, np.ndarray]

  def take(self, images: np.ndarray, n: int) -> np.ndarray:
    """Rows of the first `n` questions about these images."""
    chosen = np.zeros(int(self.evidence.images.max()) + 1, bool)
    chosen[images] = True
    return np.flatnonzero(chosen[self.evidence.images])[:n]


@functools.cache
def scenes_world(images: int = IMAGES, per_image: int = 8) -> World:
  """Questions of the scenes world; their images look like anything."""
  rng = streams.rng(0, "benchmark", "scenes")
  rows, programs = [], []
  for i in range(images):
    scene = world.sample_scene(rng)
    for _ in range(per_image):
      text, answer, program = questions.sample_question(rng, scene)
      if answer != questions.UNANSWERABLE:
        rows.append((f"i{i}", text, answer))
        programs.append((program, answer))
  seeds = skills.load_seeds(ROOT / "data/scenes/skills.yaml")
  planted = {*GAPS.values(), *gaps.EASY}
  inside = {g.name: np.array([g.matches(*p) for p in programs]) for g in planted}
  return World(_evidence(rows, seeds, rng), inside)


@functools.cache
def photo_world(seed: int, images: int = 4_500) -> World:
  """Questions about photographs, with weaknesses of every kind."""
  rng = streams.rng(seed, "benchmark", "photographs")
  rows, inside, seen = photographs.draw(rng, images=images, per_image=3)
  seeds = dataclasses.replace(
    skills.load_seeds(ROOT / "data/vqav2/skills.yaml"),
    kinds=skills.load_kinds(ROOT / "data/vqav2/kinds.yaml"),
  )
  return World(_evidence(rows, seeds, rng, Seen(*seen)), inside)


def _evidence(rows, seeds, rng, seen=None) -> Evidence:
  """A table of (image, question, answer) rows."""
  if seen is None:
    seen = Seen(*photographs.draw_images(rng, sorted({image for image, *_ in rows}))[:2])
  return gather([_attempt(*row) for row in rows], seeds, gallery=cast(Gallery, seen))


def _attempt(image: str, question: str, answer: str) -> Attempt:
  return Attempt(
    probe=Probe(probe_id=f"{image} {question}", image_id=image, question=question),
    verdict=Verdict(
      probe_id="",
      answers={"t": answer, "r": answer},
      target="t",
      references=("r",),
      consensus=answer,
      agree=True,
      disagreement=False,
      reason="",
    ),
  )


# ------------------------------------------------------------------------------------- one audit


@dataclasses.dataclass(frozen=True)
class Audit:
  """Modes that an audit found on some questions, and what fresh ones say of them."""

  taxonomy: Taxonomy
  tests: list[confirm.ModeTest]
  fresh: np.ndarray  # i64[F], rows of the world
  of: np.ndarray  # i64[F], place of each one's mode, -1 for none

  @property
  def confirmed(self) -> list[int]:
    """Places of the modes that hold."""
    return [i for i, t in enumerate(self.tests) if t.status == "confirmed"]


def audit(found: World, failed: np.ndarray, rows: np.ndarray, fresh: np.ndarray) -> Audit:
  """Finds modes on `rows` and tests them on `fresh`; bool[N] `failed` of all questions."""
  taxonomy = name_modes(_part(found.evidence, failed, rows))
  of = members(taxonomy, _part(found.evidence, failed, fresh))
  return Audit(taxonomy, _tested(taxonomy, found.evidence, failed, fresh, of), fresh, of)


def _part(evidence: Evidence, failed: np.ndarray, rows: np.ndarray) -> Evidence:
  table = dataclasses.replace(evidence.table, failed=failed.astype(np.float64))
  return dataclasses.replace(
    evidence,
    questions=tuple(evidence.questions[i] for i in rows),
    images=np.unique(evidence.images[rows], return_inverse=True)[1],
    skills=evidence.skills[rows],
    table=table.take(rows),
  )


def _tested(taxonomy, evidence, failed, fresh, of) -> list[confirm.ModeTest]:
  ids = [m.mode_id for m in taxonomy.modes]
  probes = [
    confirm.FreshProbe(
      str(evidence.images[row]), ids[i] if i >= 0 else None, frozenset(), bool(failed[row])
    )
    for row, i in zip(fresh, of, strict=True)
  ]
  return confirm.confirm(taxonomy.modes, probes)


def _split(found: World, rng: np.random.Generator, n: int, fresh: int = FRESH):
  """Rows of `n` questions for discovery, and of fresh ones about other images."""
  order = rng.permutation(int(found.evidence.images.max()) + 1)
  per_image = len(found.evidence.images) / len(order)
  first = int(np.ceil(1.05 * n / per_image)) + 2
  return found.take(order[:first], n), found.take(order[first:], fresh)


def _clustered(rng: np.random.Generator, images: np.ndarray, p: float, icc: float) -> np.ndarray:
  """bool[N]: failures at rate p; those of one image have this intra-class correlation."""
  if icc == 0:
    return rng.random(len(images)) < p
  shape = (1 - icc) / icc
  own = rng.beta(p * shape, (1 - p) * shape, size=int(images.max()) + 1)
  return rng.random(len(images)) < own[images]


# ------------------------------------------------------------------------------------ experiments


def null_run(p0: float, n: int, icc: float, run: int, *, images: int = IMAGES) -> dict:
  """An audit of a target without any weakness."""
  found = scenes_world(images)
  rng = streams.rng(run, "null", str(p0), n, str(icc))
  rows, fresh = _split(found, rng, n)
  done = audit(found, _clustered(rng, found.evidence.images, p0, icc), rows, fresh)
  return {"named": len(done.tests), "confirmed": len(done.confirmed)}


def power_run(gap: str, depth: float, n: int, run: int) -> dict:
  """An audit of a target with one planted gap."""
  found, rng = scenes_world(), streams.rng(run, "power", gap, str(depth), n)
  inside = found.inside[GAPS[gap].name]
  failed = rng.random(len(inside)) < np.where(inside, depth, BASE)
  done = audit(found, failed, *_split(found, rng, n))
  about = _about(done, inside[done.fresh])
  right = [i for i in done.confirmed if about[i] >= 0.5]
  named = [i for i, share in enumerate(about) if share >= 0.5]
  return {
    "found": bool(right),
    "named": bool(named),
    "modes": len(right),
    "covered": _covered(done, right, failed[done.fresh] & inside[done.fresh]),
    "false": len(done.confirmed) - len(right),
  }


def text_run(run: int, *, planted: Sequence[str] = ()) -> dict:
  """An audit of a target with four (or these) weaknesses in questions about photographs."""
  found, rng = photo_world(run % 6), streams.rng(run, "text")
  kinds = list(found.inside)
  planted = planted or [kinds[i] for i in rng.permutation(len(kinds))[:4]]
  any_of = np.any([found.inside[k] for k in planted], axis=0)
  failed = rng.random(len(any_of)) < np.where(any_of, 0.9, BASE)
  rows, fresh = _split(found, rng, 5_000, 5_000)
  done = audit(found, failed, rows, fresh)
  evidence = _part(found.evidence, failed, rows)
  stable = stability.stability(evidence, done.taxonomy, seed=run, samples=5) if run < 12 else {}
  truth = {k: found.inside[k][fresh] for k in planted}
  pure = _about(done, any_of[fresh])
  return {
    "planted": {
      k: {
        "covered": _covered(done, done.confirmed, failed[fresh] & inside),
        "modes": sum(_about(done, inside)[i] >= 0.5 for i in done.confirmed),
      }
      for k, inside in truth.items()
    },
    "pure": sum(pure[i] >= 0.5 for i in done.confirmed),
    "confirmed": len(done.confirmed),
    "named": len(done.tests),
    "stable": sorted(stable.values()),
  }


def pair_run(n: int, run: int, *, images: int = IMAGES) -> dict:
  """Two audits of one target on different images."""
  found, rng = scenes_world(images), streams.rng(run, "pairs", n)
  inside = np.any([found.inside[g.name] for g in gaps.EASY], axis=0)
  failed = rng.random(len(inside)) < np.where(inside, 0.9, 0.01)
  order = rng.permutation(int(found.evidence.images.max()) + 1)
  part = np.array_split(order, 3)
  fresh = found.take(part[2], FRESH)
  first, second = (audit(found, failed, found.take(part[i], n), fresh) for i in (0, 1))
  attempts = _part(found.evidence, failed, found.take(part[1], n))
  was, now = (
    [a.taxonomy.modes[i] if i >= 0 else None for i in members(a.taxonomy, attempts)]
    for a in (first, second)
  )
  traced = rounds.descent(first.taxonomy.modes, second.taxonomy.modes, was, now)
  uncovered = [t for d, t in zip(traced, second.tests, strict=True) if d.relation is None]
  names = {m.name for m in first.taxonomy.modes}
  # The first target is asked again, and answers at random anew: harder than an unchanged one.
  again = rng.random(len(inside)) < np.where(inside, 0.9, 0.01)
  before = _tested(second.taxonomy, found.evidence, again, fresh, second.of)
  relations = [
    rounds.relation(d, t, before=b) for d, t, b in zip(traced, second.tests, before, strict=True)
  ]
  return {
    "by_name": sum(m.name not in names for m in second.taxonomy.modes),
    "uncovered": len(uncovered),
    "uncovered_confirmed": sum(t.status == "confirmed" for t in uncovered),
    "new": relations.count("new"),
    "modes": len(second.tests),
  }


def _about(done: Audit, inside: np.ndarray) -> list[float]:
  """The share of each mode's fresh probes that lies inside."""
  return [
    float(inside[done.of == i].mean()) if (done.of == i).any() else 0.0
    for i in range(len(done.tests))
  ]


def _covered(done: Audit, modes: Sequence[int], failed: np.ndarray) -> float:
  """The share of fresh failures that falls under these modes."""
  return float(np.isin(done.of[failed], modes).mean()) if failed.any() else 0.0


# ---------------------------------------------------------------------------------------- tables


def null_table(runs: int, go: Go) -> Iterator[str]:
  """Audits of a target without weakness that name or confirm a mode."""
  cells = list(itertools.product((0.05, 0.1, 0.2, 0.3, 0.45), (500, 4_000), (0.0, 0.5)))
  yield "| p0 | n | ICC | audits with a named mode | with a confirmed one |"
  yield "|---|---|---|---|---|"
  for (p0, n, icc), done in go(null_run, cells, runs):
    named, held = (_share(sum(r[k] > 0 for r in done), runs) for k in ("named", "confirmed"))
    yield f"| {p0} | {n:,} | {icc} | {named} | {held} |"


def power_table(runs: int, go: Go) -> Iterator[str]:
  """Planted gaps that are found."""
  runs = max(runs // 5, 1)
  cells = list(itertools.product(GAPS, (0.9, 0.5), (1_000, 4_000)))
  yield "| gap | depth | n | named | confirmed | covered | modes | false modes |"
  yield "|---|---|---|---|---|---|---|---|"
  for (gap, depth, n), done in go(power_run, cells, runs):
    hit = [r for r in done if r["found"]]
    yield (
      f"| {gap} | {depth} | {n:,} | {sum(r['named'] for r in done)}/{runs} "
      f"| {_share(len(hit), runs)} | {_mean(r['covered'] for r in hit)} "
      f"| {_mean(r['modes'] for r in hit)} | {_mean(r['false'] for r in done)} |"
    )


def text_table(runs: int, go: Go) -> Iterator[str]:
  """Planted weaknesses of every kind."""
  runs = max(runs // 2, 1)
  ((_, done),) = go(text_run, [()], runs)
  yield "| planted | found | modes of it |"
  yield "|---|---|---|"
  for kind in sorted({k for r in done for k in r["planted"]}):
    own = [r["planted"][kind] for r in done if kind in r["planted"]]
    hit = [x for x in own if x["covered"] >= 0.5]
    yield f"| {kind} | {_share(len(hit), len(own))} | {_mean(x['modes'] for x in hit)} |"
  pure, held = sum(r["pure"] for r in done), sum(r["confirmed"] for r in done)
  stable = [x for r in done for x in r["stable"]]
  steady = sum(x >= stability.UNSTABLE for x in stable)
  yield ""
  yield f"Confirmed modes mostly inside a planted weakness: {_share(pure, held)}."
  yield f"Named modes with a mean Jaccard index of .5 or more: {_share(steady, len(stable))}."


def pair_table(runs: int, go: Go) -> Iterator[str]:
  """Pairs of audits of one target in which a mode of the second is called new."""
  yield "| n | by name | not covered | not covered and confirmed | new | modes |"
  yield "|---|---|---|---|---|---|"
  for n, own in ((2_000, runs), (8_000, max(runs // 2, 1))):
    ((_, done),) = go(pair_run, [(n,)], own)
    shares = [
      _share(sum(r[k] > 0 for r in done), own)
      for k in ("by_name", "uncovered", "uncovered_confirmed", "new")
    ]
    yield f"| {n:,} | {' | '.join(shares)} | {_mean(r['modes'] for r in done)} |"


TABLES = {"null": null_table, "power": power_table, "text": text_table, "pairs": pair_table}


def _share(k: int, n: int) -> str:
  rate = rates.rate(k, n)
  low, high = rate.ci95
  return f"{k}/{n} = {100 * k / max(n, 1):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _mean(values) -> str:
  values = list(values)
  return f"{np.mean(values):.2f}" if values else "-"


def _call(job: tuple) -> dict:
  body, *arguments = job
  return body(*arguments)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", type=int, default=200, help="of each cell of null")
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--only", choices=list(TABLES), action="append")
  parser.add_argument("--out", type=pathlib.Path, help="where every run's counts go, as JSON")
  args = parser.parse_args()
  raw: dict[str, list] = {}
  with multiprocessing.Pool(args.workers, initializer=os.nice, initargs=(10,)) as pool:

    def go(body: Callable, cells: Sequence[tuple], runs: int):
      for cell in cells:
        jobs = [(body, *cell, run) for run in range(runs)]
        done = pool.map(_call, jobs, chunksize=4)
        raw.setdefault(body.__name__, []).append({"cell": cell, "runs": done})
        yield cell, done

    for name in args.only or TABLES:
      start = time.perf_counter()
      print(f"\n### {name}\n", flush=True)
      for line in TABLES[name](args.runs, go):
        print(line, flush=True)
      print(f"\n({time.perf_counter() - start:,.0f} s)", flush=True)
  if args.out:
    args.out.write_text(json.dumps(raw), encoding="utf-8")


if __name__ == "__main__":
  main()
