# SPDX-License-Identifier: Apache-2.0
# Short names for what one does with this project. CMake does the work; this file installs what is
# missing, then calls it. `make test PRESET=asan` picks another preset of CMakePresets.json.

PRESET ?= dev
BUILD := $(if $(filter dev,$(PRESET)),build,build-$(PRESET))
PART := $(if $(filter library,$(PRESET)),--library)

.DEFAULT_GOAL := help
.PHONY: help demo study hypernetwork_study test bench docs release clean distclean

help:
	@echo "make demo       set up, build, train on the bundled subject, write demo/before.png and demo/after.png (minutes)"
	@echo "make study      set up, build, train and compare the variants, write docs/study/ (an hour or two); PROCESSES=4 shares the work"
	@echo "make hypernetwork_study  set up, build, train hypernetworks and measure them, write docs/study/hypernetwork.md (a day; PROCESSES=4)"
	@echo "make test       set up, build, run all tests (half an hour to an hour)"
	@echo "make bench      set up, build, measure against PEFT and diffusers, write bench-results/ (most of an hour; QUICK=1: minutes)"
	@echo "make docs       set up, write the documentation site to $(BUILD)/site, a folder for each version"
	@echo "make release    set up, build, write the programs with all that they load to dist/, to unpack anywhere"
	@echo "make clean      remove what was built and the demo's pictures"
	@echo "make distclean  also remove .deps (LibTorch and the Python packages of the tests)"
	@echo "Times are for two cores; the first build takes a quarter of an hour more."
	@echo "Settings: PRESET=dev|library|ci|asan|cuda (library: only what needs LibTorch and Catch2 alone),"
	@echo "          JOBS=<compilers at once>, Torch_DIR=<folder of TorchConfig.cmake>"

demo:
	@scripts/bootstrap.sh
	@scripts/build.sh $(PRESET) demo_programs
	@scripts/demo.sh $(BUILD)/bin
	@scripts/one_picture.sh $(BUILD)/bin

study:
	@scripts/bootstrap.sh
	@scripts/build.sh $(PRESET) compare_variants
	@scripts/study.sh $(BUILD)/bin

hypernetwork_study:
	@scripts/bootstrap.sh
	@scripts/build.sh $(PRESET) make_dataset compare_hypernetwork
	@scripts/hypernetwork_study.sh $(BUILD)/bin

test:
	@scripts/bootstrap.sh --tests $(PART)
	@scripts/build.sh $(PRESET)
	@ctest --preset $(PRESET)

bench:
	@scripts/bootstrap.sh --tests
	@scripts/build.sh $(PRESET) benchmarks
	@scripts/bench.sh $(BUILD)/bin

docs:
	@scripts/bootstrap.sh --tests
	@scripts/build.sh $(PRESET) docs
	@echo "$(BUILD)/site/index.html"

release:
	@scripts/bootstrap.sh
	@scripts/build.sh $(PRESET) programs
	@python3 scripts/release/make_release.py $(BUILD)/bin

clean:
	rm -rf build build-* demo dist

distclean: clean
	rm -rf .deps
