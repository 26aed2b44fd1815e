// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/cli/app.h"
#include "support/distributed/world.h"

// Several processes of one program, on one machine or many, that train or draw together.
//
//   return cli::run(argc, argv, app, [&] {
//     distributed::run(app, options.group, [&](const distributed::Group& group) { ... });
//   });
//
// Work that needs no exchange is split in one line; with one process it is the plain loop:
//
//   for (int64_t i = group.rank(); i < runs; i += group.size()) ...
//   group.barrier();

namespace distributed {

struct GroupOptions {
  double rendezvous_timeout = 300;  ///< seconds to wait for all processes at the start
  double heartbeat_timeout = 15;    ///< seconds of silence after which a process counts as lost
};

/// Puts the options into a program's `--help`, under "Several processes", and reads them.
void bind(cli::App& app, GroupOptions& options);

/// The processes that were started together; by default this one alone, for which every call is
/// free. Copies are the same group. All ranks must make the same calls in the same order. Errors of
/// all calls that talk to the others: c10::Error saying which rank is gone, and why
class Group {
 public:
  Group() = default;

  int64_t rank() const;
  int64_t size() const;
  /// Whether this is rank 0, which alone prints and writes.
  bool is_main() const { return rank() == 0; }
  /// How often torchrun has started these processes anew, and whether it would do so after a
  /// failure.
  int64_t restarts() const;
  bool may_restart() const;

  /// In place: the sum of each tensor over all ranks, through one flat buffer, in fp32 (or fp64
  /// if the first tensor is). It is added up in a fixed order: all ranks get the same bits, and so
  /// do equal runs.
  void sum(const std::vector<torch::Tensor>& tensors) const;
  /// The same divided by the number of ranks.
  void average(const std::vector<torch::Tensor>& tensors) const;
  /// In place: what rank 0 has.
  void broadcast(const std::vector<torch::Tensor>& tensors) const;
  /// Work that was dealt out: part i was made by rank i % size and is fp32 on the CPU; afterwards
  /// all ranks have all parts.
  /// Shapes: all the same
  void complete(std::vector<torch::Tensor>& parts) const;
  /// What rank 0 says.
  int64_t from_main(int64_t value) const;
  /// Whether any rank says so.
  bool any(bool value) const;
  void barrier() const { any(false); }
  /// Errors: c10::ValueError saying what differs on which rank
  void require_same(const std::string& what, const std::string& value) const;

 private:
  struct State;
  explicit Group(std::shared_ptr<State> state) : state_(std::move(state)) {}
  void call(torch::Tensor& tensor, bool adds) const;
  void sum(const std::vector<torch::Tensor>& tensors, double divisor) const;

  std::shared_ptr<State> state_;

  friend void run(const cli::App& app, const GroupOptions& options,
                  const std::function<void(const Group&)>& body);
};

/// Runs a program's work in the group that the environment describes (see read_world). Only rank 0
/// keeps its standard output. The flags must be the same on all ranks, apart from folders, which
/// are each machine's own. Each process uses the GPU of its local rank. When one rank fails, all
/// stop.
/// Errors: those of the body, with the rank in front; c10::Error and c10::ValueError naming what is
///         wrong with the group
void run(const cli::App& app, const GroupOptions& options,
         const std::function<void(const Group&)>& body);

}  // namespace distributed
