#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Packs what scripts/gpu_check.sh needs on a machine without a network into .gpu-kit (about 27 MB): the Debian packages
# of the programs, unpacked there without being installed, and diffusers. LibTorch, a compiler, CMake and Ninja have to
# be there. To be run on Debian 12 with a network. PYTHON_VERSIONS="3.11 3.12" says for which Python.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly kit=.gpu-kit
readonly packages=(
  libcli11-dev libtomlplusplus-dev libtomlplusplus3 nlohmann-json3-dev catch2 libstb-dev libstb0
  libutf8proc-dev libutf8proc2 libpng-dev libpng16-16 libjpeg62-turbo-dev libjpeg62-turbo
  libwebp-dev libwebp7 libwebpdemux2 libwebpmux3 libexif-dev libexif12 zlib1g-dev zlib1g
  libfreetype-dev libfreetype6 libbrotli1
)
readonly wheels=(diffusers==0.42.1 importlib_metadata)

mkdir -p "$kit"
for package in "${packages[@]}"; do
  compgen -G "$kit/${package}_*.deb" >/dev/null && continue
  # The user _apt may not enter this folder, which apt would say for each of them.
  (cd "$kit" && apt-get download -q -o APT::Sandbox::User=root "$package")
done
python3 -m pip download --quiet --no-deps --dest "$kit" "${wheels[@]}"
# diffusers does not load without it, and there is one for each version of Python.
for version in ${PYTHON_VERSIONS:-3.11 3.12}; do
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --dest "$kit" pillow
done
du -sh "$kit"
