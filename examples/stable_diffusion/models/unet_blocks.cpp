// SPDX-License-Identifier: Apache-2.0
#include "models/unet_blocks.h"

#include <ATen/ATen.h>

#include <utility>

#include "models/config.h"

namespace sd {

namespace {

ResnetsAndAttentions register_layers(torch::nn::Module& block, const UNetBlockOptions& options,
                                     size_t transformers) {
  ResnetsAndAttentions layers;
  if (options.attention) {
    for (size_t i = 0; i < transformers; ++i) {
      auto transformer = *options.attention;
      const auto& blocks = options.transformer_layers;
      if (!blocks.empty()) transformer.layers(per_level(blocks, i));
      layers.attentions->push_back(Transformer2DModel(transformer));
    }
    block.register_module("attentions", layers.attentions);
  }
  for (const auto& resnet : options.resnets) layers.resnets->push_back(ResnetBlock2D(resnet));
  block.register_module("resnets", layers.resnets);
  return layers;
}

}  // namespace

UNetDownBlockImpl::UNetDownBlockImpl(UNetBlockOptions options_) : options(std::move(options_)) {
  reset();
}

void UNetDownBlockImpl::reset() {
  layers_ = register_layers(*this, options, /*transformers=*/options.resnets.size());
  if (!options.add_sampler) return;
  const int64_t channels = options.resnets.back().out_channels();
  downsamplers_ = register_module("downsamplers", torch::nn::ModuleList());
  downsamplers_->push_back(Downsample2D(channels, options.downsample_padding));
}

at::Tensor UNetDownBlockImpl::forward(at::Tensor x, const at::Tensor& activated_temb,
                                      const at::Tensor& context, std::vector<at::Tensor>& skips) {
  for (size_t i = 0; i < options.resnets.size(); ++i) {
    x = run_segment(layers_.resnet(i), x, activated_temb);
    if (options.attention) x = run_segment(layers_.attention(i), x, options.context_of(context, i));
    skips.push_back(x);
  }
  if (options.add_sampler) {
    x = downsamplers_->at<Downsample2DImpl>(0).forward(x);
    skips.push_back(x);
  }
  return x;
}

UNetMidBlockImpl::UNetMidBlockImpl(UNetBlockOptions options_) : options(std::move(options_)) {
  reset();
}

void UNetMidBlockImpl::reset() {
  layers_ = register_layers(*this, options, /*transformers=*/options.resnets.size() - 1);
}

at::Tensor UNetMidBlockImpl::forward(at::Tensor x, const at::Tensor& activated_temb,
                                     const at::Tensor& context) {
  x = run_segment(layers_.resnet(0), x, activated_temb);
  for (size_t i = 1; i < options.resnets.size(); ++i) {
    x = run_segment(layers_.attention(i - 1), x, options.context_of(context, i - 1));
    x = run_segment(layers_.resnet(i), x, activated_temb);
  }
  return x;
}

UNetUpBlockImpl::UNetUpBlockImpl(UNetBlockOptions options_) : options(std::move(options_)) {
  reset();
}

void UNetUpBlockImpl::reset() {
  layers_ = register_layers(*this, options, /*transformers=*/options.resnets.size());
  if (!options.add_sampler) return;
  upsamplers_ = register_module("upsamplers", torch::nn::ModuleList());
  upsamplers_->push_back(Upsample2D(options.resnets.back().out_channels()));
}

at::Tensor UNetUpBlockImpl::forward(at::Tensor x, const at::Tensor& activated_temb,
                                    const at::Tensor& context, std::vector<at::Tensor>& skips) {
  for (size_t i = 0; i < options.resnets.size(); ++i) {
    x = at::cat({x, skips.back()}, /*dim=*/1);
    skips.pop_back();
    x = run_segment(layers_.resnet(i), x, activated_temb);
    if (options.attention) x = run_segment(layers_.attention(i), x, options.context_of(context, i));
  }
  if (!options.add_sampler) return x;
  const at::Tensor& next = skips.back();
  return upsamplers_->at<Upsample2DImpl>(0).forward(x, next.size(2), next.size(3));
}

}  // namespace sd
