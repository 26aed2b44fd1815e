#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and runs consumer/consumer.cpp as a stranger's project would.
#
#   consume.sh install          find_package after an install into another prefix
#   consume.sh build_tree       find_package from the build tree
#   consume.sh add_subdirectory from a parent that never heard of torch
#   consume.sh fetch_content    the same through FetchContent and a local folder
#   consume.sh include_path     no CMake at all, only -I
#
# CTest sets LIGHTLORA_SOURCE_DIR, LIGHTLORA_BINARY_DIR, LIGHTLORA_TORCH_DIR (the folder of
# TorchConfig.cmake) and CXX.
set -euo pipefail

way=$1
work=$LIGHTLORA_BINARY_DIR/packaging/$way
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$work"
mkdir -p "$work"

# build <project folder> [cmake options...]
build() {
  local project=$1
  shift
  cmake -S "$project" -B "$work/build" -DTorch_DIR="$LIGHTLORA_TORCH_DIR" "$@"
  cmake --build "$work/build"
  "$work/build/consumer"
}

case $way in
  install)
    cmake --install "$LIGHTLORA_BINARY_DIR" --prefix "$work/prefix"
    # Nothing of the machine that installed may stay in the files.
    if grep -rF -e "$LIGHTLORA_SOURCE_DIR" -e "$LIGHTLORA_TORCH_DIR" "$work/prefix"; then
      echo "the installed files name folders of the build machine" >&2
      exit 1
    fi
    build "$here/find_package" -DCMAKE_PREFIX_PATH="$work/prefix"
    ;;
  build_tree) build "$here/find_package" -Dlightlora_DIR="$LIGHTLORA_BINARY_DIR" ;;
  add_subdirectory | fetch_content) build "$here/$way" -DLIGHTLORA_SOURCE="$LIGHTLORA_SOURCE_DIR" ;;
  include_path)
    torch=$(cd "$LIGHTLORA_TORCH_DIR/../../.." && pwd)
    ${CMAKE_CXX_COMPILER_LAUNCHER:-} "$CXX" -std=c++17 -I"$LIGHTLORA_SOURCE_DIR/include" \
      -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
      -c "$here/consumer/consumer.cpp" -o "$work/consumer.o"
    "$CXX" "$work/consumer.o" -L"$torch/lib" -ltorch_cpu -lc10 -Wl,-rpath,"$torch/lib" -o "$work/consumer"
    "$work/consumer"
    ;;
  *)
    echo "'$way': expected install, build_tree, add_subdirectory, fetch_content or include_path" >&2
    exit 2
    ;;
esac
