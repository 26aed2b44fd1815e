#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The style of every file: clang-format decides for C++, ruff for Python, shellcheck for scripts.
#
#   scripts/format.sh           formats what is not formatted
#   scripts/format.sh --check   changes nothing, says what is wrong, and fails; exit status 77 without the tools
#
# clang-format and ruff at the versions of requirements-test.txt: scripts/bootstrap.sh --tests installs them.
set -euo pipefail
cd "$(dirname "$0")/.."

check=false
case "${1:-}" in
  "") ;;
  --check) check=true ;;
  *)
    echo "format: '$1': expected --check or nothing" >&2
    exit 2
    ;;
esac

# tool <name>: where it is at the version of requirements-test.txt.
tool() {
  local version path
  version=$(sed -n "s/^$1==//p" scripts/requirements-test.txt)
  for path in ".deps/python/bin/$1" "$(command -v "$1" || true)"; do
    if [[ -n $path && -x $path && " $("$path" --version) " == *" $version "* ]]; then
      echo "$path"
      return
    fi
  done
  echo "format: '$1': expected version $version, got none; hint: scripts/bootstrap.sh --tests" >&2
  exit 77
}

# sources <pattern>...: our own files, NUL between them.
sources() {
  local names=() pattern
  for pattern in "$@"; do names+=(-o -name "$pattern"); done
  find benchmarks docs examples include scripts tests .ci -type f \( "${names[@]:1}" \) -print0
}

clang_format=$(tool clang-format)
ruff=$(tool ruff)
shellcheck=$(command -v shellcheck) || {
  echo "format: 'shellcheck': expected it in PATH, got none; hint: scripts/bootstrap.sh --tests" >&2
  exit 77
}

failed=false
if $check; then
  sources '*.h' '*.cpp' | xargs -0 -n 32 -P 2 "$clang_format" --dry-run -Werror || failed=true
  "$ruff" format --quiet --diff . || failed=true
  "$ruff" check --quiet . || failed=true
else
  sources '*.h' '*.cpp' | xargs -0 -n 32 -P 2 "$clang_format" -i
  "$ruff" format --quiet .
  "$ruff" check --quiet --fix . || failed=true
fi
sources '*.sh' run | xargs -0 "$shellcheck" || failed=true
if $failed; then
  echo "format: expected formatted files without findings, got the above; hint: scripts/format.sh" >&2
  exit 1
fi
