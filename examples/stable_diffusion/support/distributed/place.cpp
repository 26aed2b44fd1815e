// SPDX-License-Identifier: Apache-2.0
#include "support/distributed/place.h"

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
  TORCH_CHECK_VALUE(result.ec == std::errc() && result.ptr == text->data() + text->size() && value >= 0,
                    name, ": expected a whole number in the environment, got '", *text, "'");
  return value;
}

// Two jobs on one machine should not meet at one port.
uint16_t port_of_job(const std::string& name) {
  Fingerprint print;
  print.add(name);
  return static_cast<uint16_t>(20000 + print.value() % 10000);
}

// Whether the launcher started more than this process; then its numbers are in `place`.
bool read_ranks(const Variables& variables, const Launcher& launcher, Place& place) {
  place.size = number(variables, launcher.size).value_or(1);
  if (place.size <= 1) return false;
  const auto rank = number(variables, launcher.rank);
  TORCH_CHECK_VALUE(rank.has_value(), launcher.rank, ": expected it beside ", launcher.size, "=",
                    place.size, " in the environment, got none; hint: start with torchrun, or unset ",
                    launcher.size);
  TORCH_CHECK_VALUE(*rank < place.size, launcher.rank, ": expected less than ", launcher.size, "=",
                    place.size, ", got ", *rank);
  place.rank = *rank;
  place.local_rank = number(variables, launcher.local_rank).value_or(place.rank);
  place.local_size = number(variables, launcher.local_size).value_or(place.size);
  return true;
}

void read_address(const Variables& variables, Place& place) {
  const auto host = variables("MASTER_ADDR");
  TORCH_CHECK_VALUE(host || place.local_size == place.size,
                    "MASTER_ADDR: expected the machine of rank 0 in the environment, got none; hint: ",
                    "torchrun sets it; with mpirun: -x MASTER_ADDR=<machine>");
  place.host = host.value_or("127.0.0.1");
  const auto port = number(variables, "MASTER_PORT");
  TORCH_CHECK_VALUE(!port || (*port > 0 && *port < 65536),
                    "MASTER_PORT: expected a number from 1 to 65535, got ", port.value_or(0));
  if (port) place.port = static_cast<uint16_t>(*port);
}

}  // namespace

Place read_place(const Variables& variables) {
  Place place;
  const Launcher* launcher = &kTorchrun;
  bool several = read_ranks(variables, kTorchrun, place);
  for (const auto& mpi : kMpi) {
    if (several) break;
    launcher = &mpi;
    several = read_ranks(variables, mpi, place);
  }
  if (!several) return {};
  if (launcher->job != nullptr) {
    const auto job = variables(launcher->job);
    place.port = job ? port_of_job(*job) : kUsualPort;
  } else {
    place.port = kUsualPort;
  }
  read_address(variables, place);
  if (launcher == &kTorchrun) {
    place.store_is_served = variables("TORCHELASTIC_USE_AGENT_STORE").value_or("") == "True";
    place.restarts = number(variables, "TORCHELASTIC_RESTART_COUNT").value_or(0);
    place.may_restart = number(variables, "TORCHELASTIC_MAX_RESTARTS").value_or(0) > 0;
  }
  return place;
}

Place read_place() {
  return read_place([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr || *value == '\0') return std::nullopt;
    return value;
  });
}

}  // namespace distributed
