// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/personalize.h"

#include <ATen/ATen.h>
#include <lightlora/file_io.h>
#include <lightlora/files.h>
#include <torch/utils.h>

#include <charconv>
#include <filesystem>
#include <string_view>

#include "generation/options.h"
#include "pipeline/device.h"
#include "pipeline/lora.h"
#include "research/hypernetwork/identities.h"
#include "research/hypernetwork/task.h"
#include "support/cli/fmt.h"
#include "support/cli/watch.h"
#include "support/files/outputs.h"
#include "support/images/file.h"
#include "support/images/png.h"
#include "support/images/tensor.h"
#include "training/checkpoint.h"
#include "training/dreambooth.h"
#include "training/picture_text.h"

namespace hypernetwork {
namespace {

namespace fs = std::filesystem;

// Weights that were rounded to half precision differ by less, those of another model by more.
constexpr double kSameWeights = 0.01;

// Of what a network's file says.
constexpr std::size_t kPromptBytes = 20'000;
constexpr int64_t kMostResolution = 4096;

// The picture in a folder of its own, as the trainer wants it. It is read first: `image` may be the
// copy that an earlier run left, which goes, as the trainer would learn from both.
std::string folder_with(const std::string& image, const fs::path& folder) {
  constexpr const char* kName = "picture";
  sd::make_folder(folder.string());
  const auto bytes = images::read_file(image);
  for (const auto& entry : fs::directory_iterator(folder)) {
    const auto path = entry.path();
    TORCH_CHECK(path.stem() == kName, "'", path.string(), "': expected nothing in '",
                folder.string(), "' but the picture of an earlier run, got a file of another ",
                "name; hint: another --output_dir");
    fs::remove(path);
  }
  lightlora::AtomicFile file((folder / (kName + fs::path(image).extension().string())).string());
  file.write(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  file.commit();
  return folder.string();
}

// What the prediction adapts is tuned.
training::DreamBoothOptions tuning(const PersonalizeOptions& o, const std::string& prediction,
                                   const std::string& prompt, bool text_encoder) {
  training::DreamBoothOptions options;
  options.model = o.model;
  options.instance_data_dir = folder_with(o.image, fs::path(o.output_dir) / "instance");
  options.instance_prompt = prompt;
  options.adapter.init_from = prediction;
  options.adapter.relax_rank = o.rank;
  options.adapter.train_text_encoder = text_encoder;
  options.optimization.max_train_steps = o.max_train_steps;
  options.optimization.learning_rate = o.learning_rate;
  options.optimization.train_batch_size = 4;
  options.data.cache_latents = true;
  options.run.output_dir = (fs::path(o.output_dir) / "tuned").string();
  options.run.overwrite_output_dir = true;
  options.run.tensorboard = false;
  options.machine.seed = o.seed;
  options.machine.device = o.device;
  options.machine.mixed_precision = o.mixed_precision;
  return options;
}

sd::StableDiffusion load(const PersonalizeOptions& o) {
  auto how = o.model.load;
  how.device(sd::pick_device(o.device)).dtype(o.mixed_precision);
  return sd::StableDiffusion(o.model.path, how);
}

// Before anything is computed for a size that cannot be drawn.
void check_size(const sd::SampleOptions& sample, const sd::StableDiffusion& pipeline) {
  const int64_t factor = pipeline.vae_scale_factor();
  const auto side = [&](const std::optional<int64_t>& given, int64_t own) {
    TORCH_CHECK_VALUE(given.value_or(factor) % factor == 0,
                      "--height and --width: expected multiples of ", factor, ", got ", *given);
    return given.value_or(own);
  };
  const auto own = pipeline.default_size();
  const int64_t height = side(sample.height(), own[0]), width = side(sample.width(), own[1]);
  constexpr int64_t most_side = 16384, most_pixels = 16'000'000;
  TORCH_CHECK_VALUE(height <= most_side && width <= most_side && height * width <= most_pixels,
                    "--height and --width: expected at most ", most_pixels, " pixels, got ", height,
                    " by ", width);
}

std::string picture_path(const PersonalizeOptions& o, int64_t number) {
  return (fs::path(o.output_dir) / fmt::format("{}.png", number)).string();
}

// That all can be written is said before the work; pictures of an earlier run, which may have been
// more and of another thing, go.
void prepare_folder(const PersonalizeOptions& o, const std::string& prediction) {
  sd::make_folder(o.output_dir);
  const bool earlier = fs::exists(prediction);
  TORCH_CHECK(o.overwrite_output_dir || !earlier, "'", o.output_dir,
              "': expected a folder without results, got those of an earlier run; hint: ",
              "--overwrite_output_dir, or another --output_dir");
  for (int64_t i = 0; earlier && fs::is_regular_file(picture_path(o, i)); ++i) {
    fs::remove(picture_path(o, i));
  }
  sd::Outputs outputs;
  outputs.add("--output_dir", prediction);
  for (int64_t i = 0; i < o.sample.num_images_per_prompt(); ++i) {
    outputs.add("--output_dir", picture_path(o, i));
  }
  outputs.check();
}

std::vector<std::string> draw(const PersonalizeOptions& o, const std::string& file) {
  sd::StableDiffusion pipeline = load(o);
  const sd::AppliedLoRAs loras(pipeline, {sd::LoRAChoice{file}});
  std::vector<uint64_t> seeds;
  for (int64_t i = 0; i < o.sample.num_images_per_prompt(); ++i) {
    seeds.push_back(o.seed + static_cast<uint64_t>(i));
  }
  auto options = o.sample;
  options.seeds(seeds);
  const auto pictures = pipeline.sample(options).pictures;
  std::vector<std::string> written;
  for (size_t i = 0; i < seeds.size(); ++i) {
    written.push_back(picture_path(o, static_cast<int64_t>(i)));
    const auto picture = images::to_image(pictures[static_cast<int64_t>(i)] * 2 - 1);
    images::save_png(
        written.back(), picture,
        {{"parameters", training::picture_text(o.model, {}, options, picture, seeds[i])}});
  }
  return written;
}

sd::PipelineAdapters patched(sd::StableDiffusion& pipeline, const lightlora::Components& states) {
  TORCH_CHECK(states.count("unet") > 0, "expected adapters of a UNet in ", kMeanFile, ", got none");
  sd::PipelineAdapters adapters;
  adapters.unet = lightlora::patch(*pipeline.unet(), states.at("unet"));
  for (size_t i = 0; i < 2; ++i) {
    const auto found = states.find(i == 0 ? "text_encoder" : "text_encoder_2");
    if (found == states.end()) continue;
    TORCH_CHECK(i < pipeline.text_encoders(), "expected a model with ", i + 1,
                " text encoders, got ", pipeline.text_encoders());
    adapters.of_text_encoder(i) = lightlora::patch(*pipeline.text_encoder(i), found->second);
  }
  return adapters;
}

}  // namespace

Predictor::Predictor(const std::string& folder, sd::StableDiffusion& pipeline) {
  const auto path = (fs::path(folder) / kNetworkFile).string();
  TORCH_CHECK(fs::exists(path), "'", folder, "': expected ", kNetworkFile,
              ", got a folder without it; hint: --hypernetwork is what train_hypernetwork wrote");
  const auto file = read_network(path);
  network_ = make_network(file, path);
  network_->to(pipeline.options().device());
  const auto mean = (fs::path(folder) / kMeanFile).string();
  const auto states = lightlora::read_adapters(mean).components;
  try {
    adapters_ = AdapterSet(patched(pipeline, states));
  } catch (const c10::Error& error) {
    TORCH_CHECK(false, "'", path, "': the network is for another model than '", pipeline.folder(),
                "': ", error.what_without_backtrace());
  }
  check_base(file, path);
  const auto text = [&](const char* key) {
    const auto found = file.metadata.find(key);
    TORCH_CHECK(found != file.metadata.end(), "'", path, "': expected metadata '", key,
                "', got none");
    return found->second;
  };
  instance_prompt_ = text("instance_prompt");
  TORCH_CHECK(instance_prompt_.size() <= kPromptBytes, "'", path,
              "': expected a prompt of at most ", kPromptBytes, " bytes, got ",
              instance_prompt_.size());
  const std::string side = text("resolution");
  const auto* const end = side.data() + side.size();
  const auto number = std::from_chars(side.data(), end, resolution_);
  TORCH_CHECK(number.ec == std::errc() && number.ptr == end && resolution_ >= 8 &&
                  resolution_ <= kMostResolution,
              "'", path, "': expected a resolution from 8 to ", kMostResolution, ", got '", side,
              "'");
  const auto& sizes = file.options;
  const int64_t channels = pipeline.unet()->options.in_channels();
  TORCH_CHECK(
      sizes.side() == resolution_ / pipeline.vae_scale_factor() && sizes.channels() == channels,
      "'", path, "': expected a network for latents of ", channels, " channels and ",
      resolution_ / pipeline.vae_scale_factor(), " a side, got one for ", sizes.channels(), " and ",
      sizes.side(), "; hint: it was trained for another model");
}

void Predictor::check_base(const HyperNetworkFile& file, const std::string& path) const {
  const auto layers = adapters_.layers();
  TORCH_CHECK(layers == file.options.layers(), "'", path, "': expected ", layers.size(),
              " layers as in ", kMeanFile, ", got ", file.options.layers().size(), " or others; ",
              "hint: the two files belong together");
  const auto found = file.tensors.find("norms");
  const auto now = adapters_.norms();
  TORCH_CHECK(found != file.tensors.end() && found->second.sizes() == now.sizes(), "'", path,
              "': expected the norms of ", now.numel(), " weights, got none");
  const double off =
      ((now - found->second.to(at::kFloat)) / found->second.to(at::kFloat).clamp_min(1e-6))
          .abs()
          .max()
          .item<double>();
  TORCH_CHECK(off < kSameWeights, "'", path,
              "': expected the base model of the network's training, ",
              "got one whose weights have other norms (up to ", fmt::format("{:.0f}", off * 100),
              " % off); hint: --pretrained_model_name_or_path names the model that ",
              "train_hypernetwork had");
}

const AdapterSet& Predictor::predict(const at::Tensor& latents, int64_t iterations) {
  const torch::NoGradGuard no_grad;
  TORCH_CHECK(
      latents.size(2) == network_->options.side() && latents.size(3) == network_->options.side(),
      "expected a picture of ", network_->options.side(), " latents a side, got ", latents.sizes());
  const auto device = network_->parameters().front().device();
  adapters_.assign(network_->forward(latents.to(device), iterations)[0]);
  return adapters_;
}

Personalized personalize(const PersonalizeOptions& given) {
  given.check();
  auto o = given;
  if (o.new_seed) {
    o.seed = generation::new_seed({});
    fmt::print("seed: {}\n", o.seed);
  }
  cli::Watch watch;
  Personalized result;
  result.prediction = (fs::path(o.output_dir) / "prediction.safetensors").string();
  prepare_folder(o, result.prediction);
  std::string prompt;
  bool adapts_text = false;
  {
    // Each part has the model for itself: never are two of them in memory.
    sd::StableDiffusion pipeline = load(o);
    check_size(o.sample, pipeline);
    Predictor predictor(o.hypernetwork, pipeline);
    prompt = o.instance_prompt.value_or(predictor.instance_prompt());
    adapts_text = predictor.adapters().adapts_text();
    result.seconds.emplace_back("loading", watch.lap());
    const auto latents = read_picture(o.image, pipeline, predictor.resolution());
    const auto& predicted = predictor.predict(latents, o.iterations.value_or(-1));
    lightlora::save(predicted.parts().state(), result.prediction,
                    lightlora::SaveOptions().metadata({{"instance_prompt", prompt}}));
  }
  result.adapters = result.prediction;
  result.seconds.emplace_back("prediction", watch.lap());

  if (o.max_train_steps > 0) {
    const auto options = tuning(o, result.prediction, prompt, adapts_text);
    training::train_dreambooth(options);
    result.adapters =
        (fs::path(options.run.output_dir) / training::DreamBooth::kNativeFile).string();
    result.seconds.emplace_back("tuning", watch.lap());
  }
  result.pictures = draw(o, result.adapters);
  result.seconds.emplace_back("drawing", watch.lap());
  return result;
}

}  // namespace hypernetwork
