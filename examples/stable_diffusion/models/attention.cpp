// SPDX-License-Identifier: Apache-2.0
#include "models/attention.h"

#include <ATen/ATen.h>
#include <lightlora/packing.h>
#include <lightlora/patch.h>
#include <torch/nn/modules/dropout.h>

#include <utility>
#include <vector>

#include "kernels/fused_attention.h"
#include "kernels/geglu.h"
#include "kernels/group_norm_silu.h"
#include "models/blocks.h"

namespace sd {

namespace {

torch::nn::Linear make_linear(int64_t in, int64_t out, bool bias) {
  return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(bias));
}

torch::nn::LayerNorm make_layer_norm(int64_t channels) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({channels}).eps(1e-5));
}

}  // namespace

at::Tensor to_tokens(const at::Tensor& map) {
  return map.permute({0, 2, 3, 1}).flatten(1, 2).contiguous();
}

at::Tensor to_map(const at::Tensor& tokens, const at::Tensor& like) {
  return tokens.unflatten(1, {like.size(2), like.size(3)})
      .permute({0, 3, 1, 2})
      .contiguous(like.suggest_memory_format());
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     int64_t heads, bool upcast) {
  const auto dtype = query.scalar_type();
  // A GPU's fused kernels compute scores in fp32 whatever the inputs are; for inputs in fp32 only the
  // slower of them is there.
  const bool widen = upcast && at::isReducedFloatingType(dtype) && !query.is_cuda();
  if (!widen) return fused_attention(query, key, value, heads);
  const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat); };
  return fused_attention(wide(query), wide(key), wide(value), heads).to(dtype);
}

AttentionImpl::AttentionImpl(AttentionOptions options_) : options(std::move(options_)) { reset(); }

void AttentionImpl::reset() {
  const int64_t inner = options.heads() * options.dim_head();
  to_q = register_module("to_q", make_linear(options.query_dim(), inner, /*bias=*/false));
  to_k = register_module("to_k", make_linear(options.context_dim(), inner, /*bias=*/false));
  to_v = register_module("to_v", make_linear(options.context_dim(), inner, /*bias=*/false));
  to_out = register_module("to_out", torch::nn::ModuleList());
  to_out->push_back(make_linear(inner, options.query_dim(), /*bias=*/true));
}

at::Tensor AttentionImpl::forward(const at::Tensor& x, const at::Tensor& context) {
  if (context.is_same(x)) {
    const auto all = lightlora::linear_group(x, {to_q.get(), to_k.get(), to_v.get()});
    return attend_to(all[0], {all[1], all[2]});
  }
  const bool repeats = !is_training() && !at::GradMode::is_enabled();
  return attend(x, repeats ? project_once(context) : project(context));
}

KeyValue AttentionImpl::project_once(const at::Tensor& context) {
  std::vector<at::Tensor> sources{context, to_k->weight, to_v->weight};
  std::vector<double> numbers;
  for (const auto& weight : {to_k->weight, to_v->weight}) {
    const auto active = lightlora::active_values(weight);
    if (!active) return project(context);
    sources.insert(sources.end(), active->sources.begin(), active->sources.end());
    numbers.insert(numbers.end(), active->numbers.begin(), active->numbers.end());
  }
  const auto kept = cache_->get(sources, numbers, [&] {
    const auto [key, value] = project(context);
    return std::vector<at::Tensor>{key, value};
  });
  return {kept[0], kept[1]};
}

KeyValue AttentionImpl::project(const at::Tensor& context) {
  const auto both = lightlora::linear_group(context, {to_k.get(), to_v.get()});
  return {both[0], both[1]};
}

void AttentionImpl::group_projections() {
  if (options.query_dim() == options.context_dim()) {
    lightlora::group_weights({to_q.get(), to_k.get(), to_v.get()});
  } else {
    lightlora::group_weights({to_k.get(), to_v.get()});
  }
}

at::Tensor AttentionImpl::attend(const at::Tensor& x, const KeyValue& context) {
  return attend_to(linear(*to_q, x), context);
}

at::Tensor AttentionImpl::attend_to(const at::Tensor& query, const KeyValue& context) {
  const at::Tensor result =
      attention(query, context.key, context.value, options.heads(), options.upcast_attention());
  return linear(to_out->at<torch::nn::LinearImpl>(0), result);
}

GEGLUImpl::GEGLUImpl(int64_t in, int64_t out) : in_(in), out_(out) { reset(); }

void GEGLUImpl::reset() { proj = register_module("proj", make_linear(in_, 2 * out_, true)); }

at::Tensor GEGLUImpl::forward(const at::Tensor& x) { return geglu(linear(*proj, x)); }

FeedForwardImpl::FeedForwardImpl(int64_t dim) : dim_(dim) { reset(); }

void FeedForwardImpl::reset() {
  net = register_module("net", torch::nn::ModuleList());
  net->push_back(GEGLU(dim_, 4 * dim_));
  net->push_back(torch::nn::Dropout(0.0));  // holds the place of diffusers' net.1
  net->push_back(make_linear(4 * dim_, dim_, /*bias=*/true));
}

at::Tensor FeedForwardImpl::forward(const at::Tensor& x) {
  return linear(net->at<torch::nn::LinearImpl>(2), net->at<GEGLUImpl>(0).forward(x));
}

BasicTransformerBlockImpl::BasicTransformerBlockImpl(Transformer2DModelOptions options_)
    : options(std::move(options_)) {
  reset();
}

void BasicTransformerBlockImpl::reset() {
  const int64_t dim = options.inner_dim();
  const int64_t text_dim = options.cross_attention_dim();
  const auto make_attention = [&](int64_t context_dim) {
    return Attention(AttentionOptions(dim, context_dim, options.heads(), options.dim_head())
                         .upcast_attention(options.upcast_attention()));
  };
  norm1 = register_module("norm1", make_layer_norm(dim));
  attn1 = register_module("attn1", make_attention(options.only_cross_attention() ? text_dim : dim));
  norm2 = register_module("norm2", make_layer_norm(dim));
  attn2 = register_module("attn2", make_attention(text_dim));
  norm3 = register_module("norm3", make_layer_norm(dim));
  ff = register_module("ff", FeedForward(dim));
}

at::Tensor BasicTransformerBlockImpl::forward(at::Tensor x, const at::Tensor& context) {
  const at::Tensor normed = norm1(x);
  x = add_to(attn1(normed, options.only_cross_attention() ? context : normed), x);
  x = add_to(attn2(norm2(x), context), x);
  return add_to(ff(norm3(x)), x);
}

Transformer2DModelImpl::Transformer2DModelImpl(Transformer2DModelOptions options_)
    : options(std::move(options_)) {
  reset();
}

void Transformer2DModelImpl::reset() {
  const int64_t channels = options.channels(), inner = options.inner_dim();
  norm = register_module("norm", make_group_norm(options.groups(), channels, /*eps=*/1e-6));
  if (options.use_linear_projection()) {
    proj_in_linear = register_module("proj_in", make_linear(channels, inner, /*bias=*/true));
  } else {
    proj_in_conv = register_module("proj_in", make_conv(channels, inner, /*kernel=*/1));
  }
  transformer_blocks = register_module("transformer_blocks", torch::nn::ModuleList());
  for (int64_t i = 0; i < options.layers(); ++i) {
    transformer_blocks->push_back(BasicTransformerBlock(options));
  }
  if (options.use_linear_projection()) {
    proj_out_linear = register_module("proj_out", make_linear(inner, channels, /*bias=*/true));
  } else {
    proj_out_conv = register_module("proj_out", make_conv(inner, channels, /*kernel=*/1));
  }
}

at::Tensor Transformer2DModelImpl::forward(const at::Tensor& x, const at::Tensor& context) {
  const bool on_tokens = options.use_linear_projection();
  at::Tensor tokens = group_norm(*norm, x);
  tokens = on_tokens ? linear(*proj_in_linear, to_tokens(tokens)) : to_tokens(proj_in_conv(tokens));
  for (const auto& block : *transformer_blocks) {
    tokens = run_segment(*block->as<BasicTransformerBlock>(), tokens, context);
  }
  at::Tensor map =
      on_tokens ? to_map(linear(*proj_out_linear, tokens), x) : proj_out_conv(to_map(tokens, x));
  return add_to(std::move(map), x);
}

}  // namespace sd
