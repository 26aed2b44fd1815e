// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/failures.h"

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <thread>

#include "support/cli/fmt.h"
#include "support/cli/process.h"

namespace distributed {

namespace {

constexpr const char* kStillHere = "still here";
constexpr double kAskSeconds = 4;
constexpr auto kAskPause = std::chrono::milliseconds(100);

std::string key(const char* what, int64_t rank) { return fmt::format("{}/{}", what, rank); }

std::string lost_store(const WorldInfo& world) {
  return fmt::format(
      "lost the store at {}:{}, which {} serves; hint: its own output says why it ended",
      world.host, world.port, world.store_is_served ? "torchrun" : "rank 0");
}

std::string look_up(const Store& store, const std::string& name) {
  return has(store, name) ? store->get_to_str(name) : "";
}

}  // namespace

FailureReporter::FailureReporter(Store store, const WorldInfo& world, std::vector<Member> members)
    : store_(std::move(store)), world_(world), members_(std::move(members)) {}

std::string FailureReporter::name_of(int64_t rank) const {
  return fmt::format("rank {} on {}", rank, members_.at(static_cast<std::size_t>(rank)).machine);
}

void FailureReporter::tell(const std::string& why) {
  const std::string text = fmt::format("{} stopped: {}", name_of(world_.rank), why);
  store_->set("fault", text);
  store_->set(key("left", world_.rank), text);
}

bool FailureReporter::all_left() const {
  for (int64_t rank = 0; rank < world_.size; ++rank) {
    if (lost_.count(rank) > 0) continue;  // nothing more will come of it
    const std::string word = look_up(store_, key("left", rank));
    if (word.empty() || word == kStillHere) return false;
  }
  return true;
}

// A rank is lost if it says nothing and its heartbeat has not come meanwhile: one that is alive may
// be waiting for this process, and not have noticed.
std::string FailureReporter::ask_others() {
  store_->set(key("left", world_.rank), kStillHere);
  std::vector<std::string> beats;
  for (int64_t rank = 0; rank < world_.size; ++rank)
    beats.push_back(look_up(store_, key("beat", rank)));
  const double start = seconds_now();
  do {
    lost_.clear();
    for (int64_t rank = 0; rank < world_.size; ++rank) {
      if (has(store_, key("left", rank))) continue;
      if (look_up(store_, key("beat", rank)) != beats[static_cast<std::size_t>(rank)]) continue;
      lost_.insert(rank);
    }
    if (has(store_, "fault")) return store_->get_to_str("fault");
    if (lost_.empty()) return "";
    std::this_thread::sleep_for(kAskPause);
  } while (seconds_now() - start < kAskSeconds);
  std::vector<std::string> names;
  for (const int64_t rank : lost_) names.push_back(name_of(rank));
  return fmt::format("lost {}, which ended without a word (killed?)", fmt::join(names, ", "));
}

std::string FailureReporter::explain(const std::string& backend_error) {
  try {
    const std::string why = ask_others();
    return why.empty() ? "lost a connection: " + backend_error.substr(0, backend_error.find('\n'))
                       : why;
  } catch (const std::exception&) {
    return lost_store(world_);
  }
}

void FailureReporter::linger(double seconds) {
  if (world_.store_is_served || world_.rank != 0) return;
  try {
    const double start = seconds_now();
    while (!all_left() && seconds_now() - start < seconds) std::this_thread::sleep_for(kAskPause);
  } catch (const std::exception&) {  // nobody is left to read
  }
}

void FailureReporter::leave() {
  try {
    store_->set(key("left", world_.rank), "done");
  } catch (const std::exception&) {  // rank 0 waited long enough
  }
}

struct Heartbeat::State {
  Store store;
  WorldInfo world;
  std::shared_ptr<FailureReporter> failures;
  std::string program;
  double limit;

  std::mutex mutex;
  std::condition_variable changed;
  bool stopped = false;
  double last_answer = seconds_now();

  // Whether to go on after a pause.
  bool pause(double seconds) {
    std::unique_lock<std::mutex> lock(mutex);
    return !changed.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return stopped; });
  }

  // What to leave in the store: calls to one that is gone can wait for ever.
  enum class Word { none, left, fault };

  void end_process(const std::string& why, Word word) {
    if (!failures->claim()) return;
    std::cout.flush();
    std::cerr << fmt::format("{}: error: rank {}: {}\n", program, world.rank, why) << std::flush;
    try {
      if (word == Word::fault) store->set("fault", why);
      if (word != Word::none) store->set(key("left", world.rank), why);
    } catch (const std::exception&) {  // they will find out by themselves
    }
    cli::end_process(1);
  }

  void beat() {
    const int64_t neighbour = (world.rank + 1) % world.size;
    std::string heard;
    double last_heard = seconds_now();
    for (int64_t count = 0; pause(std::min(1.0, limit / 5)); ++count) {
      try {
        store->set(key("beat", world.rank), fmt::to_string(count));
        if (has(store, "fault")) return end_process(store->get_to_str("fault"), Word::left);
        const std::string now = look_up(store, key("beat", neighbour));
        if (now != heard) last_heard = seconds_now();
        heard = now;
      } catch (const std::exception&) {
        return end_process(lost_store(world), Word::none);
      }
      const std::lock_guard<std::mutex> lock(mutex);
      last_answer = seconds_now();
      if (last_answer - last_heard > limit) break;
    }
    if (seconds_now() - last_heard > limit) {
      end_process(fmt::format("lost {}, which has been silent for {} s",
                              failures->name_of(neighbour), std::llround(limit)),
                  Word::fault);
    }
  }

  // The store's own calls can wait for ever when its machine is gone.
  void watch_store() {
    while (pause(std::min(1.0, limit / 5))) {
      const std::unique_lock<std::mutex> lock(mutex);
      if (seconds_now() - last_answer > limit) break;
    }
    const std::unique_lock<std::mutex> lock(mutex);
    if (!stopped) end_process(lost_store(world), Word::none);
  }
};

Heartbeat::Heartbeat(Store store, const WorldInfo& world, std::shared_ptr<FailureReporter> failures,
                     std::string program, double limit)
    : state_(std::make_shared<State>()) {
  state_->store = std::move(store);
  state_->world = world;
  state_->failures = std::move(failures);
  state_->program = std::move(program);
  state_->limit = limit;
  std::thread([state = state_] { state->beat(); }).detach();
  std::thread([state = state_] { state->watch_store(); }).detach();
}

Heartbeat::~Heartbeat() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->stopped = true;
  state_->changed.notify_all();
}

}  // namespace distributed
