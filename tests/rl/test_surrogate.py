# SPDX-License-Identifier: Apache-2.0
"""The net learns what is planted, says how sure it is, and goes on where it was."""

import json

import jax
import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.rl.picking import area
from auditdm_jax.rl.surrogate import Surrogate, SurrogateConfig, SurrogateNet, coarse

PLACES, COLORS = ("left", "right", "top", "bottom"), ("red", "blue", "green", "grey")
CONFIG = SurrogateConfig(
  proposals=8, width=32, heads=2, buckets=128, cells=2, fits=150, batch=128, least=50
)


def scene(image_id):
  """The colour in each of four places."""
  return np.random.default_rng(int(image_id)).integers(4, size=4)


def look(image_ids):
  return np.stack([np.eye(4)[scene(i)] for i in image_ids]).astype(np.float32)


def asked(n, seed):
  rng = np.random.default_rng(seed)
  images = [str(i) for i in rng.integers(400, size=n)]
  places = rng.integers(4, size=n)
  words = [f"what color is the thing at the {PLACES[p]} ?" for p in places]
  return words, images, places


def of_place(images, places):
  """Finds are about what is blue in the very place that is asked about."""
  return [scene(i)[p] == 1 for i, p in zip(images, places)]


def taught(questions, images, found, config=CONFIG):
  made = Surrogate(config, look=look, seed=3)
  made.observe(questions, images, found)
  made.fit("train", 0)
  return made


def test_the_net_is_plain_attention_of_words_to_cells():
  """Against keys and values that are made of each cell; how often a word stands there counts."""
  config = SurrogateConfig(width=8, heads=2, buckets=16, cells=2)
  counts = np.zeros((1, 16), np.float32)
  counts[0, [3, 5]] = 2, 1
  cells = np.random.default_rng(0).normal(size=(1, 4, 6)).astype(np.float32)
  net = SurrogateNet(config)
  params = jax.tree.map(
    lambda x: np.random.default_rng(x.size).normal(size=x.shape),
    dict(net.init(jax.random.key(0), counts, cells)["params"]),
  )
  p = {
    name: (part if name in ("place", "value_bias") else dict(part)) for name, part in params.items()
  }
  text = counts[0] @ p["words"]["kernel"] / np.sqrt(3)
  normed = (cells[0] - cells[0].mean(1, keepdims=True)) / np.sqrt(
    cells[0].var(1, keepdims=True) + 1e-6
  )
  x = (normed * p["norm"]["scale"] + p["norm"]["bias"]) @ p["cells"]["kernel"]
  x = x + p["cells"]["bias"] + p["place"]
  seen = []
  for head in range(2):
    query = text @ p["query"]["kernel"][:, head] + p["query"]["bias"][head]
    keys, values = (x @ p[name]["kernel"][:, head] for name in ("key", "value"))
    weights = np.exp(keys @ query / 2)
    seen.append(weights @ values / weights.sum() + p["value_bias"][4 * head : 4 * head + 4])
  image = np.concatenate([*seen, x.mean(0), x.max(0)])
  dense = lambda name, y: y @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
  sums = np.maximum(dense("text_sum", text) + dense("image_sum", image), 0)
  products = dense("text_product", text) * dense("image_product", image)
  want = dense("of_sums", sums) + dense("of_products", products)
  got = net.apply({"params": params}, counts, cells)
  np.testing.assert_allclose(got, want, rtol=2e-4)


def test_words_are_counted_in_their_buckets():
  made = Surrogate(CONFIG, look=look, seed=3)
  words = np.zeros((2, 64), np.uint16)
  words[0, :3], words[1, :2] = (5, 127, 5), (1, 0)
  counts = made._counts(words)
  assert counts.shape == (2, 128) and counts.sum() == 4
  assert counts[0, 5] == 2 and counts[0, 127] == counts[1, 1] == 1


def test_it_learns_what_is_about_words():
  questions, images, places = asked(800, 0)
  net = taught(questions, images, [p == 2 for p in places])
  questions, images, places = asked(400, 1)
  assert area(net.predict(questions, images), [p == 2 for p in places]) > 0.99


def test_it_learns_what_is_about_a_place_in_the_image():
  """No word and no image alone says it: blue is somewhere in most scenes."""
  questions, images, places = asked(1500, 0)
  net = taught(questions, images, of_place(images, places))
  questions, images, places = asked(600, 1)
  predicted = net.predict(questions, images)
  assert area(predicted, of_place(images, places)) > 0.9


def test_its_probabilities_are_shares_though_a_quarter_of_a_batch_are_finds():
  rng = np.random.default_rng(5)
  questions, images, places = asked(4000, 0)
  rate = np.where(places == 1, 0.12, 0.02)
  net = taught(questions, images, rng.random(4000) < rate)
  predicted = net.predict(questions, images)
  for mine, want in ((places == 1, 0.12), (places != 1, 0.02)):
    assert predicted[mine].mean() == pytest.approx(want, rel=0.35)


def test_what_is_restored_goes_on_as_if_nothing_had_happened():
  questions, images, places = asked(300, 0)
  found = of_place(images, places)
  straight = taught(questions[:200], images[:200], found[:200])
  again = Surrogate(CONFIG, look=look, seed=3)
  again.load(json.loads(json.dumps(straight.state())))
  for net in (straight, again):
    net.observe(questions[200:], images[200:], found[200:])
    net.fit("train", 1)
  np.testing.assert_array_equal(
    straight.predict(questions, images), again.predict(questions, images)
  )
  assert straight.state() == again.state()


def test_what_has_seen_nothing_is_restored_too():
  fresh, again = (Surrogate(CONFIG, look=look, seed=3) for _ in range(2))
  fresh.fit("train", 0)
  again.load(json.loads(json.dumps(fresh.state())))
  assert not again.ready and list(again.predict(["red ?"], ["1"])) == [0.5]


def test_until_it_has_seen_enough_it_says_the_share():
  questions, images, places = asked(49, 0)
  found = of_place(images, places)
  net = taught(questions, images, found)
  assert not net.ready and set(net.predict(questions, images)) == {np.float32(np.mean(found))}
  net.observe(questions[:1], images[:1], found[:1])
  assert net.ready and len(set(net.predict(questions, images))) > 1


@pytest.mark.parametrize("found", [False, True])
def test_one_kind_of_verdict_is_no_fault(found):
  questions, images, _ = asked(60, 0)
  predicted = taught(questions, images, [found] * 60).predict(questions, images)
  assert np.isfinite(predicted).all() and abs(predicted.mean() - found) < 0.1


def test_it_holds_the_latest_and_looks_at_no_image_twice():
  seen = []
  config = SurrogateConfig(memory=20, width=8, heads=2, cells=2, fits=1, batch=4, least=1)
  net = Surrogate(config, look=lambda ids: seen.extend(ids) or look(ids), seed=3)
  for start in range(0, 60, 10):
    images = [str(i) for i in range(start, start + 10)]
    net.observe(["red ?"] * 10, images, [i % 2 == 0 for i in range(10)])
    net.predict(["red ?"] * 10, images)
    net.fit(start)
  assert seen == [str(i) for i in range(60)]
  state = net.state()
  assert state["images"] == [str(i) for i in range(40, 60)]
  assert len(net._cells) == 20 == len(net._words) == len(net._found)


@pytest.mark.parametrize("patches", [9, 16, 256, 4096, 15])
def test_a_tower_of_any_size_has_few_cells(patches):
  features = np.random.default_rng(0).normal(size=(2, patches, 3)).astype(np.float32)
  cells = coarse(features, 4)
  assert cells.shape == (2, min(patches, 16), 3)
  if patches in (256, 4096):
    side, each = int(patches**0.5), int(patches**0.5) // 4
    want = features.reshape(2, side, side, 3)[:, each : 2 * each, 3 * each :].mean((1, 2))
    np.testing.assert_allclose(cells[:, 1 * 4 + 3], want, atol=1e-6)


def test_patches_that_are_no_square_are_averaged_in_their_order():
  cells = coarse(np.arange(34, dtype=np.float32).reshape(1, 34, 1), 4)[0, :, 0]
  assert len(cells) == 16 and (np.diff(cells) > 0).all()


@pytest.mark.parametrize(
  ("fields", "said"),
  [({"width": 30, "heads": 4}, "multiple of heads=4"), ({"batch": 2}, "batch"), ({"lr": 0}, "lr")],
)
def test_what_cannot_be_is_said(fields, said):
  with pytest.raises(UserError, match=said):
    SurrogateConfig(**fields)
