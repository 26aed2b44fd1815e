// SPDX-License-Identifier: Apache-2.0
// The schedulers against diffusers'. tests/parity/make_pipeline.py made the numbers in fp32.
#include "schedulers/schedulers.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "paths.h"
#include "support.h"
#include "support/files/json_file.h"

namespace {

using nlohmann::json;

// fp32 on both sides, here with coefficients in double; seen: 1.7e-7 at most.
constexpr double kTableTolerance = 2e-6;
// The same over up to 20 steps, each through a sine; seen: 1e-6 at most.
constexpr double kRunTolerance = 1e-4;

const json& reference() {
  static const json numbers =
      sd::read_json_file(std::string(LIGHTLORA_TEST_DATA) + "/schedulers.json");
  return numbers;
}

sd::SchedulerConfig config(const std::string& key) {
  return sd::SchedulerConfig(reference()["configs"][key], key + ".json");
}

sd::SchedulerConfig config_with(const std::string& field, const json& value) {
  auto values = reference()["configs"]["sd15"];
  values[field] = value;
  return sd::SchedulerConfig(values, "scheduler_config.json");
}

at::Tensor tensor(const json& values) {
  return torch::tensor(values.get<std::vector<double>>()).to(at::kFloat);
}

at::Tensor matrix(const json& rows) {
  std::vector<at::Tensor> tensors;
  for (const auto& row : rows) tensors.push_back(tensor(row));
  return at::stack(tensors);
}

// As `stand_in` in make_pipeline.py.
at::Tensor stand_in(const at::Tensor& sample, double timestep) {
  return at::sin(sample * 0.7 + timestep / 500) * 0.9;
}

// Whole timesteps exactly; those between two training steps come out of numpy's fp32 logarithm,
// whose last bits depend on the machine.
void check_timesteps(const std::vector<double>& got, const std::vector<double>& expected) {
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const bool whole = expected[i] == std::floor(expected[i]);
    REQUIRE(got[i] == Approx(expected[i]).epsilon(whole ? 0.0 : 2e-6).margin(0.0));
  }
}

void check_run(const sd::SchedulerConfig& values, const json& run) {
  auto scheduler = sd::make_scheduler(run["scheduler"], values);
  scheduler->set_timesteps(run["steps"]);
  check_timesteps(scheduler->timesteps(), run["timesteps"].get<std::vector<double>>());
  REQUIRE(scheduler->init_noise_sigma() == Approx(run["init_noise_sigma"].get<double>()));
  sd::StepOptions options;
  options.eta = run["eta"];
  options.noise = at::detail::createCPUGenerator(run["seed"].get<uint64_t>());
  const auto noise = options.noise.draw({1, 4, 4, 5}, at::kFloat);
  const auto begin = run["begin"].get<size_t>();
  auto sample = begin ? scheduler->add_noise(at::cos(noise * 3), noise, begin)
                      : noise * scheduler->init_noise_sigma();
  for (size_t i = begin; i < scheduler->timesteps().size(); ++i) {
    const auto input = scheduler->scale_model_input(sample, i);
    sample = scheduler->step(stand_in(input, scheduler->timesteps()[i]), i, sample, options);
    // From zero SNR the first step takes 4096 times the noise away again, in fp32: what it leaves
    // has lost that many digits, and which ones depends on the machine.
    const double lost = std::max(1.0, scheduler->init_noise_sigma() / 50);
    if (i == begin) REQUIRE(close(sample.flatten(), tensor(run["first"]), kTableTolerance * lost));
  }
  REQUIRE(close(sample.flatten(), tensor(run["last"]), kRunTolerance));
}

}  // namespace

TEST_CASE("schedulers: timesteps equal diffusers' exactly", "[schedulers][parity]") {
  const auto& rows = reference()["timesteps"];
  REQUIRE(rows.size() > 250);
  for (const auto& row : rows) {
    INFO(row.dump().substr(0, 60));
    auto values = reference()["configs"]["sd15"];
    values["timestep_spacing"] = row[1];
    values["steps_offset"] = row[2];
    auto scheduler = sd::make_scheduler(row[0], sd::SchedulerConfig(values, "test"));
    const auto n = row[3].get<size_t>();
    scheduler->set_timesteps(row[3]);
    auto times = scheduler->timesteps();
    REQUIRE(times.size() == n);
    REQUIRE(std::accumulate(times.begin(), times.end(), 0.0) == Approx(row[4].get<double>()));
    const auto expected = row[5].get<std::vector<double>>();
    if (expected.size() < n) {  // the file keeps both ends and the middle of long lists
      const auto middle = static_cast<std::ptrdiff_t>(n / 2);
      std::vector<double> kept(times.begin(), times.begin() + 3);
      kept.insert(kept.end(), times.begin() + middle, times.begin() + middle + 3);
      kept.insert(kept.end(), times.end() - 3, times.end());
      times = kept;
    }
    REQUIRE(times == expected);
  }
}

TEST_CASE("schedulers: whole trajectories equal diffusers'", "[schedulers][parity]") {
  size_t runs = 0;
  for (const auto& [key, list] : reference()["runs"].items()) {
    for (const auto& run : list) {
      INFO(key << ", " << run["scheduler"] << ", " << run["steps"] << " steps, eta " << run["eta"]);
      check_run(config(key), run);
      ++runs;
    }
  }
  REQUIRE(runs > 160);
}

TEST_CASE("schedulers: noise for training equals diffusers' DDPMScheduler",
          "[schedulers][parity]") {
  for (const auto& [key, numbers] : reference()["schedules"].items()) {
    INFO(key);
    const sd::NoiseSchedule schedule(config(key));
    const auto times = torch::tensor(numbers["timesteps"].get<std::vector<int64_t>>());
    const auto alphas = tensor(numbers["alphas_cumprod"]);
    REQUIRE(close(schedule.alphas_cumprod().index_select(0, times), alphas, kTableTolerance));
    const auto sample = matrix(numbers["sample"]), noise = matrix(numbers["noise"]);
    const auto noisy = matrix(numbers["noisy"]), velocity = matrix(numbers["velocity"]);
    REQUIRE(close(schedule.add_noise(sample, noise, times), noisy, kTableTolerance));
    REQUIRE(close(schedule.get_velocity(sample, noise, times), velocity, kTableTolerance));
    REQUIRE(close(schedule.snr(times), alphas / (1 - alphas), kTableTolerance));
  }
}

TEST_CASE("schedulers: the training target follows the prediction type", "[schedulers]") {
  const auto sample = at::randn({2, 3}), noise = at::randn({2, 3});
  const auto times = torch::tensor({3, 700});
  const auto target = [&](const std::string& type) {
    return sd::NoiseSchedule(config_with("prediction_type", type)).target(sample, noise, times);
  };
  REQUIRE(at::equal(target("epsilon"), noise));
  REQUIRE(at::equal(target("sample"), sample));
  const sd::NoiseSchedule schedule(config("v_prediction"));
  REQUIRE(at::equal(target("v_prediction"), schedule.get_velocity(sample, noise, times)));
}

TEST_CASE("schedulers: noise in half precision keeps its coefficients", "[schedulers]") {
  const sd::NoiseSchedule schedule(config("sd15"));
  const auto sample = at::randn({5, 4, 8, 8}), noise = at::randn({5, 4, 8, 8});
  const auto times = torch::tensor({0, 1, 500, 998, 999});
  const auto exact = schedule.add_noise(sample, noise, times);
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    const auto noisy = schedule.add_noise(sample.to(dtype), noise.to(dtype), times);
    REQUIRE(noisy.scalar_type() == dtype);
    // Rounding of three values; seen: 3.5e-3 and 4e-4.
    REQUIRE(close(noisy, exact, dtype == at::kHalf ? 1e-3 : 8e-3));
  }
}

TEST_CASE("schedulers: a wrong option is refused with its name and value", "[schedulers]") {
  const auto ddim = [](const std::string& field, const json& value) {
    sd::make_scheduler("ddim", config_with(field, value));
  };
  REQUIRE_THROWS_WITH(ddim("prediction_type", "noise"),
                      ContainsSubstring("expected prediction_type to be one of epsilon, sample, "
                                        "v_prediction, got \"noise\""));
  REQUIRE_THROWS_WITH(ddim("beta_schedule", "sigmoid"), ContainsSubstring("beta_schedule"));
  REQUIRE_THROWS_WITH(ddim("beta_start", "0.1"), ContainsSubstring("beta_start to be a number"));
  REQUIRE_THROWS_WITH(ddim("steps_offset", 0.5),
                      ContainsSubstring("steps_offset to be an integer"));
  REQUIRE_THROWS_WITH(ddim("clip_sample", 1), ContainsSubstring("clip_sample to be true or false"));
  REQUIRE_THROWS_WITH(ddim("trained_betas", {0.1}), ContainsSubstring("at least two numbers"));
  REQUIRE_THROWS_WITH(ddim("beta_end", 2.0), ContainsSubstring("expected betas between 0 and 1"));
  REQUIRE_THROWS_WITH(ddim("num_train_timesteps", 0), ContainsSubstring("above 1, got 0"));
  REQUIRE_THROWS_WITH(ddim("thresholding", "yes"), ContainsSubstring("thresholding"));
  REQUIRE_THROWS_WITH(ddim("timestep_spacing", "even"), ContainsSubstring("timestep_spacing"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("dpmpp_2m", config_with("solver_order", 3)),
                      ContainsSubstring("expected solver_order 1 or 2, got 3"));
  REQUIRE_THROWS_WITH(
      sd::make_scheduler("dpmpp_2m", config_with("algorithm_type", "sde-dpmsolver++")),
      ContainsSubstring("algorithm_type"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("euler", config_with("use_beta_sigmas", true)),
                      ContainsSubstring("use_beta_sigmas"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("lms", config("sd15")),
                      ContainsSubstring("expected one of ddim, ddpm, pndm, euler, lcm, "
                                        "euler_ancestral, dpmpp_2m, dpmpp_2m_karras, unipc, "
                                        "got 'lms'"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("pndm", config_with("prediction_type", "sample")),
                      ContainsSubstring("epsilon or v_prediction, got sample; hint"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("unipc", config_with("predict_x0", false)),
                      ContainsSubstring("predict_x0 to be true"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("unipc", config_with("disable_corrector", "none")),
                      ContainsSubstring("disable_corrector to be a list of integers"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("unipc", config_with("lower_order_final", false)),
                      ContainsSubstring("lower_order_final to be true"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("lcm", config_with("original_inference_steps", 2000)),
                      ContainsSubstring("original_inference_steps from 1 to 1000, got 2000"));
  REQUIRE_THROWS_WITH(sd::SchedulerConfig(json::array(), "x.json"),
                      ContainsSubstring("'x.json': expected a JSON object, got array"));
}

TEST_CASE("schedulers: a number of steps that cannot be is refused", "[schedulers]") {
  for (const auto& name : sd::scheduler_names()) {
    auto scheduler = sd::make_scheduler(name, config("sd15"));
    INFO(name);
    REQUIRE_THROWS_WITH(scheduler->set_timesteps(0), ContainsSubstring("--num_inference_steps"));
    REQUIRE_THROWS_WITH(scheduler->set_timesteps(1001), ContainsSubstring("--num_inference_steps"));
  }
  REQUIRE_THROWS_WITH(sd::make_scheduler("lcm", config("sd15"))->set_timesteps(51),
                      ContainsSubstring("expected 1 to 50 for lcm"));
  REQUIRE_THROWS_WITH(sd::make_scheduler("pndm", config("runge_kutta"))->set_timesteps(3),
                      ContainsSubstring("at least 4"));
  // 1000 steps with an offset of 1 would begin behind the last training step.
  auto ddim = sd::make_scheduler("ddim", config("sd15"));
  REQUIRE_THROWS_WITH(ddim->set_timesteps(1000), ContainsSubstring("steps_offset is 1"));
}

TEST_CASE("schedulers: trailing gives as many steps as asked where numpy gives one more",
          "[schedulers]") {
  auto scheduler = sd::make_scheduler("ddim", config("trailing"));
  for (const int64_t n : {61, 103, 499}) {
    scheduler->set_timesteps(n);
    REQUIRE(scheduler->timesteps().size() == static_cast<size_t>(n));
    REQUIRE(scheduler->timesteps().front() == 999);
    REQUIRE(scheduler->timesteps().back() >= 0);
  }
}
