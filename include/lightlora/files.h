// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <lightlora/config.h>
#include <lightlora/file_io.h>
#include <lightlora/patch.h>
#include <lightlora/state.h>
#include <torch/arg.h>
#include <torch/serialize/archive.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace lightlora {

/// Who a file of adapters is written for.
enum class Format {
  native,     ///< this library: what was trained, options and seed; exact, and the smallest
  diffusers,  ///< `load_lora_weights` of diffusers
  peft,       ///< a folder for PEFT's `PeftModel.from_pretrained`
  kohya       ///< sd-scripts, A1111, ComfyUI
};

/// The name of a format, as flags spell it.
std::string to_string(Format format);
/// The format of that name; c10::ValueError lists the known ones.
Format parse_format(const std::string& name);

/// How adapters are written.
/// Example: `SaveOptions(Format::kohya).dtype(at::kHalf)`.
struct SaveOptions {
  /* implicit */ SaveOptions(Format format = Format::native) : format_(format) {}

  /// Who reads it. Default: native.
  TORCH_ARG(Format, format);
  /// Dtype of the tensors. Unset: as the states have them (native), fp32 (the others).
  TORCH_ARG(std::optional<at::ScalarType>, dtype) = std::nullopt;
  /// Native: also stores the frozen bases; this library can recreate them. Default: by seed.
  TORCH_ARG(Bases, bases) = Bases::by_seed;
  /// PEFT: keep `text_model.` in the names of the text encoder's layers. transformers has it in its
  /// own names up to 5.5 and not since, and PEFT loads nothing, with a warning only, if they
  /// differ. Default: true
  TORCH_ARG(bool, text_model) = true;
  /// Native and kohya: text to store beside the adapters, by name. Default: none.
  TORCH_ARG(Metadata, metadata) = {};
  /// Of a handle: which set. Default: "default".
  TORCH_ARG(std::string, set) = "default";
  /// Of a handle: what the model is to the others of a pipeline, such as "unet" or "text_encoder".
  /// Unset: "unet" for diffusers and kohya, whose files name it; no name in the others.
  TORCH_ARG(std::optional<std::string>, component) = std::nullopt;
};

/// Writes adapters for this library or another program: a file, or for PEFT a folder. For the
/// others each layer becomes classic factors with the scale folded in, all of one rank.
/// Errors: c10::ValueError for options that the format does not have; c10::Error for layers that it
///         cannot hold and for a path that cannot be written; nothing is left half-written
void save(const Components& components, const std::string& path, const SaveOptions& options = {});

/// The same without what was learned of norms and biases (`Targets::vectors`), which the files of
/// diffusers and PEFT have no names for; native files and kohya's have.
Components without_vectors(Components components);

/// Writes one set of a patched model: `save(lora, "style.safetensors", Format::diffusers)`.
void save(const Patched& lora, const std::string& path, const SaveOptions& options = {});

/// What to let pass in a file of adapters that is usually an error.
struct ReadOptions {
  /// Bytes behind the last tensor of a safetensors file. Default: false
  TORCH_ARG(bool, allow_trailing_bytes) = false;
  /// Tensors of no known name or of methods that are not read here: the layers that are understood
  /// are read, and `AdapterFile::ignored` lists the rest. Default: false
  TORCH_ARG(bool, ignore_unmatched) = false;
};

/// What a file of adapters holds, and what is worth showing about the file itself.
struct AdapterFile {
  Components components;             ///< the adapters of each model
  std::set<std::string> dialects;    ///< the spellings that occur
  std::set<std::string> dtypes;      ///< of the tensors
  Metadata metadata;                 ///< as it stands in the file
  std::set<std::string> embeddings;  ///< bundled with it, for `load_embeddings`
  /// Tensors passed over: what other programs train of norms and layers that are not known here, and
  /// with `ignore_unmatched` the rest.
  std::vector<std::string> ignored;
  int64_t tensors = 0;  ///< how many there are
  int64_t bytes = 0;    ///< of all tensors
};

/// Which Stable Diffusion adapters are for: "sd1", "sd2" or "sdxl", by the widths and names of their
/// layers; empty if those fit several or none of them.
std::string model_family(const Components& components);

/// Reads adapters of any dialect. It is found for each tensor by itself, so files that mix
/// spellings are read: native; diffusers since 0.12; PEFT, as a file or a folder, also one with the
/// folders `unet`, `text_encoder` and `text_encoder_2`; kohya, A1111 and LyCORIS, with diffusers' or
/// the original block names; ComfyUI's, with `diffusion_model.` in front. A folder of diffusers is
/// read too, and files of torch.save. Methods: LoRA, also of convolutions and with a Tucker core;
/// LoHa; LoKr; each with DoRA; LyCORIS' diag-OFT, GLoRA, (IA)3, T-LoRA (which needs the model: patch
/// it), whole differences, norms and biases; PEFT's AdaLoRA, HiRA, MiSS, GraLoRA and OFT.
/// Scale:  an `.alpha` tensor, or the configuration of PEFT or diffusers, divided by the rank; else 1
/// Dtypes: any floating-point dtype, as fp32 (native files as they are)
/// Errors: c10::Error naming the file and the layer or the tensors: a name of no dialect or of
///         another method, a layer given twice, a UNet's blocks under two namings, a tensor without
///         its partner, factors of two ranks, an alpha that is zero or not a number, two scales that
///         disagree
AdapterFile read_adapters(const std::string& path, const ReadOptions& options = {});

/// The adapters of one model in a file of any dialect; a file for several needs the name of one.
/// Errors: those of `read_adapters`; c10::Error for a component that is missing, with those there
/// are
AdapterState read_state(const std::string& path, const std::string& component = "",
                        const ReadOptions& options = {});

/// Puts the values of a file of any dialect into one set of a patched model.
/// Errors: c10::Error, before anything has changed, unless the layers, the variant and the ranks
///         are exactly those of the set; `patch(model, read_state(path))` takes what the file has
void load(const Patched& lora, const std::string& path, const std::string& set = "default",
          const ReadOptions& options = {});

/// Lets `torch::save(lora, path)` write the trained values of every set of a patched model.
/// Files of `lightlora::save` also hold the options, and so can be loaded into a bare model; this
/// is for programs that keep everything in LibTorch's own archives.
torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                            const Patched& lora);

/// Lets `torch::load(lora, path)` read them back into a model that is patched in the same way.
/// Errors: c10::Error, before anything has changed, if a set is missing or a tensor has another
/// shape
torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, Patched& lora);

}  // namespace lightlora

#ifndef LIGHTLORA_COMPILED
#include <lightlora/files-inl.h>
#endif
