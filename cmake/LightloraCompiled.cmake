# SPDX-License-Identifier: Apache-2.0
# Offers lightlora::compiled: the library as one static library and its headers as declarations only (see
# include/lightlora/config.h). It is built in the project that links it, by its compiler, with its flags and
# its LibTorch, and only if something links it. Serves this project's own build and, installed beside
# lightloraConfig.cmake, every project that says find_package(lightlora).

get_property(_lightlora_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if(NOT TARGET lightlora_compiled AND "CXX" IN_LIST _lightlora_languages)
  file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/lightlora_compiled.cpp"
       CONTENT "#include <lightlora/detail/source.h>\n")
  add_library(lightlora_compiled STATIC EXCLUDE_FROM_ALL "${CMAKE_CURRENT_BINARY_DIR}/lightlora_compiled.cpp")
  add_library(lightlora::compiled ALIAS lightlora_compiled)
  target_compile_definitions(lightlora_compiled PUBLIC LIGHTLORA_COMPILED)
  target_link_libraries(lightlora_compiled PUBLIC lightlora::lightlora)
  # It may end up in a shared library.
  set_target_properties(lightlora_compiled PROPERTIES POSITION_INDEPENDENT_CODE ON)
endif()
