# SPDX-License-Identifier: Apache-2.0
"""The model bank: asks target and references, each image encoded once, each question asked once."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Protocol

import numpy as np

from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.probe import Verdict, probe_id
from auditdm_jax.audit.verdict import is_fixed, prepare, verdict
from auditdm_jax.core.config import check
from auditdm_jax.core.store import Images

ImageSource = Sequence[np.ndarray] | Callable[[str], np.ndarray]
Progress = Callable[[int, int], None]


class Vlm(Protocol):
  """What the bank needs of a model; `auditdm_jax.vlm.Vlm` has it."""

  @property
  def tower_id(self) -> str:
    """Identity of the vision tower: equal ids mean equal features."""

  def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """u8[H,W,3] images → f32[N,P,Dv]."""

  def answer_features(
    self, features: np.ndarray, prompts: Sequence[str], *, max_new_tokens: int
  ) -> list[str]:
    """Greedy answers."""


@dataclasses.dataclass(frozen=True)
class BankConfig:
  """How the bank asks.

  Attributes:
    max_new_tokens: longest answer.
    batch_size: probes per device call (a Vlm buckets what it gets).
    feature_bytes: bound of the feature cache.
    dedup: ask equal (image, question) pairs once.
    cascade: ask the next model only where the verdict is still open.
    order: cascade order, cheap to dear; empty = first reference, target, other references.
    abstentions: answers that are no consensus.
  """

  max_new_tokens: int = 8
  batch_size: int = 512
  feature_bytes: int = 512 * 2**20
  dedup: bool = True
  cascade: bool = False
  order: tuple[str, ...] = ()
  abstentions: tuple[str, ...] = ()

  def __post_init__(self):
    check(vars(self), "bank", "max_new_tokens", "batch_size", "feature_bytes", least=1)


class FeatureCache:
  """Image features by (tower, image), least recently used out first.

  Models that share one frozen tower share one entry; the auditor's rollout may use it too.
  """

  def __init__(self, max_bytes: int):
    self._max_bytes = max_bytes
    self._bytes = 0
    self._rows: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
    self.encoded: Counter[str] = Counter()  # images sent through each tower so far

  def features(
    self, vlm: Vlm, image_ids: Sequence[str], get: Callable[[str], np.ndarray]
  ) -> np.ndarray:
    """f32[N,P,Dv] of the images, encoding those that are missing in one call.

    Args:
      vlm: the model whose tower is wanted.
      image_ids: ids, repeats allowed.
      get: loads the u8[H,W,3] of an id; called for missing images only.
    """
    tower = vlm.tower_id
    missing = [i for i in dict.fromkeys(image_ids) if (tower, i) not in self._rows]
    # Rows are taken before anything is evicted: one call may need more than the bound holds.
    found = {i: self._rows[tower, i] for i in dict.fromkeys(image_ids) if (tower, i) in self._rows}
    if missing:
      fresh = np.asarray(vlm.encode(_Loaded(missing, get)))
      self.encoded[tower] += len(missing)
      found |= zip(missing, fresh)
    for image_id, row in found.items():
      self._put((tower, image_id), row)
    return np.stack([found[i] for i in image_ids])

  def _put(self, key: tuple[str, str], row: np.ndarray) -> None:
    if key in self._rows:
      self._rows.move_to_end(key)
      return
    row = np.array(row)  # a view would keep its whole batch alive
    self._rows[key] = row
    self._bytes += row.nbytes
    while self._bytes > self._max_bytes and len(self._rows) > 1:
      self._bytes -= self._rows.popitem(last=False)[1].nbytes


class _Loaded(Sequence[np.ndarray]):
  """Images that are loaded when they are looked at: of several processes, none needs them all."""

  def __init__(self, ids: Sequence[str], get: Callable[[str], np.ndarray]):
    self._ids, self._get = ids, get

  def __len__(self) -> int:
    return len(self._ids)

  def __getitem__(self, i: int) -> np.ndarray:
    return self._get(self._ids[i])


class ModelBank:
  """Target and references behind one call.

  `asked[name]` counts probes as the caller put them (the query budget of the paper's tables),
  `computed[name]` those that reached the model after de-duplication and cascade.
  """

  def __init__(
    self,
    vlms: Mapping[str, Vlm],
    target: str,
    references: Sequence[str],
    *,
    judge: Judge | None = None,
    config: BankConfig = BankConfig(),
    cache: FeatureCache | None = None,
  ):
    names = (target, *references)
    if missing := [n for n in (*names, *config.order) if n not in vlms]:
      raise ValueError(f"no model named {missing[0]!r}; the bank has {sorted(vlms)}")
    if len(set(names)) != len(names) or not references:
      raise ValueError(f"target and references must be different and not empty: {names}")
    if config.order and set(config.order) != set(names):
      raise ValueError(f"cascade order {config.order} must name exactly {names}")
    self.vlms = {name: vlms[name] for name in names}
    self.target = target
    self.references = tuple(references)
    self.judge = judge or Judge()
    self.config = config
    self.cache = cache or FeatureCache(config.feature_bytes)
    self.order = config.order or (references[0], target, *references[1:])
    self.asked: Counter[str] = Counter()
    self.computed: Counter[str] = Counter()

  def answers(
    self,
    images: ImageSource,
    questions: Sequence[str],
    *,
    image_ids: Sequence[str] | None = None,
    cascade: bool | None = None,
    models: Sequence[str] | None = None,
    progress: Progress | None = None,
  ) -> dict[str, list[str | None]]:
    """Greedy answers of all models to all probes.

    Args:
      images: one u8[H,W,3] per question (repeats may be the same object), or a loader
        `image_id -> u8[H,W,3]` such as `Images.get` (then `image_ids` is required).
      questions: the questions.
      image_ids: ids of the images; computed from the pixels if absent.
      cascade: overrides the config.
      models: ask only these; switches the cascade off.
      progress: called with (probes done, probes in all) after each batch.

    Returns:
      Per model one answer per probe; None where the cascade found the verdict fixed.
    """
    if callable(images) and image_ids is None:
      raise ValueError("an image loader needs image_ids")
    ids = list(image_ids) if image_ids is not None else _image_ids(images)
    if not len(ids) == len(questions) or not (callable(images) or len(images) == len(ids)):
      raise ValueError(f"{len(ids)} images for {len(questions)} questions")
    get = images if callable(images) else dict(zip(ids, images)).__getitem__
    pairs, rows = list(zip(ids, questions)), list(range(len(ids)))
    if self.config.dedup:
      row = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
      rows, pairs = [row[pair] for pair in pairs], list(row)
    wanted = tuple(models or self.order)
    cascade = models is None and (self.config.cascade if cascade is None else cascade)
    found: dict[str, list[str | None]] = {name: [] for name in wanted}
    # Models inside, batches outside: features are used while they are in the cache.
    for start in range(0, len(pairs), self.config.batch_size):
      chunk = pairs[start : start + self.config.batch_size]
      for name, texts in self._ask_all(chunk, wanted, get, cascade).items():
        found[name] += texts
      if progress:
        progress(start + len(chunk), len(pairs))
    self.asked.update(dict.fromkeys(found, len(rows)))
    return {name: [texts[i] for i in rows] for name, texts in found.items()}

  def verdicts(
    self,
    images: ImageSource,
    questions: Sequence[str],
    *,
    image_ids: Sequence[str] | None = None,
    cascade: bool | None = None,
    progress: Progress | None = None,
  ) -> list[Verdict]:
    """`answers`, judged: one verdict per probe."""
    ids = list(image_ids) if image_ids is not None else _image_ids(images)
    answers = self.answers(images, questions, image_ids=ids, cascade=cascade, progress=progress)
    self.prepare(answers, questions)
    return [
      self.verdict(probe_id(ids[i], q), {n: a[i] for n, a in answers.items()}, question=q)
      for i, q in enumerate(questions)
    ]

  def prepare(self, answers: Mapping[str, Sequence[str | None]], questions: Sequence[str]) -> None:
    """Lets the judge's model, if it has one, compare the answers to many probes at once."""
    prepare(
      self.judge,
      answers,
      questions,
      target=self.target,
      references=self.references,
      abstentions=self.config.abstentions,
    )

  def verdict(self, key: str, answers: Mapping[str, str | None], *, question: str = "") -> Verdict:
    """Judges one probe's answers by this bank's roles."""
    return verdict(
      key,
      answers,
      self.judge,
      target=self.target,
      references=self.references,
      abstentions=self.config.abstentions,
      question=question,
    )

  def _ask_all(
    self,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    get: Callable[[str], np.ndarray],
    cascade: bool,
  ) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {name: [None] * len(pairs) for name in names}
    features = self._features(pairs, names, get)
    rows = list(range(len(pairs)))
    for name in names:
      vlm = self.vlms[name]
      if rows:
        texts = vlm.answer_features(
          features[vlm.tower_id][rows] if len(rows) < len(pairs) else features[vlm.tower_id],
          [pairs[i][1] for i in rows],
          max_new_tokens=self.config.max_new_tokens,
        )
        self.computed[name] += len(rows)
        for i, text in zip(rows, texts, strict=True):
          found[name][i] = text
      if cascade:
        self.prepare(found, [question for _, question in pairs])
        rows = [i for i in rows if not self._is_fixed(found, i, pairs[i][1])]
    return found

  def _features(
    self,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    get: Callable[[str], np.ndarray],
  ) -> dict[str, np.ndarray]:
    """Features of the batch, once per tower."""
    towers = {self.vlms[name].tower_id: self.vlms[name] for name in names}
    ids = [i for i, _ in pairs]
    return {tower: self.cache.features(vlm, ids, get) for tower, vlm in towers.items()}

  def _is_fixed(self, found: dict[str, list[str | None]], i: int, question: str) -> bool:
    return is_fixed(
      found[self.target][i],
      {name: found[name][i] for name in self.references},
      self.judge,
      abstentions=self.config.abstentions,
      question=question,
    )


def _image_ids(images: Sequence[np.ndarray]) -> list[str]:
  """Content ids; an array object that occurs often (a group of probes) is hashed once."""
  by_object: dict[int, str] = {}
  for image in images:
    if id(image) not in by_object:
      by_object[id(image)] = Images.id_of(image)
  return [by_object[id(image)] for image in images]
