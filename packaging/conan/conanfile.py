# SPDX-License-Identifier: Apache-2.0
"""Conan 2 recipe of the library: its headers and its CMake package.

conan create packaging/conan      # from a clone; Torch_DIR names LibTorch's CMake folder, as for CMake itself
"""

import pathlib
import re

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy

CLONE = "../.."


class Lightlora(ConanFile):
    name = "lightlora"
    description = "LoRA adapters for LibTorch models, header-only"
    license = "Apache-2.0"
    topics = ("lora", "libtorch", "pytorch", "fine-tuning", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    no_copy_source = True

    def set_version(self):
        text = (pathlib.Path(self.recipe_folder) / CLONE / "include/lightlora/config.h").read_text()
        self.version = ".".join(re.findall(r"#define LIGHTLORA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))

    def export_sources(self):
        clone = pathlib.Path(self.recipe_folder) / CLONE
        for pattern in ("include/*", "cmake/*", "CMakeLists.txt", "LICENSE"):
            copy(self, pattern, clone, self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for part in ("TESTS", "EXAMPLES", "STABLE_DIFFUSION", "BENCHMARKS", "DOCS"):
            toolchain.cache_variables[f"LIGHTLORA_BUILD_{part}"] = False
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()

    def package_id(self):
        self.info.clear()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, pathlib.Path(self.package_folder) / "licenses")

    # The package's own files find LibTorch, which is no Conan package: it is a PyTorch wheel's, or pytorch.org's.
    def package_info(self):
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["share/cmake/lightlora"]
        self.cpp_info.bindirs = self.cpp_info.libdirs = []
