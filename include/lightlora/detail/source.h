// SPDX-License-Identifier: Apache-2.0
#pragma once

// The whole library, for the one source file that compiles it: see config.h.
#include <lightlora/config.h>

#ifndef LIGHTLORA_COMPILED
#error \
    "lightlora/detail/source.h: expected LIGHTLORA_COMPILED to be defined, got the header-only library, which needs no source file; hint: define it for every file of the program"
#endif

#include <lightlora/adapter-inl.h>
#include <lightlora/combine-inl.h>
#include <lightlora/combine_compare-inl.h>
#include <lightlora/detail/adapted_layers-inl.h>
#include <lightlora/detail/adapted_linear-inl.h>
#include <lightlora/detail/adapted_rows-inl.h>
#include <lightlora/detail/basis-inl.h>
#include <lightlora/detail/formats/diffusers-inl.h>
#include <lightlora/detail/formats/kohya-inl.h>
#include <lightlora/detail/formats/native-inl.h>
#include <lightlora/detail/formats/peft-inl.h>
#include <lightlora/detail/four_bit_weight-inl.h>
#include <lightlora/detail/int8_weight-inl.h>
#include <lightlora/detail/interception-inl.h>
#include <lightlora/detail/interception_kernels-inl.h>
#include <lightlora/detail/layer_vectors-inl.h>
#include <lightlora/detail/layer_weights-inl.h>
#include <lightlora/detail/low_rank_linear-inl.h>
#include <lightlora/detail/packed_weight-inl.h>
#include <lightlora/detail/quantised_calls-inl.h>
#include <lightlora/detail/quantised_weight-inl.h>
#include <lightlora/embeddings-inl.h>
#include <lightlora/exported_package-inl.h>
#include <lightlora/exported_script-inl.h>
#include <lightlora/file_io-inl.h>
#include <lightlora/file_io_atomic-inl.h>
#include <lightlora/file_io_quantized-inl.h>
#include <lightlora/files-inl.h>
#include <lightlora/options-inl.h>
#include <lightlora/packing-inl.h>
#include <lightlora/patch-inl.h>
#include <lightlora/patch_active-inl.h>
#include <lightlora/patch_sets-inl.h>
#include <lightlora/patch_values-inl.h>
#include <lightlora/regex-inl.h>
#include <lightlora/state-inl.h>
#include <lightlora/targets-inl.h>
#include <lightlora/train-inl.h>
#include <lightlora/train_budget-inl.h>
#include <lightlora/train_probes-inl.h>
#include <lightlora/train_starts-inl.h>
#include <lightlora/train_steps-inl.h>
#include <lightlora/variants/variants-inl.h>
