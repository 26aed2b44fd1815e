#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and runs a consumer of the library against the newest torch on PyPI, which this project's own
# builds need not use yet. Downloads about 0.5 GB into build/newest_torch and keeps it.
#
#   scripts/check_newest_torch.sh [version]    a version instead of the newest one
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/build/newest_torch
mkdir -p "$folder"
python3 -m pip download --disable-pip-version-check --no-deps --only-binary=:all: -q -d "$folder/wheels" "torch${1:+==$1}"
wheel=$(find "$folder/wheels" -name "torch-*.whl" -printf "%T@ %p\n" | sort -n | tail -1 | cut -d" " -f2-)
name=$(basename "$wheel" | cut -d- -f1,2)
if [[ ! -d $folder/$name ]]; then
  mkdir "$folder/$name.part"
  python3 -m zipfile -e "$wheel" "$folder/$name.part"
  mv "$folder/$name.part" "$folder/$name"
fi

echo "check_newest_torch: $name"

export LIGHTLORA_SOURCE_DIR=$PWD LIGHTLORA_BINARY_DIR=$folder
export LIGHTLORA_TORCH_DIR=$folder/$name/torch/share/cmake/Torch CXX=${CXX:-c++}
for way in add_subdirectory add_subdirectory_compiled; do bash tests/packaging/consume.sh $way; done
