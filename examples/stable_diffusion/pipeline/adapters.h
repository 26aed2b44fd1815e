// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/patch.h>

#include <string>
#include <utility>
#include <vector>

namespace sd {

/// The adapters in the models of one pipeline, while they train and while pictures are drawn.
struct PipelineAdapters {
  lightlora::Patched unet;            ///< empty: none
  lightlora::Patched text_encoder;    ///< empty: none
  lightlora::Patched text_encoder_2;  ///< of SDXL; empty: none

  /// Each with its name in files, whether there are any or not.
  std::vector<std::pair<std::string, lightlora::Patched>> by_component() const;
  /// The adapters of a text encoder, counted from 0.
  lightlora::Patched& of_text_encoder(size_t encoder) {
    return encoder == 0 ? text_encoder : text_encoder_2;
  }
  /// Those that there are, for a trainer to activate.
  std::vector<lightlora::Patched> all() const;
  /// Copies of the values, by component.
  lightlora::Components state() const;
  /// Puts the values of a state into the adapters.
  /// Errors: c10::Error if the state is of other adapters
  void assign(const lightlora::Components& state) const;
};

}  // namespace sd
