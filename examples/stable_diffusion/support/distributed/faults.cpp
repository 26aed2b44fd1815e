// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/faults.h"

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <thread>

namespace distributed {

namespace {

constexpr const char* kStillHere = "still here";
constexpr double kAskSeconds = 4;
constexpr auto kAskPause = std::chrono::milliseconds(100);

std::string key(const char* what, int64_t rank) { return std::string(what) + "/" + std::to_string(rank); }

std::string lost_store(const Place& place) {
  return "lost the store at " + place.host + ":" + std::to_string(place.port) + ", which " +
         (place.store_is_served ? "torchrun serves" : "rank 0 serves") +
         "; hint: its own output says why it ended";
}

std::string look_up(const Store& store, const std::string& name) {
  return has(store, name) ? store->get_to_str(name) : "";
}

}  // namespace

Faults::Faults(Store store, const Place& place, std::vector<Member> members)
    : store_(std::move(store)), place_(place), members_(std::move(members)) {}

std::string Faults::name_of(int64_t rank) const {
  return "rank " + std::to_string(rank) + " on " + members_.at(static_cast<std::size_t>(rank)).machine;
}

void Faults::tell(const std::string& why) {
  const std::string text = name_of(place_.rank) + " stopped: " + why;
  store_->set("fault", text);
  store_->set(key("left", place_.rank), text);
}

bool Faults::all_left() const {
  for (int64_t rank = 0; rank < place_.size; ++rank) {
    if (lost_.count(rank) > 0) continue;  // nothing more will come of it
    const std::string word = look_up(store_, key("left", rank));
    if (word.empty() || word == kStillHere) return false;
  }
  return true;
}

// A rank is lost if it says nothing and its watch has not written meanwhile: one that is alive may be
// waiting for this process, and not have noticed.
std::string Faults::ask_others() {
  store_->set(key("left", place_.rank), kStillHere);
  std::vector<std::string> beats;
  for (int64_t rank = 0; rank < place_.size; ++rank) beats.push_back(look_up(store_, key("beat", rank)));
  const double start = seconds_now();
  do {
    lost_.clear();
    for (int64_t rank = 0; rank < place_.size; ++rank) {
      if (has(store_, key("left", rank))) continue;
      if (look_up(store_, key("beat", rank)) != beats[static_cast<std::size_t>(rank)]) continue;
      lost_.insert(rank);
    }
    if (has(store_, "fault")) return store_->get_to_str("fault");
    if (lost_.empty()) return "";
    std::this_thread::sleep_for(kAskPause);
  } while (seconds_now() - start < kAskSeconds);
  std::string names;
  for (const int64_t rank : lost_) names += (names.empty() ? "" : ", ") + name_of(rank);
  return "lost " + names + ", which ended without a word (killed?)";
}

std::string Faults::explain(const std::string& engine_words) {
  try {
    const std::string why = ask_others();
    return why.empty() ? "lost a connection: " + engine_words.substr(0, engine_words.find('\n')) : why;
  } catch (const std::exception&) {
    return lost_store(place_);
  }
}

void Faults::linger(double seconds) {
  if (place_.store_is_served || place_.rank != 0) return;
  try {
    const double start = seconds_now();
    while (!all_left() && seconds_now() - start < seconds) std::this_thread::sleep_for(kAskPause);
  } catch (const std::exception&) {  // nobody is left to read
  }
}

void Faults::leave() {
  try {
    store_->set(key("left", place_.rank), "done");
  } catch (const std::exception&) {  // rank 0 waited long enough
  }
}

struct Watch::State {
  Store store;
  Place place;
  std::shared_ptr<Faults> faults;
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
    if (!faults->claim()) return;
    std::cout.flush();
    std::cerr << program << ": error: rank " << place.rank << ": " << why << std::endl;
    try {
      if (word == Word::fault) store->set("fault", why);
      if (word != Word::none) store->set(key("left", place.rank), why);
    } catch (const std::exception&) {  // they will find out by themselves
    }
    ::_exit(1);
  }

  void beat() {
    const int64_t neighbour = (place.rank + 1) % place.size;
    std::string heard;
    double last_heard = seconds_now();
    for (int64_t count = 0; pause(std::min(1.0, limit / 5)); ++count) {
      try {
        store->set(key("beat", place.rank), std::to_string(count));
        if (has(store, "fault")) return end_process(store->get_to_str("fault"), Word::left);
        const std::string now = look_up(store, key("beat", neighbour));
        if (now != heard) last_heard = seconds_now();
        heard = now;
      } catch (const std::exception&) {
        return end_process(lost_store(place), Word::none);
      }
      const std::lock_guard<std::mutex> lock(mutex);
      last_answer = seconds_now();
      if (last_answer - last_heard > limit) break;
    }
    if (seconds_now() - last_heard > limit) {
      end_process("lost " + faults->name_of(neighbour) + ", which has been silent for " +
                      std::to_string(std::llround(limit)) + " s",
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
    if (!stopped) end_process(lost_store(place), Word::none);
  }
};

Watch::Watch(Store store, const Place& place, std::shared_ptr<Faults> faults, std::string program,
             double limit)
    : state_(std::make_shared<State>()) {
  state_->store = std::move(store);
  state_->place = place;
  state_->faults = std::move(faults);
  state_->program = std::move(program);
  state_->limit = limit;
  std::thread([state = state_] { state->beat(); }).detach();
  std::thread([state = state_] { state->watch_store(); }).detach();
}

Watch::~Watch() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->stopped = true;
  state_->changed.notify_all();
}

}  // namespace distributed
