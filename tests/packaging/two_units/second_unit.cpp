// SPDX-License-Identifier: Apache-2.0
// The second translation unit of `two_units`: linking fails if the library defines anything twice.
#include <lightlora/lightlora.h>

int64_t trained_values(torch::nn::Module& model);
int64_t trained_values(torch::nn::Module& model) {
  return lightlora::patch<lightlora::ClassicLoRA>(model, /*rank=*/2, {"0"})->report().trainable;
}
