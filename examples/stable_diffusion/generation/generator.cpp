// SPDX-License-Identifier: Apache-2.0
#include "generation/generator.h"

#include <ATen/Context.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "generation/checks.h"
#include "generation/lora_tags.h"
#include "pipeline/device.h"
#include "pipeline/embeddings.h"
#include "pipeline/single_file.h"
#include "support/cli/fmt.h"
#include "support/cli/interrupt.h"
#include "support/cli/progress.h"
#include "support/cuda/graph.h"
#include "support/images/load.h"
#include "support/images/resize.h"
#include "support/images/sheet.h"
#include "support/images/tensor.h"

namespace generation {

namespace {

sd::StableDiffusionOptions pipeline_options(const GenerationOptions& options) {
  if (options.deterministic) sd::use_deterministic_algorithms();
  const auto folder = std::filesystem::path(options.output).parent_path();
  auto load = sd::load_beside(folder.string(), options.model);
  TORCH_CHECK_VALUE(options.merge_to.empty() || load.base_precision() == sd::BasePrecision::same,
                    "--merge_to cannot be combined with --base_precision ",
                    sd::to_string(load.base_precision()), ", which would round what is merged");
  load.device(sd::pick_device(options.device));
  load.dtype(options.precision_on(load.device()));
  // The autoencoder's own decoder is not needed then, but its encoder may be.
  load.load_vae(load.taesd().empty() || !options.image.empty() || !options.merge_to.empty());
  if (options.allow_tf32) at::globalContext().setAllowTF32CuBLAS(true);
  fmt::print("device: {}\n", sd::describe_device(load.device(), load.dtype()));
  return load;
}

bool varies_weights(const GenerationOptions& options) {
  const auto axes = parse_axes(options.xy);
  return std::any_of(axes.begin(), axes.end(),
                     [](const Axis& axis) { return axis.name == "lora_weight"; });
}

// Without --batch_size: enough to keep a machine busy, and few to lose.
constexpr int64_t kPicturesAtOnce = 4;

// Leaves a run over pictures from within a step.
struct Stopped {};

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
  images::check_shape("--image", image.width, image.height);
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

std::string without_tags(const GenerationOptions& options) {
  return options.syntax() == sd::PromptSyntax::plain ? options.sample.prompt()
                                                     : take_lora_tags(options.sample.prompt()).text;
}

std::vector<sd::LoRAChoice> choose_loras(const GenerationOptions& options) {
  std::vector<sd::LoRAChoice> choices;
  if (options.syntax() == sd::PromptSyntax::a1111) {
    const auto& files = options.tag_files;
    const auto tags = take_lora_tags(options.sample.prompt()).tags;
    for (std::size_t i = 0; i < tags.size(); ++i) {
      choices.push_back(tags[i]);
      choices.back().path =
          files.size() == tags.size() ? files[i] : find_lora(tags[i].path, options.lora_dir);
    }
  }
  choices.insert(choices.end(), options.picture_loras.begin(), options.picture_loras.end());
  for (const auto& text : options.loras) choices.push_back(sd::parse_lora(text));
  return choices;
}

namespace {

// All else of the file is checked before a model is loaded, which decides this.
void check_channels(const GenerationOptions& options, int64_t channels) {
  if (options.initial_latents.empty()) return;
  const auto latents = sample_options(options, /*seed=*/0).initial_latents();
  TORCH_CHECK(latents.size(1) == channels, "'", options.initial_latents,
              "': expected latents of the model's ", channels, " channels, got ", latents.sizes());
}

}  // namespace

Generator::Generator(const GenerationOptions& options, const distributed::Group& group)
    : options_(options),
      group_(group),
      pipeline_(options.model.path, pipeline_options(options)),
      choices_(choose_loras(options)),
      loras_(pipeline_, choices_, options.split_rank, varies_weights(options)),
      seed_(options.seed ? *options.seed : new_seed(group)) {
  check_channels(options, pipeline_.unet()->options.in_channels());
  if (!options.merge_to.empty() && group.is_main()) {
    loras_.while_merged([&] { sd::save_single_file(pipeline_, options.merge_to); });
  }
  for (const auto& text : options.learned_embeds) {
    for (const auto& embedding : sd::read_embeddings(text)) sd::add_embedding(pipeline_, embedding);
  }
  for (const auto& file : loras_.with_embeddings()) {
    const auto words = sd::add_bundled(pipeline_, file);
    bundled_.insert(bundled_.end(), words.begin(), words.end());
  }
  if (options_.sample.scheduler().empty()) {
    options_.sample.scheduler(pipeline_.default_scheduler());
  }
  if (options_.picture_sizes && !pipeline_.is_sdxl()) {
    options_.sample.size() = options_.sample.negative_size() = {};
  }
  if (pipeline_.options().load_vae()) pipeline_.vae()->enable_tiling(options.vae_tiling);
  if (options.image.empty()) return;
  const auto picture =
      starting_picture(images::load_image(options.image), pipeline_.vae_scale_factor(),
                       options.sample.width(), options.sample.height());
  check_start(options, picture.width, picture.height);
  image_ = images::to_tensor(picture).unsqueeze(0);
}

sd::SampleResult Generator::sample(sd::SampleOptions sampling, const Callback& on) {
  sampling.prompt(without_tags(options_)).callback(on);
  sampling.cuda_graph(cuda::use_graph(options_.cuda_graph, pipeline_.options().device()));
  if (image_.defined()) sampling.image(image_);
  auto result = pipeline_.sample(sampling);
  result.latents = result.latents.to(torch::kCPU, torch::kFloat);
  result.pictures = result.pictures.to(torch::kCPU, torch::kFloat);
  return result;
}

int64_t Generator::count() const {
  if (!options_.seeds.empty()) return static_cast<int64_t>(options_.seed_list().size());
  if (options_.sample.batch_position()) return 1;
  if (!options_.initial_latents.empty()) {
    return sample_options(options_, seed_).initial_latents().size(0);
  }
  return options_.sample.num_images_per_prompt();
}

// Some pictures of all, from the noise that they have among all.
sd::SampleOptions Generator::part_of_batch(int64_t first, int64_t number) const {
  auto sampling = sample_options(options_, seed_);
  const int64_t all = count();
  if (number == all) return sampling;
  if (const auto given = sampling.initial_latents(); given.defined()) {
    sampling.initial_latents(given.narrow(0, first, number));
  }
  const auto seeds = sampling.seeds();
  if (!seeds.empty()) {
    return sampling.seeds({seeds.begin() + first, seeds.begin() + first + number});
  }
  return sampling.num_images_per_prompt(all).batch_position(first).batch_pictures(number);
}

GeneratedImage Generator::described(const GenerationOptions& options, const at::Tensor& picture,
                                    DrawnPicture about) const {
  const auto image = images::to_image(picture * 2 - 1);
  about.width = image.width;
  about.height = image.height;
  return {image, describe(options, choices_, about).text(), about.seed};
}

// What a run over all pictures keeps from round to round. In a round each rank draws one part, and
// whole rounds are handed out, so that pictures come in their order.
struct Generator::Run {
  Drawn drawn;
  int64_t part = 1, ranks = 1;
  std::optional<cli::Progress> progress = std::nullopt;
  std::vector<torch::Tensor> latents = {};

  void show(int64_t done, int64_t total) {
    const int64_t round = part * ranks;
    if (!progress) progress.emplace("Drawing", (drawn.asked + round - 1) / round * total);
    progress->update(drawn.pictures / round * total + done);
    if (ranks == 1 && cli::interrupted()) throw Stopped();
  }
};

void Generator::hand_out(Run& run, const torch::Tensor& picture, int64_t index, const Sink& sink) {
  const auto seeds = options_.seed_list();
  const auto position = options_.sample.batch_position();
  DrawnPicture about;
  about.seed = seeds.empty() ? seed_ : seeds.at(static_cast<std::size_t>(index));
  about.index = position.value_or(index);
  about.count = position        ? options_.sample.num_images_per_prompt()
                : seeds.empty() ? run.drawn.asked
                                : 1;
  run.progress->print(sink(described(options_, picture, about), index, run.drawn.asked));
}

void Generator::draw_round(Run& run, const Sink& sink) {
  const int64_t pictures = std::min(run.part * run.ranks, run.drawn.asked - run.drawn.pictures);
  std::vector<torch::Tensor> latents(static_cast<size_t>(run.ranks > 1 ? pictures : 1));
  std::vector<torch::Tensor> made(latents.size());
  if (const auto place = static_cast<size_t>(group_.rank()); place < latents.size()) {
    const int64_t number = run.ranks > 1 ? 1 : pictures;
    const auto result = sample(part_of_batch(run.drawn.pictures + group_.rank(), number),
                               [&](int64_t done, int64_t total) { run.show(done, total); });
    latents[place] = result.latents;
    made[place] = result.pictures;
  }
  group_.complete(latents);
  group_.complete(made);
  run.latents.insert(run.latents.end(), latents.begin(), latents.end());
  const auto all = at::cat(made);
  for (int64_t i = 0; i < pictures && group_.is_main(); ++i) {
    hand_out(run, all[i], run.drawn.pictures + i, sink);
  }
  run.drawn.pictures += pictures;
}

Drawn Generator::generate(const Sink& sink) {
  Run run{{0, count()}};
  run.ranks = group_.size();
  const int64_t wanted = options_.sample.batch_size();
  run.part = run.ranks > 1 ? 1 : std::min(wanted > 0 ? wanted : kPicturesAtOnce, run.drawn.asked);
  try {
    while (run.drawn.pictures < run.drawn.asked && !group_.any(cli::interrupted())) {
      draw_round(run, sink);
    }
  } catch (const Stopped&) {  // what was handed out before is kept
  }
  if (run.progress) run.progress->finish();
  if (!options_.save_latents.empty() && group_.is_main() && !run.latents.empty()) {
    lightlora::save_safetensors(options_.save_latents, {{"latents", at::cat(run.latents)}});
  }
  return run.drawn;
}

// The cells of this rank among those from `begin` on.
void Generator::draw_cells(const std::vector<Axis>& axes, size_t begin,
                           std::vector<at::Tensor>& cells) {
  const size_t columns = axes[0].values.size();
  for (size_t i = 0; i < cells.size(); ++i) {
    GenerationOptions options = options_;
    options.seeds.clear();
    std::optional<double> weight;
    apply_axis(axes[0], (begin + i) % columns, options, weight);
    if (axes.size() > 1) apply_axis(axes[1], (begin + i) / columns, options, weight);
    if (static_cast<int64_t>(i) % group_.size() != group_.rank()) continue;
    if (weight) loras_.set_weight(*weight);
    const auto on = [&](int64_t, int64_t) {
      if (group_.size() == 1 && cli::interrupted()) throw Stopped();
    };
    cells[i] = sample(sample_options(options, options.seed.value_or(seed_)), on).pictures[0];
  }
}

GeneratedImage Generator::sheet_of(const std::vector<Axis>& axes,
                                   const std::vector<images::Image>& cells) const {
  images::Sheet sheet;
  sheet.title = options_.sample.prompt();
  const size_t columns = axes[0].values.size();
  for (size_t x = 0; x < columns; ++x) sheet.column_labels.push_back(axes[0].label(x));
  for (size_t i = 0; i < cells.size(); ++i) {
    if (i % columns == 0) sheet.rows.emplace_back();
    sheet.rows.back().push_back(cells[i]);
    if (axes.size() > 1 && i % columns == 0) sheet.row_labels.push_back(axes[1].label(i / columns));
  }
  GenerationOptions options = options_;
  options.seeds.clear();
  std::optional<double> weight;
  for (const auto& axis : axes) apply_axis(axis, 0, options, weight);
  DrawnPicture about;
  about.seed = options.seed.value_or(seed_);
  about.width = cells.front().width;
  about.height = cells.front().height;
  auto parameters = describe(options, choices_, about);
  const auto fields = axis_fields(axes);
  parameters.fields.insert(parameters.fields.end(), fields.begin(), fields.end());
  return {images::draw_sheet(sheet), parameters.text(), about.seed};
}

Drawn Generator::generate_sheet(const std::vector<Axis>& axes, const SheetSink& sink) {
  for (const auto& axis : axes) {
    TORCH_CHECK_VALUE(axis.name != "lora_weight" || !choices_.empty(),
                      "--xy: expected a --lora whose weight to vary, got none");
    TORCH_CHECK_VALUE(axis.name != "strength" || image_.defined(),
                      "--xy: expected an --image for strength, got none");
  }
  const size_t columns = axes.at(0).values.size();
  const size_t all = columns * (axes.size() > 1 ? axes[1].values.size() : 1);
  const auto ranks = static_cast<size_t>(group_.size());
  const size_t part = (std::max(columns, ranks) + ranks - 1) / ranks * ranks;
  cli::Progress progress("Drawing", static_cast<int64_t>(all));
  std::vector<images::Image> cells(all);
  Drawn drawn{0, static_cast<int64_t>(all)};
  try {
    for (size_t begin = 0; begin < all && !group_.any(cli::interrupted()); begin += part) {
      std::vector<torch::Tensor> made(std::min(part, all - begin));
      draw_cells(axes, begin, made);
      group_.complete(made);
      for (size_t i = 0; i < made.size(); ++i) cells[begin + i] = images::to_image(made[i] * 2 - 1);
      drawn.pictures = static_cast<int64_t>(begin + made.size());
      progress.update(drawn.pictures);
      if (group_.is_main()) sink(sheet_of(axes, cells));
    }
  } catch (const Stopped&) {  // the last sheet has the rows before
  }
  progress.finish();
  return drawn;
}

}  // namespace generation
