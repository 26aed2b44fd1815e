// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/cli/app.h"
#include "support/distributed/group.h"
#include "pipeline/model_flags.h"
#include "pipeline/pipeline.h"

namespace generation {

/// What text_to_image was asked for. Every field has its flag's name.
struct Flags : sd::ModelFlags {
  std::vector<std::string> loras, learned_embeds;
  std::string merge_to;
  std::string lora_dir;
  std::optional<int64_t> split_rank;

  std::string prompt, negative_prompt, prompt_syntax, output, from_png;
  int64_t clip_skip = 0, num_images_per_prompt = 1, batch_size = 0;
  std::optional<int64_t> height, width;
  std::optional<uint64_t> seed;
  std::string seeds;
  bool grid = false;
  std::vector<std::string> xy;

  std::string image;
  double strength = 0.8;

  int64_t num_inference_steps = 50;
  double guidance_scale = 7.5, eta = 0;
  std::string scheduler = "ddim", timestep_spacing;
  bool use_karras_sigmas = false;
  std::string initial_latents, save_latents;

  std::string device = "auto", dtype = "fp32";
  bool vae_tiling = false, print_tokens = false;

  distributed::GroupOptions group;

  /// The picture of a batch that a PNG file asks for; no flag.
  std::optional<int64_t> batch_position;

  /// The numbers in `seeds`. Errors: c10::ValueError for anything else between the commas
  std::vector<uint64_t> seed_list() const;
};

void add_flags(cli::App& app, Flags& flags);

/// Everything but the picture to start from, with a seed instead of none.
sd::SampleOptions sample_options(const Flags& flags, uint64_t seed);

/// The parts of a list between commas, without the spaces around them.
std::vector<std::string> split_list(const std::string& text);

}  // namespace generation
