// SPDX-License-Identifier: Apache-2.0
#include "research/study/words.h"

namespace study {

Word::Word(const Settings& settings, bool layerwise, double rate, uint64_t seed) {
  flags_.model = settings.model;
  flags_.train_data_dir = settings.subject;
  flags_.placeholder_token = kWord;
  flags_.initializer_token = settings.initializer;
  flags_.layerwise = layerwise;
  flags_.device = "cpu";
  flags_.seed = seed;
  flags_.data.cache_latents = true;
  flags_.data.random_flip = false;
  flags_.optimization.train_batch_size = settings.batch_size;
  flags_.optimization.max_train_steps = settings.inversion_steps;
  flags_.optimization.learning_rate = rate;
  inversion_ = std::make_unique<training::Inversion>(flags_);
}

}  // namespace study
