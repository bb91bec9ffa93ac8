# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of `serve` and of `transformers serve`, asked by the same clients, in turns.

COMMAND
  python -m benchmarks.serve [--case=images|text] [--clients=8] [--requests=32] [--tokens=64]
    [--turns=3]
  taskset -c 1 python -m benchmarks.serve     on a machine that does other things at the same time

One random Gemma 3 checkpoint that both load, on this machine's processor: with a vision tower, each
request with an image of its own, or text only. transformers answers text with its continuous
batching; for images it has none and answers one after the other. Both servers run all the time, and
the one that is not asked is idle. Every answer has all its tokens, because the model's terminator
is never likely. The first round of each, in which programs are compiled, is not counted. Prints
JSON: tokens by turn per second and per second of the server's processor time, the ratios of their
medians, and how many greedy answers are equal.

Where cores are shared, torch's threads wait for one another much longer than XLA's, and the ratios
are several times too high: pin everything to one core.
"""

import base64
from collections.abc import Iterator
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any
import urllib.error
import urllib.request

from absl import app, flags, logging
import numpy as np
import openai
from PIL import Image
import torch
import transformers

from auditdm_jax.text.tokenizer import Tokenizer

_CASE = flags.DEFINE_enum("case", "images", ["images", "text"], "what is asked")
_CLIENTS = flags.DEFINE_integer("clients", 8, "requests at a time")
_REQUESTS = flags.DEFINE_integer("requests", 32, "of a turn")
_TOKENS = flags.DEFINE_integer("tokens", 64, "of an answer")
_TURNS = flags.DEFINE_integer("turns", 3, "of each server")

WORDS = ["user", "model", *(f"w{i}" for i in range(16_000))]
SIDE, SLOTS = 224, 16
READY_S = 300
TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
  "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}"
  "{% for part in m['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
  "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
  "<end_of_turn>\n{% endfor %}{{ '<start_of_turn>model\n' }}"  # Jinja drops a last newline.
)
TEXT: dict[str, Any] = dict(
  hidden_size=640,
  intermediate_size=2048,
  num_hidden_layers=12,
  num_attention_heads=4,
  num_key_value_heads=1,
  head_dim=256,
  sliding_window=512,
)
VISION: dict[str, Any] = dict(
  hidden_size=192,
  intermediate_size=768,
  num_hidden_layers=4,
  num_attention_heads=3,
  image_size=SIDE,
  patch_size=14,
  vision_use_head=False,
)


def make(folder: pathlib.Path, *, images: bool) -> int:
  """Writes the checkpoint as a release has it; returns its number of parameters."""
  words = Tokenizer.word_level(WORDS)
  text: dict[str, Any] = TEXT | dict(vocab_size=words.vocab_size)
  if images:
    config = transformers.Gemma3Config(
      text_config=text,
      vision_config=VISION,
      mm_tokens_per_image=SLOTS,
      image_token_index=words.image_id,
      boi_token_index=words.id("<start_of_image>"),
      eoi_token_index=words.id("<end_of_image>"),
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
  else:
    model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**text))
  torch.manual_seed(0)
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.normal_(0.0, 0.2 if "norm" in name else 1.5 * p.shape[-1] ** -0.5)
    # Nothing but words is likely, so that all answers are equally long.
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    embeddings.weight[: words.id("user")] = 0.0
  model.generation_config.eos_token_id = words.id("<eos>")
  model.save_pretrained(folder)
  words.save(folder)
  _save_processor(folder, images=images)
  return sum(p.numel() for p in model.parameters())


def _save_processor(folder: pathlib.Path, *, images: bool) -> None:
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json"),
    chat_template=TEMPLATE,
    pad_token="<pad>",
    eos_token="<eos>",
    bos_token="<bos>",
    extra_special_tokens={
      "boi_token": "<start_of_image>",
      "eoi_token": "<end_of_image>",
      "image_token": "<image_soft_token>",
    },
  )
  if not images:
    tokenizer.save_pretrained(folder)
    return
  squares = transformers.Gemma3ImageProcessor(
    size={"height": SIDE, "width": SIDE}, image_seq_length=SLOTS
  )
  transformers.Gemma3Processor(
    squares, tokenizer, chat_template=TEMPLATE, image_seq_length=SLOTS
  ).save_pretrained(folder)


@dataclasses.dataclass(frozen=True)
class Server:
  client: openai.OpenAI
  pid: int

  def cpu_seconds(self) -> float:
    """Processor time of all its threads so far."""
    fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(command: list[str], port: int, log: pathlib.Path) -> Iterator["Server"]:
  """A server as a child, from when it is ready."""
  with log.open("w") as out:
    process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
  try:
    until = time.monotonic() + READY_S
    while not _is_ready(port):
      if process.poll() is not None or time.monotonic() > until:
        raise RuntimeError(f"{' '.join(command)}:\n{log.read_text()[-3000:]}")
      time.sleep(0.2)
    client = openai.OpenAI(
      base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600, max_retries=0
    )
    yield Server(client, process.pid)
  finally:
    process.terminate()
    process.wait(30)


def _is_ready(port: int) -> bool:
  try:
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200
  except urllib.error.URLError:
    return False


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def messages(turn: int, *, images: bool) -> list[Any]:
  """One message per request of a turn: 16 words, and an image."""
  rng = np.random.default_rng(turn)
  out = []
  for _ in range(_REQUESTS.value):
    content: list[dict[str, Any]] = [{"type": "text", "text": " ".join(rng.choice(WORDS, 16))}]
    if images:
      data = io.BytesIO()
      pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(data, "png")
      url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
      content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    out.append({"role": "user", "content": content})
  return out


@dataclasses.dataclass(frozen=True)
class Turn:
  """Tokens per second, per second of the server's processor time, and the answers."""

  rate: float
  cpu_rate: float
  answers: list[str]


def ask(server: Server, model: str, asked: list[Any]) -> Turn:
  """Asks everything, so many at a time."""

  def one(message: Any) -> tuple[int, str]:
    answer = server.client.chat.completions.create(
      model=model, messages=[message], temperature=0, max_tokens=_TOKENS.value
    )
    count = 0 if answer.usage is None else answer.usage.completion_tokens
    return count, answer.choices[0].message.content or ""

  start, cpu = time.perf_counter(), server.cpu_seconds()
  with concurrent.futures.ThreadPoolExecutor(_CLIENTS.value) as pool:
    said = list(pool.map(one, asked))
  seconds, cpu = time.perf_counter() - start, server.cpu_seconds() - cpu
  counts = {count for count, _ in said}
  if counts != {_TOKENS.value}:
    raise RuntimeError(f"answers of {counts} tokens, where all should have {_TOKENS.value}")
  tokens = len(said) * _TOKENS.value
  return Turn(tokens / seconds, tokens / cpu, [text for _, text in said])


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)  # A line per request otherwise.
  images = _CASE.value == "images"
  with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
    folder = pathlib.Path(name) / "gemma3"
    parameters = make(folder, images=images)
    ports = {"theirs": _free_port(), "ours": _free_port()}
    transformers_cli = pathlib.Path(sys.executable).with_name("transformers")
    commands = {
      "theirs": [
        str(transformers_cli),
        "serve",
        str(folder),
        f"--port={ports['theirs']}",
        "--device=cpu",
        *([] if images else ["--continuous-batching"]),
      ],
      "ours": [
        sys.executable,
        "-m",
        "auditdm_jax",
        "serve",
        f"--model={folder}",
        f"--port={ports['ours']}",
      ],
    }
    models = {"theirs": str(folder), "ours": folder.name}
    servers = {
      side: stack.enter_context(running(command, ports[side], pathlib.Path(name) / side))
      for side, command in commands.items()
    }
    turns: dict[str, list[Turn]] = {side: [] for side in servers}
    for turn in range(_TURNS.value + 1):
      asked = messages(turn, images=images)
      for side, server in servers.items():
        turns[side].append(ask(server, models[side], asked))
        rate = turns[side][-1].rate
        print(f"turn {turn} {side}: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
  print(json.dumps({"case": _CASE.value, "parameters": parameters} | _result(turns)))


def _result(turns: dict[str, list[Turn]]) -> dict:
  """What is printed; the first turns are left out."""
  rates = {side: [t.rate for t in each[1:]] for side, each in turns.items()}
  cpu_rates = {side: [t.cpu_rate for t in each[1:]] for side, each in turns.items()}
  equal = [a == b for x, y in zip(*turns.values()) for a, b in zip(x.answers, y.answers)]
  return {
    "cores": len(os.sched_getaffinity(0)),
    "clients": _CLIENTS.value,
    "tokens_per_second": _rounded(rates),
    "ratio": _ratio(rates),
    "tokens_per_cpu_second": _rounded(cpu_rates),
    "cpu_ratio": _ratio(cpu_rates),
    "equal_answers": f"{sum(equal)} of {len(equal)}",
  }


def _rounded(rates: dict[str, list[float]]) -> dict[str, list[float]]:
  return {side: [round(rate, 1) for rate in each] for side, each in rates.items()}


def _ratio(rates: dict[str, list[float]]) -> float:
  """Of the medians, ours to theirs."""
  return round(statistics.median(rates["ours"]) / statistics.median(rates["theirs"]), 2)


if __name__ == "__main__":
  app.run(main)
