# SPDX-License-Identifier: Apache-2.0
"""Regression packs: failures of an audit and their controls, as one folder that replays anywhere.

  pack.json         what was audited, how answers are compared, the modes, the licence
  probes.jsonl      a `PackedProbe` a line; pack.json has its hash
  images/HASH.png   named by the hash of their content
  synonyms.yaml     the judge's own table, if the audit had one
  README.md         the command that replays it

A pack comes from somebody else: nothing is believed that can be checked. What is damaged, changed,
too large or outside the folder is refused in one line.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Literal

import numpy as np
from PIL import Image

from auditdm_jax.audit.judge import JudgeConfig
from auditdm_jax.audit.probe import probe_id
from auditdm_jax.core import jsonio, pictures
from auditdm_jax.core.config import UserError, build
from auditdm_jax.core.image_store import Images
from auditdm_jax.text.styles import Style

FORMAT = "auditdm pack"
VERSION = 1
CONTROLS = "controls"  # What a ledger calls the probes outside all modes.
NO_MODE = "no-mode"  # Verified failures that no mode covers.
TOGETHER = "together"  # The probes of all modes: single modes may have too few to tell anything.
_HEADER, _PROBES, _SYNONYMS = "pack.json", "probes.jsonl", "synonyms.yaml"
_MAX_PROBES = 100_000
_MAX_TEXT = 2_000  # Characters of a question or an answer.
_MAX_BYTES = 256 << 20  # Of a file of text.
_MAX_PIXELS = 1 << 26
_ID = re.compile(r"[0-9a-f]{64}")
_MODE_ID = re.compile(r"[\w.:-]{1,100}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedModel:
  """A model of the audit: its name, and the hash of its weights or of its endpoint."""

  name: str
  identity: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedMode:
  """A failure mode of the audit."""

  mode_id: str
  name: str
  definition: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedProbe:
  """A question about an image, and what was said to it.

  Attributes:
    role: "failure", verified; or "control", drawn outside all modes whatever the target said.
    is_control: a failure of no mode that was drawn as a control, too.
    expected: the consensus of the references.
    said: the audited target's answer.
    references: the answers of the references, by name.
    mode_id: mode of a failure; "" if none covers it, and of controls.
    grade: of a failure, see `audit.verify`.
    k, n: trials in which the failure showed again, and trials; 0 of controls.
    source: split and item of the image, or of the image that it was made from.
    made: the image was edited or generated.
  """

  probe_id: str
  image_id: str
  question: str
  role: Literal["failure", "control"]
  expected: str
  said: str
  is_control: bool = False
  references: dict[str, str] = dataclasses.field(default_factory=dict)
  mode_id: str = ""
  grade: str = ""
  k: int = 0
  n: int = 0
  source: str = ""
  made: bool = False

  @property
  def unit(self) -> str:
    """What probes that depend on one another share: their image, or the one it was made from."""
    return self.source or self.image_id

  @property
  def groups(self) -> tuple[str, ...]:
    """The lines of a ledger that it belongs to."""
    if self.role == "control":
      return (CONTROLS,)
    own = (self.mode_id, TOGETHER) if self.mode_id else (NO_MODE,)
    return (*own, CONTROLS) if self.is_control else own


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackHeader:
  """What a pack says of itself.

  Attributes:
    target: the audited model.
    references: whose consensus is expected.
    judge: rules by which answers are compared; its `model` and its own `rules` are "".
    judge_rules: rules of their own that the audit's judge went by; "" = none.
    judge_model: model that the audit's judge asked in addition to its rules; "" = none.
    style: how models in folders are asked; None = each as its origin says.
    max_new_tokens: of a reply.
    abstentions: answers that are none.
    licence: of the images and questions, as whoever packed them put it.
    modes: of the failures.
    code: commit of the auditing code.
    command: that made the pack.
    created: when.
    probes: lines of probes.jsonl.
    sha256: of probes.jsonl.
  """

  format: str = FORMAT
  version: int = VERSION
  target: PackedModel
  references: tuple[PackedModel, ...]
  judge: JudgeConfig = JudgeConfig()
  judge_rules: str = ""
  judge_model: str = ""
  style: Style | None = None
  max_new_tokens: int = 8
  abstentions: tuple[str, ...] = ()
  licence: str = ""
  modes: tuple[PackedMode, ...] = ()
  code: str = ""
  command: str = ""
  created: str = ""
  probes: int = 0
  sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Pack:
  """A pack that was read and found sound, or that has not been written yet.

  Attributes:
    header: what it says of itself.
    probes: its questions.
    load: image_id -> u8[H,W,3].
  """

  header: PackHeader
  probes: tuple[PackedProbe, ...]
  load: Callable[[str], np.ndarray]

  @property
  def names(self) -> dict[str, str]:
    """The names of its modes by their ids."""
    return {m.mode_id: m.name for m in self.header.modes}


def write(folder: str | os.PathLike, pack: Pack) -> pathlib.Path:
  """Writes a pack into a folder, which must not be there or must be empty.

  Raises:
    UserError: the folder holds something, or a table of synonyms cannot be read.
  """
  root = pathlib.Path(folder)
  if root.exists() and (not root.is_dir() or any(root.iterdir())):
    raise UserError(f"{root}: is there already; a pack gets a folder of its own")
  store = Images(root / "images")
  for image_id in dict.fromkeys(p.image_id for p in pack.probes):
    if store.put(pack.load(image_id)) != image_id:
      raise ValueError(f"image {image_id} has other content than its id says")
  header = pack.header
  if header.judge.synonyms:
    shutil.copyfile(header.judge.synonyms, root / _SYNONYMS)
    header = dataclasses.replace(
      header, judge=dataclasses.replace(header.judge, synonyms=_SYNONYMS)
    )
  rows = [json.dumps(jsonio.plain(p), separators=(",", ":")) + "\n" for p in pack.probes]
  lines = "".join(rows).encode()
  (root / _PROBES).write_bytes(lines)
  digest = hashlib.sha256(lines).hexdigest()
  header = dataclasses.replace(header, probes=len(pack.probes), sha256=digest)
  roles = roles_of(pack.probes)
  (root / "README.md").write_text(_readme(header, roles), encoding="utf-8")
  jsonio.write_json(root / _HEADER, header)  # Last: a folder without it is no pack.
  return root


def roles_of(probes: Sequence[PackedProbe]) -> Counter[str]:
  """How many failures and how many controls there are; a failure may be both."""
  counts = Counter(p.role for p in probes)
  counts["control"] += sum(p.is_control for p in probes)
  return counts


def read(folder: str | os.PathLike) -> Pack:
  """Reads a pack and checks all of it.

  Raises:
    UserError: it is none, or is damaged, changed, too large or of a newer version.
  """
  root = pathlib.Path(folder)
  path = root / _HEADER
  if not path.is_file():
    raise UserError(f"{root}: no pack: it has no {_HEADER}; `pack` writes one")
  header = _header(path)
  probes = tuple(_probes(root / _PROBES, header))
  for image_id in dict.fromkeys(p.image_id for p in probes):
    _image(root, image_id)
  if header.judge.synonyms:
    rules = dataclasses.replace(header.judge, synonyms=str(_inside(root, _SYNONYMS)))
    header = dataclasses.replace(header, judge=rules)
  return Pack(header, probes, lambda image_id: _image(root, image_id))


def _header(path: pathlib.Path) -> PackHeader:
  raw = _bytes(path)
  try:
    data = json.loads(raw)
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path}: not JSON: {str(e)[:200]}") from e
  if not isinstance(data, dict) or data.get("format") != FORMAT:
    raise UserError(f"{path}: not the header of a pack: its `format` is not {FORMAT!r}")
  version = data.get("version")
  if version != VERSION or isinstance(version, bool):
    raise UserError(f"{path}: version {version!r:.40}; this code reads version {VERSION}")
  header = build(PackHeader, data, name=str(path))
  if header.judge.model:
    raise UserError(f"{path}.judge.model: {header.judge.model!r:.80}: a pack brings no model")
  if header.judge.rules:  # It would be imported, and so run.
    raise UserError(f"{path}.judge.rules: {header.judge.rules!r:.80}: a pack brings no code")
  if header.judge.synonyms not in ("", _SYNONYMS):
    raise UserError(
      f"{path}.judge.synonyms: {header.judge.synonyms!r:.80}: a pack's table is {_SYNONYMS}"
    )
  for mode in header.modes:
    if not _MODE_ID.fullmatch(mode.mode_id) or mode.mode_id in (CONTROLS, NO_MODE, TOGETHER):
      raise UserError(f"{path}: {mode.mode_id!r:.80} is no id of a mode")
  return header


def _probes(path: pathlib.Path, header: PackHeader) -> Iterator[PackedProbe]:
  """Yields the probes of the file that the header describes."""
  raw = _bytes(path)
  if hashlib.sha256(raw).hexdigest() != header.sha256:
    raise UserError(f"{path}: changed after it was written: its sha256 is not that of {_HEADER}")
  lines = raw.splitlines()
  if not len(lines) == header.probes <= _MAX_PROBES:
    raise UserError(
      f"{path}: {len(lines)} lines where {_HEADER} says {header.probes}; at most {_MAX_PROBES:,}"
    )
  if not lines:
    raise UserError(f"{path}: no probes")
  modes, seen = {mode.mode_id for mode in header.modes}, set()
  for number, line in enumerate(lines, 1):
    where = f"{path}: line {number}"
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as e:
      raise UserError(f"{where}: not JSON: {str(e)[:200]}") from e
    probe = build(PackedProbe, row, name=where)
    _check(probe, where, modes)
    if probe.probe_id in seen:
      raise UserError(f"{where}: the probe {probe.probe_id} is there twice")
    seen.add(probe.probe_id)
    yield probe


def is_bounded(probe: PackedProbe) -> bool:
  """Whether its texts are as short as those of a pack must be."""
  texts = (probe.question, probe.expected, probe.said, probe.source, *probe.references.values())
  return max(map(len, texts)) <= _MAX_TEXT


def _check(probe: PackedProbe, where: str, modes: set[str]) -> None:
  if not _ID.fullmatch(probe.image_id):
    raise UserError(f"{where}.image_id: {probe.image_id!r:.80} is no hash of an image")
  if not is_bounded(probe):
    raise UserError(f"{where}: a text of more than {_MAX_TEXT:,} characters")
  if not probe.question.strip() or not probe.expected.strip():
    raise UserError(f"{where}: the question or the expected answer is empty")
  if probe.probe_id != probe_id(probe.image_id, probe.question):
    raise UserError(f"{where}.probe_id: {probe.probe_id!r:.80} is not that of image and question")
  if probe.mode_id and probe.mode_id not in modes:
    raise UserError(f"{where}.mode_id: {probe.mode_id!r:.80} is none of the modes of {_HEADER}")
  if probe.mode_id and (probe.role == "control" or probe.is_control):
    raise UserError(f"{where}: a control is of no mode, and this one of {probe.mode_id!r:.80}")


def _image(root: pathlib.Path, image_id: str) -> np.ndarray:
  """Returns u8[H,W,3] of an image whose content is what its name says."""
  path = _inside(root, f"images/{image_id}.png")
  with pictures.errors(str(path)), Image.open(path, formats=("PNG",)) as picture:
    if picture.width * picture.height > _MAX_PIXELS:
      raise UserError(f"{path}: {picture.width} x {picture.height} pixels; too large")
    image = np.asarray(picture.convert("RGB"))
  if Images.id_of(image) != image_id:
    raise UserError(f"{path}: damaged, its content is not what its name says")
  return image


def _bytes(path: pathlib.Path) -> bytes:
  path = _inside(path.parent, path.name)
  size = path.stat().st_size
  if size > _MAX_BYTES:
    raise UserError(f"{path}: {size:,} bytes; at most {_MAX_BYTES:,}")
  return path.read_bytes()


def _inside(root: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the path of a file that lies in the folder itself, and not behind a link.

  Raises:
    UserError: it does not, or is no file.
  """
  path = root / name
  if not path.is_file():
    raise UserError(f"{path}: missing, or no file")
  if not path.resolve().is_relative_to(root.resolve()):
    raise UserError(f"{path}: leads out of the pack")
  return path


def _readme(header: PackHeader, roles: Counter[str]) -> str:
  return f"""# A regression pack

{roles["failure"]} verified failures of a vision-language model in {len(header.modes)} modes, and
{roles["control"]} controls: questions outside all modes, chosen whatever the model said to them.
The expected answers are what the references of the audit agreed on.

To ask another model the same, and to see what it lost or gained:

```sh
python -m auditdm_jax compare MODEL --pack=.
```

MODEL is a folder of weights or `endpoint:FILE.yaml`. The exit code is 0 if nothing got worse, 1 if
something did, 2 if the command or the pack is wrong, and with --strict 3 if something is unsure.

Licence of images and questions: {header.licence or "not stated"}
"""
