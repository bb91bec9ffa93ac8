# SPDX-License-Identifier: Apache-2.0
r"""A target of one's own: any Python function that answers a question about an image.

COMMAND
  python -m examples.own_target --port=8010 &
  python -m auditdm_jax audit --auditor=data/scenes/weights/auditor --target=mine \
    --references=data/scenes/weights/ref_paligemma2,data/scenes/weights/ref_gemma3 \
    --images=data/photos --steps=0 --budget=256 --workdir=runs/own_target \
    --config.endpoints.mine.base_url=http://127.0.0.1:8010/v1 --config.endpoints.mine.model=mine

Put your model into `answer`: torch, a pipeline, a product's API. Where one speaks OpenAI's API
already (vLLM, llama.cpp, a provider), no such file is needed: see docs/endpoints.md.
"""

import argparse
import base64
import io
import time

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
import uvicorn

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30), "gray": (128,) * 3}


def answer(image: Image.Image | None, question: str, max_tokens: int) -> str:
  """Returns a short answer. This model sees colours only, and says them to every question."""
  del question, max_tokens
  if image is None:
    return "unanswerable"
  mean = np.asarray(image.convert("RGB"), float).mean((0, 1))
  return min(COLORS, key=lambda name: float(np.abs(mean - COLORS[name]).sum()))


async def _chat(request: Request) -> JSONResponse:
  """One chat completion, in OpenAI's form: a text, and an image as a data URL."""
  body = await request.json()
  image, question = None, ""
  content = body["messages"][-1]["content"]
  for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
    if part["type"] == "text":
      question += part["text"]
    else:
      _, _, data = part["image_url"]["url"].partition("base64,")
      image = Image.open(io.BytesIO(base64.b64decode(data)))
  said = await run_in_threadpool(answer, image, question, body.get("max_tokens", 16))
  message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
  return JSONResponse(
    {
      "id": "own",
      "object": "chat.completion",
      "created": int(time.time()),
      "model": body["model"],
      "choices": [message],
    }
  )


async def _models(request: Request) -> JSONResponse:
  del request
  entry = {"id": "mine", "object": "model", "created": 0, "owned_by": "me"}
  return JSONResponse({"object": "list", "data": [entry]})


APP = Starlette(
  routes=[
    Route("/v1/chat/completions", _chat, methods=["POST"]),
    Route("/v1/models", _models),
  ]
)

if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Serves `answer` as an OpenAI-compatible endpoint.")
  parser.add_argument("--port", type=int, default=8010)
  uvicorn.run(APP, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
