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
# Each with _compiled behind it as well: linked with lightlora::compiled in place of lightlora::lightlora; without
# CMake, with LIGHTLORA_COMPILED and one source file more.
#
# CTest sets LIGHTLORA_SOURCE_DIR, LIGHTLORA_BINARY_DIR, LIGHTLORA_TORCH_DIR (the folder of
# TorchConfig.cmake) and CXX.
set -euo pipefail

work=$LIGHTLORA_BINARY_DIR/packaging/$1
way=${1%_compiled}
compiled=${1#"$way"}
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$work"
mkdir -p "$work"

target=lightlora::lightlora
[[ -z $compiled ]] || target=lightlora::compiled

# build <project folder> [cmake options...]
build() {
  local project=$1
  shift
  cmake -S "$project" -B "$work/build" -DTorch_DIR="$LIGHTLORA_TORCH_DIR" \
    -DLIGHTLORA_TARGET="$target" "$@"
  cmake --build "$work/build"
  "$work/build/consumer"
}

case $way in
  install)
    cmake --install "$LIGHTLORA_BINARY_DIR" --prefix "$work/prefix"
    # Nothing of the machine that installed may stay in the files, but where pkg-config finds LibTorch.
    if grep -rF -e "$LIGHTLORA_SOURCE_DIR" -e "$LIGHTLORA_TORCH_DIR" "$work/prefix" | grep -v "/lightlora.pc:torch="; then
      echo "the installed files name folders of the build machine" >&2
      exit 1
    fi
    build "$here/find_package" -DCMAKE_PREFIX_PATH="$work/prefix"
    ;;
  build_tree) build "$here/find_package" -Dlightlora_DIR="$LIGHTLORA_BINARY_DIR" ;;
  add_subdirectory | fetch_content) build "$here/$way" -DLIGHTLORA_SOURCE="$LIGHTLORA_SOURCE_DIR" ;;
  include_path)
    torch=$(cd "$LIGHTLORA_TORCH_DIR/../../.." && pwd)
    compile() {
      ${CMAKE_CXX_COMPILER_LAUNCHER:-} "$CXX" -std=c++17 -I"$LIGHTLORA_SOURCE_DIR/include" \
        -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
        ${compiled:+-DLIGHTLORA_COMPILED} -c "$1" -o "$work/$2.o"
    }
    compile "$here/consumer/consumer.cpp" consumer
    if [[ -n $compiled ]]; then
      echo '#include <lightlora/detail/source.h>' >"$work/lightlora.cpp"
      compile "$work/lightlora.cpp" lightlora
    fi
    "$CXX" "$work"/*.o -L"$torch/lib" -ltorch_cpu -lc10 -Wl,-rpath,"$torch/lib" -o "$work/consumer"
    "$work/consumer"
    ;;
  *)
    echo "'$way': expected install, build_tree, add_subdirectory, fetch_content or include_path" >&2
    exit 2
    ;;
esac
