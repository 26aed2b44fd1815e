// SPDX-License-Identifier: Apache-2.0
// The halves of layer_values.h that cut layers and put them together.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "lora_files/layer_values.h"

namespace lora_files {
namespace {

using Values = LayerValues;

[[noreturn]] void refuse(const Values& values, const char* what) {
  TORCH_CHECK(false, values.where, "expected a method whose delta can be ", what,
              ", as the two programs have one layer and several, got ", values.method,
              "; hint: --rank R makes plain factors of LoHa, LoKr and differences, and formats of ",
              "one naming keep it as it is");
}

// COFT's bound, which diag-OFT calls alpha, is one for all blocks of a layer together: other layers
// keep the rotations that it leaves, and need none.
Values with_bound_inside(Values values) {
  const auto blocks = values.parts.find("oft_blocks"), alpha = values.parts.find("alpha");
  if (blocks == values.parts.end() || alpha == values.parts.end()) return values;
  const auto share = alpha->second.numel() == 1 ? alpha->second.item<double>() : 0;
  if (blocks->second.dim() != 3 || !(share > 0)) return values;
  const at::Tensor skew = blocks->second - blocks->second.transpose(1, 2);
  const double bound = share * static_cast<double>(skew.size(0) * skew.size(1));
  const double norm = skew.norm().item<double>() + 1e-8;
  if (norm > bound) blocks->second = blocks->second * (bound / norm);
  alpha->second = at::zeros_like(alpha->second);
  return values;
}

// The rows of one part of a layer.
struct Range {
  int64_t begin = 0, size = 0, all = 0;
};

at::Tensor rows(const at::Tensor& tensor, const Range& range) {
  return tensor.narrow(0, range.begin, range.size).contiguous();
}

// The factor's rows that a part consists of; every one stands for `each` rows of the layer.
at::Tensor blocks(const Values& values, const at::Tensor& factor, const Range& range,
                  int64_t each) {
  if (each == 0 || range.begin % each != 0 || range.size % each != 0) refuse(values, "cut");
  return rows(factor, {range.begin / each, range.size / each, 0});
}

// Only the columns that a part's rows of `up` reach; none at all keep the pair as it is.
void drop_idle_columns(Values& part) {
  at::Tensor& up = part.parts.at("up");
  at::Tensor& down = part.parts.at("down");
  if (up.dim() != 2 || down.dim() != 2) return;
  const at::Tensor used = up.ne(0).any(0).nonzero().flatten();
  if (used.numel() == 0 || used.numel() == up.size(1)) return;
  up = up.index_select(1, used).contiguous();
  down = down.index_select(0, used).contiguous();
}

bool is_idle(const Values& part) {
  const auto up = part.parts.find("up");
  const auto zero = [](const at::Tensor& tensor) { return !tensor.any().item<bool>(); };
  if (part.has("bias") && !zero(part.parts.at("bias"))) return false;
  return up != part.parts.end() && !part.has("magnitude") && zero(up->second);
}

bool stays(const std::string& part) {
  static const std::set<std::string> of_inputs{"down",      "mid",      "alpha",     "hada_w1_b",
                                               "hada_w2_b", "oft_R",    "lokr_w1_b", "lokr_w2",
                                               "lokr_w2_a", "lokr_w2_b"};
  return of_inputs.count(part) > 0;
}

int64_t rows_of_second(const Values& values) {
  const auto whole = values.parts.find("lokr_w2");
  const auto found = whole != values.parts.end() ? whole : values.parts.find("lokr_w2_a");
  return found == values.parts.end() ? 0 : found->second.size(0);
}

at::Tensor cut(const Values& values, const std::string& part, const at::Tensor& tensor,
               const Range& range) {
  if (stays(part)) return tensor;
  if (part == "lokr_w1" || part == "lokr_w1_a") {
    return blocks(values, tensor, range, rows_of_second(values));
  }
  if (part == "oft_blocks" && tensor.dim() == 3) {
    return blocks(values, tensor, range, tensor.size(1));
  }
  static const std::set<std::string> of_outputs{
      "up", "magnitude", "bias", "diff", "w_norm", "b_norm", "rescale", "hada_w1_a", "hada_w2_a"};
  const bool known = of_outputs.count(part) > 0 && tensor.dim() > 0;
  if (!known || tensor.size(0) != range.all) refuse(values, "cut");
  return rows(tensor, range);
}

// --- putting together ---

struct Join {
  const std::vector<const Values*>& parts;
  const std::vector<int64_t>& sizes;
  const Values& first;

  int64_t out() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{0}); }

  bool all_have(const char* name) const {
    return std::all_of(parts.begin(), parts.end(),
                       [&](const Values* part) { return part == nullptr || part->has(name); });
  }
  bool any_has(const char* name) const {
    return std::any_of(parts.begin(), parts.end(),
                       [&](const Values* part) { return part != nullptr && part->has(name); });
  }
  bool complete() const { return std::count(parts.begin(), parts.end(), nullptr) == 0; }
  bool equal(const char* name) const {
    return std::all_of(parts.begin(), parts.end(), [&](const Values* part) {
      return part == nullptr || !part->has(name) ||
             (first.has(name) && at::equal(part->parts.at(name), first.parts.at(name)));
    });
  }

  // One tensor below the other; zeros for a part that has none.
  at::Tensor stacked(const char* name) const {
    std::vector<at::Tensor> all;
    at::Tensor example;
    for (const Values* part : parts) {
      if (part != nullptr && part->has(name)) example = part->parts.at(name);
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i] != nullptr && parts[i]->has(name)) {
        all.push_back(parts[i]->parts.at(name));
        continue;
      }
      auto shape = example.sizes().vec();
      shape[0] = sizes[i];
      all.push_back(at::zeros(shape));
    }
    return at::cat(all, 0);
  }
};

// Each part's rows of `up` beside those of the others, on the columns of its own `down`; parts with
// an equal one share them.
void join_factors(const Join& join, const char* up, const char* down, Values& result) {
  std::vector<at::Tensor> downs;
  std::vector<int64_t> starts;  // column of each of `downs`
  std::vector<size_t> uses(join.parts.size());
  int64_t rank = 0;
  for (size_t i = 0; i < join.parts.size(); ++i) {
    if (join.parts[i] == nullptr || !join.parts[i]->has(down)) continue;
    const at::Tensor& own = join.parts[i]->parts.at(down);
    const auto same = std::find_if(downs.begin(), downs.end(),
                                   [&](const at::Tensor& d) { return at::equal(d, own); });
    uses[i] = static_cast<size_t>(same - downs.begin());
    if (same != downs.end()) continue;
    downs.push_back(own);
    starts.push_back(rank);
    rank += own.size(0);
  }
  at::Tensor all = at::zeros({join.out(), rank});
  for (size_t i = 0, row = 0; i < join.parts.size(); row += static_cast<size_t>(join.sizes[i++])) {
    if (join.parts[i] == nullptr || !join.parts[i]->has(up)) continue;
    const at::Tensor own = join.parts[i]->parts.at(up).flatten(1);
    all.narrow(0, static_cast<int64_t>(row), own.size(0))
        .narrow(1, starts[uses[i]], own.size(1))
        .copy_(own);
  }
  result.parts[up] = all;
  result.parts[down] = at::cat(downs, 0);
}

// LoHa keeps its form: where its inner factors differ, both products get the blocks, and outside
// of the blocks neither has anything.
void join_loha(const Join& join, Values& result) {
  if (join.any_has("hada_t1")) refuse(join.first, "put together");
  if (join.equal("hada_w1_b") && join.equal("hada_w2_b")) {
    for (const char* name : {"hada_w1_a", "hada_w2_a"}) result.parts[name] = join.stacked(name);
    for (const char* name : {"hada_w1_b", "hada_w2_b"}) {
      result.parts[name] = join.first.parts.at(name);
    }
    return;
  }
  // Blocks of both, even where only one pair differs, so that both have one rank.
  std::vector<at::Tensor> lefts[2], rights[2];
  const char* names[2][2] = {{"hada_w1_a", "hada_w1_b"}, {"hada_w2_a", "hada_w2_b"}};
  for (int pair = 0; pair < 2; ++pair) {
    for (size_t i = 0; i < join.parts.size(); ++i) {
      const Values* part = join.parts[i];
      if (part && !part->has("hada_w1_a")) part = nullptr;
      lefts[pair].push_back(part ? part->parts.at(names[pair][0]).flatten(1)
                                 : at::zeros({join.sizes[i], 0}));
      if (part) rights[pair].push_back(part->parts.at(names[pair][1]));
    }
    result.parts[names[pair][0]] = at::block_diag(lefts[pair]);
    result.parts[names[pair][1]] = at::cat(rights[pair], 0);
  }
}

void join_lokr(const Join& join, Values& result) {
  const bool whole = join.all_have("lokr_w1");
  for (const char* name : {"lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}) {
    if (!join.any_has(name)) continue;
    if (!join.all_have(name) || !join.equal(name)) refuse(join.first, "put together");
    result.parts[name] = join.first.parts.at(name);
  }
  if (!join.complete() || (!whole && join.any_has("lokr_w1"))) refuse(join.first, "put together");
  const char* name = whole ? "lokr_w1" : "lokr_w1_a";
  result.parts[name] = join.stacked(name);
}

void join_rest(const Join& join, Values& result) {
  for (const char* name : {"magnitude", "rescale"}) {
    if (!join.any_has(name)) continue;
    TORCH_CHECK(join.complete() && join.all_have(name), join.first.where, "expected '", name,
                "' for every part of the layer that the other program has in ",
                "one, got it for some");
    for (size_t i = 0; i < join.parts.size(); ++i) {
      if (join.parts[i]->parts.at(name).size(0) != join.sizes[i])
        refuse(join.first, "put together");
    }
    result.parts[name] = join.stacked(name);
  }
  for (const char* name : {"bias", "diff", "w_norm", "b_norm"}) {
    if (!join.any_has(name)) continue;
    result.parts[name] = join.stacked(name);
    TORCH_CHECK(result.parts[name].size(0) == join.out(), join.first.where, "expected ", join.out(),
                " rows of '", name, "' in all parts together, got ", result.parts[name].size(0));
  }
}

void check_sizes(const Join& join) {
  for (size_t i = 0; i < join.parts.size(); ++i) {
    if (join.parts[i] == nullptr) continue;
    const auto out = join.parts[i]->out();
    TORCH_CHECK(out == join.sizes[i], join.parts[i]->where, "expected ", join.sizes[i],
                " outputs of a part of a larger layer, got ", out,
                "; hint: --model_config names the model's config.json");
    if (join.parts[i]->method == "biases") continue;
    TORCH_CHECK(join.parts[i]->method == join.first.method, join.parts[i]->where,
                "expected one method for the parts of a layer that the other program has in one, ",
                "got ", join.parts[i]->method, " beside ", join.first.method);
    const auto in = join.parts[i]->in();
    TORCH_CHECK(in == join.first.in(), join.parts[i]->where, "expected ", join.first.in(),
                " inputs as the other parts of the layer have, got ", in);
  }
}

void join_blocks(const Join& join, Values& result) {
  if (!join.complete() || !join.all_have("oft_blocks")) refuse(join.first, "put together");
  for (const Values* part : join.parts) {
    const auto& own = part->parts.at("oft_blocks");
    if (own.dim() != 3 || own.size(1) != join.first.parts.at("oft_blocks").size(1)) {
      refuse(join.first, "put together");
    }
  }
  result.parts["oft_blocks"] = join.stacked("oft_blocks");
}

}  // namespace

std::vector<std::optional<Values>> split(const Values& given, const std::vector<int64_t>& sizes) {
  const Values whole = with_bound_inside(given);
  const auto all = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  TORCH_CHECK(whole.out() == all, whole.where, "expected ", all, " outputs, got ", whole.out(),
              "; hint: --model_config names the model's config.json");
  std::vector<std::optional<Values>> result;
  Range range{0, 0, all};
  for (const int64_t size : sizes) {
    range.size = size;
    Values part{whole.where, whole.method, {}, whole.scale};
    for (const auto& [name, tensor] : whole.parts) {
      part.parts[name] = cut(whole, name, tensor, range);
    }
    range.begin += size;
    if (part.has("up") && !part.has("mid")) drop_idle_columns(part);
    result.emplace_back(std::move(part));
  }
  const auto idle = [](const auto& part) { return is_idle(*part); };
  if (std::all_of(result.begin(), result.end(), idle)) return result;
  for (auto& part : result) {
    if (is_idle(*part)) part.reset();
  }
  return result;
}

Values joined(const std::vector<const Values*>& parts, const std::vector<int64_t>& sizes) {
  // One that says more than a bias does, if there is one.
  auto given = std::find_if(parts.begin(), parts.end(),
                            [](const auto* part) { return part && part->method != "biases"; });
  if (given == parts.end()) {
    given = std::find_if(parts.begin(), parts.end(), [](const auto* part) { return part; });
  }
  TORCH_CHECK(given != parts.end(), "expected a part of a layer, got none");
  // Of several strengths none is the whole's, and of rotations' bounds neither.
  const bool same = std::all_of(parts.begin(), parts.end(), [&](const Values* part) {
    return part == nullptr || (part->scale == (*given)->scale && !part->has("oft_blocks"));
  });
  std::vector<Values> scaled;
  scaled.reserve(parts.size());
  std::vector<const Values*> used = parts;
  for (size_t i = 0; i < parts.size() && !same; ++i) {
    if (parts[i] == nullptr) continue;
    scaled.push_back(with_bound_inside(with_scale_inside(*parts[i])));
    used[i] = &scaled.back();
  }
  const auto at = static_cast<size_t>(given - parts.begin());
  const Join join{used, sizes, *used[at]};
  check_sizes(join);
  Values result{join.first.where, join.first.method, {}, join.first.scale};
  if (join.any_has("mid") || join.any_has("boft_R") || join.any_has("a1") ||
      join.any_has("q_layer") || join.any_has("oft_R")) {
    refuse(join.first, "put together");
  }
  if (join.any_has("up")) join_factors(join, "up", "down", result);
  if (join.any_has("hada_w1_a")) join_loha(join, result);
  if (join.any_has("lokr_w1") || join.any_has("lokr_w1_a")) join_lokr(join, result);
  if (join.any_has("oft_blocks")) join_blocks(join, result);
  if (join.any_has("alpha") && !join.equal("alpha")) refuse(join.first, "put together");
  if (join.first.has("alpha")) result.parts["alpha"] = join.first.parts.at("alpha");
  join_rest(join, result);
  return result;
}

}  // namespace lora_files
