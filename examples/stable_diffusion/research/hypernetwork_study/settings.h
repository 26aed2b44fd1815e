// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "research/hypernetwork/options.h"

namespace hyperstudy {

/// What all runs share.
struct Settings {
  /// Model, pictures and training of the networks. Its output folder and seed are each network's
  /// own.
  hypernetwork::TrainOptions train;
  std::string work_dir = "hypernetwork-study";
  std::string data;  ///< fingerprint of the base's weights and of the things, once they are read
  int64_t seeds = 3;
  std::vector<int64_t> few{50, 200};  ///< identities of networks that learn from fewer than all
  std::vector<std::string> without;   ///< names of networks and methods that are left out
  /// Folder of a network that is measured in place of training any; empty: none.
  std::string network_dir;

  int64_t identities = 24;  ///< held-out ones that are measured, evenly chosen
  int64_t tuning_steps = 40, long_steps = 400, inversion_steps = 400;
  int64_t rank = 4, batch_size = 4;
  /// Every way of tuning is tried at these multiples of its usual rate and those between them, each
  /// twice the last one, on `rate_identities` things of the side that the networks learn from. There
  /// is nothing to try if the two are one.
  double lowest_rate_factor = 0.5, highest_rate_factor = 4;
  int64_t rate_identities = 2;
  std::string initializer = "bear";  ///< of the learned word

  int64_t pictures = 4, picture_steps = 12;
  double guidance_scale = 4;
  std::vector<std::string> backgrounds{"blue", "black", "teal", "pink", "white", "red"};
  /// What else the model draws, which should stay as it is.
  std::vector<std::string> class_prompts{"a dog face on a yellow background",
                                         "a pizza on a green background"};
  int64_t recogniser_steps = 600;

  /// Two steps of everything.
  void make_quick();
  /// Errors: c10::ValueError for values that do not go together
  void check() const;
  /// Everything that a measured run depends on beside its network.
  std::string to_string() const;
  std::string path(const std::string& name) const { return work_dir + "/" + name; }
  std::vector<double> rate_factors() const;
  bool leaves_out(const std::string& name) const;
  /// One network has no seeds to differ by: what its predictions come to differs by the things.
  bool by_things() const { return !network_dir.empty(); }
  /// Prompts on backgrounds that the picture shown does not have.
  std::vector<std::string> prompts(const std::string& shown_caption) const;
};

/// One of the networks that are compared.
struct Network {
  std::string name;  ///< of its files
  std::string title;
  hypernetwork::TrainOptions options;  ///< without output folder and seed
};

/// What a network depends on beside its seed, the base and the pictures.
std::string describe(const hypernetwork::TrainOptions& options);

constexpr const char* kMain = "main";
constexpr const char* kOnce = "once";
/// The main one comes first.
std::vector<Network> networks(const Settings& settings);

/// What a run begins with.
enum class Start { zero, prediction, shuffled, mean, nearest };

/// One way to personalise.
struct Method {
  std::string name;     ///< of its files
  std::string title;    ///< a row of the page
  std::string network;  ///< empty: none
  Start start = Start::zero;
  bool relaxes = false;           ///< new adapters of `rank` over the start
  std::string variant = "light";  ///< of adapters that start at zero
  bool word = false;              ///< a word in place of adapters
  std::vector<int64_t> points;    ///< steps after which pictures are drawn, ascending

  /// Methods of one family share a learning rate.
  std::string family() const;
};

/// Names of methods that the page asks for.
constexpr const char* kRelaxed = "relaxed";
constexpr const char* kContinued = "continued";
constexpr const char* kZero = "zero";
constexpr const char* kDreamBooth = "dreambooth";
constexpr const char* kDreamBoothLong = "dreambooth-long";
constexpr const char* kWord = "word";
constexpr const char* kMean = "mean";
constexpr const char* kNearest = "nearest";
constexpr const char* kShuffled = "shuffled";
std::vector<Method> methods(const Settings& settings);

}  // namespace hyperstudy
