# SPDX-License-Identifier: Apache-2.0
"""A Gemma 3 that transformers wrote, tuned here, answers and ends its turn in transformers."""

import dataclasses
import os

import jax
import numpy as np
from PIL import Image
import pytest

from auditdm_jax.models import export, weights
from auditdm_jax.rectify import recipes, rows, supervised, tuning
from auditdm_jax.vlm import load_vlm, save_vlm

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests import test_vlm_hf as made  # noqa: E402  (it needs both)

END = made.TOKENIZER.id("<end_of_turn>")
# What Gemma 3's says of turns with images, without its system turn.
CHAT = (
  "{{ bos_token }}{% for m in messages %}<start_of_turn>"
  "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
  "{% for part in m['content'] %}{% if part['type'] == 'image' %}<start_of_image>{% else %}"
  "{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
  "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PICTURES = [Image.fromarray(p) for p in made.PICTURES]
# One question about two images, two about one; labels and questions of different lengths.
EXAMPLES = [
  (0, "what is w1 ?", "red"),
  (1, "what is w1 ?", "w7 w8"),
  (1, "what w2 w3 w4 w5 is w6 w9 ?", "w10 red w11"),
  (2, "what is red ?", "w20"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A release: weights, tokenizer, image processor, chat template, both terminators."""
  from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

  folder = tmp_path_factory.mktemp("gemma-3-tiny-it")
  made.save(made.gemma3(), folder, stop=(1, END))
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / "tokenizer.json"),
    pad_token="<pad>",
    eos_token="<eos>",
    bos_token="<bos>",
    unk_token="<unk>",
    extra_special_tokens={
      "boi_token": "<start_of_image>",
      "eoi_token": "<end_of_image>",
      "image_token": "<image_soft_token>",
    },
  )
  images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
  transformers.Gemma3Processor(
    images, tokenizer, chat_template=CHAT, image_seq_length=4
  ).save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def vlm(folder):
  return load_vlm(folder)


@pytest.fixture(scope="module")
def batch(vlm):
  layout = rows.RowLayout.of(vlm, length=64, suffix=6)
  images, questions, labels = zip(*EXAMPLES, strict=True)
  return supervised.Batch(
    images=vlm.encode(PICTURES[:3]),
    image=np.array(images, np.int32),
    **layout.rows([vlm.style.put(q) for q in questions], labels),
  )


@pytest.fixture(scope="module")
def tuned(vlm, batch, tmp_path_factory):
  """The model after a short fine-tuning, as a folder for transformers."""
  recipe = recipes.Recipe(steps=60, batch_size=4, lr=1e-2, parts=recipes.NO_TOWER)
  tune = tuning.Tuning(vlm.config, recipe, steps=recipe.steps)
  state = tune.init(vlm.params)
  for _ in range(recipe.steps):
    state, _ = tune.update(state, batch)
  root = tmp_path_factory.mktemp("tuned")
  save_vlm(root / "native", vlm.with_params(jax.device_get(state.params)))
  export.write_hf(root / "hf", weights.open_model(root / "native"))
  return root / "hf"


def read(folder):
  model = transformers.Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
  return model.eval(), transformers.AutoProcessor.from_pretrained(folder)


def turns(vlm, image, question, label=None):
  """A conversation as any user of transformers gives it."""
  asked = [{"type": "image", "image": PICTURES[image]}, {"type": "text", "text": question}]
  said = [{"role": "user", "content": asked}]
  if label is not None:
    said.append({"role": "assistant", "content": [{"type": "text", "text": label}]})
  return said


def inputs(processor, conversations, *, ask=True):
  return processor.apply_chat_template(
    conversations,
    tokenize=True,
    add_generation_prompt=ask,
    return_dict=True,
    return_tensors="pt",
    padding=True,
  )


def generated(folder, vlm):
  """Tokens of the greedy replies of transformers, each up to its end."""
  model, processor = read(folder)
  replies = []
  for image, question, _ in EXAMPLES:
    given = inputs(processor, [turns(vlm, image, vlm.style.put(question))])
    with torch.no_grad():
      out = model.generate(**given, do_sample=False, max_new_tokens=8)
    replies.append(out[0, given["input_ids"].shape[1] :].tolist())
  return replies


def test_transformers_answers_with_the_labels_and_ends_its_turns(vlm, folder, tuned):
  want = [[*vlm.tokenizer.encode(label), END] for _, _, label in EXAMPLES]
  assert generated(tuned, vlm) == want
  before = generated(folder, vlm)
  assert not any(END in reply for reply in before), before


def test_logits_on_the_tuned_weights_are_those_of_transformers(vlm, tuned):
  """Two rows of unlike length, so that one is padded, with their images; on either side."""
  ours, (model, processor) = load_vlm(tuned), read(tuned)
  pair = [turns(vlm, image, question, label) for image, question, label in EXAMPLES[1:3]]
  for side in ("left", "right"):
    processor.tokenizer.padding_side = side
    given = inputs(processor, pair, ask=False)
    mask = given["attention_mask"].numpy().astype(bool)
    assert not mask.all() and (mask[:, 0].all() == (side == "right"))
    with torch.no_grad():
      want = model(**given).logits.numpy()
    pixels = given["pixel_values"].permute(0, 2, 3, 1).numpy()
    got = np.asarray(ours.logits(pixels, given["input_ids"].numpy(), input_mask=mask))
    assert np.abs(got - want)[mask].max() < 2e-4, side


def test_exactly_label_and_end_of_turn_are_supervised(vlm, batch, folder):
  """The row is the whole conversation but for the newline after the last turn."""
  _, processor = read(folder)
  newline = vlm.tokenizer.encode("\n")
  for i, (image, question, label) in enumerate(EXAMPLES):
    conversation = turns(vlm, image, vlm.style.put(question), label)
    whole = inputs(processor, [conversation], ask=False)["input_ids"][0].tolist()
    targets = batch.targets[i][batch.mask[i]].tolist()
    assert targets == [*vlm.tokenizer.encode(label), END]
    assert [*batch.tokens[i][batch.valid[i]].tolist(), END, *newline] == whole
    # Each target is the next token of the place that predicts it.
    places = batch.position[i][batch.mask[i]]
    assert [whole[p + 1] for p in places] == targets
    assert places[0] == len(whole) - len(targets) - 2


def test_the_loss_is_that_of_transformers_in_training(vlm, batch, folder):
  """Rows of unlike length, right-padded, image blocks that see themselves; per-row means."""
  model, processor = read(folder)
  processor.tokenizer.padding_side = "right"
  given = inputs(
    processor, [turns(vlm, i, vlm.style.put(q), label) for i, q, label in EXAMPLES], ask=False
  )
  labels = torch.full_like(given["input_ids"], -100)
  for i in range(len(EXAMPLES)):
    places = batch.position[i][batch.mask[i]] + 1
    labels[i, places] = given["input_ids"][i, places]
  with torch.no_grad():
    want = [
      model.train()(
        **{k: v[i : i + 1] for k, v in given.items()}, labels=labels[i : i + 1]
      ).loss.item()
      for i in range(len(EXAMPLES))
    ]
  _, got = supervised.loss_sum(vlm.config, vlm.params, batch, label_smoothing=0.0)
  np.testing.assert_allclose(got, want, atol=2e-4)
  causal = dataclasses.replace(batch, ar=np.ones_like(batch.ar))
  _, other = supervised.loss_sum(vlm.config, vlm.params, causal, label_smoothing=0.0)
  assert np.abs(np.array(other) - want).max() > 1e-2
