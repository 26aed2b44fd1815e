// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/group.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <lightlora/config.h>
#include <torch/cuda.h>

#include <array>
#include <cstdlib>
#include <optional>

#include "support/cli/fmt.h"
#include "support/cli/process.h"
#include "support/cli/standard_output.h"
#include "support/cuda/cards.h"
#include "support/cuda/libraries.h"
#include "support/distributed/backend.h"
#include "support/distributed/failures.h"
#include "support/distributed/rendezvous.h"

namespace distributed {

using torch::Tensor;

struct Group::State {
  WorldInfo world;
  std::string program;
  Store root;  // keeps the server, if this rank serves
  Rendezvous rendezvous;
  std::shared_ptr<FailureReporter> failures;
  std::unique_ptr<Heartbeat> heartbeat;
  std::unique_ptr<Backend> gloo, nccl;
  bool asked_for_nccl = false;
  int64_t comparisons = 0;

  // The backend of a tensor's device; null for CUDA tensors that have to go through the CPU.
  Backend* backend_for(const Tensor& tensor) {
    if (!tensor.is_cuda()) return gloo.get();
    if (!asked_for_nccl) nccl = make_nccl_backend(part_of(rendezvous.store, "nccl"), world);
    if (!asked_for_nccl && !nccl && world.rank == 0) {
      fmt::print(
          "notice: the processes' GPUs exchange gradients through the CPU, as this program has no "
          "liblightlora_cuda.so beside it; hint: build it with CUDA's headers\n");
    }
    asked_for_nccl = true;
    return nccl.get();
  }

  void close_backends() {
    nccl.reset();
    gloo.reset();
  }
};

namespace {

bool is_loopback(const std::string& address) {
  return address.rfind("127.", 0) == 0 || address == "::1";
}

// Folders and files are each machine's own.
bool may_differ(const std::string& name) {
  const auto ends_with = [&](const std::string& end) {
    return name.size() >= end.size() &&
           name.compare(name.size() - end.size(), end.size(), end) == 0;
  };
  return ends_with("_dir") || name == "pretrained_model_name_or_path" || name == "config" ||
         name == "output";
}

Member describe(const cli::App& app, const WorldInfo& world, std::optional<std::size_t> gpu) {
  Member self;
  if (gpu && *gpu < cuda::cards().size()) {
    const auto& card = cuda::cards()[*gpu];
    self.gpu = card.uuid;
    self.gpu_name = card.name;
  }
  self.machine = cli::machine_name();
  self.address = address_towards(world.host, world.port);
  self.program = app.get_name() + " " + LIGHTLORA_VERSION;
  for (const auto& setting : app.settings()) {
    if (may_differ(setting.name)) continue;
    self.settings.emplace_back(setting.name, setting.text());
  }
  return self;
}

// A machine often knows its own name as 127.0.0.1. If others see more than that, what counts is the
// way to them.
std::string own_address(const WorldInfo& world, const std::vector<Member>& members) {
  const std::string own = members.at(static_cast<std::size_t>(world.rank)).address;
  if (!is_loopback(own)) return own;
  for (const auto& member : members) {
    if (!is_loopback(member.address)) return address_towards(member.address, world.port);
  }
  return own;
}

// Whether this process may be shown another GPU than the others, and no more, as
// srun --gpus-per-task does it: `require_own_gpus` finds out.
bool may_see_its_own() {
  const bool known = cuda::cards().size() == 1 && !cuda::cards()[0].uuid.empty();
  return known || std::getenv("CUDA_VISIBLE_DEVICES") != nullptr;
}

// From here on "the GPU" is the one of this process, with this index; none on a CPU.
std::optional<std::size_t> choose_gpu(const cli::App& app, const WorldInfo& world) {
  const auto* flag = app.get_option_no_throw("--device");
  const std::string device = flag != nullptr && flag->count() > 0 ? flag->as<std::string>() : "";
  if (device == "cpu") return std::nullopt;
  cuda::load_libraries();
  const bool numbered = device.rfind("cuda:", 0) == 0;
  if (!torch::cuda::is_available()) return std::nullopt;
  const auto count = static_cast<int64_t>(torch::cuda::device_count());
  const bool own = count == 1 && may_see_its_own();
  TORCH_CHECK_VALUE(own || !numbered || world.local_size == 1, "'--device': ", device,
                    " cannot be combined with ", world.local_size,
                    " processes on one machine: each takes a GPU of its own; hint: --device cuda, ",
                    "and CUDA_VISIBLE_DEVICES to choose among them");
  TORCH_CHECK_VALUE(own || world.local_rank < count, "local rank ", world.local_rank,
                    ": expected a GPU for each process of a machine, got ", count,
                    " GPUs; hint: --nproc-per-node ", count,
                    ", or CUDA_VISIBLE_DEVICES= to train on the CPU");
  const auto index = numbered ? c10::Device(device).index()
                              : static_cast<c10::DeviceIndex>(own ? 0 : world.local_rank);
  TORCH_CHECK_VALUE(index < count, "--device: expected a GPU below cuda:", count, ", got ", device);
  c10::impl::VirtualGuardImpl(c10::kCUDA).setDevice({c10::kCUDA, index});
  return static_cast<std::size_t>(index);
}

}  // namespace

void bind(cli::App& app, GroupOptions& options) {
  app.group("Several processes");
  app.add_option("--rendezvous_timeout", options.rendezvous_timeout,
                 "Seconds to wait at the start for the other processes of torchrun or mpirun")
      ->check(cli::above(0))
      ->free_on_resume();
  app.add_option("--heartbeat_timeout", options.heartbeat_timeout,
                 "Seconds of silence after which one of them counts as lost, and the others stop")
      ->check(cli::at_least(1))
      ->free_on_resume();
}

int64_t Group::rank() const { return state_ ? state_->world.rank : 0; }
int64_t Group::size() const { return state_ ? state_->world.size : 1; }

int64_t Group::restarts() const {
  return state_ ? std::max(state_->world.restarts, state_->rendezvous.number - 1) : 0;
}

bool Group::may_restart() const { return state_ && state_->world.may_restart; }

void Group::call(Tensor& tensor, bool adds) const {
  const auto on = [&](Backend& backend, Tensor& value) {
    adds ? backend.sum(value) : backend.broadcast(value);
  };
  try {
    if (Backend* backend = state_->backend_for(tensor)) return on(*backend, tensor);
    Tensor copy = tensor.cpu();
    on(*state_->gloo, copy);
    tensor.copy_(copy);
  } catch (const std::exception& error) {
    while (!state_->failures->claim()) ::pause();  // the heartbeat is ending this process
    TORCH_CHECK(false, state_->failures->explain(error.what()));
  }
}

void Group::sum(const std::vector<Tensor>& tensors) const { sum(tensors, 1); }

void Group::average(const std::vector<Tensor>& tensors) const {
  sum(tensors, static_cast<double>(size()));
}

void Group::sum(const std::vector<Tensor>& tensors, double divisor) const {
  if (!state_) return;
  const torch::NoGradGuard no_grad;
  std::vector<Tensor> parts;
  const auto dtype = tensors.at(0).scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  for (const auto& tensor : tensors) parts.push_back(tensor.reshape({-1}).to(dtype));
  Tensor flat = at::cat(parts);
  call(flat, /*adds=*/true);
  if (divisor != 1) flat.div_(divisor);
  int64_t start = 0;
  for (Tensor tensor : tensors) {
    tensor.copy_(flat.narrow(0, start, tensor.numel()).view(tensor.sizes()));
    start += tensor.numel();
  }
}

void Group::broadcast(const std::vector<Tensor>& tensors) const {
  if (!state_) return;
  const torch::NoGradGuard no_grad;
  for (Tensor tensor : tensors) {
    if (tensor.numel() == 0) continue;
    Tensor own = tensor.contiguous();
    call(own, /*adds=*/false);
    tensor.copy_(own);
  }
}

void Group::complete(std::vector<Tensor>& parts) const {
  if (!state_ || parts.empty()) return;
  std::vector<int64_t> shape(static_cast<size_t>(from_main(is_main() ? parts[0].dim() : 0)));
  for (size_t i = 0; i < shape.size(); ++i) {
    shape[i] = from_main(is_main() ? parts[0].size(static_cast<int64_t>(i)) : 0);
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    if (static_cast<int64_t>(i) % size() != rank()) parts[i] = at::zeros(shape, torch::kFloat);
  }
  sum(parts);
}

int64_t Group::from_main(int64_t value) const {
  const Tensor number = torch::tensor({value}, torch::kLong);
  broadcast({number});
  return number.item<int64_t>();
}

bool Group::any(bool value) const {
  if (!state_) return value;
  Tensor count = torch::tensor({value ? 1.0F : 0.0F});
  call(count, /*adds=*/true);
  return count.item<float>() > 0;
}

void Group::require_same(const std::string& what, const std::string& value) const {
  if (!state_) return;
  const std::string name = fmt::format("same/{}/", state_->comparisons++);
  state_->rendezvous.store->set(name + fmt::to_string(rank()), value);
  barrier();
  const std::string first = state_->rendezvous.store->get_to_str(name + "0");
  for (int64_t other = 1; other < size(); ++other) {
    const std::string got = state_->rendezvous.store->get_to_str(name + fmt::to_string(other));
    TORCH_CHECK_VALUE(got == first, what, ": expected the same on all ranks, got '", first,
                      "' on rank 0 and '", got, "' on ", state_->failures->name_of(other));
  }
}

namespace {

// How long rank 0 keeps the store for the others at the end.
constexpr double kLingerSeconds = 10;

// The first line: what stands below it is where in LibTorch it happened.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

void run(const cli::App& app, const GroupOptions& options,
         const std::function<void(const Group&)>& body) {
  const WorldInfo world = read_world();
  if (world.alone()) return body(Group());
  if (world.rank > 0) cli::silence_standard_output();
  const auto state = std::make_shared<Group::State>();
  state->world = world;
  const std::string in_front = fmt::format("rank {}: ", world.rank);
  const auto stop = [&](const std::string& why) {
    if (!state->failures) return;  // nobody knows of this process yet
    state->failures->claim();
    try {
      state->failures->tell(why);
    } catch (const std::exception&) {  // the store is gone: so they know
    }
    state->close_backends();
    state->failures->linger(kLingerSeconds);
  };
  try {
    const auto gpu = choose_gpu(app, world);
    state->root = connect_store(world, options.rendezvous_timeout);
    state->rendezvous = meet(part_of(state->root, "lightlora"), world, describe(app, world, gpu),
                             options.rendezvous_timeout);
    auto& rendezvous = state->rendezvous;
    state->failures =
        std::make_shared<FailureReporter>(rendezvous.store, world, rendezvous.members);
    require_same_settings(rendezvous.members);
    require_own_gpus(rendezvous.members);
    const Store own_connection =
        part_of(part_of(state->root->clone(), "lightlora"), fmt::to_string(rendezvous.number));
    state->heartbeat = std::make_unique<Heartbeat>(own_connection, world, state->failures,
                                                   app.get_name(), options.heartbeat_timeout);
    state->gloo =
        make_gloo_backend(part_of(rendezvous.store, "gloo"), world,
                          own_address(world, rendezvous.members), options.rendezvous_timeout);
    const Group group(state);
    body(group);
    group.barrier();
  } catch (const c10::Error& error) {
    const std::string why = first_line(error.what_without_backtrace());
    stop(why);
    TORCH_CHECK_VALUE(dynamic_cast<const c10::ValueError*>(&error) == nullptr, in_front, why);
    TORCH_CHECK(false, in_front, why);
  } catch (const std::exception& error) {
    stop(first_line(error.what()));
    throw;
  }
  state->heartbeat.reset();
  state->failures->leave();
  state->failures->linger(kLingerSeconds);
}

}  // namespace distributed
