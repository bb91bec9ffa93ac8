#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers 5.23.0: `transformers serve` answers for a local folder that /v1/models never lists.
#
# Expected: GET /v1/models of an OpenAI-compatible server names what it serves, and it answers on a
#   new machine. Clients probe it to learn whether the server is up and which model it has.
# Seen: as long as the hub's cache folder does not exist, the request fails with status 500. Once it
#   exists, the list is that of the cache's repositories, so a server that was started with a folder,
#   and has just answered a chat completion from it, says that it has no model.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.23.0 torch==2.13.0 accelerate==1.15.0 fastapi==0.165.0 uvicorn==0.54.0 \
  openai==3.57.0 pydantic==2.14.4 tokenizers==0.23.3
export HF_HOME="$folder/hub" HF_HUB_OFFLINE=1
cat >"$folder/make.py" <<'PY'
import sys

import tokenizers
import torch
import transformers

torch.manual_seed(0)
words = ["<pad>", "<eos>", "<unk>", "yes", "no", "say"]
inner = tokenizers.Tokenizer(
  tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
)
inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
template = "{% for m in messages %}{{ m['content'] if m['content'] is string else 'say' }} {% endfor %}"
transformers.PreTrainedTokenizerFast(
  tokenizer_object=inner, chat_template=template, pad_token="<pad>", eos_token="<eos>"
).save_pretrained(sys.argv[1])
config = transformers.LlamaConfig(
  vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
  num_attention_heads=2, num_key_value_heads=1, bos_token_id=None, eos_token_id=1, pad_token_id=0,
)
transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])
PY
"$folder/venv/bin/python" "$folder/make.py" "$folder/model" 2>/dev/null
port=$((20000 + RANDOM % 20000))
"$folder/venv/bin/transformers" serve "$folder/model" --device cpu --host 127.0.0.1 --port "$port" \
  >"$folder/log" 2>&1 &
server=$!
cat >"$folder/seen.py" <<'PY'
import json
import pathlib
import sys
import time
import urllib.error
import urllib.request

url, model, cache = f"http://127.0.0.1:{sys.argv[1]}", sys.argv[2], pathlib.Path(sys.argv[3])


def get(path, body=None):
  data = None if body is None else json.dumps(body).encode()
  request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
  try:
    with urllib.request.urlopen(request, timeout=120) as reply:
      return reply.status, json.loads(reply.read())
  except urllib.error.HTTPError as e:
    return e.code, None


for _ in range(300):
  try:
    if get("/health")[0] == 200:
      break
  except OSError:
    time.sleep(1)
else:
  sys.exit("the server did not start")
before = get("/v1/models")[0]
question = {"model": model, "messages": [{"role": "user", "content": "say"}], "max_tokens": 2}
chat = get("/v1/chat/completions", question)[0]
cache.mkdir(parents=True, exist_ok=True)
status, listed = get("/v1/models")
print(f"/v1/models without a cache: {before}; chat: {chat}; with one: {status} {listed}")
assert before == 500 and chat == 200 and status == 200 and listed["data"] == []
PY
"$folder/venv/bin/python" "$folder/seen.py" "$port" "$folder/model" "$folder/hub/hub" ||
  { tail -20 "$folder/log"; exit 1; }
