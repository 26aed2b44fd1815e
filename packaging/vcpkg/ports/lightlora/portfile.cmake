# SPDX-License-Identifier: Apache-2.0
# An overlay port of the clone that it lies in:
#   vcpkg install lightlora --overlay-ports=packaging/vcpkg/ports
set(VCPKG_BUILD_TYPE release) # header-only
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../../.." ABSOLUTE)

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DLIGHTLORA_BUILD_TESTS=OFF
    -DLIGHTLORA_BUILD_EXAMPLES=OFF
    -DLIGHTLORA_BUILD_STABLE_DIFFUSION=OFF
    -DLIGHTLORA_BUILD_BENCHMARKS=OFF
    -DLIGHTLORA_BUILD_DOCS=OFF
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/lightlora)
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug" "${CURRENT_PACKAGES_DIR}/lib")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
