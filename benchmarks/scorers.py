# SPDX-License-Identifier: Apache-2.0
"""CPU seconds of the scorers on sets of the size of the real ones.

COMMAND
  python -m benchmarks.scorers

Answers and captions are made of random words. Answers of VQAv2 repeat as those of people do, in a
second row none is like another, so that nothing can be remembered.
"""

from collections.abc import Sequence
import random
import time

from absl import app
import rich.console
import rich.table

from auditdm_jax.bench import scorers

VQA, CAPTIONS, REFERENCES, CHOICES = 100_000, 5_000, 5, 20_000
_FORMS = ("{}", "{}", "{}", "a {}", "{}.", "The {}", "{}-{}", "two {}s", "1,{}", "{} and {}, isn't")
_MARKS = (".", ".", "", " .", "!", ", left.")


def vqa_items(n: int, *, distinct: bool, seed: int = 0) -> list[scorers.Item]:
  """Ten annotators per question, who choose among three answers."""
  rng = random.Random(seed)

  def answer() -> str:
    word = rng.randrange(10**9 if distinct else 2000)
    return rng.choice(_FORMS).format(f"w{word}", f"v{word}")

  items = []
  for i in range(n):
    said = [answer() for _ in range(3)]
    votes = tuple(answer() for _ in range(10)) if distinct else tuple(rng.choices(said, k=10))
    items.append(scorers.Item(key=str(i), prediction=said[0], references=votes))
  return items


def caption_items(n: int, *, seed: int = 0) -> list[scorers.Item]:
  """Captions of 8 to 12 of 3,000 words; frequent words are as frequent as Zipf has it."""
  rng = random.Random(seed)
  words = [f"{'qw'[i % 2]}{i}" if i % 7 else f"w{i}'s" for i in range(3000)]
  shares = [1 / (i + 1) for i in range(len(words))]

  def caption() -> str:
    text = " ".join(rng.choices(words, shares, k=rng.randrange(8, 13)))
    return text.capitalize() + rng.choice(_MARKS)

  return [
    scorers.Item(
      key=str(i), prediction=caption(), references=tuple(caption() for _ in range(REFERENCES))
    )
    for i in range(n)
  ]


def choice_items(n: int, *, seed: int = 0) -> list[scorers.Item]:
  rng = random.Random(seed)
  forms = ("{}", "{}.", "({})", "The answer is {}.", "I think that it is {} as the others are not")
  return [
    scorers.Item(
      key=str(i),
      prediction=rng.choice(forms).format(rng.choice("ABCD")),
      references=(rng.choice("ABCD"),),
      options=("a red car", "a dog", "two", "none of these"),
    )
    for i in range(n)
  ]


def cpu_seconds(name: str, variant: str, items: Sequence[scorers.Item]) -> float:
  """CPU seconds of this process for scoring and reducing."""
  metric = scorers.metric(name, variant)
  start = time.process_time()
  metric.reduce(metric.score(items))
  return time.process_time() - start


def main(argv: Sequence[str]) -> None:
  del argv
  runs = (
    ("vqa_accuracy", "official", "repeated answers", vqa_items(VQA, distinct=False)),
    ("vqa_accuracy", "official", "distinct answers", vqa_items(VQA, distinct=True)),
    ("cider", "official", f"{REFERENCES} references each", caption_items(CAPTIONS)),
    ("choice_accuracy", "lmms-eval", "", choice_items(CHOICES)),
    ("choice_accuracy", "vlmevalkit", "", choice_items(CHOICES)),
  )
  table = rich.table.Table("metric", "variant", "what", "predictions", "CPU s")
  for name, variant, what, items in runs:
    seconds = cpu_seconds(name, variant, items)
    table.add_row(name, variant, what, f"{len(items):,}", f"{seconds:.1f}")
  rich.console.Console().print(table)


if __name__ == "__main__":
  app.run(main)
