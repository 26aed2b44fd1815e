// SPDX-License-Identifier: Apache-2.0
#include "models/unet.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "models/config.h"
#include "models/packing.h"
#include "support/cli/fmt.h"

namespace sd {

at::Tensor timestep_embedding(const at::Tensor& timesteps, int64_t dim, bool flip_sin_to_cos,
                              double freq_shift) {
  const int64_t half = dim / 2;
  // The order of these roundings is diffusers'; another one moves the angles by up to 4e-5.
  const at::Tensor frequencies = at::arange(half, timesteps.options().dtype(at::kFloat))
                                     .mul_(-std::log(10000.0))
                                     .div_(static_cast<double>(half) - freq_shift)
                                     .exp_();
  const at::Tensor angles = timesteps.to(at::kFloat).unsqueeze(1) * frequencies;
  const at::Tensor sines = at::sin(angles), cosines = at::cos(angles);
  const at::Tensor result =
      flip_sin_to_cos ? at::cat({cosines, sines}, 1) : at::cat({sines, cosines}, 1);
  return dim % 2 == 0 ? result : at::constant_pad_nd(result, {0, 1});
}

TimestepEmbeddingImpl::TimestepEmbeddingImpl(int64_t in, int64_t out) : in_(in), out_(out) {
  reset();
}

void TimestepEmbeddingImpl::reset() {
  linear_1 = register_module("linear_1", torch::nn::Linear(in_, out_));
  linear_2 = register_module("linear_2", torch::nn::Linear(out_, out_));
}

at::Tensor TimestepEmbeddingImpl::forward(const at::Tensor& x) {
  return linear(*linear_2, at::silu(linear(*linear_1, x)));
}

UNet2DConditionModelImpl::UNet2DConditionModelImpl(UNet2DConditionModelOptions options_)
    : options(std::move(options_)) {
  options.check("UNet2DConditionModel");
  reset();
}

void UNet2DConditionModelImpl::reset() {
  const auto& channels = options.block_out_channels();
  conv_in = register_module(
      "conv_in", make_conv(options.in_channels(), channels.front(), options.conv_in_kernel()));
  time_embedding =
      register_module("time_embedding", TimestepEmbedding(channels.front(), time_embed_dim()));
  if (options.text_time()) {
    add_embedding = register_module(
        "add_embedding",
        TimestepEmbedding(options.projection_class_embeddings_input_dim(), time_embed_dim()));
  }
  down_blocks = register_module("down_blocks", torch::nn::ModuleList());
  up_blocks = register_module("up_blocks", torch::nn::ModuleList());
  for (size_t i = 0; i < options.levels(); ++i) {
    down_blocks->push_back(UNetDownBlock(down_block_options(i)));
    up_blocks->push_back(UNetUpBlock(up_block_options(i)));
  }
  mid_block = register_module("mid_block", UNetMidBlock(mid_block_options()));
  conv_norm_out = register_module(
      "conv_norm_out",
      make_group_norm(options.norm_num_groups(), channels.front(), options.norm_eps()));
  conv_out = register_module(
      "conv_out", make_conv(channels.front(), options.out_channels(), options.conv_out_kernel()));
}

int64_t UNet2DConditionModelImpl::time_embed_dim() const {
  return options.time_embedding_dim().value_or(4 * options.block_out_channels().front());
}

ResnetBlock2DOptions UNet2DConditionModelImpl::resnet_options(int64_t in, int64_t out) const {
  return ResnetBlock2DOptions(in, out)
      .temb_channels(time_embed_dim())
      .groups(options.norm_num_groups())
      .eps(options.norm_eps())
      .dropout(options.dropout());
}

Transformer2DModelOptions UNet2DConditionModelImpl::transformer_options(size_t level) const {
  return Transformer2DModelOptions(options.block_out_channels()[level],
                                   per_level(options.attention_head_dim(), level),
                                   per_level(options.cross_attention_dim(), level))
      .groups(options.norm_num_groups())
      .use_linear_projection(options.use_linear_projection())
      .only_cross_attention(per_level(options.only_cross_attention(), level))
      .upcast_attention(options.upcast_attention());
}

int64_t UNet2DConditionModelImpl::attentions_before(size_t block) const {
  const size_t levels = options.levels();
  int64_t count = 0;
  for (size_t i = 0; i < block; ++i) {
    if (i == levels) {
      count += options.mid_block_attention() ? 1 : 0;
    } else if (i < levels && options.down_block_types()[i] == "CrossAttnDownBlock2D") {
      count += per_level(options.layers_per_block(), i);
    } else if (i > levels && options.up_block_types()[i - levels - 1] == "CrossAttnUpBlock2D") {
      count += per_level(options.layers_per_block(), 2 * levels - i) + 1;
    }
  }
  return count;
}

void UNet2DConditionModelImpl::group_projections() {
  for (const auto& module : modules()) {
    if (auto* attention = module->as<AttentionImpl>()) attention->group_projections();
  }
}

void UNet2DConditionModelImpl::use_winograd() {
  uses_winograd_ = true;
  for (const auto& module : modules()) {
    if (auto* resnet = module->as<ResnetBlock2DImpl>()) resnet->use_winograd();
    if (auto* upsampler = module->as<Upsample2DImpl>()) upsampler->use_winograd();
  }
}

std::vector<std::string> UNet2DConditionModelImpl::attention_names() const {
  const size_t levels = options.levels();
  std::vector<std::string> names;
  for (size_t block = 0; block < 2 * levels + 1; ++block) {
    const std::string name = block < levels    ? fmt::format("down_blocks.{}", block)
                             : block == levels ? "mid_block"
                                               : fmt::format("up_blocks.{}", block - levels - 1);
    const int64_t count = attentions_before(block + 1) - attentions_before(block);
    for (int64_t i = 0; i < count; ++i) names.push_back(fmt::format("{}.attentions.{}", name, i));
  }
  return names;
}

UNetBlockOptions UNet2DConditionModelImpl::down_block_options(size_t level) const {
  const auto& channels = options.block_out_channels();
  const int64_t layers = per_level(options.layers_per_block(), level);
  UNetBlockOptions block;
  for (int64_t i = 0; i < layers; ++i) {
    const int64_t in = i == 0 ? channels[level == 0 ? 0 : level - 1] : channels[level];
    block.resnets.push_back(resnet_options(in, channels[level]));
  }
  if (options.down_block_types()[level] == "CrossAttnDownBlock2D") {
    block.attention = transformer_options(level);
    block.transformer_layers = per_level(options.transformer_layers_per_block(), level);
  }
  block.add_sampler = level + 1 < options.levels();
  block.downsample_padding = options.downsample_padding();
  block.first_attention = attentions_before(level);
  return block;
}

UNetBlockOptions UNet2DConditionModelImpl::mid_block_options() const {
  const int64_t channels = options.block_out_channels().back();
  const auto resnet =
      resnet_options(channels, channels).output_scale_factor(options.mid_block_scale_factor());
  UNetBlockOptions block;
  block.resnets = {resnet};
  if (!options.mid_block_attention()) return block;
  block.resnets.push_back(resnet);
  block.attention = transformer_options(options.levels() - 1);
  block.attention->only_cross_attention(false);  // diffusers' mid block has no such switch
  block.transformer_layers =
      per_level(options.transformer_layers_per_block(), options.levels() - 1);
  block.first_attention = attentions_before(options.levels());
  return block;
}

UNetBlockOptions UNet2DConditionModelImpl::up_block_options(size_t i) const {
  const auto& channels = options.block_out_channels();
  const size_t level = options.levels() - 1 - i;  // the level of the contracting half beside it
  const int64_t out = channels[level];
  const int64_t previous = i == 0 ? out : channels[level + 1];
  const int64_t last_skip = level == 0 ? out : channels[level - 1];
  const int64_t layers = per_level(options.layers_per_block(), level) + 1;
  UNetBlockOptions block;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t skip = layer == layers - 1 ? last_skip : out;
    block.resnets.push_back(resnet_options((layer == 0 ? previous : out) + skip, out));
  }
  if (options.up_block_types()[i] == "CrossAttnUpBlock2D") {
    block.attention = transformer_options(level);
    const auto& own = options.reverse_transformer_layers_per_block();
    block.transformer_layers =
        own.empty() ? per_level(options.transformer_layers_per_block(), level) : per_level(own, i);
  }
  block.add_sampler = level > 0;
  block.first_attention = attentions_before(options.levels() + 1 + i);
  return block;
}

at::Tensor UNet2DConditionModelImpl::embed_conditions(const AddedConditions& added,
                                                      at::ScalarType dtype) {
  const at::Tensor waves =
      timestep_embedding(added.time_ids.flatten(), options.addition_time_embed_dim(),
                         options.flip_sin_to_cos(), options.freq_shift())
          .reshape({added.time_ids.size(0), -1});
  return add_embedding(at::cat({added.text_embeds.to(dtype), waves.to(dtype)}, /*dim=*/1));
}

at::Tensor UNet2DConditionModelImpl::embed_time(const at::Tensor& sample,
                                                const at::Tensor& timesteps,
                                                const AddedConditions& added) {
  const at::Tensor per_sample =
      (timesteps.dim() == 0 ? timesteps.unsqueeze(0) : timesteps).to(sample.device());
  const at::Tensor waves =
      timestep_embedding(per_sample.expand(sample.size(0)), options.block_out_channels().front(),
                         options.flip_sin_to_cos(), options.freq_shift());
  const at::Tensor embedded = time_embedding(waves.to(sample.scalar_type()));
  if (!options.text_time()) return at::silu(embedded);
  return at::silu(embedded + embed_conditions(added, sample.scalar_type()));
}

void UNet2DConditionModelImpl::check_inputs(const at::Tensor& sample, const at::Tensor& timesteps,
                                            const at::Tensor& context) const {
  TORCH_CHECK(sample.dim() == 4 && sample.size(1) == options.in_channels(),
              "'UNet2DConditionModel': expected a sample (B, ", options.in_channels(),
              ", H, W), got ", sample.sizes());
  TORCH_CHECK(
      timesteps.dim() == 0 ||
          (timesteps.dim() == 1 && (timesteps.size(0) == 1 || timesteps.size(0) == sample.size(0))),
      "'UNet2DConditionModel': expected one timestep, or one for each of ", sample.size(0),
      " samples, got ", timesteps.sizes());
  const int64_t width = options.cross_attention_dim().front();
  const int64_t layers = attentions_before(2 * options.levels() + 1);
  const bool layered = context.dim() == 4 && context.size(1) == layers;
  TORCH_CHECK((context.dim() == 3 || layered) && context.size(0) == sample.size(0) &&
                  context.size(-1) == width,
              "'UNet2DConditionModel': expected encoder_hidden_states (", sample.size(0), ", T, ",
              width, ") or (", sample.size(0), ", ", layers, ", T, ", width, "), got ",
              context.sizes(), "; hint: a text encoder of another model has another width");
}

void UNet2DConditionModelImpl::check_added(const at::Tensor& sample,
                                           const AddedConditions& added) const {
  TORCH_CHECK(options.text_time() || !added.defined(),
              "'UNet2DConditionModel': expected no added conditions, got some; hint: only a model ",
              "with addition_embed_type text_time (SDXL) has them");
  if (!options.text_time()) return;
  TORCH_CHECK(added.text_embeds.defined() && added.time_ids.defined(),
              "'UNet2DConditionModel': expected added conditions (text_embeds and time_ids), got ",
              added.defined() ? "one of them" : "none");
  const int64_t rows = sample.size(0), width = options.projection_class_embeddings_input_dim();
  TORCH_CHECK(
      added.text_embeds.dim() == 2 && added.time_ids.dim() == 2 &&
          added.text_embeds.size(0) == rows && added.time_ids.size(0) == rows &&
          added.text_embeds.size(1) + added.time_ids.size(1) * options.addition_time_embed_dim() ==
              width,
      "'UNet2DConditionModel': expected text_embeds and time_ids of ", rows, " rows that make ",
      width, " columns (", options.addition_time_embed_dim(), " for each number), got ",
      added.text_embeds.sizes(), " and ", added.time_ids.sizes(),
      "; hint: a refiner has another set of numbers");
}

at::Tensor UNet2DConditionModelImpl::forward(const at::Tensor& sample, const at::Tensor& timesteps,
                                             const at::Tensor& encoder_hidden_states,
                                             const AddedConditions& added) {
  check_inputs(sample, timesteps, encoder_hidden_states);
  check_added(sample, added);
  const auto packing = packed.activate();
  const at::Tensor temb = embed_time(sample, timesteps, added);
  at::Tensor x = conv_in(options.center_input_sample() ? 2 * sample - 1 : sample);
  const bool uses_winograd = uses_winograd_ && has_winograd(x);
  if (uses_winograd) x = x.contiguous(at::MemoryFormat::ChannelsLast);
  std::vector<at::Tensor> skips{x};
  for (size_t i = 0; i < options.levels(); ++i) {
    x = down_blocks->at<UNetDownBlockImpl>(i).forward(x, temb, encoder_hidden_states, skips);
  }
  x = mid_block(x, temb, encoder_hidden_states);
  for (size_t i = 0; i < options.levels(); ++i) {
    x = up_blocks->at<UNetUpBlockImpl>(i).forward(x, temb, encoder_hidden_states, skips);
  }
  x = conv_out(norm_silu(conv_norm_out, x));
  return uses_winograd ? x.contiguous(sample.suggest_memory_format()) : x;
}

bool may_be_quantised(const std::string& path, const torch::Tensor& weight) {
  const auto starts = [&](const char* name) { return path.rfind(name, 0) == 0; };
  const bool end = starts("conv_in") || starts("conv_out");
  return weight.dim() >= 2 && !end && !starts("time_embedding") && !starts("add_embedding");
}

std::string to_string(BasePrecision precision) {
  if (precision == BasePrecision::same) return "";
  return precision == BasePrecision::int8 ? "int8" : "nf4";
}

double bits_of(BasePrecision precision) {
  // Each 64 numbers have a factor of eight bits, each 256 of those one of 32.
  return precision == BasePrecision::int8 ? 8 : 4 + 8.0 / 64 + 32.0 / (64 * 256);
}

void quantise(UNet2DConditionModelImpl& unet, BasePrecision precision,
              const lightlora::QuantizeOptions::Source& source) {
  const bool int8 = precision == BasePrecision::int8;
  auto options = lightlora::QuantizeOptions().double_quant(true).source(source);
  options.format(int8 ? lightlora::WeightFormat::int8 : lightlora::WeightFormat::nf4);
  lightlora::quantize(unet, may_be_quantised, options);
}

void pack_weights(UNet2DConditionModel& unet) {
  constexpr int64_t kLargeKernels = 640 * 640 * 9;
  unet->use_winograd();
  // Maps are then by rows already, as packed kernels read them.
  const bool by_rows = has_winograd(unet->conv_in->weight);
  unet->packed = lightlora::pack_weights(*unet, [&](const auto& /*path*/, const auto& weight) {
    const bool is_1x1 = weight.dim() == 4 && weight.size(2) == 1;
    return weight.dim() == 2 || weight.numel() >= kLargeKernels || (by_rows && is_1x1);
  });
}

}  // namespace sd
