// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/rendezvous.h"

#include <c10/util/Exception.h>

#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "support/cli/fmt.h"

namespace distributed {

namespace {

constexpr auto kPause = std::chrono::milliseconds(20);
// Rank 0 speaks first when time is up: it knows who is missing.
constexpr double kGraceSeconds = 3;

std::string name_of(const char* what, int64_t rank) { return fmt::format("{}/{}", what, rank); }

std::string random_name() {
  std::random_device device;
  const auto first = device();
  return fmt::format("{}-{}", first, device());
}

std::string text_of(const Member& member) {
  return nlohmann::json{{"machine", member.machine}, {"address", member.address},
                        {"program", member.program}, {"settings", member.settings},
                        {"gpu", member.gpu},         {"gpu_name", member.gpu_name}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Member read_member(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  return {json.at("machine"),
          json.at("address"),
          json.at("program"),
          json.at("settings").get<std::vector<std::pair<std::string, std::string>>>(),
          json.value("gpu", ""),
          json.value("gpu_name", "")};
}

// Rank 0's side. Every process has drawn a name for itself, which tells it from one of an earlier
// start, and gets the number of the start under that name.
class Host {
 public:
  Host(Store store, const WorldInfo& world, Rendezvous& rendezvous)
      : store_(std::move(store)), world_(world), rendezvous_(rendezvous) {}

  // Whether everybody is there.
  bool look_around() {
    missing_.clear();
    for (int64_t rank = 1; rank < world_.size; ++rank) {
      const bool came = has(store_, name_of("join", rank));
      const std::string name = came ? store_->get_to_str(name_of("join", rank)) : "";
      const bool is_here = has(rendezvous_.store, name_of("here", rank));
      if (came && answered_[rank] != name) {
        if (is_here)
          fail(fmt::format("expected one process of each rank, got two that are rank {}", rank));
        store_->set("answer/" + name, fmt::to_string(rendezvous_.number));
        answered_[rank] = name;
      }
      if (!is_here) missing_.push_back(rank);
    }
    return missing_.empty();
  }

  [[noreturn]] void fail(const std::string& text) {
    rendezvous_.store->set("fault", text);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // the others read it here
    TORCH_CHECK(false, text);
  }

  [[noreturn]] void fail_for_missing(double seconds) {
    fail(fmt::format(
        "expected {} processes within {} s, got none of rank {}; hint: do they run, and "
        "with this MASTER_ADDR and MASTER_PORT?",
        world_.size, std::llround(seconds), fmt::join(missing_, ", ")));
  }

 private:
  Store store_;
  const WorldInfo& world_;
  Rendezvous& rendezvous_;
  std::map<int64_t, std::string> answered_;
  std::vector<int64_t> missing_;
};

void host(const Store& store, const WorldInfo& world, const Member& self, double seconds,
          Rendezvous& rendezvous) {
  rendezvous.number = store->add("starts", 1);
  rendezvous.store = part_of(store, fmt::to_string(rendezvous.number));
  rendezvous.store->set(name_of("here", 0), text_of(self));
  Host host(store, world, rendezvous);
  const double start = seconds_now();
  while (!host.look_around()) {
    if (seconds_now() - start > seconds) host.fail_for_missing(seconds);
    std::this_thread::sleep_for(kPause);
  }
  rendezvous.store->set("complete", "yes");
}

void attend(const Store& store, const WorldInfo& world, const Member& self, double seconds,
            Rendezvous& rendezvous) {
  const std::string answer = "answer/" + random_name();
  store->set(name_of("join", world.rank), answer.substr(answer.find('/') + 1));
  const double start = seconds_now();
  const auto wait_for = [&](const Store& part, const std::string& name) {
    while (!has(part, name)) {
      if (rendezvous.store && has(rendezvous.store, "fault")) {
        TORCH_CHECK(false, rendezvous.store->get_to_str("fault"));
      }
      TORCH_CHECK(seconds_now() - start < seconds + kGraceSeconds, "expected rank 0 within ",
                  std::llround(seconds), " s, got no word of it at ", world.host, ":", world.port,
                  "; hint: does it run?");
      std::this_thread::sleep_for(kPause);
    }
  };
  wait_for(store, answer);
  rendezvous.number = std::stoll(store->get_to_str(answer));
  rendezvous.store = part_of(store, fmt::to_string(rendezvous.number));
  rendezvous.store->set(name_of("here", world.rank), text_of(self));
  wait_for(rendezvous.store, "complete");
}

}  // namespace

Rendezvous meet(const Store& store, const WorldInfo& world, const Member& self, double seconds) {
  Rendezvous rendezvous;
  (world.rank == 0 ? host : attend)(store, world, self, seconds, rendezvous);
  for (int64_t rank = 0; rank < world.size; ++rank) {
    rendezvous.members.push_back(read_member(rendezvous.store->get_to_str(name_of("here", rank))));
  }
  return rendezvous;
}

void require_same_settings(const std::vector<Member>& members) {
  const auto& first = members.at(0);
  for (std::size_t rank = 1; rank < members.size(); ++rank) {
    const auto& other = members[rank];
    const auto check = [&](const std::string& name, const std::string& expected,
                           const std::string& got) {
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

void require_own_gpus(const std::vector<Member>& members) {
  std::map<std::string, std::size_t> ranks;
  for (std::size_t rank = 0; rank < members.size(); ++rank) {
    const std::string& gpu = members[rank].gpu;
    if (gpu.empty()) continue;
    const auto [first, is_own] = ranks.emplace(gpu, rank);
    TORCH_CHECK_VALUE(is_own, "ranks ", first->second, " and ", rank, " compute on one GPU (",
                      members[rank].gpu_name,
                      "): expected one for each; hint: no more processes than GPUs, and no ",
                      "CUDA_VISIBLE_DEVICES, or one that shows each process another; ",
                      "CUDA_VISIBLE_DEVICES= trains on the CPU");
  }
}

}  // namespace distributed
