# SPDX-License-Identifier: Apache-2.0
"""An object store in memory behind gs://: flat names, whole objects, nothing to append to."""

import io

from fsspec import AbstractFileSystem


class FakeGcs(AbstractFileSystem):
  """What etils asks of gcsfs. Names are bucket/path; folders are what names begin with."""

  protocol = ("gcs", "gs")
  objects: dict[str, bytes] = {}
  puts: list[str] = []

  @classmethod
  def _strip_protocol(cls, path):
    return str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")

  def ls(self, path, detail=True, **kwargs):
    path = self._strip_protocol(path)
    found = {}
    for name, data in self.objects.items():
      if name == path:
        found[name] = {"name": name, "size": len(data), "type": "file"}
      elif name.startswith(f"{path}/"):
        first, _, rest = name.removeprefix(f"{path}/").partition("/")
        kind = {"size": 0, "type": "directory"} if rest else {"size": len(data), "type": "file"}
        found[f"{path}/{first}"] = {"name": f"{path}/{first}", **kind}
    if not found:
      raise FileNotFoundError(path)
    return list(found.values()) if detail else list(found)

  def _open(self, path, mode="rb", **kwargs):
    if mode == "rb":
      return io.BytesIO(self.objects[path])
    assert mode == "wb", f"{mode}: an object is written as a whole"
    return _Upload(self, path)

  def mkdir(self, path, create_parents=True, **kwargs):
    pass

  def makedirs(self, path, exist_ok=False):
    pass

  def rm_file(self, path):
    del self.objects[self._strip_protocol(path)]


class _Upload(io.BytesIO):
  def __init__(self, owner, path):
    super().__init__()
    self._owner, self._path = owner, path

  def close(self):
    if not self.closed:
      self._owner.objects[self._path] = self.getvalue()
      self._owner.puts.append(self._path)
    super().close()
