# SPDX-License-Identifier: Apache-2.0
"""The files that raters send back: JSON that the page saves, or the CSV that they filled in.

Whoever had the page may have changed them, so nothing of them is taken on trust.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import csv
import io
import json
import os
import pathlib
import re
from typing import Any

from auditdm_jax.audit.labels import Choice, Label
from auditdm_jax.audit.sampling import Sampled
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.core.jsonio import canonical_hash

FORMAT = "auditdm-labels-1"
SAYS = ("A", "B", "both", "neither", "unclear")  # What a rater says of a find.
KEY, SAID = "find", "right answer (A, B, both, neither, unclear)"  # Columns of the CSV.
_MOST_BYTES = 20_000_000
_RATER = re.compile(r"[\w@.-]([\w@. -]{0,38}[\w@.-])?")


def sample_id(sample: Sequence[Sampled]) -> str:
  """Names a sample: its first draw, which later ones add to."""
  return canonical_hash(sorted(row.key for row in sample if row.draw == 0))[:16]


def check_rater(name: Any, where: str) -> str:
  """Returns the name of a rater.

  Raises:
    UserError: it is no name.
  """
  if not isinstance(name, str) or not _RATER.fullmatch(name):
    raise UserError(
      f"{where}: the rater is {name!r:.60}; a name has 1 to 40 letters, digits, blanks or any of"
      " @ . _ - (--rater=NAME)"
    )
  return name


def read(
  path: str | os.PathLike, sample: Sequence[Sampled], *, rater: str | None = None
) -> list[Label]:
  """Returns the labels in a file; finds without one are left out.

  Args:
    path: JSON or CSV.
    sample: the finds that were drawn.
    rater: who they are by, whatever the file says.

  Raises:
    UserError: the file is damaged, or is not about this sample.
  """
  where = pathlib.Path(path)
  size = where.stat().st_size
  if size > _MOST_BYTES:
    raise UserError(f"{path}: {size:,} bytes are too many for a file of labels")
  try:
    text = where.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise UserError(f"{path}: no text in UTF-8; save it as CSV (UTF-8), or as the page did") from e
  if text.lstrip().startswith("{"):
    said, name = _json(text, path, sample_id(sample))
  else:
    said, name = _csv(text, path), None
  name = check_rater(rater or name, str(path))
  rows = {row.key: row for row in sample}
  found: dict[str, Label] = {}
  for where_in, key, word in said:
    if key not in rows:
      raise UserError(f"{path}: {where_in}: {key!r:.60} is no find of this run's sample")
    label = Label(key=key, rater=name, choice=_choice(word, rows[key], f"{path}: {where_in}"))
    if found.setdefault(key, label) != label:
      raise UserError(f"{path}: {where_in}: a second and different label of {key}")
  if not found:
    raise UserError(f"{path}: no find is labelled in it")
  return list(found.values())


def _choice(word: str, row: Sampled, where: str) -> Choice:
  """Whose answer is right, from what was said of A and B."""
  spelled = {name.casefold(): name for name in SAYS}
  said = spelled.get(word.strip().casefold())
  if said is None:
    hint = did_you_mean(word[:40], SAYS)
    raise UserError(f"{where}: {word!r:.60} is none of {', '.join(SAYS)}{hint}")
  other = "target" if row.first == "consensus" else "consensus"
  meant: Mapping[str, Choice] = {
    "A": row.first,
    "B": other,
    "both": "both",
    "neither": "neither",
    "unclear": "unclear",
  }
  return meant[said]


def _json(
  text: str, path: str | os.PathLike, sample: str
) -> tuple[list[tuple[str, str, str]], Any]:
  """Returns (where, key, word) of each label, and the rater."""
  try:
    data = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path}: neither JSON of the page nor CSV: {e}") from e
  if data.get("format") != FORMAT:
    raise UserError(f"{path}: its format is {data.get('format')!r:.60}, not {FORMAT!r}")
  if data.get("sample") != sample:
    raise UserError(f"{path}: these are labels of another sample, {data.get('sample')!r:.60}")
  rows = data.get("labels")
  if not isinstance(rows, list):
    raise UserError(f"{path}: labels is no list")
  return list(_json_rows(rows, path)), data.get("rater")


def _json_rows(rows: Iterable[Any], path: str | os.PathLike) -> Iterator[tuple[str, str, str]]:
  for i, row in enumerate(rows):
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("find", "said")):
      raise UserError(f"{path}: labels[{i}] has not the texts find and said")
    yield f"labels[{i}]", row["find"], row["said"]


def _csv(text: str, path: str | os.PathLike) -> list[tuple[str, str, str]]:
  """Returns (where, key, word) of each row that is filled in."""
  # Spreadsheets of some countries write semicolons.
  first = text.partition("\n")[0]
  delimiter = ";" if first.count(";") > first.count(",") else ","
  reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
  try:
    rows = list(reader)
  except csv.Error as e:
    raise UserError(f"{path}: line {reader.line_num}: no CSV: {e}") from e
  columns = reader.fieldnames or ()
  for name in (KEY, SAID):
    if name not in columns:
      raise UserError(f"{path}: no column {name!r}; keep the first line of label.csv")
  return [
    (f"row {i}", row[KEY] or "", row[SAID])
    for i, row in enumerate(rows, 2)
    if (row[SAID] or "").strip()
  ]


def csv_cell(text: str) -> str:
  """Returns a text that no spreadsheet takes for a formula."""
  return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
