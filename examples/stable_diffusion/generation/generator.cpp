// SPDX-License-Identifier: Apache-2.0
#include "generation/generator.h"

#include <lightlora/file_io.h>

#include <cmath>
#include <random>

#include "generation/lora_tags.h"
#include "pipeline/device.h"
#include "pipeline/embeddings.h"
#include "pipeline/single_file.h"
#include "support/cli/fmt.h"
#include "support/cli/progress.h"
#include "support/images/load.h"
#include "support/images/resize.h"
#include "support/images/sheet.h"
#include "support/images/tensor.h"

namespace generation {

namespace {

sd::StableDiffusionOptions pipeline_options(const GenerationOptions& options) {
  if (options.deterministic) sd::use_deterministic_algorithms();
  auto load = options.model.load;
  load.device(sd::pick_device(options.device)).dtype(options.dtype);
  fmt::print("device: {}\n", sd::describe_device(load.device(), options.dtype));
  return load;
}

// The prompt as the text encoder gets it.
std::string without_tags(const GenerationOptions& options) {
  return options.syntax() == sd::PromptSyntax::plain ? options.sample.prompt()
                                                     : take_lora_tags(options.sample.prompt()).text;
}

uint64_t new_seed() {
  std::random_device device;
  return device();
}

}  // namespace

images::Image starting_picture(const images::Image& image, int64_t factor,
                               std::optional<int64_t> width, std::optional<int64_t> height) {
  const int64_t own_width = image.width - image.width % factor;
  const int64_t own_height = image.height - image.height % factor;
  if (!width && !height) {
    TORCH_CHECK_VALUE(own_width > 0 && own_height > 0, "--image: expected at least ", factor,
                      " by ", factor, " pixels, got ", image.width, " by ", image.height);
    return images::resize(image, own_width, own_height, images::Filter::kLanczos);
  }
  const auto scaled = [&](int64_t side, int64_t of, int64_t by) {
    return std::max((side * by / of) / factor * factor, factor);
  };
  const int64_t w = width.value_or(scaled(image.width, image.height, height.value_or(0)));
  const int64_t h = height.value_or(scaled(image.height, image.width, width.value_or(0)));
  TORCH_CHECK_VALUE(w % factor == 0 && h % factor == 0,
                    "--height and --width: expected multiples of ", factor, ", got ", h, " and ",
                    w);
  if (w == own_width && h == own_height) {
    return images::resize(image, w, h, images::Filter::kLanczos);
  }
  const double scale = std::max(static_cast<double>(w) / static_cast<double>(image.width),
                                static_cast<double>(h) / static_cast<double>(image.height));
  const auto side = [&](int64_t size, int64_t least) {
    return std::max<int64_t>(std::llround(static_cast<double>(size) * scale), least);
  };
  const auto filled =
      images::resize(image, side(image.width, w), side(image.height, h), images::Filter::kLanczos);
  return images::crop_centre(filled, w, h);
}

std::vector<sd::LoRAChoice> choose_loras(const GenerationOptions& options,
                                         const std::vector<std::string>& known) {
  std::vector<sd::LoRAChoice> choices;
  if (options.syntax() == sd::PromptSyntax::a1111) {
    std::vector<std::string> paths;
    for (const auto& text : known) paths.push_back(sd::parse_lora(text).path);
    for (const auto& tag : take_lora_tags(options.sample.prompt()).tags) {
      choices.push_back({find_lora(tag.path, options.lora_dir, paths), tag.weight});
    }
  } else {
    for (const auto& text : known) choices.push_back(sd::parse_lora(text));
  }
  for (const auto& text : options.loras) choices.push_back(sd::parse_lora(text));
  return choices;
}

Generator::Generator(const GenerationOptions& options, const std::vector<std::string>& known_loras,
                     const distributed::Group& group)
    : options_(options),
      group_(group),
      pipeline_(options.model.path, pipeline_options(options)),
      choices_(choose_loras(options, known_loras)),
      adapters_(sd::merge_loras(pipeline_, choices_, options.split_rank)),
      seed_(static_cast<uint64_t>(
          group.from_main(static_cast<int64_t>(options.seed.value_or(new_seed()))))) {
  if (!options.merge_to.empty() && group.is_main())
    sd::save_single_file(pipeline_, options.merge_to);
  for (const auto& text : options.learned_embeds) {
    for (const auto& embedding : sd::read_embeddings(text)) sd::add_embedding(pipeline_, embedding);
  }
  if (options_.sample.scheduler().empty()) {
    options_.sample.scheduler(pipeline_.default_scheduler());
  }
  pipeline_.vae()->enable_tiling(options.vae_tiling);
  if (options.image.empty()) return;
  const auto picture =
      starting_picture(images::load_image(options.image), pipeline_.vae_scale_factor(),
                       options.sample.width(), options.sample.height());
  image_ = images::to_tensor(picture).unsqueeze(0);
}

sd::SampleResult Generator::sample(const GenerationOptions& options, uint64_t seed,
                                   const Callback& on) {
  auto sampling = sample_options(options, seed).prompt(without_tags(options)).callback(on);
  if (image_.defined()) sampling.image(image_);
  return pipeline_.sample(sampling);
}

// Each picture by itself, as its place in the batch asks for; every rank draws some.
sd::SampleResult Generator::sample_dealt_out(const Callback& on) {
  auto sampling = sample_options(options_, seed_).prompt(without_tags(options_));
  if (image_.defined()) sampling.image(image_);
  const auto seeds = options_.seed_list();
  const auto given = sampling.initial_latents();
  const int64_t count = given.defined()  ? given.size(0)
                        : !seeds.empty() ? static_cast<int64_t>(seeds.size())
                        : options_.sample.batch_position()
                            ? 1
                            : options_.sample.num_images_per_prompt();
  std::vector<torch::Tensor> latents(static_cast<size_t>(count)), pictures(latents.size());
  const int64_t own = (count - group_.rank() + group_.size() - 1) / group_.size();
  for (int64_t i = group_.rank(), drawn = 0; i < count; i += group_.size(), ++drawn) {
    const auto place = static_cast<size_t>(i);
    if (given.defined()) sampling.initial_latents(given.narrow(0, i, 1));
    if (!seeds.empty()) {
      sampling.seeds({seeds[place]});
    } else if (!options_.sample.batch_position()) {
      sampling.num_images_per_prompt(count).batch_position(i);
    }
    sampling.callback([&](int64_t done, int64_t total) { on(drawn * total + done, own * total); });
    const auto result = pipeline_.sample(sampling);
    latents[place] = result.latents.to(torch::kCPU, torch::kFloat);
    pictures[place] = result.pictures.to(torch::kCPU, torch::kFloat);
  }
  group_.complete(latents);
  group_.complete(pictures);
  return {at::cat(latents), at::cat(pictures)};
}

GeneratedImage Generator::described(const GenerationOptions& options, const at::Tensor& picture,
                                    DrawnPicture about) const {
  const auto image = images::to_image(picture * 2 - 1);
  about.width = image.width;
  about.height = image.height;
  return {image, describe(options, choices_, about).text(), about.seed};
}

std::vector<GeneratedImage> Generator::generate() {
  std::optional<cli::Progress> progress;
  const auto show = [&](int64_t done, int64_t total) {
    if (!progress) progress.emplace("Drawing", total);
    progress->update(done);
  };
  const auto result = group_.size() == 1 ? sample(options_, seed_, show) : sample_dealt_out(show);
  if (progress) progress->finish();
  if (!options_.save_latents.empty() && group_.is_main()) {
    lightlora::save_safetensors(options_.save_latents,
                                {{"latents", result.latents.to(torch::kCPU, torch::kFloat)}});
  }
  std::vector<GeneratedImage> images;
  const auto seeds = options_.seed_list();
  const int64_t count = result.pictures.size(0);
  for (int64_t i = 0; i < count; ++i) {
    DrawnPicture about;
    about.seed = seeds.empty() ? seed_ : seeds.at(static_cast<std::size_t>(i));
    about.index = options_.sample.batch_position().value_or(i);
    about.count = options_.sample.batch_position() ? options_.sample.num_images_per_prompt()
                  : seeds.empty()                  ? count
                                                   : 1;
    images.push_back(described(options_, result.pictures[i], about));
  }
  return images;
}

GeneratedImage Generator::generate_sheet(const std::vector<Axis>& axes) {
  images::Sheet sheet;
  const Axis& across = axes.at(0);
  for (const auto& axis : axes) {
    TORCH_CHECK_VALUE(axis.name != "lora_weight" || !choices_.empty(),
                      "--xy: expected a --lora whose weight to vary, got none");
    TORCH_CHECK_VALUE(axis.name != "strength" || image_.defined(),
                      "--xy: expected an --image for strength, got none");
  }
  const std::size_t rows = axes.size() > 1 ? axes[1].values.size() : 1;
  const std::size_t columns = across.values.size();
  sheet.title = options_.sample.prompt();
  for (std::size_t i = 0; i < columns; ++i) sheet.column_labels.push_back(across.label(i));
  cli::Progress progress("Drawing", static_cast<int64_t>(rows * columns));
  std::vector<torch::Tensor> cells(rows * columns);
  GeneratedImage first;
  for (std::size_t y = 0; y < rows; ++y) {
    if (axes.size() > 1) sheet.row_labels.push_back(axes[1].label(y));
    for (std::size_t x = 0; x < columns; ++x) {
      const std::size_t cell = y * columns + x;
      GenerationOptions options = options_;
      options.seeds.clear();
      std::optional<double> weight;
      apply_axis(across, x, options, weight);
      if (axes.size() > 1) apply_axis(axes[1], y, options, weight);
      if (weight) sd::set_lora_weight(adapters_, *weight);
      DrawnPicture about;
      about.seed = options.seed.value_or(seed_);
      if (static_cast<int64_t>(cell) % group_.size() != group_.rank()) continue;
      cells[cell] = sample(options, about.seed, nullptr).pictures[0].to(torch::kCPU, torch::kFloat);
      if (cell == 0) first = described(options, cells[0], about);
      progress.update(static_cast<int64_t>(cell + 1));
    }
  }
  progress.finish();
  group_.complete(cells);
  if (!group_.is_main()) return {};
  for (std::size_t y = 0; y < rows; ++y) {
    sheet.rows.emplace_back();
    for (std::size_t x = 0; x < columns; ++x) {
      sheet.rows.back().push_back(images::to_image(cells[y * columns + x] * 2 - 1));
    }
  }
  first.picture = images::draw_sheet(sheet);
  auto parameters = parse_parameters(first.parameters, "sheet");
  const auto fields = axis_fields(axes);
  parameters.fields.insert(parameters.fields.end(), fields.begin(), fields.end());
  first.parameters = parameters.text();
  return first;
}

std::vector<std::string> Generator::notices() const {
  std::vector<std::string> lines;
  for (const auto& [name, text] :
       {std::pair("prompt", without_tags(options_)),
        std::pair("negative prompt", options_.sample.negative_prompt().value_or(""))}) {
    const auto count = pipeline_.prompt_chunks(text, options_.syntax()).front().size();
    if (count < 2) continue;
    lines.push_back(
        fmt::format("the {} is read in {} chunks of the text encoder's length", name, count));
  }
  if (image_.defined() && options_.sample.scheduler() == "pndm") {
    lines.push_back("pndm leaves noise in image to image, as in diffusers; hint: --scheduler ddim");
  }
  if (image_.defined() && !options_.sample.width() && !options_.sample.height()) {
    const auto own = pipeline_.default_size();
    if (image_.size(2) * image_.size(3) > 4 * own[0] * own[1]) {
      lines.push_back(
          fmt::format("the picture has {}x{} pixels, far more than the model's own {}x{}; "
                      "hint: --width or --height makes it smaller",
                      image_.size(3), image_.size(2), own[1], own[0]));
    }
  }
  return lines;
}

}  // namespace generation
