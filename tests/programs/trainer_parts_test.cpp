// SPDX-License-Identifier: Apache-2.0
#include <fstream>
#include <set>

#include "models/unet.h"
#include "support.h"
#include "support/images/load.h"
#include "support/images/png.h"
#include "support/images/sheet.h"
#include "training/adapters.h"
#include "training/captions.h"
#include "training/checkpoint.h"
#include "training/data.h"
#include "training/loss.h"
#include "training/random.h"
#include "training/tensorboard.h"
#include "training/validation.h"

using torch::Tensor;
using namespace training;

namespace {

sd::UNet2DConditionModel small_unet() {
  torch::manual_seed(1);
  sd::UNet2DConditionModelOptions options;
  options.down_block_types({"CrossAttnDownBlock2D"})
      .up_block_types({"CrossAttnUpBlock2D"})
      .block_out_channels({8})
      .cross_attention_dim({6})
      .attention_head_dim({2})
      .norm_num_groups(4);
  return sd::UNet2DConditionModel(options);
}

sd::NoiseSchedule schedule(const char* prediction_type = "epsilon") {
  const nlohmann::json config{{"beta_schedule", "scaled_linear"},
                              {"beta_start", 0.00085},
                              {"beta_end", 0.012},
                              {"prediction_type", prediction_type}};
  return sd::NoiseSchedule(sd::SchedulerConfig(config, "test"));
}

std::vector<NoisySample> two_samples() {
  torch::manual_seed(4);
  return {{torch::randn({4, 8, 8}), torch::randn({4, 8, 8}), 5},
          {torch::randn({4, 8, 8}), torch::randn({4, 8, 8}), 700}};
}

// The loss written out sample by sample: target and weight from alpha-bar alone.
double written_out(sd::UNet2DConditionModel& unet, const Tensor& states, const std::string& type,
                   double gamma) {
  const Tensor alphas = schedule().alphas_cumprod();
  double sum = 0;
  int64_t row = 0;
  for (const auto& sample : two_samples()) {
    const auto& x = sample.latents;
    const auto& noise = sample.noise;
    const int64_t t = sample.timestep;
    const double a = alphas[t].item<double>(), snr = a / (1 - a);
    const Tensor noisy = std::sqrt(a) * x + std::sqrt(1 - a) * noise;
    const Tensor output =
        unet->forward(noisy.unsqueeze(0), torch::tensor({t}), states.slice(0, row, row + 1));
    const bool velocity = type == "v_prediction";
    const Tensor target =
        velocity ? std::sqrt(a) * noise - std::sqrt(1 - a) * x : (type == "sample" ? x : noise);
    double weight = 1;
    if (gamma > 0) {
      weight = std::min(snr, gamma) / (type == "sample" ? 1 : velocity ? snr + 1 : snr);
    }
    sum += weight * (output[0] - target).square().mean().item<double>();
    ++row;
  }
  return sum / 2;
}

}  // namespace

TEST_CASE("loss: targets and min-SNR weights are those of the papers", "[loss]") {
  auto unet = small_unet();
  const torch::NoGradGuard no_grad;
  const Tensor states = torch::randn({2, 3, 6});
  for (const std::string type : {"epsilon", "v_prediction", "sample"}) {
    for (const double gamma : {0.0, 5.0}) {
      INFO(type << " " << gamma);
      LossOptions options;
      if (gamma > 0) options.snr_gamma = gamma;
      const DiffusionLoss loss(schedule(type.c_str()), options);
      const double got = loss(unet, two_samples(), states).item<double>();
      const double expected = written_out(unet, states, type, gamma);
      CHECK(std::abs(got - expected) < 1e-5 * expected);
    }
  }
}

TEST_CASE("loss: min-SNR weighs a timestep without any signal as sd-scripts does", "[loss]") {
  auto unet = small_unet();
  const torch::NoGradGuard no_grad;
  const Tensor states = torch::randn({2, 3, 6});
  const nlohmann::json config{{"rescale_betas_zero_snr", true}};
  const sd::NoiseSchedule zero(sd::SchedulerConfig(config, "test"));
  auto samples = two_samples();
  samples[0].timestep = samples[1].timestep = 999;  // SNR 0: weight 1
  LossOptions options;
  options.snr_gamma = 5;
  const double got = DiffusionLoss(zero, options)(unet, samples, states).item<double>();
  const double alike = DiffusionLoss(zero, {})(unet, samples, states).item<double>();
  CHECK(std::abs(got - alike) < 1e-6 * alike);  // another order of adding up
  CHECK(std::isfinite(got));
  // Debiased estimation divides by the root of it, which sd-scripts limits above alone.
  for (const bool both : {false, true}) {
    LossOptions debiased;
    debiased.debiased_estimation = true;
    if (both) debiased.snr_gamma = 5;
    const double same = DiffusionLoss(zero, debiased)(unet, samples, states).item<double>();
    CHECK(std::abs(same - alike) < 1e-6 * alike);
  }
}

TEST_CASE("loss: huber, smooth l1 and debiased estimation are those of sd-scripts", "[loss]") {
  // conditional_loss, get_huber_threshold_if_needed and apply_debiased_estimation of its train_util
  // and custom_train_functions, written out for one sample.
  auto unet = small_unet();
  const torch::NoGradGuard no_grad;
  const Tensor states = torch::randn({1, 3, 6});
  const auto sample = two_samples()[1];
  const double a = schedule().alphas_cumprod()[sample.timestep].item<double>();
  const Tensor noisy = std::sqrt(a) * sample.latents + std::sqrt(1 - a) * sample.noise;
  const Tensor difference =
      unet->forward(noisy.unsqueeze(0), torch::tensor({sample.timestep}), states)[0] - sample.noise;
  const double t = static_cast<double>(sample.timestep), sigma = std::sqrt((1 - a) / a);
  const auto check = [&](LossOptions options, const Tensor& expected) {
    const double got = DiffusionLoss(schedule(), options)(unet, {sample}, states).item<double>();
    CHECK(std::abs(got - expected.item<double>()) < 1e-5 * expected.item<double>());
  };
  LossOptions options;
  options.huber_c = 0.2;
  options.huber_scale = 1.5;
  const std::pair<HuberSchedule, double> thresholds[] = {
      {HuberSchedule::constant, 0.2 * 1.5},
      {HuberSchedule::exponential, std::exp(std::log(0.2) / 1000 * t) * 1.5},
      {HuberSchedule::snr, (1 - 0.2) / std::pow(1 + sigma, 2) + 0.2}};
  for (const auto& [kind, c] : thresholds) {
    options.huber_schedule = kind;
    const Tensor rooted = (difference.square() + c * c).sqrt() - c;
    options.type = LossType::huber;
    check(options, (2 * c * rooted).mean());
    options.type = LossType::smooth_l1;
    check(options, (2 * rooted).mean());
  }
  LossOptions debiased;
  debiased.debiased_estimation = true;
  check(debiased, difference.square().mean() / std::sqrt(a / (1 - a)));
  // snr_t = min(snr_t, 1000): with so little noise at the first timestep it is 0.99915 / 0.00085.
  auto first = sample;
  first.timestep = 0;
  const double largest = schedule().alphas_cumprod()[0].item<double>();
  REQUIRE(largest / (1 - largest) > 1000);
  const double plain = DiffusionLoss(schedule(), {})(unet, {first}, states).item<double>();
  const double limited = DiffusionLoss(schedule(), debiased)(unet, {first}, states).item<double>();
  CHECK(std::abs(limited - plain / std::sqrt(1000.0)) < 1e-5 * limited);
}

TEST_CASE("loss: a mask multiplies the loss of each place, as apply_masked_loss of sd-scripts",
          "[loss]") {
  auto unet = small_unet();
  const torch::NoGradGuard no_grad;
  const Tensor states = torch::randn({2, 3, 6});
  auto samples = two_samples();
  samples[0].mask = torch::zeros({1, 8, 8});
  samples[0].mask.slice(1, 0, 4).fill_(1);  // the second sample counts in full
  double expected = 0;
  for (int64_t i = 0; i < 2; ++i) {
    const auto& sample = samples[static_cast<size_t>(i)];
    const double a = schedule().alphas_cumprod()[sample.timestep].item<double>();
    const Tensor noisy = std::sqrt(a) * sample.latents + std::sqrt(1 - a) * sample.noise;
    const Tensor output = unet->forward(noisy.unsqueeze(0), torch::tensor({sample.timestep}),
                                        states.slice(0, i, i + 1));
    const Tensor mask = sample.mask.defined() ? sample.mask : torch::ones({1, 8, 8});
    expected += ((output[0] - sample.noise).square() * mask).mean().item<double>() / 2;
  }
  const double got = DiffusionLoss(schedule(), {})(unet, samples, states).item<double>();
  CHECK(std::abs(got - expected) < 1e-5 * expected);
}

TEST_CASE("loss: the noise offset is one number a channel, and changes nothing else", "[loss]") {
  const Tensor latents = torch::zeros({4, 8, 8});
  const auto draw = [&](double offset) {
    LossOptions options;
    options.noise_offset = offset;
    auto generator = generator_for(1, Stream::sample, 2);
    return DiffusionLoss(schedule(), options).draw(latents, generator);
  };
  const auto plain = draw(0), shifted = draw(0.5);
  CHECK(plain.timestep == shifted.timestep);
  const Tensor difference = (shifted.noise - plain.noise).flatten(1);
  CHECK(close(difference, difference.slice(1, 0, 1).expand_as(difference), 1e-6));
  CHECK(difference.abs().min().item<double>() > 0);
}

TEST_CASE("prompts of a frozen encoder are encoded once, those of one that trains each time",
          "[prompts]") {
  int64_t calls = 0;
  const auto encode = [&](const std::vector<std::string>& texts) {
    ++calls;
    std::vector<Tensor> rows;
    for (const auto& text : texts) {
      rows.push_back(torch::full({2, 3}, static_cast<double>(text.size())));
    }
    return sd::PromptEmbeds(torch::stack(rows));
  };
  PromptStates frozen(encode);
  frozen.prepare({"a", "bb", "a"});
  CHECK(calls == 2);
  frozen.release_encoder();
  CHECK(torch::equal(frozen.states({"bb", "a", "bb"}).states.select(1, 0).select(1, 0),
                     torch::tensor({2.F, 1.F, 2.F})));
  CHECK_THROWS_WITH(frozen.states({"new"}), ContainsSubstring("got 'new'"));
  PromptStates trained(
      [](const std::vector<std::string>& texts) {
        return std::vector<Tensor>{torch::zeros({static_cast<int64_t>(texts.size())})};
      },
      [&](const std::vector<Tensor>& ids) {
        ++calls;
        return sd::PromptEmbeds(torch::zeros({ids[0].size(0), 2, 3}));
      });
  trained.prepare({"a"});
  CHECK(calls == 2);
  trained.states({"a", "bb"});
  trained.states({"a", "bb"});
  CHECK(calls == 4);
}

TEST_CASE("captions are shuffled, thinned out and dropped as process_caption of sd-scripts does",
          "[prompts]") {
  CaptionOptions options;
  const auto use = [&](int64_t sample) {
    auto generator = generator_for(3, Stream::caption, sample);
    return process_caption("sks dog, red ,on grass,  sunny", options, generator);
  };
  options.prefix = "photo,";
  options.suffix = "end";
  CHECK(use(0) == "photo, sks dog, red ,on grass,  sunny end");
  options = {};
  options.shuffle = true;
  options.keep_tokens = 1;
  std::set<std::string> seen;
  for (int64_t i = 0; i < 40; ++i) seen.insert(use(i));
  CHECK(seen.size() == 6);  // the orders of three
  for (const auto& caption : seen) {
    CHECK(caption.rfind("sks dog, ", 0) == 0);
    CHECK(caption.size() == std::string("sks dog, red, on grass, sunny").size());
  }
  CHECK(use(7) == use(7));
  auto any = generator_for(3, Stream::caption, 0);
  CHECK(process_caption(", a", options, any) == ", a");  // as Python's join of an empty tag
  CHECK(process_caption("a,", options, any) == "a, ");   // and its split at the end
  CHECK(process_caption("", options, any).empty());
  options.shuffle = false;
  options.tag_dropout_rate = 1;
  CHECK(use(0) == "sks dog");
  options.dropout_rate = 1;
  CHECK(use(0).empty());
  // sd-scripts: current_epoch % caption_dropout_every_n_epochs == 0, and epochs count from 1.
  options = {};
  options.dropout_every_n_epochs = 3;
  for (int64_t epoch = 1; epoch <= 7; ++epoch) {
    auto generator = generator_for(3, Stream::caption, 0);
    CHECK(process_caption("a dog", options, generator, epoch).empty() == (epoch % 3 == 0));
  }
  options.prefix = "photo,";
  CHECK(fixed_caption("a dog", options) == "photo, a dog");
}

TEST_CASE("a flag's pattern names the layers that the library's pattern names", "[adapters]") {
  const std::string path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0";
  for (const char* text :
       {"to_out.0", "attn2.to_out.0", "down_blocks.1.*", "attn2.*", ".*attn2.*"}) {
    CHECK(PathPattern(text).matches(path));
  }
  for (const char* text : {"down_blocks.1", "down_blocks.0.*", "attn2", "out.0", "to_out"}) {
    CHECK_FALSE(PathPattern(text).matches(path));
  }
  const auto patterns = parse_patterns("--rank_pattern", {"mid_block.*=8", "a=b=0.5"});
  CHECK(patterns.at(0).first.text() == "mid_block.*");
  CHECK(patterns.at(0).second == 8);
  CHECK(patterns.at(1).first.text() == "a=b");
  CHECK_THROWS_WITH(parse_patterns("--rank_pattern", {"to_k=0"}),
                    ContainsSubstring("PATTERN=NUMBER"));
}

TEST_CASE("checkpoints: a failed one leaves nothing, and the others as they were", "[checkpoint]") {
  const ScratchFolder folder;
  const std::string output = folder.path().string();
  const auto write = [](const std::string& into) {
    for (const char* name : {"/file", "/training_state.safetensors"}) {
      std::ofstream(into + name) << into;
    }
  };
  for (const int64_t step : {10, 9, 100}) save_checkpoint(output, step, write);
  CHECK_THROWS_WITH(save_checkpoint(output, 11,
                                    [&](const std::string& into) {
                                      write(into);
                                      TORCH_CHECK(false, "the disk is full");
                                    }),
                    ContainsSubstring("the disk is full"));
  std::vector<int64_t> steps;
  for (const auto& checkpoint : list_checkpoints(output)) steps.push_back(checkpoint.step);
  CHECK(steps == std::vector<int64_t>{9, 10, 100});
  CHECK(find_checkpoint(output, "latest").step == 100);
  CHECK(find_checkpoint(output, "checkpoint-9").path == folder.file("checkpoint-9"));
  CHECK(find_checkpoint(output, folder.file("checkpoint-9/")).step == 9);
  CHECK_THROWS_WITH(find_checkpoint(output, "checkpoint-8"),
                    ContainsSubstring("has checkpoint-9, checkpoint-10, checkpoint-100"));
  // Left by a process that is long gone; the largest process number is far below this one.
  std::filesystem::create_directory(folder.path() / ".checkpoint-12-unfinished-999999999");
  remove_unfinished_checkpoints(output);
  save_checkpoint(output, 200, write);  // of another run, which stays
  prune_checkpoints(output, 2, [](const Checkpoint& checkpoint) { return checkpoint.step < 200; });
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    names.insert(entry.path().filename().string());
  }
  CHECK(names == std::set<std::string>{"checkpoint-10", "checkpoint-100", "checkpoint-200"});
  save_checkpoint(output, 10, [](const std::string& into) { std::ofstream(into + "/new"); });
  CHECK_FALSE(std::filesystem::exists(folder.file("checkpoint-10/file")));
  CHECK(find_checkpoint(folder.file("none"), "latest").path.empty());
}

TEST_CASE("a contact sheet has each picture under its own prompt", "[validation]") {
  const ScratchFolder folder;
  ValidationPictureOptions options;
  options.folder = folder.file("validation");
  options.sheet = folder.file("sheet.png");
  std::filesystem::create_directory(options.folder);
  images::Sheet sheet;
  sheet.rows.resize(1);
  sheet.row_labels = {"step 3"};
  for (int i = 0; i < 12; ++i) {  // names of two numerals sort before those of one
    const auto level = static_cast<uint8_t>(20 * i);
    sheet.rows[0].emplace_back(8, 8, images::Colour{level, level, level});
    sheet.column_labels.push_back("p" + std::to_string(i) + ", seed 1");
    options.prompts.push_back({"p" + std::to_string(i), "", 1});
    images::save_png(options.folder + "/step-000003-" + std::to_string(i) + ".png",
                     sheet.rows[0].back());
  }
  const auto drawn = [&](int64_t last_step) {
    ValidationPictures(options).write_sheet(last_step);
    return images::load_image(options.sheet);
  };
  CHECK(drawn(3) == images::draw_sheet(sheet));
  // Of a later step, taken away, damaged, and not a run's.
  images::save_png(options.folder + "/step-000004-0.png", sheet.rows[0][0]);
  std::filesystem::remove(options.folder + "/step-000003-0.png");
  std::ofstream(options.folder + "/step-000003-5.png") << "text";
  std::ofstream(options.folder + "/step-000003-5.png.bak") << "text";
  std::ofstream(options.folder + "/photo.png") << "text";
  sheet.rows[0][0] = sheet.rows[0][5] = {};
  CHECK(drawn(3) == images::draw_sheet(sheet));
}

TEST_CASE("CRC-32C is that of RFC 3720", "[tensorboard]") {
  CHECK(crc32c("") == 0);
  CHECK(crc32c("123456789") == 0xE3069283U);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAU);
}
