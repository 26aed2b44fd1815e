// SPDX-License-Identifier: Apache-2.0
#include "lora_files/layer_values.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace lora_files {
namespace {

// Tensors with a row for each output, by their part.
constexpr const char* kRows[] = {"up",     "magnitude", "bias",      "diff",
                                 "b_norm", "w_norm",    "hada_w1_a", "hada_w2_a"};
constexpr const char* kPairs[][2] = {{"down", "up"},
                                     {"hada_w1_a", "hada_w1_b"},
                                     {"hada_w2_a", "hada_w2_b"},
                                     {"hada_w1_a", "hada_w2_a"},
                                     {"lokr_w1_a", "lokr_w1_b"},
                                     {"lokr_w2_a", "lokr_w2_b"}};

const at::Tensor* find(const LayerValues& values, const char* part) {
  const auto found = values.parts.find(part);
  return found == values.parts.end() ? nullptr : &found->second;
}

int64_t size_of(const LayerValues& values, const char* part, int64_t dim) {
  const auto* tensor = find(values, part);
  return tensor != nullptr && tensor->dim() > dim ? tensor->size(dim) : 0;
}

bool is_loha(const LayerValues& values) { return values.has("hada_w1_a"); }
bool is_lokr(const LayerValues& values) { return values.has("lokr_w1") || values.has("lokr_w1_a"); }

// Of a factor of a Kronecker product, without making it.
int64_t rows_of(const LayerValues& values, const std::string& name) {
  const auto whole = size_of(values, name.c_str(), 0);
  return whole > 0 ? whole : size_of(values, (name + "_a").c_str(), 0);
}
int64_t columns_of(const LayerValues& values, const std::string& name) {
  const auto whole = size_of(values, name.c_str(), 1);
  return whole > 0 ? whole : size_of(values, (name + "_b").c_str(), 1);
}

// One factor of a Kronecker product, as a matrix.
at::Tensor kronecker_factor(const LayerValues& values, const std::string& name) {
  if (const auto* whole = find(values, name.c_str())) return whole->flatten(1);
  return values.parts.at(name + "_a").mm(values.parts.at(name + "_b").flatten(1));
}

void check_matrices(const LayerValues& values) {
  for (const auto& [part, tensor] : values.parts) {
    const bool matrix = part == "down" || part == "up" || part.rfind("hada_", 0) == 0 ||
                        part.rfind("lokr_", 0) == 0;
    const int64_t least = matrix ? 2 : part == "alpha" ? 0 : 1;
    TORCH_CHECK(tensor.dim() >= least && tensor.dim() <= 5 && tensor.numel() > 0, values.where,
                "expected values of ", least, " to 5 dimensions as '", part, "', got sizes ",
                tensor.sizes());
  }
}

}  // namespace

int64_t LayerValues::rank() const {
  for (const char* part : {"down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"}) {
    if (const auto size = size_of(*this, part, 0)) return size;
  }
  return 0;
}

int64_t LayerValues::out() const {
  for (const char* part : kRows) {
    // LyCORIS before 3.2 has DoRA's lengths of the inputs, in one row.
    if (std::string(part) == "magnitude" && size_of(*this, part, 0) == 1) continue;
    if (const auto size = size_of(*this, part, 0)) return size;
  }
  if (is_lokr(*this)) return rows_of(*this, "lokr_w1") * rows_of(*this, "lokr_w2");
  return size_of(*this, "oft_blocks", 0) * size_of(*this, "oft_blocks", 1);
}

int64_t LayerValues::in() const {
  for (const char* part : {"down", "hada_w1_b", "diff"}) {
    if (const auto size = size_of(*this, part, 1)) return size;
  }
  return is_lokr(*this) ? columns_of(*this, "lokr_w1") * columns_of(*this, "lokr_w2") : 0;
}

void check(const LayerValues& values) {
  TORCH_CHECK(!values.method.empty(), values.where,
              "expected factors beside the alpha, got it alone");
  check_matrices(values);
  for (const auto& pair : kPairs) {
    TORCH_CHECK(values.has(pair[0]) == values.has(pair[1]), values.where, "expected both '",
                pair[0], "' and '", pair[1], "', got one of them");
  }
  const std::pair<const char*, const char*> inner[] = {{"up", "down"},
                                                       {"hada_w1_a", "hada_w1_b"},
                                                       {"hada_w2_a", "hada_w2_b"},
                                                       {"lokr_w1_a", "lokr_w1_b"},
                                                       {"lokr_w2_a", "lokr_w2_b"}};
  for (const auto& [left, right] : inner) {
    if (!values.has(left) || values.has("mid") || values.has("hada_t1") || values.has("lokr_t2")) {
      continue;
    }
    TORCH_CHECK(size_of(values, left, 1) == size_of(values, right, 0), values.where,
                "expected one rank, got ", size_of(values, left, 1), " in '", left, "' and ",
                size_of(values, right, 0), " in '", right, "'");
  }
  const bool lokr = values.method == "LoKr";
  TORCH_CHECK(!lokr || (is_lokr(values) && (values.has("lokr_w2") || values.has("lokr_w2_a"))),
              values.where, "expected both factors of a LoKr, got one of them");
}

LayerValues with_halves_swapped(LayerValues values) {
  for (auto& [part, tensor] : values.parts) {
    const bool rows = std::find(std::begin(kRows), std::end(kRows), part) != std::end(kRows);
    if (part == "down" || part == "hada_w1_b" || part == "hada_w2_b") continue;
    TORCH_CHECK(rows && tensor.dim() > 0 && tensor.size(0) % 2 == 0 && !values.has("hada_t1"),
                values.where,
                "expected rows that can be exchanged, as diffusers has shift and scale the other ",
                "way round, got ", values.method, "; hint: --rank R makes plain factors of it");
    const auto halves = tensor.chunk(2, 0);
    tensor = at::cat({halves[1], halves[0]}, 0);
  }
  return values;
}

LayerValues with_plain_factors(const LayerValues& values) {
  if (values.has("down") && !values.has("mid")) {
    TORCH_CHECK(!values.has("magnitude"), values.where, "expected LoRA, got DoRA, whose delta ",
                "depends on the model; hint: convert it without --rank, --energy and other files");
    return values;
  }
  at::Tensor delta;
  if (is_loha(values) && !values.has("hada_t1")) {
    delta = values.parts.at("hada_w1_a").mm(values.parts.at("hada_w1_b").flatten(1)) *
            values.parts.at("hada_w2_a").mm(values.parts.at("hada_w2_b").flatten(1));
  } else if (is_lokr(values) && !values.has("lokr_t2")) {
    delta = at::kron(kronecker_factor(values, "lokr_w1"), kronecker_factor(values, "lokr_w2"));
  } else if (values.has("diff") && values.parts.at("diff").dim() > 1) {
    delta = values.parts.at("diff").flatten(1);
  }
  TORCH_CHECK(delta.defined() && !values.has("magnitude"), values.where,
              "expected LoRA, LoHa, LoKr or a whole difference, got ", values.method,
              ", which has no plain factors without the model");
  LayerValues plain{values.where, "LoRA", values.parts, values.scale};
  for (auto part = plain.parts.begin(); part != plain.parts.end();) {
    part = part->first == "bias" ? std::next(part) : plain.parts.erase(part);
  }
  const bool wide = delta.size(1) > delta.size(0);
  plain.parts["down"] = wide ? delta : at::eye(delta.size(1));
  plain.parts["up"] = wide ? at::eye(delta.size(0)) : delta;
  return plain;
}

LayerValues with_scale_inside(LayerValues values) {
  if (values.scale == 1) return values;
  const double each = std::exp2(std::floor(std::log2(std::abs(values.scale)) / 2));
  const auto scale = [&](const char* part, double factor) {
    if (values.has(part)) values.parts[part] = values.parts[part] * factor;
  };
  if (values.has("down")) {
    scale("down", each);
    scale("up", values.scale / each);
  } else if (is_loha(values)) {
    scale("hada_w1_b", each);
    scale("hada_w1_a", values.scale / each);
  } else if (is_lokr(values)) {
    scale(values.has("lokr_w1") ? "lokr_w1" : "lokr_w1_a", values.scale);
  } else {
    return values;  // of the others alpha is no strength
  }
  values.scale = 1;
  return values;
}

}  // namespace lora_files
