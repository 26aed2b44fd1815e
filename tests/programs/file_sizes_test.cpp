// SPDX-License-Identifier: Apache-2.0
// Files of Stable Diffusion 1.5's shapes are as small as promised.
#include "research/study/file_sizes.h"

#include "support.h"

namespace {

study::FileSize find(const std::vector<study::FileSize>& sizes, const std::string& name) {
  for (const auto& size : sizes) {
    if (size.name == name) return size;
  }
  FAIL("no size of " << name);
  return {};
}

}  // namespace

TEST_CASE("file sizes: the native Light file is small in every form", "[study]") {
  const auto sizes = study::all_sizes(4);
  const auto light = find(sizes, "light, rank 4");
  CHECK(light.values == 76800);
  CHECK(light.fp32 <= 330000);
  CHECK(light.fp16 <= 170000);
  const auto both = find(sizes, "light, rank 1, with the text encoder");
  CHECK(both.values == 26400);
  CHECK(both.fp32 <= 130000);
  CHECK(find(sizes, "classic, rank 4").values == 797184);
  CHECK(find(sizes, "fused, rank 4").values == 640000);
}

TEST_CASE("file sizes: no file is larger than the method's description has it", "[study]") {
  int64_t described = 0;
  for (const auto& size : study::described_sizes()) {
    INFO(size.name);
    CHECK(size.fp32 > size.values * 4);
    CHECK(size.fp16 > size.values * 2);
    CHECK(size.fp16 < size.fp32);
    if (!size.described) continue;
    ++described;
    CHECK(size.fp32 < *size.described * 1024);
  }
  CHECK(described == 7);
  CHECK(study::sd15_layers().size() == 128);
}
