// SPDX-License-Identifier: Apache-2.0
#pragma once

// LibTorch has the gloo engine inside (c10d::ProcessGroupGloo in libtorch_cpu), but its packages
// leave out gloo's own headers, which torch/csrc/distributed/c10d/ProcessGroupGloo.hpp includes.
// That header uses them for pointers, and to declare a store of its own. These declarations are
// enough to compile it; nothing here is ever defined, constructed or called by us, so that gloo's
// real classes stay LibTorch's own affair. Seen by
// examples/stable_diffusion/support/distributed/gloo.cpp alone.

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace rendezvous {

class Store {
 public:
  virtual ~Store() = default;
  virtual void set(const std::string& key, const std::vector<char>& value) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys,
                    const std::chrono::milliseconds& timeout) = 0;
};

}  // namespace rendezvous

namespace transport {

class Device;

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = 0;
};

}  // namespace transport

}  // namespace gloo
