# SPDX-License-Identifier: Apache-2.0
"""Faults of models: damaged files, weights that are no numbers, answers that are none."""

from collections.abc import Callable
import logging
import pathlib
import shutil

import numpy as np
import safetensors.numpy

from auditdm_jax.audit import ask, preflight
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.preflight import PreflightConfig
from auditdm_jax.audit.verdict import verdict
from auditdm_jax.core.checkpoint import Checkpointer
from auditdm_jax.core.config import UserError
from auditdm_jax.core.records import Records
from auditdm_jax.models import weights
from auditdm_jax.rl import trainer
from auditdm_jax.rl.stopping import NEVER, StopConfig
from auditdm_jax.text import styles
from auditdm_jax.text.styles import RawReply
from tests.faults import little, seen
from tests.rl import fakes, tiny

WEIGHTS = little.ROOT / "data/scenes/weights"


def _flip(path: pathlib.Path) -> None:
  """Flips a bit in the middle of a file."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def _largest(folder: pathlib.Path) -> pathlib.Path:
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flipped_checkpoint(root: pathlib.Path) -> seen.Seen:
  """A bit of the latest checkpoint flips on the disk, which orbax does not notice."""
  tree = {"w": np.random.default_rng(0).random((300, 1000), np.float32)}
  with Checkpointer(root) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, tree, {"is": step})
  path = _largest(root / "2")
  _flip(path)
  heard: list[str] = []
  handler = logging.Handler()
  handler.emit = lambda record: heard.append(record.getMessage())
  logging.getLogger().addHandler(handler)
  try:
    with Checkpointer(root) as checkpoints:
      step, restored, extras = checkpoints.restore(None, tree)
  finally:
    logging.getLogger().removeHandler(handler)
  np.testing.assert_array_equal(restored["w"], tree["w"])
  (said,) = [line for line in heard if "is damaged" in line]
  assert (step, extras) == (1, {"is": 1}) and path.name in said and (root / "damaged-2").is_dir()
  return seen.Seen(
    "set aside; training goes on from the step before",
    f"the file is named: {path.relative_to(root / '2')} is not the file that was written",
  )


def flipped_model(root: pathlib.Path) -> seen.Seen:
  """A bit of a stored model flips, whose file is as long as before and has no NaN."""
  shutil.copytree(WEIGHTS / "siglip", root / "siglip")
  shutil.copytree(WEIGHTS / "target_easy", root / "stored")
  weights.write_sums(root / "stored")
  weights.load(root / "stored")
  _flip(root / "stored/model.safetensors")
  assert not weights.not_finite(root / "stored")
  try:
    weights.load(root / "stored")
  except UserError as e:
    said = str(e)
  assert "stored/model.safetensors: damaged" in said and len(said.splitlines()) == 1
  return seen.Seen("one line, exit 2", repr(said.replace(str(root), "")))


def nan_weights(root: pathlib.Path) -> seen.Seen:
  """Weights of the target, a reference or the auditor are not numbers."""
  data, said = little.images(root / "data"), {}
  shutil.copytree(WEIGHTS / "siglip", root / "siglip")
  healthy = WEIGHTS / "ref_paligemma2"
  for role, source in (
    ("target", "target_easy"),
    ("reference", "ref_gemma3"),
    ("auditor", "auditor"),
  ):
    folder = root / f"sick_{role}"
    shutil.copytree(WEIGHTS / source, folder)
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = next(key for key in sorted(tensors) if "attn" in key)
    tensors[name] = np.full_like(tensors[name], np.nan)
    safetensors.numpy.save_file(tensors, path)
    given = f"references={healthy},{folder}" if role == "reference" else f"{role}={folder}"
    more = (
      f"--config.models.{given}",
      "--config.models.sibling=",
      "--config.preflight.questions=24",
      '--config.rollout.prompts={"question": 4}',
    )
    ended = little.run(little.command("doctor", root / "run", data, more))
    assert ended.code == 2 and "Traceback" not in ended.err, ended
    assert f"the {role} sick_{role} gives NaN" in ended.last, ended.err
    said[role] = ended.last
  return seen.Seen("one line, exit 2, before training", repr(said["target"][:160]))


class _Speaker:
  """A model elsewhere that says one thing."""

  takes = "pixels"
  style = styles.find("plain", where="")

  def __init__(self, say: Callable[[int], RawReply]):
    self._say = say

  def answer(self, images, prompts, *, max_new_tokens):
    return [self._say(i) for i in range(len(prompts))]


def strange_answers(root: pathlib.Path) -> seen.Seen:
  """A reference or the target answers "" always, or 10,000 tokens, cut or not."""
  n, words = 100, "red green blue white black".split()
  questions = [f"what color is thing {i} ?" for i in range(n)]
  strange = {
    "nothing": lambda i: RawReply("", "stop", None),
    "10,000 tokens": lambda i: RawReply("word " * 10_000, "stop", None),
    "10,000 tokens, cut": lambda i: RawReply("word " * 10_000, "length", None),
  }
  config, found = ask.BankConfig(), {}
  for name, say in strange.items():
    for who in ("t", "a"):
      speakers = {m: _Speaker(lambda i: RawReply(words[i % 5], "stop", None)) for m in "tab"}
      speakers[who] = _Speaker(say)
      heard = {
        m: ask.ask(s, [np.zeros((1, 1, 3), np.uint8)] * n, questions, config=config)
        for m, s in speakers.items()
      }
      verdicts = [
        verdict(
          str(i),
          {m: heard[m][i].text for m in heard},
          Judge(),
          target="t",
          references=("a", "b"),
          raw={m: heard[m][i].raw for m in heard},
          kinds={m: heard[m][i].kind for m in heard},
        )
        for i in range(n)
      ]
      kept = [len(text or "") for v in verdicts for text in (v.raw[who], v.answers[who])]
      assert max(kept) < 2 * ask.MAX_RAW, "records are bounded"
      ensemble = preflight.measure(
        questions, verdicts, Judge(), images=[str(i) for i in range(n)], labels=[[]] * n
      )
      stops = preflight.problems(ensemble, PreflightConfig())
      warns = preflight.warnings(ensemble, PreflightConfig())
      said = [str(p) for p in (*stops, *warns)]
      assert len(said) == 1 and "\n" not in said[0], (name, who, said)
      if "tokens" not in name or "cut" in name:
        assert not any(v.disagreement for v in verdicts), "no answer is no find"
      found[name, who] = bool(stops)
  assert all(stops for (_, who), stops in found.items() if who == "a"), found
  return seen.Seen(
    "a reference stops the run before training, with one line; no answer is no find",
    "2,000 characters of a reply are kept; a target without one answer stops it too",
  )


class _Agreeing(fakes.Bank):
  """A target that always says what the references say: no group is ever live."""

  def _verdict(self, image_id, question):
    return verdict(
      f"{image_id}{question}",
      dict.fromkeys("tab", "red"),
      self.judge,
      target="t",
      references=self.references,
    )


def no_live_groups(root: pathlib.Path) -> seen.Seen:
  """No group is live in all of training: with the rule that stops it, and without."""
  steps = 4

  def train(name: str, stop: StopConfig) -> trainer.TrainResult:
    return trainer.train(
      trainer.TrainConfig(checkpoint_every=2),
      fakes.rollout({"question": 2}, bank=_Agreeing()),
      fakes.learner(steps),
      auditor=tiny.auditor(),
      workdir=root / name,
      stop=stop,
    )

  try:
    train("stops", StopConfig(window=2))
  except UserError as e:
    said = str(e)
  assert "stopped after step 2, of which there is a checkpoint" in said
  assert "the target says what the references say" in said and "\n" not in said
  result = train("goes on", NEVER)
  rows = Records(root / "goes on/records/train").read(trainer.COMPLETIONS)
  assert result.steps == steps and len(rows) == steps * 2 * 4 == result.completions
  assert {row["advantage"] for row in rows} == {0.0}
  params = result.auditors[steps]
  assert not weights.not_finite(params)
  return seen.Seen(
    "one line that says why and what to change, exit 2, with a checkpoint; it can be told to go on",
    f"stopped after step 2 of {steps}; with config.stop.window=0 all {len(rows)} records are there",
  )
