# SPDX-License-Identifier: Apache-2.0
"""Answers of big_vision to `benchmarks.readers`. Needs its repository on PYTHONPATH, and jax.

Its model has PaliGemma only. Images come first and text is padded on the right, where nothing that
counts sees it.
"""

import json
import pathlib
import sys

import big_vision
from big_vision.models.ppp import gemma
from big_vision.models.proj.paligemma import paligemma
import jax
import ml_collections
import numpy as np


def main(work: pathlib.Path) -> None:
  request = json.loads((work / "request.json").read_text())
  commit = pathlib.Path(next(iter(big_vision.__path__))).parent.name
  answers = {"version": f"big_vision ({commit}), jax {jax.__version__}"}
  if request["kind"] == "paligemma":
    text, vision = request["config"]["text"], request["config"]["vision"]
    sizes = ml_collections.ConfigDict(
      dict(
        variant="tiny",
        norm_eps=1e-6,
        final_logits_softcap=text["final_softcap"],
        attn_logits_softcap=text["attn_softcap"],
        scan=True,
        remat_policy="nothing_saveable",
        **{
          k: text[k]
          for k in (
            "width",
            "depth",
            "mlp_dim",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "vocab_size",
            "post_norms",
          )
        },
      )
    )
    gemma.get_config = lambda variant: sizes.copy_and_resolve_references()
    model = paligemma.Model(
      img=dict(
        **{k: vision[k] for k in ("width", "depth", "mlp_dim", "num_heads")},
        patch_size=(vision["patch_size"],) * 2,
        pool_type="none",
        scan=True,
        head_zeroinit=False,
      ),
      llm=dict(variant="tiny", vocab_size=text["vocab_size"], cache_dtype="float32"),
    )
    answers |= ask(model, request, work)
  np.savez(work / "answers.npz", **answers)


def ask(model, request, work):
  """Returns log-probabilities of the text of each row with an image; others it does not take."""
  pixels, slots = np.load(work / "pixels.npz")["pixels"], request["slots"]
  vocab = request["config"]["text"]["vocab_size"]
  config = ml_collections.ConfigDict(
    dict(img=dict(scan=True), llm=dict(variant="tiny", vocab_size=vocab))
  )
  answers, params = {}, None
  for case, rows in request["cases"].items():
    if any(r["image"] is None for r in rows):
      continue
    texts = [r["tokens"][slots:] for r in rows]
    longest = max(map(len, texts))
    tokens = np.array([t + [0] * (longest - len(t)) for t in texts])
    ar = np.array([[int(i + slots >= r["prefix"]) for i in range(longest)] for r in rows])
    images = pixels[[r["image"] for r in rows]]
    if params is None:
      init = model.init(jax.random.key(0), images, tokens, ar)["params"]
      params = paligemma.load(init, str(work / "model.npz"), config)
    logits, _ = model.apply({"params": params}, images, tokens, ar)
    logp = np.asarray(jax.nn.log_softmax(logits))
    for i, text in enumerate(texts):
      answers[f"as trained/{case}/{i}/{slots}"] = logp[i, : len(text)]
  return answers


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
