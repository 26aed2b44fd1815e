// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <lightlora/config.h>

#include <string>
#include <utility>
#include <vector>

namespace lightlora {

/// A concept that textual inversion taught: one or several vectors in place of a token's own.
/// Shapes: vectors (n, width); layer-wise (layers, n, width); vectors_2 (n, width_2), fp32
/// Papers: Gal et al. 2022, "An Image is Worth One Word", arXiv:2208.01618; layer-wise: Voynov et
///         al. 2023, "P+", arXiv:2303.09522
struct LearnedEmbedding {
  std::string token;   ///< what a prompt calls it
  at::Tensor vectors;  ///< fp32, see above
  /// The UNet's attentions that read each slice of a layer-wise embedding, such as
  /// "down_blocks.0.attentions.0"; empty for one embedding for all of them.
  std::vector<std::string> layers = {};
  /// SDXL: what the second text encoder reads (`clip_g` in files, where `vectors` are `clip_l`);
  /// undefined for a model with one.
  at::Tensor vectors_2 = {};
};

/// The key of a file that is written.
enum class EmbeddingKey {
  token,      ///< the token itself, as diffusers: the file tells how to call it
  emb_params  ///< as A1111 and kohya: there the name of the file is the token
};

/// The attentions of Stable Diffusion 1.x in the order of a forward pass: kohya's name in
/// layer-wise files, and the model's.
const std::vector<std::pair<const char*, const char*>>& attention_order();

/// The learned embeddings in a file: of diffusers (one or several tokens, `.safetensors` or
/// `.bin`), of A1111 (`emb_params`, or a `.pt` with `string_to_param`), of SDXL (`clip_l` and `clip_g`,
/// or `clip_l` alone), those bundled with a LoRA (`bundle_emb`), and layer-wise ones: this library's,
/// kohya's (16 tensors) and P+'s. The token is `token` if given; else what the file says, or its
/// name without the ending.
/// Errors: c10::Error naming the file for another kind of file, vectors of another shape, layers
///         that are missing, or `token` for several embeddings
std::vector<LearnedEmbedding> load_embeddings(const std::string& path,
                                              const std::string& token = "");

/// Writes one learned embedding: a tensor named after the token (or `emb_params`), and for a
/// layer-wise one its layers' names in the metadata; for SDXL `clip_l` and `clip_g`, and the token
/// in the metadata. A1111 and others read one token from a file.
/// Errors: c10::ValueError for an embedding without a token, vectors of another shape, layers that
/// do not fit; those of `save_safetensors`
void save_embedding(const std::string& path, const LearnedEmbedding& embedding,
                    EmbeddingKey key = EmbeddingKey::token, at::ScalarType dtype = at::kFloat);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/embeddings-inl.h>
#endif
