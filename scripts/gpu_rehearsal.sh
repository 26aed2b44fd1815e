#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Rehearses scripts/gpu_check.sh as a machine with a GPU and without a network would run it: whole, from its kit, in a
# Debian root that has a compiler, CMake, Ninja and PyTorch and nothing else, with no network device. The device is the
# simulated one. To be run as root with debootstrap and, for making the root, a network; it compiles everything anew.
#
#   scripts/gpu_rehearsal.sh <folder of the root> [phase...]
set -euo pipefail
cd "$(dirname "$0")/.."

root=$(realpath -m "$1")
readonly root tree=/lightlora torch=/opt/torch
shift

if [[ ! -x $root/usr/bin/ninja ]]; then
  debootstrap --variant=minbase --include=g++,cmake,ninja-build,git,python3,python3-pip,python3-venv bookworm "$root"
fi
if [[ ! -d $root$torch ]]; then
  chroot "$root" python3 -m venv "$torch"
  packages=$(echo "$root$torch"/lib/python3*/site-packages)
  rm -rf "$packages"
  # Such machines have PyTorch, PEFT and transformers, but neither diffusers nor Pillow.
  cp -al "$(echo .deps/python/lib/python3*/site-packages)" "$packages" 2>/dev/null ||
    cp -a "$(echo .deps/python/lib/python3*/site-packages)" "$packages"
  rm -rf "$packages"/{diffusers,importlib_metadata,PIL,pillow}*
fi
[[ -d .gpu-kit ]] || scripts/gpu_kit.sh
mkdir -p "$root$tree/build-gpu"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp -a --parents -t "$root$tree"
cp -a .gpu-kit "$root$tree"
# What is rehearsed is the script, not the compiler.
[[ -e $root$tree/build-gpu/CMakeCache.txt ]] ||
  echo 'CMAKE_CXX_FLAGS_RELEASE:STRING=-O0 -DNDEBUG' >"$root$tree/build-gpu/CMakeCache.txt"

# shellcheck disable=SC2016 # the inner shell's variables
unshare --net --mount --pid --fork --kill-child bash -euc '
  root=$1 tree=$2 python=$3
  shift 3
  mount --make-rprivate /
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root GPU_CHECK_FAKE=1 LIMIT=20000 OMP_NUM_THREADS=1 \
    CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-2}" PYTHON="$python" "$tree/scripts/gpu_check.sh" "$@"
' bash "$root" "$tree" "$torch/bin/python" "$@"
