// SPDX-License-Identifier: Apache-2.0
#pragma once

/// \file
/// Everything of lightlora. See patch.h for the three-line start.

#include <lightlora/adapted_layer.h>
#include <lightlora/adapter.h>
#include <lightlora/basis.h>
#include <lightlora/checkpoint.h>
#include <lightlora/combine.h>
#include <lightlora/config.h>
#include <lightlora/extract.h>
#include <lightlora/factors.h>
#include <lightlora/formats/dialects.h>
#include <lightlora/formats/diffusers.h>
#include <lightlora/formats/embeddings.h>
#include <lightlora/formats/kohya.h>
#include <lightlora/formats/native.h>
#include <lightlora/formats/peft.h>
#include <lightlora/formats/safetensors.h>
#include <lightlora/formats/torch_file.h>
#include <lightlora/inference_cache.h>
#include <lightlora/layers.h>
#include <lightlora/linear.h>
#include <lightlora/linear_group.h>
#include <lightlora/low_rank.h>
#include <lightlora/low_rank_linear.h>
#include <lightlora/options.h>
#include <lightlora/packed_weight.h>
#include <lightlora/param_groups.h>
#include <lightlora/parameter_bank.h>
#include <lightlora/patch.h>
#include <lightlora/recompute.h>
#include <lightlora/route.h>
#include <lightlora/save.h>
#include <lightlora/serialize.h>
#include <lightlora/state.h>
#include <lightlora/targets.h>
#include <lightlora/truncate.h>
#include <lightlora/variants/registry.h>
#include <lightlora/version.h>
