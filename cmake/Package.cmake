# SPDX-License-Identifier: Apache-2.0
# Makes find_package(lightlora) work, from this build tree and after an install.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/lightlora")
configure_package_config_file(cmake/lightloraConfig.cmake.in "${PROJECT_BINARY_DIR}/lightloraConfig.cmake"
                              INSTALL_DESTINATION "${_package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/lightloraConfigVersion.cmake"
                                 COMPATIBILITY SameMajorVersion ARCH_INDEPENDENT)
foreach(_file IN ITEMS FindLightloraTorch LightloraCompiled)
  configure_file(cmake/${_file}.cmake "${PROJECT_BINARY_DIR}/${_file}.cmake" COPYONLY)
endforeach()

get_filename_component(LIGHTLORA_TORCH_PREFIX "${LightloraTorch_CONFIG_DIR}/../../.." ABSOLUTE)
configure_file(cmake/lightlora.pc.in "${PROJECT_BINARY_DIR}/lightlora.pc" @ONLY)

if(LIGHTLORA_INSTALL)
  install(FILES "${PROJECT_BINARY_DIR}/lightlora.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
  install(TARGETS lightlora EXPORT lightloraTargets)
  install(DIRECTORY include/lightlora DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT lightloraTargets NAMESPACE lightlora:: DESTINATION "${_package_dir}")
  install(FILES "${PROJECT_BINARY_DIR}/lightloraConfig.cmake"
                "${PROJECT_BINARY_DIR}/lightloraConfigVersion.cmake" cmake/FindLightloraTorch.cmake cmake/LightloraCompiled.cmake
          DESTINATION "${_package_dir}")
  export(EXPORT lightloraTargets NAMESPACE lightlora:: FILE "${PROJECT_BINARY_DIR}/lightloraTargets.cmake")
endif()
