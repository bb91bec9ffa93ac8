# SPDX-License-Identifier: Apache-2.0
"""The page on which a person labels finds: a folder of its own that opens from a file.

It is apart from the report, so that a rater who gets the folder does not see which model said what.
The same finds are in label.csv, for those who would rather fill in a table.
"""

from collections.abc import Sequence
import csv
import dataclasses
import os
import pathlib
import shutil
import tempfile

from auditdm_jax.audit.label_files import KEY, SAID, csv_cell
from auditdm_jax.audit.report import pages, pictures, text
from auditdm_jax.audit.report.pictures import Picture

_PAGE, _CSV = "index.html", "label.csv"


@dataclasses.dataclass(frozen=True)
class Shown:
  """A find as a rater sees it: two answers, not said whose."""

  key: str
  image: pathlib.Path
  question: str
  first: str
  second: str


@dataclasses.dataclass(frozen=True)
class _Item:
  find: Shown
  picture: Picture


def write(
  folder: str | os.PathLike, finds: Sequence[Shown], *, sample: str, rater: str
) -> pathlib.Path:
  """Writes the folder, in place of an earlier one, and returns the path of its page.

  Args:
    folder: where.
    finds: in the order in which they are shown.
    sample: name of the sample, which files of labels repeat.
    rater: the name that is filled in; "" = the rater gives one.
  """
  final = pathlib.Path(folder).absolute()
  final.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
    building = pathlib.Path(scratch) / "new"
    album = pictures.Album(building)
    items = [_Item(find, album.store(find.image, caption="")) for find in finds]
    pages.Pages(building).write(
      _PAGE, "label.html", script="label.js", items=items, sample=sample, rater=rater
    )
    _write_csv(building / _CSV, items)
    if final.exists():
      shutil.move(final, pathlib.Path(scratch) / "old")
    building.rename(final)
  return final / _PAGE


def _write_csv(path: pathlib.Path, items: Sequence[_Item]) -> None:
  with path.open("w", encoding="utf-8-sig", newline="") as f:
    writer = csv.writer(f)
    writer.writerow((KEY, "image", "question", "A", "B", SAID))
    for item in items:
      find = item.find
      said = (csv_cell(text.safe(x)) for x in (find.question, find.first, find.second))
      writer.writerow((find.key, item.picture.path, *said, ""))
