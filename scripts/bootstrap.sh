#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the build needs and is missing: Debian packages, and LibTorch into .deps/python.
#
#   scripts/bootstrap.sh                     everything for the programs
#   scripts/bootstrap.sh --tests             also what the tests of the programs talk to: diffusers, PEFT, ...
#   scripts/bootstrap.sh --library [--tests] the library alone: a compiler, CMake, LibTorch, and Catch2 for its tests
#
# Debian packages are installed when this runs as root; otherwise the command is printed and the script
# stops. LibTorch comes from the PyPI wheel unless Torch_DIR or CMAKE_PREFIX_PATH names one already.
# It is the wheel with CUDA where an NVIDIA driver is seen, or always with LIGHTLORA_CUDA=ON, which the
# build needs then too.
# LIGHTLORA_BROWSER=ON also installs the browser that the test of the site needs.
# A second run finds everything in place and takes a fraction of a second.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly environment=.deps/python
with_programs=true
with_tests=false
for argument in "$@"; do
  case $argument in
    --library) with_programs=false ;;
    --tests) with_tests=true ;;
    *)
      echo "bootstrap: '$argument': expected --library or --tests" >&2
      exit 2
      ;;
  esac
done

debian_packages=(g++ make cmake ninja-build)
if $with_programs; then
  debian_packages+=(
    ccache mold
    catch2 # the tests are configured together with the programs
    libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libstb-dev libutf8proc-dev
    libpng-dev libjpeg-dev libwebp-dev libexif-dev zlib1g-dev
    libfreetype-dev fonts-noto-color-emoji unicode-data # the pictures and names of the bundled model's data
  )
elif $with_tests; then
  debian_packages+=(catch2)
fi
if $with_programs && $with_tests; then
  # The API reference; a launcher of several processes; machines made of namespaces; the style of the scripts.
  debian_packages+=(doxygen openmpi-bin iproute2 shellcheck)
  # The site in a browser: 360 MB, for machines that test only.
  [[ ${LIGHTLORA_BROWSER:-OFF} != ON ]] || debian_packages+=(chromium)
fi

fail() {
  echo "bootstrap: $*" >&2
  exit 1
}

install_debian_packages() {
  if ! command -v dpkg-query >/dev/null; then
    # Not Debian: the build's own checks name what is missing.
    local tool
    for tool in c++ cmake ninja python3; do
      command -v "$tool" >/dev/null ||
        fail "'$tool': expected it in PATH, got none; hint: this project uses what Debian calls ${debian_packages[*]}"
    done
    return
  fi
  local missing=() package installed
  installed=" $(dpkg-query -W -f='${db:Status-Status}:${Package} ' "${debian_packages[@]}" 2>/dev/null || true)"
  for package in "${debian_packages[@]}"; do
    [[ $installed == *" installed:$package "* ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if [[ $(id -u) -ne 0 ]]; then
    fail "these Debian packages are missing; run this and start again:
  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
  fi
  echo "bootstrap: installing Debian packages: ${missing[*]}"
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# Succeeds if the caller's settings name a LibTorch, in the places where cmake/FindLightloraTorch.cmake looks.
libtorch_is_given() {
  if [[ -n ${Torch_DIR:-} ]]; then
    [[ -f $Torch_DIR/TorchConfig.cmake ]] ||
      fail "'$Torch_DIR': expected TorchConfig.cmake in Torch_DIR, got none"
    return 0
  fi
  local prefix suffix prefixes
  IFS=':;' read -r -a prefixes <<<"${CMAKE_PREFIX_PATH:-}"
  for prefix in "${prefixes[@]}"; do
    for suffix in Torch share/cmake/Torch lib/cmake/Torch; do
      [[ -n $prefix && -f $prefix/$suffix/TorchConfig.cmake ]] && return 0
    done
  done
  return 1
}

# A container is built and a login node is used without the driver of the machine that computes.
wants_cuda() {
  case "${LIGHTLORA_CUDA:-AUTO}" in
    ON) return 0 ;;
    OFF) return 1 ;;
    AUTO) has_nvidia_driver ;;
    *) fail "LIGHTLORA_CUDA: expected ON, OFF or AUTO, got '$LIGHTLORA_CUDA'" ;;
  esac
}

has_nvidia_driver() {
  [[ -e /proc/driver/nvidia/version ]] || command -v nvidia-smi >/dev/null ||
    /sbin/ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'
}

# is_installed <requirement file>: whether exactly this text was installed into this environment before.
is_installed() { cmp -s "scripts/$1" "$environment/installed/$1"; }

# pip_install <requirement file> [options]: once per text of the file.
pip_install() {
  local file=$1
  shift
  if [[ ! -x $environment/bin/python3 ]]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      fail "expected Python 3.10 or newer, got $(python3 --version 2>&1)"
    python3 -m venv "$environment"
  fi
  "$environment/bin/python3" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --retries 8 "$@" -r "scripts/$file" || return 1
  mkdir -p "$environment/installed"
  cp "scripts/$file" "$environment/installed/$file"
}

install_libtorch() {
  if wants_cuda; then
    is_installed requirements-libtorch-cuda.txt && return
    echo "bootstrap: installing LibTorch with CUDA into .deps (a download of about 2.7 GB)"
    pip_install requirements-libtorch-cuda.txt || fail "could not install LibTorch from PyPI (see above)"
  else
    is_installed requirements-libtorch.txt && return
    echo "bootstrap: installing LibTorch into .deps (a download of about 0.5 GB)"
    pip_install requirements-libtorch.txt --no-deps || fail "could not install LibTorch from PyPI (see above)"
  fi
}

# What asks for PyTorch comes without its dependencies: PyTorch is there, and what it asks for itself is 2 GB of
# CUDA, which a machine without a driver never runs.
install_test_packages() {
  is_installed requirements-test.txt && is_installed requirements-test-torch.txt && return
  echo "bootstrap: installing diffusers, PEFT and the tools of the tests into .deps (a download of about 0.2 GB)"
  if ! { pip_install requirements-test.txt && pip_install requirements-test-torch.txt --no-deps; }; then
    echo "bootstrap: PyPI did not deliver the Python packages of the tests; the tests that need them will be skipped" >&2
    return
  fi
  wants_cuda || python3 scripts/stand_in_cuda.py "$(echo "$environment"/lib/python3*/site-packages/torch/lib)"
}

if ! libtorch_is_given || { $with_programs && $with_tests; }; then
  debian_packages+=(python3 python3-venv)
  install_debian_packages
  install_libtorch
else
  debian_packages+=(python3)
  install_debian_packages
fi
if $with_programs && $with_tests; then
  install_test_packages
fi
