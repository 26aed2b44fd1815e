// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "research/hypernetwork/personalize.h"
#include "research/hypernetwork_study/workshop.h"
#include "support/distributed/group.h"

namespace hyperstudy {

/// A learning rate that was tried, and how it did.
struct Tried {
  double rate = 0;
  double score = 0;  ///< mean of both likenesses
};

/// Everything that was found out.
struct Study {
  Settings settings;
  std::vector<Thing> things;  ///< those measured
  int64_t learned = 0;        ///< things that the networks learn from, at most
  int64_t held_out = 0;       ///< things in all that they do not learn from
  int64_t resolution = 0;     ///< of the model's pictures
  std::vector<Network> networks;
  std::vector<std::vector<Trained>> trained;  ///< of each network, by seed
  std::vector<Summary> summaries;             ///< of each method
  std::vector<std::vector<Tried>> tried;      ///< of each method's family

  /// A method's results.
  /// Errors: c10::Error if there is none of that name
  const Summary& of(const std::string& method) const;
  bool has(const std::string& method) const;
};

/// Trains the networks and makes all runs. What is finished lies in the work folder and is not done
/// again; the processes of a group share the training of networks and the runs.
class Runner {
 public:
  Runner(Settings settings, const distributed::Group& group);

  Study run();

 private:
  std::string folder_of(const Network& network, uint64_t seed) const;
  /// Where its files are.
  std::string network_folder(const Network& network, uint64_t seed) const;
  std::string settings_of(const Network& network, uint64_t seed) const;
  void take_network();
  Trained train(const Network& network, uint64_t seed);
  void predict(const Network& network, uint64_t seed);
  void predict_nearest(hypernetwork::Predictor& predictor, const std::string& folder);
  void find_nearest();
  std::string start_file(const Method& method, uint64_t seed, size_t thing) const;
  double start_seconds(const Method& method, uint64_t seed, size_t thing) const;
  Job job(const Method& method, double rate, uint64_t seed, size_t thing) const;
  std::vector<size_t> not_done(const std::vector<Job>& jobs) const;
  std::vector<Run> make(const std::vector<Job>& jobs);
  std::vector<Tried> try_rates(const Method& method);
  void make_starts(Study& study);
  void make_runs(Study& study);
  const Network& network(const std::string& name) const;

  Settings settings_;
  distributed::Group group_;
  std::vector<Thing> learned_, things_;  // the latter: held-out ones, then those to find rates on
  size_t held_out_ = 0;                  // how many of `things_`
  std::vector<size_t> measured_;         // among `things_`
  std::vector<Network> networks_;
  Trained given_;  // with Settings::network_dir
  std::optional<Judge> judge_;
  std::optional<Workshop> workshop_;
};

}  // namespace hyperstudy
