// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "pipeline/adapters.h"
#include "research/hypernetwork/network.h"
#include "support/distributed/fingerprint.h"

namespace hypernetwork {

/// The adapters in the models of one pipeline as one set. Their values stand one after the other:
/// those of the UNet, then those of its text encoders, if these are adapted.
class AdapterSet {
 public:
  AdapterSet() = default;
  explicit AdapterSet(sd::PipelineAdapters parts) : parts_(std::move(parts)) {}

  const sd::PipelineAdapters& parts() const { return parts_; }
  /// Whether a text's states depend on the values.
  bool adapts_text() const { return parts_.text_encoder || parts_.text_encoder_2; }
  /// With the component in front of each path: "unet.mid_block...", "text_encoder.text_model...".
  std::vector<PredictedLayer> layers() const;

  /// Shapes: (n)
  at::Tensor values() const;
  void assign(const at::Tensor& values) const;
  /// The models compute with these values while the result lives, see
  /// `lightlora::PatchedImpl::activate_values`.
  /// Shapes: values (n), or (batch, n)
  std::vector<lightlora::Activation> activate(const at::Tensor& values) const;
  /// The same delta in the form that `lightlora::canonical` gives it, for variants that keep their
  /// kind there; others come back as they are.
  /// Shapes: (n) to (n)
  at::Tensor canonical(const at::Tensor& values) const;

  /// Norms of the weights that the adapters stand beside: what a network was trained for.
  /// Shapes: (layers) fp32
  at::Tensor norms() const;
  /// Adds which layers of which model these are.
  void add_to(distributed::Fingerprint& print) const;
  /// What is adapted, a line for each model.
  std::string to_string() const;

 private:
  using Use = std::function<void(const std::string& component, const lightlora::Patched& part,
                                 int64_t first, int64_t count)>;
  void for_each(const Use& use) const;

  sd::PipelineAdapters parts_;
};

}  // namespace hypernetwork
