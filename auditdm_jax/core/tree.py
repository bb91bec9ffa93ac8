# SPDX-License-Identifier: Apache-2.0
"""Trees by path: "llm/layers/attn/q_einsum/w" names a leaf in files, rules and errors alike."""

from collections.abc import Mapping, Sequence
import difflib
import re
from typing import Any

import jax
import numpy as np

from auditdm_jax.core.config import UserError

_MAX_LINES = 12  # Per kind in a diff: a wrong checkpoint would print every leaf.


def path_str(path: tuple[Any, ...]) -> str:
  """Returns "a/b/0" for a key path of `jax.tree_util`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {"a/b/c": leaf}, in the order of `jax.tree.leaves`; any pytree will do."""
  return {path_str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested dicts that `flat` names; the inverse of `flatten` for trees of dicts.

  Raises:
    ValueError: a path is both a leaf and the parent of another one.
  """
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
      if not isinstance(node, dict):
        raise ValueError(f"{path!r}: its parent {key!r} is a leaf already")
    if last in node:
      raise ValueError(f"{path!r}: given twice, or the parent of another leaf")
    node[last] = leaf
  return tree


def diff(expected: Any, got: Any) -> str:
  """Says how two trees of arrays differ in paths and shapes; "" if they do not.

  Args:
    expected: what the model needs: arrays or `jax.ShapeDtypeStruct`s.
    got: what the file holds.
  """
  want = {k: np.shape(v) for k, v in flatten(expected).items()}
  have = {k: np.shape(v) for k, v in flatten(got).items()}
  unused = [k for k in have if k not in want]
  missing = [k for k in want if k not in have]
  lines = []
  for title, paths, others in (("missing", missing, unused), ("unused", unused, missing)):
    shapes = want if title == "missing" else have
    for path in paths[:_MAX_LINES]:
      near = difflib.get_close_matches(path, others[:1000], n=1, cutoff=0.6)
      hint = f"  nearest {near[0]}" if near else ""
      lines.append(f"  {title:8}{path} {shapes[path]}{hint}")
    if len(paths) > _MAX_LINES:
      lines.append(f"  {title:8}… and {len(paths) - _MAX_LINES} more")
  wrong = [k for k in want if k in have and want[k] != have[k]]
  lines += [f"  shape   {k}: expected {want[k]}, got {have[k]}" for k in wrong[:_MAX_LINES]]
  if len(wrong) > _MAX_LINES:
    lines.append(f"  shape   … and {len(wrong) - _MAX_LINES} more")
  return "\n".join(lines)


def match_rules(rules: Sequence[tuple[str, Any]], tree: Any) -> Any:
  """Returns a tree like `tree` whose leaves are the specs of the first rule that each path matches.

  A rule is (regex, spec); the regex is searched for anywhere in the path, so one table serves
  params ("llm/…") and optimiser states ("0/mu/llm/…"); anchor with ^ and $ where that matters.
  Leaves without axes take the spec () and need no rule.

  Raises:
    UserError: a leaf that no rule matches, or a rule that matches no leaf.
  """
  compiled = [(re.compile(regex), spec) for regex, spec in rules]
  flat = flatten(tree)
  for regex, _ in compiled:
    if not any(regex.search(path) for path in flat):
      raise UserError(
        f"rule {regex.pattern!r} matches none of the {len(flat)} leaves, "
        f"such as {', '.join(list(flat)[:3])}"
      )

  def spec_of(path: tuple[Any, ...], leaf: Any) -> Any:
    if not np.shape(leaf):
      return ()
    name = path_str(path)
    for regex, spec in compiled:
      if regex.search(name):
        return spec
    raise UserError(
      f"no rule matches {name!r} {np.shape(leaf)}; "
      f"rules: {', '.join(repr(r.pattern) for r, _ in compiled)}"
    )

  return jax.tree_util.tree_map_with_path(spec_of, tree)
