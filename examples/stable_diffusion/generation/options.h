// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/lora.h"
#include "pipeline/model_options.h"
#include "support/cli/app.h"
#include "support/distributed/group.h"

namespace generation {

/// What text_to_image can be told. `bind` makes flags of the values, which write straight into
/// them.
struct GenerationOptions {
  sd::ModelOptions model;
  std::vector<std::string> loras, learned_embeds;  ///< FILE or FILE:WEIGHT; FILE or FILE:TOKEN
  std::string merge_to;
  std::string lora_dir;
  std::optional<int64_t> split_rank;

  /// Prompts, size, number and sampler. The seed, the syntax of the prompts and the tensors to
  /// start from come from the options below.
  sd::SampleOptions sample;
  std::optional<sd::PromptSyntax> prompt_syntax;  ///< default: a1111
  std::optional<uint64_t> seed;                   ///< default: a new one
  bool new_seed = false;                          ///< a new one was asked for
  std::string seeds;  ///< one for each picture, with commas between them; -1 for a new one
  std::string image;  ///< to start from; none if empty
  std::string initial_latents, save_latents;

  std::string output, from_png;
  /// What the picture of `from_png` says of LoRA files: those of the prompt's tags, in their order,
  /// and those that no tag names.
  std::vector<std::string> tag_files;
  std::vector<sd::LoRAChoice> picture_loras;
  std::vector<std::string> picture_flags;  ///< names of those whose values are the picture's
  bool picture_sizes = false;              ///< what SDXL is told about sizes is the picture's alone
  bool allow_large = false;                ///< no limits of `check_limits`
  bool grid = false;
  std::vector<std::string> xy;

  std::string device = "auto";           ///< see sd::pick_device
  std::optional<c10::ScalarType> dtype;  ///< default: see precision_on
  std::optional<bool> cuda_graph;        ///< default: with a GPU
  bool allow_tf32 = false;
  bool deterministic = false;  ///< equal bytes for equal runs on a GPU too
  bool vae_tiling = false, print_tokens = false;

  distributed::GroupOptions group;

  /// The numbers in `seeds`; 0 for -1 until `settle_seeds` has drawn them.
  /// Errors: c10::ValueError for anything else between the commas
  std::vector<uint64_t> seed_list() const;
  /// `dtype`, or what is fast on the device; fp32 for a file, which must not depend on the machine.
  c10::ScalarType precision_on(c10::Device device) const;
  sd::PromptSyntax syntax() const { return prompt_syntax.value_or(sd::PromptSyntax::a1111); }
};

void bind(cli::App& app, GenerationOptions& options);

/// One call of the sampler: everything but the picture to start from, with a seed instead of none.
/// Errors: c10::Error for a file of latents without them
sd::SampleOptions sample_options(const GenerationOptions& options, uint64_t seed);

/// A seed that nobody chose, of rank 0 for all.
uint64_t new_seed(const distributed::Group& group);

/// Draws a seed for each -1 among `seeds`, on rank 0 for all.
void settle_seeds(GenerationOptions& options, const distributed::Group& group);

/// The parts of a list between commas, without the spaces around them.
std::vector<std::string> split_list(const std::string& text);

}  // namespace generation
