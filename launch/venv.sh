# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the scripts beside it, in the root of the repository.

# Makes .venv if there is none and installs the requirements files that have changed since.
# PYTHON chooses the interpreter of a new .venv.
ensure_venv() {
  local python=.venv/bin/python file stamp hash
  # An interrupted creation leaves a folder without pip.
  if ! $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { ! command -v uv >/dev/null && ! $python -c 'import pip' 2>/dev/null; }; then
    echo "+ making .venv"
    rm -rf .venv
    if command -v uv >/dev/null; then
      uv venv --quiet --python "${PYTHON:->=3.11}" .venv
    else
      "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer is needed; set PYTHON to one" >&2
        return 2
      }
      "${PYTHON:-python3}" -m venv .venv
    fi
  fi
  for file in "$@"; do
    stamp=.venv/installed-${file//\//-}
    hash=$(sha256sum "$file")
    if [[ "$(cat "$stamp" 2>/dev/null)" == "$hash" ]]; then
      continue
    fi
    echo "+ installing $file into .venv (the first time takes a minute or two)"
    if command -v uv >/dev/null; then
      uv pip install --quiet --python $python -r "$file"
    else
      $python -m pip install --quiet --disable-pip-version-check --no-input -r "$file"
    fi
    echo "$hash" >"$stamp"
  done
}
