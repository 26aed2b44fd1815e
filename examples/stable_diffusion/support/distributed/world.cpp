// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/world.h"

#include <c10/util/Exception.h>

#include <charconv>
#include <cstdlib>
#include "support/distributed/fingerprint.h"

namespace distributed {

namespace {

constexpr uint16_t kUsualPort = 29500;  // torchrun's

struct Launcher {
  const char *rank, *size, *local_rank, *local_size, *job;
};

constexpr Launcher kTorchrun{"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", nullptr};
constexpr Launcher kMpi[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_PORT"}};

std::optional<int64_t> number(const Variables& variables, const std::string& name) {
  const auto text = variables(name);
  if (!text) return std::nullopt;
  int64_t value = -1;
  const auto result = std::from_chars(text->data(), text->data() + text->size(), value);
  TORCH_CHECK_VALUE(
      result.ec == std::errc() && result.ptr == text->data() + text->size() && value >= 0, name,
      ": expected a whole number in the environment, got '", *text, "'");
  return value;
}

// Two jobs on one machine should not meet at one port.
uint16_t port_of_job(const std::string& name) {
  Fingerprint print;
  print.add(name);
  return static_cast<uint16_t>(20000 + print.value() % 10000);
}

// Whether the launcher started more than this process; then its numbers are in `world`.
bool read_ranks(const Variables& variables, const Launcher& launcher, WorldInfo& world) {
  world.size = number(variables, launcher.size).value_or(1);
  if (world.size <= 1) return false;
  const auto rank = number(variables, launcher.rank);
  TORCH_CHECK_VALUE(
      rank.has_value(), launcher.rank, ": expected it beside ", launcher.size, "=", world.size,
      " in the environment, got none; hint: start with torchrun, or unset ", launcher.size);
  TORCH_CHECK_VALUE(*rank < world.size, launcher.rank, ": expected less than ", launcher.size, "=",
                    world.size, ", got ", *rank);
  world.rank = *rank;
  world.local_rank = number(variables, launcher.local_rank).value_or(world.rank);
  world.local_size = number(variables, launcher.local_size).value_or(world.size);
  return true;
}

void read_address(const Variables& variables, WorldInfo& world) {
  const auto host = variables("MASTER_ADDR");
  TORCH_CHECK_VALUE(
      host || world.local_size == world.size,
      "MASTER_ADDR: expected the machine of rank 0 in the environment, got none; hint: ",
      "torchrun sets it; with mpirun: -x MASTER_ADDR=<machine>");
  world.host = host.value_or("127.0.0.1");
  const auto port = number(variables, "MASTER_PORT");
  TORCH_CHECK_VALUE(!port || (*port > 0 && *port < 65536),
                    "MASTER_PORT: expected a number from 1 to 65535, got ", port.value_or(0));
  if (port) world.port = static_cast<uint16_t>(*port);
}

}  // namespace

WorldInfo read_world(const Variables& variables) {
  WorldInfo world;
  const Launcher* launcher = &kTorchrun;
  bool several = read_ranks(variables, kTorchrun, world);
  for (const auto& mpi : kMpi) {
    if (several) break;
    launcher = &mpi;
    several = read_ranks(variables, mpi, world);
  }
  if (!several) return {};
  if (launcher->job != nullptr) {
    const auto job = variables(launcher->job);
    world.port = job ? port_of_job(*job) : kUsualPort;
  } else {
    world.port = kUsualPort;
  }
  read_address(variables, world);
  if (launcher == &kTorchrun) {
    world.store_is_served = variables("TORCHELASTIC_USE_AGENT_STORE").value_or("") == "True";
    world.restarts = number(variables, "TORCHELASTIC_RESTART_COUNT").value_or(0);
    world.may_restart = number(variables, "TORCHELASTIC_MAX_RESTARTS").value_or(0) > 0;
  }
  return world;
}

WorldInfo read_world() {
  return read_world([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr || *value == '\0') return std::nullopt;
    return value;
  });
}

}  // namespace distributed
