// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/store.h"

#include <c10/util/Logging.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "support/cli/fmt.h"

namespace distributed {

namespace {

// One attempt; LibTorch adds about as much before it gives up.
constexpr double kAttemptSeconds = 1.5;

// c10d writes a page about every failed attempt to standard error; our own message is one line.
void quiet_c10d() {
  constexpr int kFatalOnly = 3;
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = kFatalOnly;
}

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses resolve(const std::string& host, uint16_t port, std::string* problem) {
  addrinfo wanted = {};
  wanted.ai_family = AF_UNSPEC;
  wanted.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), fmt::to_string(port).c_str(), &wanted, &found);
  if (error != 0 && problem != nullptr) *problem = gai_strerror(error);
  return {error == 0 ? found : nullptr, freeaddrinfo};
}

std::string no_answer(const WorldInfo& world, double seconds, const std::string& last) {
  std::string problem;
  if (!resolve(world.host, world.port, &problem)) {
    return fmt::format(
        "MASTER_ADDR '{0}': expected the machine of rank 0, got '{1}'; hint: check the "
        "address with: getent hosts {0}",
        world.host, problem);
  }
  if (world.rank == 0 && !world.store_is_served) {
    const bool taken = last.find("EADDRINUSE") != std::string::npos ||
                       last.find("already in use") != std::string::npos;
    return fmt::format(
        "MASTER_PORT {}: expected a free port on rank 0, got '{}'; hint: another "
        "MASTER_PORT for all ranks",
        world.port, taken ? "already in use" : last);
  }
  return fmt::format(
      "'{}:{}': expected {}'s store within {} s, got no answer; hint: does rank 0 run "
      "there, do all ranks have the same MASTER_ADDR and MASTER_PORT, does a firewall "
      "block the port?",
      world.host, world.port, world.store_is_served ? "torchrun" : "rank 0", std::llround(seconds));
}

}  // namespace

double seconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

Store connect_store(const WorldInfo& world, double seconds) {
  quiet_c10d();
  c10d::TCPStoreOptions options;
  options.port = world.port;
  options.isServer = world.rank == 0 && !world.store_is_served;
  options.waitWorkers = false;
  const double start = seconds_now();
  std::string last;
  do {
    const double left = std::max(0.1, seconds - (seconds_now() - start));
    options.timeout =
        std::chrono::milliseconds(std::llround(1000 * std::min(left, kAttemptSeconds)));
    try {
      Store store = c10::make_intrusive<c10d::TCPStore>(world.host, options);
      store->setTimeout(c10d::Store::kDefaultTimeout);
      return store;
    } catch (const std::exception& error) {
      last = error.what();
    }
    if (options.isServer) break;  // a port that is taken stays so
  } while (seconds_now() - start < seconds);
  TORCH_CHECK(false, no_answer(world, seconds, last.substr(0, last.find('\n'))));
}

Store part_of(const Store& store, const std::string& prefix) {
  return c10::make_intrusive<c10d::PrefixStore>(prefix, store);
}

bool has(const Store& store, const std::string& name) { return store->check({name}); }

std::string address_towards(const std::string& host, uint16_t port) {
  std::string problem = "no address";
  const auto addresses = resolve(host, port, &problem);
  for (const addrinfo* to = addresses.get(); to != nullptr; to = to->ai_next) {
    // Connecting a datagram socket sends nothing: it asks the system for the route.
    const int descriptor = ::socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) continue;
    sockaddr_storage own = {};
    socklen_t size = sizeof(own);
    auto* address = reinterpret_cast<sockaddr*>(&own);
    const bool found = ::connect(descriptor, to->ai_addr, to->ai_addrlen) == 0 &&
                       ::getsockname(descriptor, address, &size) == 0;
    ::close(descriptor);
    std::array<char, NI_MAXHOST> text{};
    if (found &&
        getnameinfo(address, size, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) == 0) {
      return text.data();
    }
  }
  TORCH_CHECK(false, "'", host, "': expected a machine that can be reached, got '", problem, "'");
}

}  // namespace distributed
