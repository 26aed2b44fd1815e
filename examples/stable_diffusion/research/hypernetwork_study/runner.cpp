// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork_study/runner.h"

#include <ATen/ATen.h>
#include <lightlora/file_io.h>
#include <lightlora/files.h>
#include <torch/utils.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "research/hypernetwork/personalize.h"
#include "research/hypernetwork/task.h"
#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/files/outputs.h"

namespace hyperstudy {
namespace {

namespace fs = std::filesystem;

// A few values of each weight, and the things' names.
std::string fingerprint_of(const Settings& settings, const std::vector<Thing>& learned,
                           const std::vector<Thing>& held_out) {
  distributed::Fingerprint print;
  sd::StableDiffusion pipeline(
      settings.train.model.path,
      sd::StableDiffusionOptions().load_vae(false).load_text_encoder(false));
  for (const auto& item : pipeline.unet()->named_parameters()) {
    constexpr int64_t few = 16;
    const auto flat = item.value().detach().flatten();
    const auto some = flat.narrow(0, 0, std::min(few, flat.numel())).contiguous();
    print.add(item.key());
    print.add(some.const_data_ptr<float>(), static_cast<size_t>(some.nbytes()));
  }
  for (const auto* things : {&learned, &held_out}) {
    for (const auto& thing : *things) {
      print.add(fmt::format("{} {}", thing.name, thing.pictures.size()));
    }
  }
  return print.hexadecimal();
}

std::vector<cli::Setting> settings_as_flags(hypernetwork::TrainOptions options) {
  cli::App app("", "", "");
  hypernetwork::bind(app, options);
  return app.settings();
}

std::string short_hash(const std::string& text) {
  distributed::Fingerprint print;
  print.add(text);
  return print.hexadecimal();
}

}  // namespace

const Summary& Study::of(const std::string& method) const {
  for (const auto& summary : summaries) {
    if (summary.method.name == method) return summary;
  }
  TORCH_CHECK(false, "expected a method of the study, got '", method, "'");
}

bool Study::has(const std::string& method) const {
  return std::any_of(summaries.begin(), summaries.end(),
                     [&](const Summary& summary) { return summary.method.name == method; });
}

Runner::Runner(Settings settings, const distributed::Group& group)
    : settings_(std::move(settings)),
      group_(group),
      learned_(read_things(settings_.train.identities_dir)),
      things_(read_things(settings_.train.validation_dir)) {
  settings_.train.device = "cpu";
  settings_.data = fingerprint_of(settings_, learned_, things_);
  group_.require_same("the study's settings", settings_.to_string());
  group_.require_same("--work_dir", settings_.work_dir);
  held_out_ = things_.size();
  const auto count = static_cast<int64_t>(held_out_);
  for (const auto i : hypernetwork::evenly_chosen(count, settings_.identities)) {
    measured_.push_back(static_cast<size_t>(i));
  }
  for (const auto& thing : some_of(learned_, settings_.rate_identities)) things_.push_back(thing);
  sd::make_folder(settings_.path("runs"));
  const auto most = static_cast<int64_t>(learned_.size());
  auto& few = settings_.few;
  few.erase(std::remove_if(few.begin(), few.end(), [&](int64_t n) { return n >= most; }),
            few.end());
  if (settings_.by_things()) take_network();
  networks_ = networks(settings_);
  if (group_.is_main()) judge_.emplace(settings_, learned_, things_);
  group_.barrier();
  if (!judge_) judge_.emplace(settings_, learned_, things_);  // reads what rank 0 learned
}

// Every way adapts the layers that the network given predicts for, and calls things as it does.
void Runner::take_network() {
  const auto path = (fs::path(settings_.network_dir) / hypernetwork::kNetworkFile).string();
  TORCH_CHECK(fs::exists(path), "'", settings_.network_dir, "': expected ",
              hypernetwork::kNetworkFile, ", got a folder without it; hint: --network_dir is what ",
              "train_hypernetwork wrote");
  const auto file = hypernetwork::read_network(path);
  distributed::Fingerprint print;
  for (const auto& [name, tensor] : file.tensors) {
    const auto values = tensor.contiguous();
    print.add(name);
    print.add(values.const_data_ptr(), static_cast<size_t>(values.nbytes()));
  }
  given_.settings = ", given: " + print.hexadecimal();
  given_.bytes = static_cast<int64_t>(fs::file_size(path));
  given_.values = file.options.values();
  for (const auto& item : file.tensors) given_.parameters += item.second.numel();
  given_.identities = static_cast<int64_t>(learned_.size());
  auto& layers = settings_.train.adapter.target_modules;
  layers.clear();
  const std::string unet = "unet.";
  for (const auto& layer : file.options.layers()) {
    TORCH_CHECK(layer.path.rfind(unet, 0) == 0, "'", path, "': expected layers of the UNet, got '",
                layer.path,
                "'; hint: --network_dir compares networks without --train_text_encoder");
    layers.push_back(layer.path.substr(unet.size()));
  }
  // What starts from nothing depends on them too, and on nothing else of the network.
  settings_.data += " " + short_hash(fmt::format("{}", fmt::join(layers, " ")));
  const auto prompt = file.metadata.find("instance_prompt");
  if (prompt != file.metadata.end()) settings_.train.instance_prompt = prompt->second;
}

const Network& Runner::network(const std::string& name) const {
  return *std::find_if(networks_.begin(), networks_.end(),
                       [&](const Network& each) { return each.name == name; });
}

std::string Runner::settings_of(const Network& network, uint64_t seed) const {
  return fmt::format("{}; {}{}; seed {}", settings_.data, describe(network.options),
                     given_.settings, seed);
}

// What another training left does not lie there; a network given is the same for every seed.
std::string Runner::folder_of(const Network& network, uint64_t seed) const {
  if (settings_.by_things()) {
    return settings_.path("networks/given-" + short_hash(settings_of(network, 0)).substr(0, 8));
  }
  return settings_.path(fmt::format("networks/{}-seed{}-{}", network.name, seed,
                                    short_hash(settings_of(network, seed)).substr(0, 8)));
}

std::string Runner::network_folder(const Network& network, uint64_t seed) const {
  return settings_.by_things() ? settings_.network_dir : folder_of(network, seed);
}

Trained Runner::train(const Network& network, uint64_t seed) {
  if (settings_.by_things()) return given_;
  const auto folder = folder_of(network, seed);
  const auto marker = folder + "/trained.json";
  const auto text = settings_of(network, seed);
  const auto done = load_trained(marker, text);
  if (group_.from_main(done ? 1 : 0) == 1) return load_trained(marker, text).value_or(Trained());
  fmt::print("network: {}, seed {}\n", network.title, seed);
  auto options = network.options;
  options.seed = seed;
  options.output_dir = folder;
  const auto begin = std::chrono::steady_clock::now();
  const auto steps = hypernetwork::train_hypernetwork(options, group_, settings_as_flags(options));
  TORCH_CHECK(steps >= options.max_train_steps,
              "stopped by request while training a network; hint: the same command goes on");
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
  group_.barrier();  // rank 0 has written
  const auto path = folder + "/" + hypernetwork::kNetworkFile;
  Trained trained;
  trained.settings = text;
  trained.minutes = passed.count() / 60;
  trained.bytes = static_cast<int64_t>(fs::file_size(path));
  const auto file = hypernetwork::read_network(path);
  trained.values = file.options.values();
  for (const auto& item : file.tensors) trained.parameters += item.second.numel();
  const auto all = static_cast<int64_t>(learned_.size());
  trained.identities = std::min(all, options.num_identities.value_or(all));
  if (group_.is_main()) save_trained(marker, trained);
  return trained;
}

// Adapters for every thing, in the network's folder, and how long each took.
void Runner::predict(const Network& network, uint64_t seed) {
  const auto folder = folder_of(network, seed) + "/starts";
  if (fs::exists(folder + "/seconds.json")) return;
  sd::make_folder(folder);
  hypernetwork::Predictor predictor(network_folder(network, seed), workshop_->pipeline());
  std::vector<double> seconds;
  for (size_t i = 0; i < things_.size(); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const auto latents = hypernetwork::read_picture(things_[i].shown().path, workshop_->pipeline(),
                                                    predictor.resolution());
    const auto& predicted = predictor.predict(latents);
    lightlora::save(predicted.parts().state(), fmt::format("{}/{}.safetensors", folder, i));
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    seconds.push_back(passed.count());
  }
  if (settings_.by_things()) predict_nearest(predictor, folder_of(network, seed) + "/nearest");
  lightlora::AtomicFile file(folder + "/seconds.json");
  file.write(nlohmann::json(seconds).dump());
  file.commit();
}

// What the network says of the most similar thing of the training side.
void Runner::predict_nearest(hypernetwork::Predictor& predictor, const std::string& folder) {
  sd::make_folder(folder);
  for (size_t i = 0; i < things_.size(); ++i) {
    const auto& other = learned_[nearest(things_[i], learned_)];
    const auto latents = hypernetwork::read_picture(other.shown().path, workshop_->pipeline(),
                                                    predictor.resolution());
    const auto& predicted = predictor.predict(latents);
    lightlora::save(predicted.parts().state(), fmt::format("{}/{}.safetensors", folder, i));
  }
}

// The adapters that the most similar thing of the training side has of its own.
void Runner::find_nearest() {
  if (settings_.by_things()) return;
  const auto& main = network(kMain);
  const auto folder = folder_of(main, 0) + "/nearest";
  const auto path = [&](size_t i) { return fmt::format("{}/{}.safetensors", folder, i); };
  if (!group_.is_main() || fs::exists(path(things_.size() - 1))) return;
  sd::make_folder(folder);
  auto options = main.options;
  options.output_dir = folder_of(main, 0);
  const auto subjects = hypernetwork::prepare(options, {});
  for (size_t i = 0; i < things_.size(); ++i) {
    const auto row = static_cast<int64_t>(nearest(things_[i], learned_));
    subjects.adapters.assign(subjects.targets[row]);
    lightlora::save(subjects.adapters.parts().state(), path(i));
  }
}

std::string Runner::start_file(const Method& method, uint64_t seed, size_t thing) const {
  if (method.network.empty()) return "";
  const auto folder = folder_of(network(method.network), seed);
  const auto numbered = [](const std::string& in, size_t i) {
    return fmt::format("{}/{}.safetensors", in, i);
  };
  switch (method.start) {
    case Start::zero:
      return "";
    case Start::mean:
      return network_folder(network(method.network), seed) + "/" + hypernetwork::kMeanFile;
    case Start::nearest:
      return numbered(folder_of(network(method.network), 0) + "/nearest", thing);
    case Start::shuffled:
      return numbered(folder + "/starts", (thing + 1) % things_.size());
    case Start::prediction:
      return numbered(folder + "/starts", thing);
  }
  return "";
}

double Runner::start_seconds(const Method& method, uint64_t seed, size_t thing) const {
  if (method.start != Start::prediction) return 0;
  const auto path = folder_of(network(method.network), seed) + "/starts/seconds.json";
  std::ifstream file(path);
  return nlohmann::json::parse(file).at(thing).get<double>();
}

Job Runner::job(const Method& method, double rate, uint64_t seed, size_t thing) const {
  Job job{method,
          rate,
          seed,
          thing,
          start_file(method, seed, thing),
          start_seconds(method, seed, thing),
          "",
          ""};
  const auto of_network = method.network.empty() ? "" : settings_of(network(method.network), seed);
  job.settings = fmt::format("{}; {}; {} {} at {}, seed {}, points {}", settings_.to_string(),
                             of_network, thing, things_[thing].name, cli::format_exact(rate), seed,
                             fmt::join(method.points, " "));
  // Things of the two sides may have one name.
  job.stem = settings_.path(fmt::format("runs/{}-{}-{}-seed{}-rate{}", method.name, thing,
                                        things_[thing].name, seed, cli::format_exact(rate)));
  return job;
}

}  // namespace hyperstudy
