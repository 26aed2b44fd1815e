# SPDX-License-Identifier: Apache-2.0
# Finds LibTorch and offers it as the imported target lightlora::torch. Serves this project's own build
# and, installed beside lightloraConfig.cmake, every project that says find_package(lightlora).
#
# Where it looks, in this order: a target `torch` that the calling project already has; Torch_DIR
# (variable or environment); CMAKE_PREFIX_PATH (the same); the folder .deps that scripts/bootstrap.sh
# fills; find_package(Torch)'s own places.
#
# How it uses what it found, LIGHTLORA_TORCH =
#   DIRECT   the headers and shared libraries are used as they lie;
#   PACKAGE  find_package(Torch), LibTorch's own CMake package;
#   AUTO     (default) DIRECT for a CUDA build of LibTorch, PACKAGE for a CPU build.
# The package of a CUDA build (every Linux wheel on PyPI is one) stops unless a full CUDA toolkit is
# installed, takes about 6 s to configure, and edits CMAKE_CUDA_FLAGS; none of that is needed to compile
# or link C++, only to compile .cu files. So AUTO never asks for it.
#
# What DIRECT links, LIGHTLORA_CUDA =
#   OFF   libtorch_cpu and libc10 only: programs start faster and need none of the 2 GB of CUDA libraries;
#   ON    libtorch_cuda too, so that tensors can live on a GPU;
#   AUTO  (default) what the environment's LIGHTLORA_CUDA says, which scripts/bootstrap.sh reads too; else
#         ON where an NVIDIA driver is seen.
# A project that loads libtorch_cuda itself, as this one's programs do, sets LightloraTorch_LOADS_CUDA: then
# lightlora::torch is without it, and lightlora::torch_cuda is what is left out, where it is ON.
#
# The target has a name of its own because LibTorch's package refuses to load into a project in which a
# part of its target names exists: a parent that calls find_package(Torch) after us must keep working.
#
# Result: lightlora::torch, LightloraTorch_FOUND, LightloraTorch_VERSION, LightloraTorch_CUDA (whether it is
# linked), LightloraTorch_CONFIG_DIR (the folder of TorchConfig.cmake).

set(LIGHTLORA_TORCH AUTO CACHE STRING "How to use LibTorch: AUTO, DIRECT or PACKAGE")
set(LIGHTLORA_CUDA AUTO CACHE STRING "Link LibTorch's CUDA libraries: AUTO, ON or OFF")
if(LIGHTLORA_CUDA STREQUAL "AUTO" AND DEFINED ENV{LIGHTLORA_CUDA})
  set(LIGHTLORA_CUDA "$ENV{LIGHTLORA_CUDA}")
endif()
set_property(CACHE LIGHTLORA_TORCH PROPERTY STRINGS AUTO DIRECT PACKAGE)
set_property(CACHE LIGHTLORA_CUDA PROPERTY STRINGS AUTO ON OFF)

# The folder of TorchConfig.cmake, or an empty string. find_package cannot be asked for the place alone:
# it runs the file at once.
function(_lightlora_torch_config_dir result)
  if(Torch_DIR AND NOT EXISTS "${Torch_DIR}/TorchConfig.cmake")
    message(FATAL_ERROR "'${Torch_DIR}': expected TorchConfig.cmake in Torch_DIR, got none")
  endif()
  set(candidates "${Torch_DIR}" "$ENV{Torch_DIR}")
  string(REPLACE ":" ";" environment_prefixes "$ENV{CMAKE_PREFIX_PATH}")
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH environment_prefixes)
    list(APPEND candidates "${prefix}/Torch" "${prefix}/share/cmake/Torch"
         "${prefix}/lib/cmake/Torch")
  endforeach()
  file(GLOB bundled "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../.deps/python/lib/python3*/site-packages/torch/share/cmake/Torch")
  list(APPEND candidates ${bundled})
  foreach(candidate IN LISTS candidates)
    if(candidate AND EXISTS "${candidate}/TorchConfig.cmake")
      get_filename_component(candidate "${candidate}" ABSOLUTE)
      set(${result} "${candidate}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${result} "" PARENT_SCOPE)
endfunction()

# Whether programs can use a GPU here: the driver counts, not the toolkit, and beside a wheel its CUDA
# libraries must lie, which a CPU-only install leaves out.
function(_lightlora_can_use_cuda prefix result)
  set(${result} OFF PARENT_SCOPE)
  find_library(driver NAMES libcuda.so.1 PATHS /usr/lib/wsl/lib NO_CACHE)
  if(driver OR EXISTS /proc/driver/nvidia/version)
    file(GLOB cublas "${prefix}/../nvidia/*/lib/libcublas.so*")
    if(cublas OR NOT EXISTS "${prefix}/../nvidia")
      set(${result} ON PARENT_SCOPE)
    endif()
  endif()
endfunction()

# Defines lightlora::torch from the files of one LibTorch folder, without any CUDA toolkit.
function(_lightlora_torch_direct prefix with_cuda)
  set(libraries "${prefix}/lib/libtorch_cpu.so" "${prefix}/lib/libc10.so")
  if(EXISTS "${prefix}/lib/libtorch_cuda.so")
    add_library(lightlora::torch_cuda INTERFACE IMPORTED GLOBAL)
    set_target_properties(
      lightlora::torch_cuda
      PROPERTIES INTERFACE_LINK_LIBRARIES
                 "-Wl,--push-state,--no-as-needed,${prefix}/lib/libtorch.so,${prefix}/lib/libtorch_cuda.so,${prefix}/lib/libc10_cuda.so,--pop-state")
  endif()
  if(with_cuda AND NOT LightloraTorch_LOADS_CUDA)
    # Nothing refers to a symbol of libtorch_cuda: its kernels register themselves when it is loaded, so
    # the linker must be told to keep it. One item, as CMake may reorder items and drop repeated ones.
    list(PREPEND libraries lightlora::torch_cuda)
  endif()
  add_library(lightlora::torch INTERFACE IMPORTED GLOBAL)
  set_target_properties(
    lightlora::torch
    PROPERTIES INTERFACE_INCLUDE_DIRECTORIES
               "${prefix}/include;${prefix}/include/torch/csrc/api/include"
               INTERFACE_COMPILE_DEFINITIONS "USE_DISTRIBUTED;USE_C10D_GLOO;USE_RPC;USE_TENSORPIPE"
               INTERFACE_LINK_LIBRARIES "${libraries}")
endfunction()

function(_lightlora_torch_alias)
  add_library(lightlora::torch INTERFACE IMPORTED GLOBAL)
  set_target_properties(lightlora::torch PROPERTIES INTERFACE_LINK_LIBRARIES torch)
endfunction()

set(LightloraTorch_CUDA OFF)
set(_lightlora_how "${LIGHTLORA_TORCH}")
_lightlora_torch_config_dir(_lightlora_torch_dir)
get_filename_component(_lightlora_torch_prefix "${_lightlora_torch_dir}/../../.." ABSOLUTE)
if(_lightlora_torch_dir AND EXISTS "${_lightlora_torch_dir}/TorchConfigVersion.cmake")
  file(STRINGS "${_lightlora_torch_dir}/TorchConfigVersion.cmake" _lightlora_line
       REGEX "set\\(PACKAGE_VERSION \"" LIMIT_COUNT 1)
  string(REGEX REPLACE ".*\"([0-9.]+).*" "\\1" LightloraTorch_VERSION "${_lightlora_line}")
endif()

if(_lightlora_how STREQUAL "AUTO")
  if(EXISTS "${_lightlora_torch_prefix}/lib/libtorch_cuda.so"
     AND EXISTS "${_lightlora_torch_prefix}/include/torch/csrc/api/include/torch/torch.h")
    set(_lightlora_how DIRECT)
  else()
    set(_lightlora_how PACKAGE)
  endif()
endif()

if(TARGET lightlora::torch)
  # Found before, in another folder of the same project.
elseif(TARGET torch)
  set(_lightlora_how "the project's own target")
  _lightlora_torch_alias()
  if(DEFINED Torch_VERSION)
    set(LightloraTorch_VERSION "${Torch_VERSION}")
  endif()
elseif(_lightlora_how STREQUAL "DIRECT" AND _lightlora_torch_dir)
  # As find_package would: a place named by the environment is kept for later runs without it.
  if(_lightlora_torch_dir STREQUAL "$ENV{Torch_DIR}")
    set(Torch_DIR "${_lightlora_torch_dir}" CACHE PATH "The folder of TorchConfig.cmake")
  endif()
  set(LightloraTorch_CUDA "${LIGHTLORA_CUDA}")
  if(LIGHTLORA_CUDA STREQUAL "AUTO")
    _lightlora_can_use_cuda("${_lightlora_torch_prefix}" LightloraTorch_CUDA)
  endif()
  if(NOT EXISTS "${_lightlora_torch_prefix}/lib/libtorch_cuda.so")
    set(LightloraTorch_CUDA OFF)
  elseif(NOT LightloraTorch_CUDA AND LIGHTLORA_CUDA STREQUAL "AUTO" AND NOT LightloraTorch_LOADS_CUDA
         AND NOT LightloraTorch_FIND_QUIETLY)
    message(NOTICE "LibTorch's CUDA libraries are left out, as no NVIDIA driver is seen here: what is built "
                   "computes on the CPU. For a machine with a GPU: -DLIGHTLORA_CUDA=ON")
  endif()
  _lightlora_torch_direct("${_lightlora_torch_prefix}" "${LightloraTorch_CUDA}")
else()
  # Without a list LibTorch asks nvcc for compute_50, which CUDA 13 no longer knows.
  if(NOT DEFINED TORCH_CUDA_ARCH_LIST AND NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    set(TORCH_CUDA_ARCH_LIST "7.5;8.0;8.6;9.0;10.0;12.0")
  endif()
  # LibTorch's targets would be visible only in this folder, and a parent that links us would miss them.
  set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)
  if(_lightlora_torch_dir)
    find_package(Torch QUIET PATHS "${_lightlora_torch_dir}" NO_DEFAULT_PATH)
  else()
    find_package(Torch QUIET)
  endif()
  unset(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL)
  if(TARGET torch)
    _lightlora_torch_alias()
    set(LightloraTorch_VERSION "${Torch_VERSION}")
    set(_lightlora_torch_dir "${Torch_DIR}")
    if(TARGET torch_cuda)
      set(LightloraTorch_CUDA ON)
    endif()
  endif()
endif()

if(TARGET lightlora::torch)
  if(NOT LightloraTorch_FIND_QUIETLY)
    message(STATUS "LibTorch: ${_lightlora_torch_dir}, ${_lightlora_how}, CUDA ${LightloraTorch_CUDA}")
  endif()
  set(LightloraTorch_CONFIG_DIR "${_lightlora_torch_dir}")
  set(LightloraTorch_TARGET lightlora::torch)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LightloraTorch
  REQUIRED_VARS LightloraTorch_TARGET
  VERSION_VAR LightloraTorch_VERSION
  REASON_FAILURE_MESSAGE
    "LibTorch was not found. Name one with -DTorch_DIR=<folder of TorchConfig.cmake>, in a PyTorch wheel $(python3 -c \"print(__import__('torch').utils.cmake_prefix_path)\")/Torch, or run scripts/bootstrap.sh in lightlora's own folder")
