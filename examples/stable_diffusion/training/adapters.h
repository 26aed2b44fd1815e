// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/options.h>
#include <lightlora/patch.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/cli/app.h"
#include "training/own_flags.h"
#include "training/parameter_bank.h"

namespace training {

/// The flags that say which adapters to train, and each part's share of the learning rate.
struct AdapterFlags {
  std::string variant = "light", init = "up_zero";
  int64_t rank = 4;
  OwnFlags own;
  std::optional<double> network_alpha;
  double lora_dropout = 0;
  std::optional<int64_t> split_rank;
  std::vector<std::string> target_modules{"to_q", "to_k", "to_v", "to_out.0"};
  std::vector<std::string> text_encoder_target_modules{"q_proj", "k_proj", "v_proj", "out_proj"};
  std::vector<std::string> rank_pattern, alpha_pattern, rate_pattern;
  std::string init_from;
  std::optional<int64_t> relax_rank;

  bool train_text_encoder = false;
  std::optional<double> text_encoder_lr, loraplus_lr_ratio;

  /// Errors: c10::ValueError for values that do not go together or do not parse
  void check() const;
  /// Takes variant, rank and bases from `init_from`, if it is given, and returns what it holds.
  /// Errors: those of reading it; c10::Error if it does not go with the other flags
  lightlora::Components read_start();
  /// Where this variant learns at about the usual pace.
  double usual_rate() const;
  lightlora::LoRAOptions lora_options() const;
};

void add_adapter_flags(cli::App& app, AdapterFlags& flags);

/// Adapters in a UNet and, if it trains, in a text encoder.
class Adapters {
 public:
  /// `text_encoder` may be null if it does not train. The start of the trained values follows from
  /// the seed, or is `start`, as `AdapterFlags::read_start` gave it. With `relax_rank` that is added to
  /// the models' weights and new adapters of that rank train on top (Ruiz et al. 2023,
  /// arXiv:2307.06949, "rank-relaxed fast finetuning").
  /// Errors: as lightlora::patch, and c10::Error for a pattern that matches nothing
  Adapters(const AdapterFlags& flags, torch::nn::Module& unet, torch::nn::Module* text_encoder,
           uint64_t seed, lightlora::Components start = {});

  const lightlora::Patched& unet() const { return unet_; }
  /// All of them, for a trainer to activate.
  std::vector<lightlora::Patched> all() const;
  /// What trains, by learning rate. `learning_rate` is the run's, of which text_encoder_lr is a part.
  /// Errors: c10::Error for a rate pattern that matches nothing
  std::vector<ParameterGroup> groups(double learning_rate) const;

  /// Copies of the values, by component, with what was added to the weights: the difference from the
  /// base model.
  lightlora::Components state() const;
  /// Errors: c10::Error if the state is of other adapters
  void load_state(const lightlora::Components& state);

 private:
  lightlora::Patched make(const std::string& component, torch::nn::Module& model,
                          const std::vector<std::string>& names);

  AdapterFlags flags_;
  lightlora::Components start_;
  lightlora::Patched unet_, text_encoder_;
};

/// Whether a pattern names a layer: its dotted parts stand in the path one after the other, as
/// `mid_block`, `down_blocks.1`, `attn2` and `to_k` do in many paths.
bool names_layer(const std::string& pattern, const std::string& path);

}  // namespace training
