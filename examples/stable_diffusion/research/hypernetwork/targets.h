// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "research/hypernetwork/subject_loss.h"
#include "support/distributed/group.h"

namespace hypernetwork {

/// How the adapters are made that a hypernetwork learns to predict.
struct TargetOptions {
  int64_t steps = 100;   ///< of Adam, for each identity; 0: no targets
  int64_t at_once = 8;   ///< identities that share one pass of the UNet
  int64_t pictures = 4;  ///< of each of them in a step
  double learning_rate = 2e-3;
  uint64_t seed = 0;
};

/// The values of adapters trained for each identity by itself, all from the same start: rows of one
/// batch with adapters of their own, which learn what they would learn alone. Brought into canonical
/// form where the variant has one, because (u, d) and (c u, d / c) are the same adapter.
/// What is done lies in `folder` piece by piece, where a run that was stopped finds it, and any other
/// run of the same base, pictures and options; the processes of the group share the pieces.
/// Shapes: start (n), result (identities, n) fp32 on the CPU
/// Errors: c10::Error if the loss of an identity is not finite
at::Tensor train_targets(const SubjectLoss& loss, const Identities& data, const at::Tensor& start,
                         const TargetOptions& options, const std::string& folder,
                         const distributed::Group& group);

}  // namespace hypernetwork
