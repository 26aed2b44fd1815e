// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdlib>

#include "support/distributed/backend.h"

#ifdef USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#endif

namespace distributed {

#ifdef USE_C10D_GLOO

namespace {

// How long one call may take says nothing: rank 0 may be drawing pictures. A Heartbeat finds the
// dead.
constexpr auto kPatience = std::chrono::hours(24 * 365);

template <typename Options>
Options patient() {
  Options options;
  options.timeout = kPatience;
  return options;
}

class GlooBackend : public Backend {
 public:
  GlooBackend(const Store& store, const WorldInfo& world, const std::string& address,
              double seconds) {
    using Gloo = c10d::ProcessGroupGloo;
    auto options = Gloo::Options::create(std::chrono::milliseconds(std::llround(seconds * 1000)));
    const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
    options->devices.push_back(interface != nullptr && *interface != '\0'
                                   ? Gloo::createDeviceForInterface(interface)
                                   : Gloo::createDeviceForHostname(address));
    group_ = c10::make_intrusive<Gloo>(store, static_cast<int>(world.rank),
                                       static_cast<int>(world.size), options);
  }

  void sum(torch::Tensor& tensor) override {
    std::vector<torch::Tensor> tensors{tensor};
    group_->allreduce(tensors, patient<c10d::AllreduceOptions>())->wait();
  }

  void broadcast(torch::Tensor& tensor) override {
    std::vector<torch::Tensor> tensors{tensor};
    group_->broadcast(tensors, patient<c10d::BroadcastOptions>())->wait();
  }

 private:
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};

}  // namespace

std::unique_ptr<Backend> make_gloo_backend(const Store& store, const WorldInfo& world,
                                           const std::string& address, double seconds) {
  try {
    return std::make_unique<GlooBackend>(store, world, address, seconds);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    TORCH_CHECK(
        false, "rank ", world.rank, " at ", address, ": expected connections to all other ranks ",
        "within ", std::llround(seconds), " s, got '", text.substr(0, text.find('\n')),
        "'; hint: do firewalls let the machines reach each other? GLOO_SOCKET_IFNAME names the ",
        "network interface to use");
  }
}

#else

std::unique_ptr<Backend> make_gloo_backend(const Store&, const WorldInfo& world, const std::string&,
                                           double) {
  TORCH_CHECK(false, "expected a LibTorch built with gloo to run ", world.size,
              " processes, got one ",
              "without; hint: the packages of pytorch.org and PyPI have it");
}

#endif

}  // namespace distributed
