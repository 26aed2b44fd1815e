// SPDX-License-Identifier: Apache-2.0
#pragma once

// The whole library, for the one source file that compiles it: see config.h.
#include <lightlora/config.h>

#ifdef LIGHTLORA_HEADER_ONLY
#error \
    "lightlora/impl/source.h: expected LIGHTLORA_SEPARATE_COMPILATION to be defined, got the header-only library, which needs no source file; hint: define it for every file of the program, as CMake's target lightlora::compiled does"
#endif

#include <lightlora/impl/adapter.h>
#include <lightlora/impl/basis.h>
#include <lightlora/impl/combine.h>
#include <lightlora/impl/extract.h>
#include <lightlora/impl/factors.h>
#include <lightlora/impl/formats/dialects.h>
#include <lightlora/impl/formats/diffusers.h>
#include <lightlora/impl/formats/embeddings.h>
#include <lightlora/impl/formats/kohya.h>
#include <lightlora/impl/formats/native.h>
#include <lightlora/impl/formats/peft.h>
#include <lightlora/impl/formats/safetensors.h>
#include <lightlora/impl/formats/tensor_file.h>
#include <lightlora/impl/formats/torch_file.h>
#include <lightlora/impl/layers.h>
#include <lightlora/impl/linear.h>
#include <lightlora/impl/linear_group.h>
#include <lightlora/impl/low_rank.h>
#include <lightlora/impl/low_rank_linear.h>
#include <lightlora/impl/options.h>
#include <lightlora/impl/packed_weight.h>
#include <lightlora/impl/parameter_bank.h>
#include <lightlora/impl/patch.h>
#include <lightlora/impl/patch_sets.h>
#include <lightlora/impl/recompute.h>
#include <lightlora/impl/route.h>
#include <lightlora/impl/save.h>
#include <lightlora/impl/serialize.h>
#include <lightlora/impl/state.h>
#include <lightlora/impl/targets.h>
#include <lightlora/impl/truncate.h>
#include <lightlora/impl/variants/registry.h>
