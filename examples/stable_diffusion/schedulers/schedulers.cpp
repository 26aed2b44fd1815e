// SPDX-License-Identifier: Apache-2.0
#include "schedulers/schedulers.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "schedulers/parts.h"
#include "support/cli/fmt.h"
#include "support/files/json_file.h"
#include "support/files/limits.h"

namespace sd {
namespace {

std::string join(const std::vector<std::string>& names) {
  return fmt::format("{}", fmt::join(names, ", "));
}

// Nichol and Dhariwal 2021, arXiv:2102.09672, eq. (17): the share of signal follows a squared
// cosine.
torch::Tensor cosine_betas(int64_t count) {
  const auto share = [](double t) {
    return std::pow(std::cos((t + 0.008) / 1.008 * M_PI / 2.0), 2.0);
  };
  std::vector<float> betas;
  for (int64_t i = 0; i < count; ++i) {
    const double now = share(static_cast<double>(i) / static_cast<double>(count));
    const double next = share(static_cast<double>(i + 1) / static_cast<double>(count));
    betas.push_back(static_cast<float>(std::min(1.0 - next / now, 0.999)));
  }
  return torch::tensor(betas);
}

// Lin et al. 2023, arXiv:2305.08891, algorithm 1: shifted and stretched so that the last timestep
// is pure noise while the first keeps its value.
torch::Tensor rescale_to_zero_snr(const torch::Tensor& betas) {
  auto root = (1.0 - betas).cumprod(0).sqrt();
  const auto first = root[0].clone();
  const auto last = root[-1].clone();
  root = (root - last) * (first / (first - last));
  const auto bar = root.pow(2);
  const int64_t rest = bar.size(0) - 1;
  return 1.0 - at::cat({bar.narrow(0, 0, 1), bar.narrow(0, 1, rest) / bar.narrow(0, 0, rest)});
}

torch::Tensor betas_from(const SchedulerConfig& config) {
  if (const auto trained = config.numbers("trained_betas")) {
    const auto all = static_cast<int64_t>(trained->size());
    TORCH_CHECK_VALUE(all == config.integer("num_train_timesteps", all), "'", config.source(),
                      "': expected num_train_timesteps ", all, " as trained_betas, got ",
                      config.integer("num_train_timesteps", all));
    return torch::tensor(*trained).to(at::kFloat);
  }
  const int64_t count = config.integer("num_train_timesteps", 1000);
  TORCH_CHECK_VALUE(count > 1, "'", config.source(),
                    "': expected num_train_timesteps above 1, got ", count);
  const double start = config.number("beta_start", 0.0001);
  const double end = config.number("beta_end", 0.02);
  const auto name =
      config.text("beta_schedule", "linear", {"linear", "scaled_linear", "squaredcos_cap_v2"});
  if (name == "squaredcos_cap_v2") return cosine_betas(count);
  // Before LibTorch sees what no float can be.
  TORCH_CHECK_VALUE(start > 0 && start < 1 && end > 0 && end < 1, "'", config.source(),
                    "': expected betas between 0 and 1, got ", start, " to ", end);
  if (name == "linear") return at::linspace(start, end, count, at::kFloat);
  return at::linspace(std::sqrt(start), std::sqrt(end), count, at::kFloat).pow(2);
}

using Factory = std::function<std::unique_ptr<Scheduler>(const SchedulerConfig&)>;

const std::vector<std::pair<std::string, Factory>>& factories() {
  static const std::vector<std::pair<std::string, Factory>> list = {
      {"ddim", make_ddim},         {"ddpm", make_ddpm},
      {"pndm", make_pndm},         {"euler", make_euler},
      {"lcm", make_lcm},           {"euler_ancestral", make_euler_ancestral},
      {"dpmpp_2m", make_dpmpp_2m}, {"dpmpp_2m_karras", make_dpmpp_2m_karras},
      {"unipc", make_unipc},
  };
  return list;
}

}  // namespace

SchedulerConfig::SchedulerConfig(nlohmann::json values, std::string source)
    : values_(std::move(values)), source_(std::move(source)) {
  TORCH_CHECK_VALUE(values_.is_object(), "'", source_, "': expected a JSON object, got ",
                    values_.type_name());
  const auto defaults = values_.value("_use_default_values", nlohmann::json::array());
  for (const auto& key : defaults) {
    if (key.is_string()) values_.erase(key.get<std::string>());
  }
}

const nlohmann::json* SchedulerConfig::find(const std::string& key) const {
  const auto found = values_.find(key);
  return found == values_.end() || found->is_null() ? nullptr : &*found;
}

void SchedulerConfig::fail(const std::string& key, const std::string& expected) const {
  TORCH_CHECK_VALUE(false, "'", source_, "': expected ", key, " to be ", expected, ", got ",
                    values_.at(key).dump());
  std::abort();  // not reached: the check above throws
}

int64_t SchedulerConfig::integer(const std::string& key, int64_t otherwise) const {
  const auto* value = find(key);
  if (!value) return otherwise;
  // Counts and offsets of timesteps: tables are made for them, and steps looked up there.
  const bool good = value->is_number_integer() && value->get<int64_t>() >= 0 &&
                    value->get<int64_t>() <= limits::kTrainTimesteps;
  if (!good) fail(key, fmt::format("an integer from 0 to {}", limits::kTrainTimesteps));
  return value->get<int64_t>();
}

double SchedulerConfig::number(const std::string& key, double otherwise) const {
  const auto* value = find(key);
  if (!value) return otherwise;
  if (!value->is_number()) fail(key, "a number");
  return value->get<double>();
}

bool SchedulerConfig::flag(const std::string& key, bool otherwise) const {
  const auto* value = find(key);
  if (!value) return otherwise;
  if (!value->is_boolean()) fail(key, "true or false");
  return value->get<bool>();
}

std::string SchedulerConfig::text(const std::string& key, const std::string& otherwise,
                                  const std::vector<std::string>& known) const {
  const auto* value = find(key);
  if (!value) return otherwise;
  const bool is_known = value->is_string() && std::find(known.begin(), known.end(),
                                                        value->get<std::string>()) != known.end();
  if (!is_known) fail(key, "one of " + join(known));
  return value->get<std::string>();
}

std::optional<std::vector<double>> SchedulerConfig::numbers(const std::string& key) const {
  const auto* value = find(key);
  if (!value) return std::nullopt;
  const bool good = value->is_array() && value->size() > 1 &&
                    value->size() <= static_cast<size_t>(limits::kTrainTimesteps) &&
                    std::all_of(value->begin(), value->end(),
                                [](const nlohmann::json& item) { return item.is_number(); });
  if (!good) fail(key, "a list of at least two numbers");
  return value->get<std::vector<double>>();
}

std::vector<int64_t> SchedulerConfig::integers(const std::string& key) const {
  const auto* value = find(key);
  if (!value) return {};
  const bool good = value->is_array() &&
                    std::all_of(value->begin(), value->end(), [](const nlohmann::json& item) {
                      return item.is_number_integer();
                    });
  if (!good) fail(key, "a list of integers");
  return value->get<std::vector<int64_t>>();
}

SchedulerConfig SchedulerConfig::with(const std::string& key, nlohmann::json value) const {
  SchedulerConfig changed = *this;
  changed.values_[key] = std::move(value);
  return changed;
}

SchedulerConfig SchedulerConfig::with_defaults(const nlohmann::json& values) const {
  SchedulerConfig changed = *this;
  for (const auto& [key, value] : values.items()) {
    if (!find(key)) changed.values_[key] = value;
  }
  return changed;
}

SchedulerConfig read_scheduler_config(const std::string& folder) {
  const std::string path = folder + "/scheduler_config.json";
  return SchedulerConfig(read_json_file(path), path);
}

NoiseSchedule::NoiseSchedule(const SchedulerConfig& config) {
  auto betas = betas_from(config);
  TORCH_CHECK_VALUE(betas.gt(0).logical_and(betas.lt(1)).all().item<bool>(), "'", config.source(),
                    "': expected betas between 0 and 1, got ", betas.min().item<float>(), " to ",
                    betas.max().item<float>());
  if (config.flag("rescale_betas_zero_snr", false)) betas = rescale_to_zero_snr(betas);
  alphas_cumprod_ = (1.0 - betas).cumprod(0);
  const auto type =
      config.text("prediction_type", "epsilon", {"epsilon", "sample", "v_prediction"});
  prediction_type_ = type == "epsilon"  ? PredictionType::epsilon
                     : type == "sample" ? PredictionType::sample
                                        : PredictionType::v_prediction;
}

torch::Tensor NoiseSchedule::at_timesteps(const torch::Tensor& table,
                                          const torch::Tensor& timesteps,
                                          const torch::Tensor& like) const {
  const auto index = timesteps.to(like.device(), at::kLong).flatten();
  std::vector<int64_t> shape(static_cast<size_t>(like.dim()), 1);
  shape[0] = index.size(0);
  return table.to(like.device()).index_select(0, index).view(shape).to(like.scalar_type());
}

torch::Tensor NoiseSchedule::add_noise(const torch::Tensor& samples, const torch::Tensor& noise,
                                       const torch::Tensor& timesteps) const {
  const auto signal = at_timesteps(alphas_cumprod_.sqrt(), timesteps, samples);
  const auto spread = at_timesteps((1.0 - alphas_cumprod_).sqrt(), timesteps, samples);
  return signal * samples + spread * noise;
}

torch::Tensor NoiseSchedule::get_velocity(const torch::Tensor& samples, const torch::Tensor& noise,
                                          const torch::Tensor& timesteps) const {
  const auto signal = at_timesteps(alphas_cumprod_.sqrt(), timesteps, samples);
  const auto spread = at_timesteps((1.0 - alphas_cumprod_).sqrt(), timesteps, samples);
  return signal * noise - spread * samples;
}

torch::Tensor NoiseSchedule::target(const torch::Tensor& samples, const torch::Tensor& noise,
                                    const torch::Tensor& timesteps) const {
  if (prediction_type_ == PredictionType::epsilon) return noise;
  if (prediction_type_ == PredictionType::sample) return samples;
  return get_velocity(samples, noise, timesteps);
}

torch::Tensor NoiseSchedule::snr(const torch::Tensor& timesteps) const {
  const auto alphas =
      alphas_cumprod_.to(timesteps.device()).index_select(0, timesteps.to(at::kLong).flatten());
  return alphas / (1.0 - alphas);
}

torch::Tensor Scheduler::add_noise(const torch::Tensor& clean, const torch::Tensor& noise,
                                   size_t index) const {
  const auto timestep = static_cast<int64_t>(timesteps_.at(index));
  return schedule_.add_noise(clean, noise, torch::tensor({timestep}));
}

torch::Tensor Scheduler::scale_model_input(const torch::Tensor& sample, size_t) const {
  return sample;
}

std::unique_ptr<Scheduler> make_scheduler(const std::string& name, const SchedulerConfig& config) {
  for (const auto& [known, make] : factories()) {
    if (known == name) return make(config);
  }
  TORCH_CHECK_VALUE(false, "--scheduler: expected one of ", join(scheduler_names()), ", got '",
                    name, "'");
}

std::vector<std::string> scheduler_names() {
  std::vector<std::string> names;
  for (const auto& [name, make] : factories()) names.push_back(name);
  return names;
}

std::string scheduler_of_class(const SchedulerConfig& config) {
  static const std::pair<const char*, const char*> classes[] = {
      {"DDIMScheduler", "ddim"},
      {"DDPMScheduler", "ddpm"},
      {"PNDMScheduler", "pndm"},
      {"EulerDiscreteScheduler", "euler"},
      {"EulerAncestralDiscreteScheduler", "euler_ancestral"},
      {"LCMScheduler", "lcm"},
      {"DPMSolverMultistepScheduler", "dpmpp_2m"},
      {"UniPCMultistepScheduler", "unipc"},
  };
  const auto found = config.values().value("_class_name", nlohmann::json());
  for (const auto& [name, ours] : classes) {
    if (found == name) return ours;
  }
  TORCH_CHECK_VALUE(false, "'", config.source(), "': expected a scheduler that is known here, got ",
                    found.dump(), "; hint: choose one with --scheduler, such as euler");
}

bool knows_karras_sigmas(const std::string& name) {
  return name == "euler" || name == "unipc" || name.rfind("dpmpp_2m", 0) == 0;
}

}  // namespace sd
