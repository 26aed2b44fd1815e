// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/meeting.h"

#include <c10/util/Exception.h>

#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

namespace distributed {

namespace {

constexpr auto kPause = std::chrono::milliseconds(20);
// Rank 0 speaks first when time is up: it knows who is missing.
constexpr double kGraceSeconds = 3;

std::string name_of(const char* what, int64_t rank) {
  return std::string(what) + "/" + std::to_string(rank);
}

std::string random_name() {
  std::random_device device;
  return std::to_string(device()) + "-" + std::to_string(device());
}

std::string text_of(const Member& member) {
  return nlohmann::json{{"machine", member.machine},
                        {"address", member.address},
                        {"program", member.program},
                        {"settings", member.settings}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Member read_member(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  return {json.at("machine"), json.at("address"), json.at("program"),
          json.at("settings").get<std::vector<std::pair<std::string, std::string>>>()};
}

// Rank 0's side. Every process has drawn a name for itself, which tells it from one of an earlier
// start, and gets the meeting's number under that name.
class Host {
 public:
  Host(Store store, const Place& place, Meeting& meeting)
      : store_(std::move(store)), place_(place), meeting_(meeting) {}

  // Whether everybody is there.
  bool look_around() {
    missing_.clear();
    for (int64_t rank = 1; rank < place_.size; ++rank) {
      const bool came = has(store_, name_of("join", rank));
      const std::string name = came ? store_->get_to_str(name_of("join", rank)) : "";
      const bool is_here = has(meeting_.store, name_of("here", rank));
      if (came && answered_[rank] != name) {
        if (is_here) fail("expected one process of each rank, got two that are rank " + std::to_string(rank));
        store_->set("answer/" + name, std::to_string(meeting_.number));
        answered_[rank] = name;
      }
      if (!is_here) missing_.push_back(rank);
    }
    return missing_.empty();
  }

  [[noreturn]] void fail(const std::string& text) {
    meeting_.store->set("fault", text);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // the others read it here
    TORCH_CHECK(false, text);
  }

  [[noreturn]] void fail_for_missing(double seconds) {
    std::string list;
    for (const int64_t rank : missing_) list += (list.empty() ? "" : ", ") + std::to_string(rank);
    fail("expected " + std::to_string(place_.size) + " processes within " +
         std::to_string(std::llround(seconds)) + " s, got none of rank " + list +
         "; hint: do they run, and with this MASTER_ADDR and MASTER_PORT?");
  }

 private:
  Store store_;
  const Place& place_;
  Meeting& meeting_;
  std::map<int64_t, std::string> answered_;
  std::vector<int64_t> missing_;
};

void host(const Store& store, const Place& place, const Member& self, double seconds, Meeting& meeting) {
  meeting.number = store->add("starts", 1);
  meeting.store = part_of(store, std::to_string(meeting.number));
  meeting.store->set(name_of("here", 0), text_of(self));
  Host host(store, place, meeting);
  const double start = seconds_now();
  while (!host.look_around()) {
    if (seconds_now() - start > seconds) host.fail_for_missing(seconds);
    std::this_thread::sleep_for(kPause);
  }
  meeting.store->set("complete", "yes");
}

void attend(const Store& store, const Place& place, const Member& self, double seconds, Meeting& meeting) {
  const std::string answer = "answer/" + random_name();
  store->set(name_of("join", place.rank), answer.substr(answer.find('/') + 1));
  const double start = seconds_now();
  const auto wait_for = [&](const Store& part, const std::string& name) {
    while (!has(part, name)) {
      if (meeting.store && has(meeting.store, "fault")) {
        TORCH_CHECK(false, meeting.store->get_to_str("fault"));
      }
      TORCH_CHECK(seconds_now() - start < seconds + kGraceSeconds, "expected rank 0 within ",
                  std::llround(seconds), " s, got no word of it at ", place.host, ":", place.port,
                  "; hint: does it run?");
      std::this_thread::sleep_for(kPause);
    }
  };
  wait_for(store, answer);
  meeting.number = std::stoll(store->get_to_str(answer));
  meeting.store = part_of(store, std::to_string(meeting.number));
  meeting.store->set(name_of("here", place.rank), text_of(self));
  wait_for(meeting.store, "complete");
}

}  // namespace

Meeting meet(const Store& store, const Place& place, const Member& self, double seconds) {
  Meeting meeting;
  (place.rank == 0 ? host : attend)(store, place, self, seconds, meeting);
  for (int64_t rank = 0; rank < place.size; ++rank) {
    meeting.members.push_back(read_member(meeting.store->get_to_str(name_of("here", rank))));
  }
  return meeting;
}

void require_same_settings(const std::vector<Member>& members) {
  const auto& first = members.at(0);
  for (std::size_t rank = 1; rank < members.size(); ++rank) {
    const auto& other = members[rank];
    const auto check = [&](const std::string& name, const std::string& expected, const std::string& got) {
      TORCH_CHECK_VALUE(expected == got, name, ": expected the same on all ranks, got '", expected,
                        "' on rank 0 and '", got, "' on rank ", rank, " (", other.machine, ")");
    };
    check("program", first.program, other.program);
    std::map<std::string, std::string> rest(other.settings.begin(), other.settings.end());
    for (const auto& [name, value] : first.settings) {
      const auto found = rest.find(name);
      check("--" + name, value, found == rest.end() ? "" : found->second);
      if (found != rest.end()) rest.erase(found);
    }
    for (const auto& [name, value] : rest) check("--" + name, "", value);
  }
}

}  // namespace distributed
