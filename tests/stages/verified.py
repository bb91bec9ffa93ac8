# SPDX-License-Identifier: Apache-2.0
"""Runs whose failures are verified, written down without any model; and a small PaliGemma."""

from collections.abc import Sequence
import importlib.util
import io
import json
import pathlib

import jax
import numpy as np
from PIL import Image
import sentencepiece

from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.skills import Seeds
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.core import tree
from auditdm_jax.models import big_vision, gemma, leaves, siglip, tensor_files
from auditdm_jax.models import multimodal as mm
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Verified

ROOT = pathlib.Path(__file__).parents[2]
LABELS = ("red", "blue", "7", "12")
_WORDS = "what which color number is the thing in this picture here left right of red blue green"


def config(root: pathlib.Path, *, target: str):
  """The config of scenes, on the images of `root`."""
  spec = importlib.util.spec_from_file_location("scenes", ROOT / "configs/scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config()
  c.world.update(name="", gaps="")
  c.pool.update(builder="", data_dir=str(root / "data"), dataset="own")
  c.pool.update(images="train", heldout="heldout", fresh="fresh")
  c.taxonomy.skills = ""
  c.models.update(target=target, sibling="")
  c.models.auditor = str(ROOT / c.models.auditor)
  c.models.references = tuple(str(ROOT / folder) for folder in c.models.references)
  return c


def write_run(
  root: pathlib.Path,
  *,
  target: str,
  images: int = 10,
  more: Sequence[Failure] = (),
  name: str = "run",
) -> pathlib.Path:
  """Writes images, and a run with two verified failures about each of them, and a refuted one."""
  for seed, split in enumerate(("train", "heldout", "fresh")):
    if not (root / "data/own" / split).exists():
      _images(root / "data/own" / split, images if split == "train" else 4, seed)
  with Context(config(root, target=target), root / name, "verify") as ctx:
    pool = ctx.pool("images")
    failures = [
      failure(pool.image_id(i), question, LABELS[(i + k) % len(LABELS)], source=f"own/train/{i}")
      for i in range(len(pool))
      for k, question in enumerate(("what color is the thing", "which number is left of this"))
    ]
    ctx.folder.append_failures([*failures, *more])
    ctx.folder.finish("verify", Verified(funnel={}, taxonomy=Taxonomy(Seeds(()), ()), modes=()))
  return root / name


def failure(image_id: str, question: str, consensus: str, *, grade="V1", **probe) -> Failure:
  """A failure of a target that said green."""
  asked = Probe.make(image_id, question, arm="trained", **probe)
  verdict = Verdict(
    probe_id=asked.probe_id,
    answers={"target": "green", "ref": consensus},
    target="target",
    references=("ref",),
    consensus=consensus,
    agree=True,
    disagreement=True,
    reason="conflict",
  )
  return Failure(probe=asked, verdict=verdict, consensus=consensus, said="green", grade=grade)


def _images(folder: pathlib.Path, count: int, seed: int) -> None:
  folder.mkdir(parents=True)
  rng, rows = np.random.default_rng(seed), []
  for i in range(count):
    # Coarse enough to be told apart after any resizing.
    pixels = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    rows.append({"image": f"{i}.png", "question": "what color is it", "answer": "red"})
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_paligemma(folder: pathlib.Path) -> pathlib.Path:
  """Writes a random PaliGemma 2 of big_vision's, with a SentencePiece file of its own."""
  folder.mkdir(parents=True)
  made = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([_WORDS, "answer en", "0 1 2 3 4 5 6 7 8 9 12", _WORDS[::-1]] * 4),
    model_writer=made,
    vocab_size=100,
    model_type="bpe",
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    user_defined_symbols=["\n"],
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    minloglevel=2,
  )
  (folder / "gemma_tokenizer.model").write_bytes(made.getvalue())
  rows = 100 + 1024 + 128
  text = gemma.GemmaConfig(
    vocab_size=rows,
    width=32,
    depth=2,
    mlp_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    query_scale=8**-0.5,
    attn_softcap=50.0,
    final_softcap=30.0,
    embed_init_std=0.5,
  )
  vision = siglip.SiglipConfig(16, 2, 32, 2, patch_size=8, image_size=32)
  model = mm.VlmConfig("paligemma", text, vision, image_token_id=rows)
  shapes = tree.flatten(jax.eval_shape(lambda k: mm.init(model, k), jax.random.key(0)))
  rng = np.random.default_rng(0)
  flat = {
    k: leaves.of_array((0.2 * rng.standard_normal(v.shape)).astype(np.float32))
    for k, v in shapes.items()
  }
  path = folder / "pt_tiny.npz"
  tensor_files.write_npz(path, big_vision.from_ours(model, flat))
  return path
