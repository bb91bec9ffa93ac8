# SPDX-License-Identifier: Apache-2.0
"""Answers of llama.cpp to `benchmarks.readers`. Needs: pip install xllamacpp gguf numpy.

It has no PaliGemma. Gemma 3 is written as its converter writes it, in fp32, and its server is asked
for the token after a row. Ways of asking:

  next token  the row as it is: of an image, text around it with the blank lines written out
  no lines    the same without blank lines, as its chat templates leave an image
"""

import base64
import io
import json
import pathlib
import sys
import urllib.request

import gguf
import numpy as np
from PIL import Image
import xllamacpp

_LAYER = {
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "post_attention_norm",
  "pre_feedforward_layernorm": "ffn_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}
_TOWER = {
  "layer_norm1": "ln1",
  "layer_norm2": "ln2",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.out_proj": "attn_out",
  "mlp.fc1": "ffn_up",
  "mlp.fc2": "ffn_down",
}


def main(work: pathlib.Path) -> None:
  request = json.loads((work / "request.json").read_text())
  answers = {"version": f"llama.cpp (xllamacpp {xllamacpp.__version__})"}
  if request["kind"] == "gemma3":
    tensors = read_safetensors(work / "hf" / "model.safetensors")
    words = json.loads((work / "hf" / "tokenizer.json").read_text())["model"]["vocab"]
    write_text(work / "text.gguf", request, tensors, words)
    write_tower(work / "tower.gguf", request, tensors)
    answers |= ask(work, request, words)
  np.savez(work / "answers.npz", **answers)


def ask(work, request, words):
  """Returns log-probabilities of the token after each row, f32[1,V]."""
  params = xllamacpp.CommonParams()
  params.model.path = str(work / "text.gguf")
  params.mmproj.path = str(work / "tower.gguf")
  params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
  params.cpuparams.n_threads = 1
  server = xllamacpp.Server(params)
  url, by_id, answers = server.listening_address, {i: w for w, i in words.items()}, {}
  with urllib.request.urlopen(f"{url}/props") as reply:
    marker = json.load(reply).get("media_marker", "<__media__>")
  for case, rows in request["cases"].items():
    for i, row in enumerate(rows):
      ways = {"next token": row["tokens"]}
      if row["image"] is not None:
        at, slots = row["tokens"].index(request["ids"]["<start_of_image>"]), request["slots"]
        before, behind = row["tokens"][1 : at - 1], row["tokens"][at + slots + 3 :]
        before, behind = ("".join(by_id[t] for t in part) for part in (before, behind))
        picture = Image.open(work / f"{row['image']}.png")
        ways = {
          "next token": prompt(f"{before}\n\n{marker}\n\n{behind}", picture),
          "no lines": prompt(f"{before}{marker}{behind}", picture),
        }
      for asked, given in ways.items():
        body = {"prompt": given, "n_predict": 1, "n_probs": len(words), "temperature": 0.0}
        body |= {"cache_prompt": False}
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
          urllib.request.Request(f"{url}/completion", data, headers)
        ) as reply:
          said = json.load(reply)
        logp = np.full((1, len(words)), -np.inf, np.float32)
        for one in said["completion_probabilities"][0]["top_logprobs"]:
          logp[0, one["id"]] = one["logprob"]
        answers[f"{asked}/{case}/{i}/{len(row['tokens']) - 1}"] = logp
  return answers


def prompt(text, picture):
  data = io.BytesIO()
  picture.save(data, "png")
  return {"prompt_string": text, "multimodal_data": [base64.b64encode(data.getvalue()).decode()]}


def read_safetensors(path):
  """Returns f32 arrays by name."""
  data = path.read_bytes()
  size = int.from_bytes(data[:8], "little")
  header, data = json.loads(data[8 : 8 + size]), data[8 + size :]
  header.pop("__metadata__", None)
  return {
    k: np.frombuffer(data[slice(*v["data_offsets"])], np.float32).reshape(v["shape"])
    for k, v in header.items()
  }


def write_text(path, request, tensors, words):
  t = request["config"]["text"]
  w = gguf.GGUFWriter(path, "gemma3")
  w.add_context_length(4096)
  w.add_embedding_length(t["width"])
  w.add_block_count(t["depth"])
  w.add_feed_forward_length(t["mlp_dim"])
  w.add_head_count(t["num_heads"])
  w.add_head_count_kv(t["num_kv_heads"])
  w.add_key_length(t["head_dim"])
  w.add_value_length(t["head_dim"])
  w.add_layer_norm_rms_eps(t["norm_eps"])
  w.add_sliding_window(t["window"])
  w.add_rope_freq_base(t["rope_base"])
  w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
  w.add_rope_scaling_factor(t["rope_scale"])
  w.add_tokenizer_model("llama")
  by_id = {i: word for word, i in words.items()}
  by_id[words["w0"]] = "\n\n"
  w.add_token_list([by_id[i] for i in range(len(words))])
  w.add_token_scores([-float(i) for i in range(len(words))])
  special = gguf.TokenType.CONTROL
  kinds = [special if by_id[i][0] == "<" else gguf.TokenType.NORMAL for i in range(len(words))]
  w.add_token_types(kinds)
  w.add_bos_token_id(words["<bos>"])
  w.add_eos_token_id(words["<eos>"])
  w.add_unk_token_id(words["<unk>"])
  w.add_pad_token_id(words["<pad>"])
  w.add_add_bos_token(True)
  w.add_add_space_prefix(False)
  model = "language_model.model"
  w.add_tensor("token_embd.weight", tensors[f"{model}.embed_tokens.weight"])
  w.add_tensor("output_norm.weight", tensors[f"{model}.norm.weight"] + 1)
  for i in range(t["depth"]):
    for theirs, name in _LAYER.items():
      x = tensors[f"{model}.layers.{i}.{theirs}.weight"]
      w.add_tensor(f"blk.{i}.{name}.weight", x + 1 if "norm" in theirs else x)
  finish(w)


def write_tower(path, request, tensors):
  v, slots = request["config"]["vision"], request["slots"]
  w = gguf.GGUFWriter(path, "clip")
  w.add_clip_has_vision_encoder(True)
  w.add_clip_projector_type("gemma3")
  w.add_vision_image_size(v["image_size"])
  w.add_vision_patch_size(v["patch_size"])
  w.add_vision_embedding_length(v["width"])
  w.add_vision_feed_forward_length(v["mlp_dim"])
  w.add_vision_block_count(v["depth"])
  w.add_vision_head_count(v["num_heads"])
  w.add_vision_attention_layernorm_eps(v["norm_eps"])
  w.add_vision_projection_dim(request["config"]["text"]["width"])
  w.add_vision_image_mean([0.5] * 3)
  w.add_vision_image_std([0.5] * 3)
  w.add_vision_use_gelu(True)
  w.add_vision_projector_scale_factor(v["image_size"] // v["patch_size"] // round(slots**0.5))
  tower = "vision_tower.vision_model"
  embeddings = f"{tower}.embeddings"
  for x in ("weight", "bias"):
    w.add_tensor(f"v.patch_embd.{x}", tensors[f"{embeddings}.patch_embedding.{x}"])
    w.add_tensor(f"v.post_ln.{x}", tensors[f"{tower}.post_layernorm.{x}"])
    for i in range(v["depth"]):
      for theirs, name in _TOWER.items():
        w.add_tensor(f"v.blk.{i}.{name}.{x}", tensors[f"{tower}.encoder.layers.{i}.{theirs}.{x}"])
  w.add_tensor("v.position_embd.weight", tensors[f"{embeddings}.position_embedding.weight"])
  projector = "multi_modal_projector"
  w.add_tensor("mm.input_projection.weight", tensors[f"{projector}.mm_input_projection_weight"])
  w.add_tensor("mm.soft_emb_norm.weight", tensors[f"{projector}.mm_soft_emb_norm.weight"] + 1)
  finish(w)


def finish(writer):
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
