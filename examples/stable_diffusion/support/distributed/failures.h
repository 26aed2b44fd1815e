// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "support/distributed/rendezvous.h"

namespace distributed {

/// Reports what goes wrong in a group, once: this process on standard error, and to the others
/// through the store.
class FailureReporter {
 public:
  FailureReporter(Store store, const WorldInfo& world, std::vector<Member> members);

  /// Whether the caller is the first to speak: a process says one line.
  bool claim() { return !claimed_.exchange(true); }

  /// "rank 1 on host"
  std::string name_of(int64_t rank) const;

  /// Tells the others that this process stops, and why.
  void tell(const std::string& why);
  /// Why a call of a backend failed, as far as the others tell within a few seconds.
  std::string explain(const std::string& backend_error);
  /// Keeps a store that this process serves until those that live have left, or for so long.
  void linger(double seconds);
  /// Marks a process whose work is done.
  void leave();

 private:
  std::string ask_others();
  bool all_left() const;

  Store store_;
  WorldInfo world_;
  std::vector<Member> members_;
  std::set<int64_t> lost_;  // as far as this process has found out
  std::atomic<bool> claimed_{false};
};

/// Finds processes that neither end nor answer: a machine that is off, a stopped process, a GPU
/// that hangs. Each rank says "I am here" every few seconds in the store and listens to the next
/// one. A rank that hears nothing for `limit` seconds, or reads that another one failed, writes one
/// line to standard error and ends this process: its main thread may be waiting for ever.
class Heartbeat {
 public:
  /// `store` is a connection of the heartbeat's own.
  Heartbeat(Store store, const WorldInfo& world, std::shared_ptr<FailureReporter> failures,
            std::string program, double limit);
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

 private:
  struct State;
  std::shared_ptr<State>
      state_;  // the threads' too: one that waits for a dead store is left behind
};

}  // namespace distributed
