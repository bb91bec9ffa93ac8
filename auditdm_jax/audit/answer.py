# SPDX-License-Identifier: Apache-2.0
"""The model bank: asks target and references, each image encoded once, each question asked once.

Each model is asked in its own style, and its short answer is taken from what it said: `asking`.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
import functools

import numpy as np

from auditdm_jax.audit.ask import Answer, AnswerKind, BankConfig, Model, Vlm, ask
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.probe import Verdict, probe_id
from auditdm_jax.audit.verdict import UNSURE, is_fixed, prepare, verdict
from auditdm_jax.core.image_store import Images

ImageSource = Sequence[np.ndarray] | Callable[[str], np.ndarray]
Progress = Callable[[int, int], None]
Heard = Mapping[str, Mapping[tuple[str, str], Answer]]  # By model, and (image id, question).


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
    """f32[U,P,Dv] of the images, encoding those that are missing in one call.

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

  def seen(
    self, model: Model, image_ids: Sequence[str], get: Callable[[str], np.ndarray]
  ) -> np.ndarray | Sequence[np.ndarray]:
    """What a model is shown of images: `features`, or the images if that is what it takes."""
    if model.takes == "features":
      return self.features(model, image_ids, get)
    return _Loaded(image_ids, functools.cache(get))

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
  `computed[name]` those that reached the model after de-duplication and cascade, and
  `kinds[name]` what their replies were: answers, refusals, truncated ones, …
  """

  def __init__(
    self,
    vlms: Mapping[str, Model],
    target: str,
    references: Sequence[str],
    *,
    judge: Judge | None = None,
    config: BankConfig | None = None,
    cache: FeatureCache | None = None,
    heard: Heard | None = None,
  ):
    """Takes models by name, their roles, and what they answered elsewhere: `heard` is not asked."""
    config = config or BankConfig()
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
    self._heard = heard or {}
    self.cache = cache or FeatureCache(config.feature_bytes)
    self.order = config.order or (references[0], target, *references[1:])
    self.asked: Counter[str] = Counter()
    self.computed: Counter[str] = Counter()
    self.kinds: dict[str, Counter[AnswerKind]] = {name: Counter() for name in names}

  def answers(
    self,
    images: ImageSource,
    questions: Sequence[str],
    *,
    image_ids: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    progress: Progress | None = None,
  ) -> dict[str, list[str]]:
    """Short answers of all models to all probes, as `hear` without a cascade.

    Returns:
      Per model one answer per probe; "" if it gave none.
    """
    heard = self.hear(
      images, questions, image_ids=image_ids, cascade=False, models=models, progress=progress
    )
    return {name: [a.text if a else "" for a in answers] for name, answers in heard.items()}

  def hear(
    self,
    images: ImageSource,
    questions: Sequence[str],
    *,
    image_ids: Sequence[str] | None = None,
    cascade: bool | None = None,
    models: Sequence[str] | None = None,
    progress: Progress | None = None,
  ) -> dict[str, list[Answer | None]]:
    """Greedy answers of all models to all probes, with what was said.

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
    ids = _image_ids(images, image_ids)
    if not len(ids) == len(questions) or not (callable(images) or len(images) == len(ids)):
      raise ValueError(f"{len(ids)} images for {len(questions)} questions")
    get = images if callable(images) else dict(zip(ids, images)).__getitem__
    pairs, rows = list(zip(ids, questions)), list(range(len(ids)))
    if self.config.dedup:
      # Questions about one image go together, for the models that read it once for all of them.
      first = {image: i for i, image in enumerate(dict.fromkeys(ids))}
      unique = dict.fromkeys(sorted(pairs, key=lambda pair: first[pair[0]]))
      row = {pair: i for i, pair in enumerate(unique)}
      rows, pairs = [row[pair] for pair in pairs], list(unique)
    wanted = tuple(models or self.order)
    cascade = models is None and (self.config.cascade if cascade is None else cascade)
    found: dict[str, list[Answer | None]] = {name: [] for name in wanted}
    # Models inside, batches outside: features are used while they are in the cache.
    for start in range(0, len(pairs), self.config.batch_size):
      chunk = pairs[start : start + self.config.batch_size]
      for name, answers in self._ask_all(chunk, wanted, get, cascade).items():
        found[name] += answers
      if progress:
        progress(start + len(chunk), len(pairs))
    self.asked.update(dict.fromkeys(found, len(rows)))
    return {name: [answers[i] for i in rows] for name, answers in found.items()}

  def verdicts(
    self,
    images: ImageSource,
    questions: Sequence[str],
    *,
    image_ids: Sequence[str] | None = None,
    cascade: bool | None = None,
    progress: Progress | None = None,
  ) -> list[Verdict]:
    """`hear`, judged: one verdict per probe."""
    ids = _image_ids(images, image_ids)
    heard = self.hear(images, questions, image_ids=ids, cascade=cascade, progress=progress)
    self._prepare(heard, questions)
    return [
      self._verdict(probe_id(ids[i], q), {n: a[i] for n, a in heard.items()}, question=q)
      for i, q in enumerate(questions)
    ]

  def _prepare(
    self, heard: Mapping[str, Sequence[Answer | None]], questions: Sequence[str]
  ) -> None:
    """Lets the judge's model, if it has one, compare the answers to many probes at once."""
    prepare(
      self.judge,
      {name: [None if a is None else a.text for a in own] for name, own in heard.items()},
      questions,
      target=self.target,
      references=self.references,
      rule=self.config.rule,
      unsure=[unsure_at(heard, i) for i in range(len(questions))],
    )

  def _verdict(self, key: str, heard: Mapping[str, Answer | None], *, question: str) -> Verdict:
    """Judges one probe's answers by this bank's roles."""
    known = {name: a for name, a in heard.items() if a is not None}
    return verdict(
      key,
      {name: None if a is None else a.text for name, a in heard.items()},
      self.judge,
      target=self.target,
      references=self.references,
      rule=self.config.rule,
      question=question,
      raw={name: a.raw for name, a in known.items() if a.raw != a.text},
      kinds={name: a.kind for name, a in known.items() if a.kind != "answer"},
    )

  def _ask_all(
    self,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    get: Callable[[str], np.ndarray],
    cascade: bool,
  ) -> dict[str, list[Answer | None]]:
    found: dict[str, list[Answer | None]] = {name: [None] * len(pairs) for name in names}
    place = {image: k for k, image in enumerate(dict.fromkeys(image for image, _ in pairs))}
    features = self._features(list(place), names, get)
    get = functools.cache(get)  # For endpoints: an image of several questions is one object.
    rows = list(range(len(pairs)))
    for name in names:
      model, heard = self.vlms[name], self._heard.get(name, {})
      for i in rows:
        if (answer := heard.get(pairs[i])) is not None:
          found[name][i] = self._by_role(name, answer)
      left = [i for i in rows if found[name][i] is None]
      if left:
        if model.takes == "features":
          seen = features[model.tower_id]
          which = [place[pairs[i][0]] for i in left]
        else:
          seen, which = _Loaded([pairs[i][0] for i in left], get), None
        asked = [pairs[i][1] for i in left]
        told = ask(model, seen, asked, config=self.config, which=which)
        answers = [self._by_role(name, answer) for answer in told]
        self.computed[name] += len(left)
        self.kinds[name].update(a.kind for a in answers)
        for i, answer in zip(left, answers, strict=True):
          found[name][i] = answer
      if cascade:
        self._prepare(found, [question for _, question in pairs])
        rows = [i for i in rows if not self._is_fixed(found, i, pairs[i][1])]
    return found

  def _by_role(self, name: str, answer: Answer) -> Answer:
    return answer.as_reference(self.config.rule) if name in self.references else answer

  def _features(
    self,
    ids: Sequence[str],
    names: Sequence[str],
    get: Callable[[str], np.ndarray],
  ) -> dict[str, np.ndarray]:
    """Features of the images of a batch, once per tower."""
    models = [self.vlms[name] for name in names]
    towers = {m.tower_id: m for m in models if m.takes == "features"}
    return {tower: self.cache.features(vlm, ids, get) for tower, vlm in towers.items()}

  def _is_fixed(self, found: dict[str, list[Answer | None]], i: int, question: str) -> bool:
    texts = {name: None if (a := own[i]) is None else a.text for name, own in found.items()}
    return is_fixed(
      texts[self.target],
      {name: texts[name] for name in self.references},
      self.judge,
      rule=self.config.rule,
      question=question,
      unsure=unsure_at(found, i),
    )


def unsure_at(heard: Mapping[str, Sequence[Answer | None]], i: int) -> frozenset[str]:
  """Returns the references that are not sure of their answers to a probe."""
  return frozenset(
    name for name, own in heard.items() if (a := own[i]) is not None and a.kind == UNSURE
  )


def _image_ids(images: ImageSource, given: Sequence[str] | None) -> list[str]:
  """Content ids, if none are given; an array object that occurs often is hashed once."""
  if given is not None:
    return list(given)
  if callable(images):
    raise ValueError("an image loader needs image_ids")
  by_object: dict[int, str] = {}
  for image in images:
    if id(image) not in by_object:
      by_object[id(image)] = Images.id_of(image)
  return [by_object[id(image)] for image in images]
