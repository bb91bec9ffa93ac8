# SPDX-License-Identifier: Apache-2.0
"""What became of like questions says what becomes of a question; what is unlike is asked too."""

import json

import numpy as np
import pytest

from auditdm_jax.rl import neighbours
from auditdm_jax.rl.neighbours import Neighbours
from auditdm_jax.rl.surrogate import Surrogate, SurrogateConfig

CONFIG = SurrogateConfig(proposals=8, least=50)
KINDS, WIDTH = 40, 64
CENTRES = np.random.default_rng(0).normal(size=(KINDS, WIDTH))


class Reads:
  """A reader to whom question "K" about any image says K, with a little noise."""

  def __init__(self):
    self.read = 0

  def __call__(self, questions, images):
    self.read += len(questions)
    noise = [
      np.random.default_rng([int(q), int(i)]).normal(size=WIDTH) for q, i in zip(questions, images)
    ]
    return (CENTRES[[int(q) for q in questions]] + 0.1 * np.array(noise)).astype(np.float32)

  def flops(self, questions):
    return 1000.0


def asked(n, seed, kinds=KINDS):
  rng = np.random.default_rng(seed)
  return [str(k) for k in rng.integers(kinds, size=n)], [str(i) for i in rng.integers(999, size=n)]


def taught(questions, images, found, config=CONFIG):
  made = Neighbours(config, reader=Reads())
  made.observe(questions, images, found)
  made.fit("train", 0)
  return made


def surveyed(made, questions, images, *, size=60, new=0):
  rng = np.random.default_rng(0)
  return made.survey(questions, images, size=size, new=new, rng=rng)


def test_the_rate_is_that_of_kernel_regression():
  questions, images = asked(300, 1)
  found = np.random.default_rng(2).random(300) < 0.2
  made = taught(questions, images, found)
  other, about = asked(60, 3)
  states = Reads()(questions, images).astype(np.float16).astype(np.float64)
  mean, scale = states.mean(0), states.std(0)

  def units(x):
    x = (x.astype(np.float16).astype(np.float64) - mean) / scale
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  cosine = units(Reads()(other, about)) @ units(states).T
  near, wide = np.exp((cosine - 1) / 0.05), np.exp((cosine - 1) / 0.3)
  prior = (wide @ found + 20 * found.mean()) / (wide.sum(1) + 20)
  want = (near @ found + prior) / (near.sum(1) + 1)
  np.testing.assert_allclose(made.predict(other, about), want, atol=1e-4)


def test_one_find_tells_its_neighbours_and_verdicts_without_refute_it():
  questions, images = asked(400, 1)
  lone = [q == "7" for q in questions]
  first = lone.index(True)
  rest = [i for i, own in enumerate(lone) if not own]
  told = [first, *rest]
  found = [i == first for i in told]
  made = taught([questions[i] for i in told], [images[i] for i in told], found)
  kinds = [str(k) for k in range(KINDS)]
  rates = made.predict(kinds, ["1000"] * KINDS)
  assert rates.argmax() == 7 and rates[7] > 0.3 > 10 * np.sort(rates)[-2]
  made.observe(["7"] * 5, [str(i) for i in range(2000, 2005)], [False] * 5)
  made.fit()
  assert made.predict(["7"], ["1000"])[0] < 0.25


def test_of_neighbours_of_one_find_few_are_asked_at_once_and_of_a_known_gap_all():
  """Kind 7 has one find and no other verdict, of kind 8 a quarter are finds, of kind 9 all."""
  questions, images = asked(400, 1, kinds=6)
  questions += ["7", *["8"] * 40, *["9"] * 20]
  images += ["1", *map(str, range(40)), *map(str, range(20))]
  found = [False] * 400 + [True] + [True, False, False, False] * 10 + [True] * 20
  made = taught(questions, images, found)
  other, about = ["7"] * 40 + ["8"] * 40 + ["9"] * 40, [str(i) for i in range(3000, 3120)]
  plain = made.predict(other, about)
  apart, none = surveyed(made, other, about, size=60)
  for rates, most in ((plain, 20), (apart, 8)):
    best = np.argsort(-rates)[:60]
    assert sum(i >= 80 for i in best) == 40
    assert 1 <= sum(i < 40 for i in best) <= most
  assert sum(i < 40 for i in np.argsort(-plain)[:60]) == 20
  assert (apart <= plain + 1e-6).all() and none == []
  few, _ = surveyed(made, other[:3], about[:3], size=9)
  np.testing.assert_allclose(few, plain[:3], atol=1e-6)


def test_what_is_unlike_is_what_nobody_asked_and_each_kind_of_it_once():
  questions, images = asked(400, 1, kinds=30)
  made = taught(questions, images, [False] * 400)
  other, about = asked(600, 5)
  _, chosen = surveyed(made, other, about, new=10)
  assert len(set(chosen)) == 10
  assert {other[i] for i in chosen} == {str(k) for k in range(30, 40)}
  assert len(surveyed(made, other[:5], about[:5], new=10)[1]) == 5
  assert surveyed(Neighbours(CONFIG, reader=Reads()), other, about, new=3)[1] == []


def test_before_it_has_seen_enough_it_says_the_same_of_all():
  questions, images = asked(40, 1)
  made = taught(questions, images, [True, False, False, False] * 10)
  assert not made.ready
  assert made.predict(["1", "2"], ["0", "0"]).tolist() == [0.25, 0.25]
  assert Neighbours(CONFIG, reader=Reads()).predict(["1"], ["0"]).tolist() == [0.5]


def test_it_goes_on_from_a_checkpoint_and_remembers_the_latest():
  questions, images = asked(300, 1)
  found = [q in ("3", "9") for q in questions]
  config = SurrogateConfig(proposals=8, least=50, memory=200)
  made = taught(questions, images, found, config)
  again = Neighbours(config, reader=Reads())
  again.load(json.loads(json.dumps(made.state())))
  assert len(again.state()["found"]) == 200
  np.testing.assert_array_equal(again.predict(*asked(50, 4)), made.predict(*asked(50, 4)))
  assert again.flops(10, fits=1) == made.flops(10, fits=9) > 10_000


def test_what_was_read_to_choose_is_not_read_again_to_learn():
  questions, images = asked(300, 1)
  reader = Reads()
  made = Neighbours(CONFIG, reader=reader)
  made.observe(questions, images, [False] * 300)
  made.fit()
  other, about = asked(100, 6)
  distinct = len(set(zip(other, about)) - set(zip(questions, images)))
  before = reader.read
  made.predict(other, about)
  surveyed(made, other, about, new=20)
  made.predict(other[:30], about[:30])
  made.observe(other[:30], about[:30], [False] * 30)
  assert distinct <= reader.read - before <= len(set(zip(other, about)))


@pytest.mark.parametrize("reader", [None, Reads()])
def test_a_run_with_a_reader_has_neighbours_and_without_one_the_net(reader):
  made = neighbours.make(CONFIG, look=lambda ids: np.zeros((len(ids), 4, 4)), reader=reader, seed=0)
  assert isinstance(made, Surrogate if reader is None else Neighbours)
