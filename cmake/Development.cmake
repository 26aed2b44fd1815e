# SPDX-License-Identifier: Apache-2.0
# What this project's own translation units are built with. Nothing here reaches a user of the library.

find_program(LIGHTLORA_CCACHE ccache)
find_program(LIGHTLORA_MOLD mold)
mark_as_advanced(LIGHTLORA_CCACHE LIGHTLORA_MOLD)

# ccache refuses files with a precompiled header unless it is told that time stamps and unused macros do
# not matter; the base folder lets every build folder of one checkout share the results.
if(LIGHTLORA_CCACHE AND PROJECT_IS_TOP_LEVEL AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" CCACHE_NOHASHDIR=1 "${LIGHTLORA_CCACHE}")
endif()

# Flags of our own files, always linked PRIVATE.
add_library(lightlora_development INTERFACE)
if(LIGHTLORA_BUILD_HEADER_ONLY)
  target_link_libraries(lightlora_development INTERFACE lightlora::lightlora)
else()
  target_link_libraries(lightlora_development INTERFACE lightlora::compiled)
endif()
target_compile_options(
  lightlora_development
  INTERFACE -Wall -Wextra $<$<BOOL:${LIGHTLORA_WERROR}>:-Werror>
            # ccache needs this to see through a precompiled header.
            $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
if(LIGHTLORA_MOLD AND (NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU" OR CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 12.1))
  target_link_options(lightlora_development INTERFACE -fuse-ld=mold)
endif()

# torch/torch.h costs about 10 s in every file that includes it. This target compiles it once, and the
# others reuse the result. The library's headers never rely on it: tests/packaging compiles each alone.
file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/precompiled_torch.cpp" CONTENT "")
add_library(precompiled_torch OBJECT "${PROJECT_BINARY_DIR}/precompiled_torch.cpp")
target_link_libraries(precompiled_torch PRIVATE lightlora_development)
set_target_properties(precompiled_torch PROPERTIES CXX_EXTENSIONS OFF)
target_precompile_headers(precompiled_torch PRIVATE <torch/torch.h>)

# Common settings of every library, program and test of this project. LOADS_CUDA: a program that loads
# LibTorch's CUDA libraries itself; all others are linked with them where LightloraTorch_CUDA says so.
function(lightlora_own_target target)
  get_target_property(kind ${target} TYPE)
  if(kind STREQUAL "EXECUTABLE" AND LightloraTorch_CUDA AND NOT "LOADS_CUDA" IN_LIST ARGN AND TARGET lightlora::torch_cuda)
    target_link_libraries(${target} PRIVATE lightlora::torch_cuda)
  endif()
  target_link_libraries(${target} PRIVATE lightlora_development)
  target_precompile_headers(${target} REUSE_FROM precompiled_torch)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF INSTALL_RPATH_USE_LINK_PATH ON)
endfunction()

# What records CUDA graphs and times with events needs CUDA's headers beside LibTorch's CUDA libraries; without
# them (LIGHTLORA_HAS_CUDA_HEADERS is off) the programs have no part for CUDA, and the benchmarks no events. LibTorch's wheel comes with
# nearly all of them (scripts/requirements-libtorch-cuda.txt has the rest), a toolkit has all.
function(lightlora_find_cuda_headers)
  get_filename_component(packages "${LightloraTorch_CONFIG_DIR}/../../../.." ABSOLUTE)
  file(GLOB folders "${packages}/nvidia/cu1*/include" "/usr/local/cuda*/include")
  list(PREPEND folders "$ENV{CUDA_HOME}/include" "$ENV{CUDA_PATH}/include")
  foreach(folder IN LISTS folders ITEMS /opt/cuda/include)
    # Without the second file the first does not compile.
    if(NOT LIGHTLORA_CUDA_INCLUDE_DIR AND EXISTS "${folder}/cuda_runtime_api.h"
       AND EXISTS "${folder}/crt/host_defines.h")
      set(LIGHTLORA_CUDA_INCLUDE_DIR "${folder}" CACHE PATH "The folder of cuda_runtime_api.h")
    endif()
  endforeach()
  find_library(LIGHTLORA_CUDART NAMES cudart libcudart.so.13 libcudart.so.12
               HINTS "${LIGHTLORA_CUDA_INCLUDE_DIR}/../lib" "${LIGHTLORA_CUDA_INCLUDE_DIR}/../lib64"
               PATHS "${packages}/nvidia/cu13/lib" NO_DEFAULT_PATH)
  mark_as_advanced(LIGHTLORA_CUDA_INCLUDE_DIR LIGHTLORA_CUDART)
  if(LIGHTLORA_CUDA_INCLUDE_DIR AND LIGHTLORA_CUDART)
    set(LIGHTLORA_HAS_CUDA_HEADERS ON PARENT_SCOPE)
    message(STATUS "CUDA graphs and NCCL: on, ${LIGHTLORA_CUDA_INCLUDE_DIR}")
  else()
    message(STATUS "CUDA graphs and NCCL: off, expected CUDA's headers and libcudart, got none; hint: "
                   "pip install -r scripts/requirements-libtorch-cuda.txt, or set CUDA_HOME to a toolkit")
  endif()
endfunction()
set(LIGHTLORA_HAS_CUDA_HEADERS OFF)
if(TARGET lightlora::torch_cuda AND NOT LIGHTLORA_CUDA STREQUAL "OFF")
  lightlora_find_cuda_headers()
endif()

function(lightlora_use_cuda_headers target)
  if(LIGHTLORA_HAS_CUDA_HEADERS)
    target_include_directories(${target} SYSTEM PRIVATE "${LIGHTLORA_CUDA_INCLUDE_DIR}")
    if(EXISTS "${LIGHTLORA_CUDA_INCLUDE_DIR}/cccl")
      target_include_directories(${target} SYSTEM PRIVATE "${LIGHTLORA_CUDA_INCLUDE_DIR}/cccl")
    endif()
    target_compile_definitions(${target} PRIVATE LIGHTLORA_HAS_CUDA=1)
    # LibTorch's inline classes for events and streams call the runtime from our own files.
    target_link_libraries(${target} PRIVATE "${LIGHTLORA_CUDART}")
  endif()
endfunction()
