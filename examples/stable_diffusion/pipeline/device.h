// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

#include "support/cli/choices.h"

namespace sd {

/// The words that `pick_device` and `pick_dtype` take, for flags.
const std::vector<std::string>& device_names();
const std::vector<std::string>& dtype_names();

/// "cpu", "cuda", or "auto": the GPU if this build of LibTorch and this machine have one.
/// Errors: c10::ValueError for another word; c10::Error for "cuda" without one
c10::Device pick_device(const std::string& name);

/// "fp32", "fp16" or "bf16". Errors: c10::ValueError for another word
c10::ScalarType pick_dtype(const std::string& name);

/// The same words with their meaning, for flags.
cli::Choices<c10::ScalarType> dtype_choices();

}  // namespace sd
