# SPDX-License-Identifier: Apache-2.0
"""Small random models, and an endpoint on a thread of the test's own process."""

import base64
from collections.abc import Iterator
import contextlib
import io
import threading
import time

import jax
import numpy as np
from PIL import Image
import uvicorn

from auditdm_jax.models import gemma, siglip
from auditdm_jax.models import multimodal as mm
from auditdm_jax.serving.app import Endpoint
from auditdm_jax.serving.batcher import Batching, Run
from auditdm_jax.serving.engine import Engine
from auditdm_jax.serving.intake import Intake, Limits
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm

WORDS = "user model what is where the red blue round thing cup dish ? a b c d e".split()
TOKENIZER = Tokenizer.word_level(WORDS)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((8, 8), (30, 20), (9, 40))]
QUESTIONS = [" ".join(RNG.choice(WORDS, n)) for n in (3, 14, 2, 6, 9, 5, 12, 4)]


def make(template: str = prompts.GEMMA3, *, sees: bool = True) -> Vlm:
  """A model whose answers are neither all alike nor blank."""
  text = gemma.GemmaConfig(
    vocab_size=TOKENIZER.vocab_size,
    width=16,
    depth=2,
    mlp_dim=24,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    window=4,
    layer_is_local=(True, False),
    embed_init_std=0.6,
  )
  vision = siglip.SiglipConfig(
    width=8, depth=1, mlp_dim=12, num_heads=2, patch_size=4, image_size=8
  )
  kind = "paligemma" if template == prompts.PALIGEMMA else "gemma3"
  config = mm.VlmConfig(kind, text, vision if sees else None, TOKENIZER.image_id)
  params = jax.jit(mm.init, static_argnums=0)(config, jax.random.key(0))
  # Nothing but words is likely.
  table = params["llm"]["embedder"]["input_embedding"]
  params["llm"]["embedder"]["input_embedding"] = table.at[: TOKENIZER.id("\n") + 1].multiply(0.1)
  stop = TOKENIZER.id("<eos>"), TOKENIZER.id("a")
  return Vlm("tiny", config, params, TOKENIZER, template, stop)


def url(image: np.ndarray, kind: str = "png") -> str:
  data = io.BytesIO()
  Image.fromarray(image).save(data, kind)
  return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def user(text: str, *images: np.ndarray) -> dict:
  """A message, its images first."""
  parts = [{"type": "image_url", "image_url": {"url": url(image)}} for image in images]
  return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@contextlib.contextmanager
def served(
  vlm: Vlm,
  *,
  run: Run | None = None,
  key: str | None = None,
  limits: Limits | None = None,
  batching: Batching | None = None,
) -> Iterator[str]:
  """Serves a model, or what `run` makes of requests to it; yields the address."""
  limits = limits or Limits(max_tokens=8)
  endpoint = Endpoint(
    vlm.name,
    key=key,
    intake=Intake(vlm, name=vlm.name, limits=limits),
    run=run or Engine(vlm, cache_bytes=1 << 20).run,
    batching=batching or Batching(),
    max_body=limits.max_body,
  )
  config = uvicorn.Config(
    endpoint.app(), port=0, lifespan="on", log_config=None, timeout_graceful_shutdown=5
  )
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  while not server.started:
    assert thread.is_alive()
    time.sleep(0.01)
  try:
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
  finally:
    server.should_exit = True
    thread.join(10)
