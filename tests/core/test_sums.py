# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess

import pytest

from auditdm_jax.core import sums


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "below").mkdir()
  (tmp_path / "a").write_bytes(b"a" * 3_000_000)
  (tmp_path / "below" / "b c").write_bytes(b"")
  sums.write(tmp_path)
  return tmp_path


def test_sha256sum_reads_them(folder):
  if not (program := shutil.which("sha256sum")):
    pytest.skip("no sha256sum here")
  done = subprocess.run([program, "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
  assert done.returncode == 0 and done.stdout == "a: OK\nbelow/b c: OK\n"


def test_what_has_changed_is_named(folder):
  (folder / "new").write_text("files that came later do not count")
  assert sums.wrong(folder) == ""
  (folder / "below" / "b c").write_bytes(b"1")
  assert sums.wrong(folder) == "below/b c"
  (folder / "a").unlink()
  assert sums.wrong(folder) == "a"
  # Of two processes each looks at one of the two.
  assert [sums.wrong(folder, share=(i, 2)) for i in (0, 1)] == ["a", "below/b c"]


def test_without_sums_nothing_is_wrong(folder):
  (folder / "SHA256SUMS").unlink()
  (folder / "a").unlink()
  assert sums.wrong(folder) == ""


@pytest.mark.parametrize(
  "text", ["", "a", f"{'0' * 64}  a", f"{'0' * 64}  ../x\n", f"{'0' * 64}  /etc/x\n", "\xff\n"]
)
def test_sums_that_are_none(folder, text):
  (folder / "SHA256SUMS").write_text(text)
  assert sums.wrong(folder) == "SHA256SUMS"


def test_a_folder_in_their_place_is_none(folder):
  (folder / "SHA256SUMS").unlink()
  (folder / "SHA256SUMS").mkdir()
  assert sums.wrong(folder) == "SHA256SUMS"


def test_only_the_files_that_are_asked_for(folder):
  sums.write(folder, [folder / "a", folder / "not there"])
  assert (folder / "SHA256SUMS").read_text().split("  ")[1:] == ["a\n"]
