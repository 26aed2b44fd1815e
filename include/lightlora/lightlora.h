// SPDX-License-Identifier: Apache-2.0
#pragma once

/// \file
/// Umbrella header: the whole public API. See patch.h for the three-line start.

#include <lightlora/adapter.h>
#include <lightlora/combine.h>
#include <lightlora/config.h>
#include <lightlora/embeddings.h>
#include <lightlora/exported.h>
#include <lightlora/file_io.h>
#include <lightlora/files.h>
#include <lightlora/layers.h>
#include <lightlora/options.h>
#include <lightlora/packing.h>
#include <lightlora/patch.h>
#include <lightlora/regex.h>
#include <lightlora/state.h>
#include <lightlora/targets.h>
#include <lightlora/train.h>
#include <lightlora/variants/variants.h>
