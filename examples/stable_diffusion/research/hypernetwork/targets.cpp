// SPDX-License-Identifier: Apache-2.0
#include "research/hypernetwork/targets.h"

#include <ATen/ATen.h>
#include <lightlora/file_io.h>
#include <torch/optim/adam.h>
#include <torch/utils.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "support/cli/fmt.h"
#include "support/cli/interrupt.h"
#include "support/cli/progress.h"
#include "support/files/outputs.h"

namespace hypernetwork {
namespace {

namespace fs = std::filesystem;

// Identities first to first + count - 1, at the same time. Adam moves each value by itself, and the
// losses are added: no identity feels the others.
at::Tensor train_piece(const SubjectLoss& loss, const Identities& data, const at::Tensor& start,
                       const TargetOptions& options, int64_t first, int64_t count) {
  const torch::AutoGradMode gradients(true);
  torch::manual_seed(options.seed * 1000003 + static_cast<uint64_t>(first));
  std::vector<int64_t> identities;
  for (int64_t i = 0; i < count; ++i) identities.push_back(first + i);
  at::Tensor values = start.repeat({count, 1}).requires_grad_(true);
  torch::optim::Adam adam({values}, torch::optim::AdamOptions(options.learning_rate));
  for (int64_t step = 0; step < options.steps; ++step) {
    adam.zero_grad();
    const auto [losses, active] =
        loss.with_activation(values, loss.draw(data, identities, options.pictures));
    losses.sum().backward();
    adam.step();
  }
  const torch::NoGradGuard no_grad;
  const auto finite = values.isfinite().all(/*dim=*/1).cpu();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK(finite[i].item<bool>(), "'", data.names[static_cast<size_t>(first + i)],
                "': expected finite values after ", options.steps,
                " steps, got others; hint: a lower --target_learning_rate");
  }
  std::vector<at::Tensor> rows;
  for (const auto& row : values.detach().unbind(0)) {
    rows.push_back(loss.adapters().canonical(row).cpu());
  }
  return at::stack(rows);
}

// A piece that an earlier run of the same options left, or an undefined tensor.
at::Tensor kept_piece(const std::string& path, const std::string& fingerprint) {
  if (!fs::exists(path)) return {};
  const lightlora::SafetensorsFile file(path);
  const auto found = file.metadata().find("fingerprint");
  if (found == file.metadata().end() || found->second != fingerprint) return {};
  return file.load("values");
}

// What the targets follow from.
std::string fingerprint_of(const SubjectLoss& loss, const Identities& data, const at::Tensor& start,
                           const TargetOptions& options) {
  distributed::Fingerprint print;
  loss.adapters().add_to(print);
  const auto values = start.to(at::kCPU, at::kFloat).contiguous();
  print.add(values.const_data_ptr<float>(), static_cast<size_t>(values.nbytes()));
  return fmt::format("{} {} {} {} {} {} {}", data.fingerprint, print.hexadecimal(), options.steps,
                     options.at_once, options.pictures, options.learning_rate, options.seed);
}

}  // namespace

at::Tensor train_targets(const SubjectLoss& loss, const Identities& data, const at::Tensor& start,
                         const TargetOptions& options, const std::string& folder,
                         const distributed::Group& group) {
  const int64_t count = data.size();
  const int64_t pieces = (count + options.at_once - 1) / options.at_once;
  const auto print = fingerprint_of(loss, data, start, options);
  sd::make_folder(folder);
  std::vector<at::Tensor> parts(static_cast<size_t>(pieces),
                                at::zeros({options.at_once, start.numel()}));
  cli::Progress progress("adapters to learn from", count);
  // As many rounds for every process, which talk to each other in each.
  for (int64_t round = 0; round * group.size() < pieces; ++round) {
    const int64_t piece = round * group.size() + group.rank(), first = piece * options.at_once;
    if (piece < pieces) {
      const int64_t size = std::min(options.at_once, count - first);
      const auto path = (fs::path(folder) / fmt::format("targets-{}.safetensors", piece)).string();
      at::Tensor values = kept_piece(path, print);
      if (!values.defined()) {
        values = train_piece(loss, data, start, options, first, size);
        lightlora::save_safetensors(path, {{"values", values}}, {{"fingerprint", print}});
      }
      parts[static_cast<size_t>(piece)] =
          at::constant_pad_nd(values, {0, 0, 0, options.at_once - size});
    }
    progress.update(std::min(count, (round + 1) * group.size() * options.at_once));
    TORCH_CHECK(
        !group.any(cli::interrupted()),
        "stopped by request while making the adapters to learn from; hint: the same command ",
        "goes on");
  }
  group.complete(parts);
  return at::cat(parts).narrow(0, 0, count).contiguous();
}

}  // namespace hypernetwork
