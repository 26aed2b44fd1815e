// SPDX-License-Identifier: Apache-2.0
#include "lora_files/flags.h"

#include <c10/util/Exception.h>

#include "pipeline/device.h"

namespace lora_files {
namespace {

void check_extract(const Flags& flags) {
  const auto& extract = flags.extract;
  TORCH_CHECK_VALUE(flags.inputs.empty() != extract.tuned.empty(),
                    "--input and --extract_from: expected one of the two, got ",
                    flags.inputs.empty() ? "neither" : "both");
  TORCH_CHECK_VALUE(extract.tuned.empty() == extract.base.path.empty(),
                    "--extract_from and --base: expected both or neither, got one of them");
  TORCH_CHECK_VALUE(extract.tuned.empty() || flags.rank || flags.energy,
                    "--extract_from: expected --rank or --energy beside it, got neither; hint: "
                    "--rank 32, or --energy 0.9");
  TORCH_CHECK_VALUE(extract.tuned.empty() || (!flags.inspect && !flags.doctor),
                    flags.doctor ? "--doctor" : "--inspect",
                    ": expected it with --input, got --extract_from");
}

void check_output(const Flags& flags) {
  TORCH_CHECK_VALUE(!flags.json, "--json: expected it with --inspect or --doctor, got it without");
  TORCH_CHECK_VALUE(!flags.output.empty() && !flags.to.empty(),
                    "--output and --to: expected both, --inspect or --doctor, got ",
                    flags.output.empty() && flags.to.empty() ? "neither" : "one of them");
  TORCH_CHECK_VALUE(!flags.embed_aux || flags.to == "native",
                    "--embed_aux: expected it with --to native, got --to ", flags.to);
  TORCH_CHECK_VALUE(!flags.flat_text_encoder || flags.to == "peft",
                    "--flat_text_encoder: expected it with --to peft, got --to ", flags.to);
  TORCH_CHECK_VALUE(!flags.energy || *flags.energy > 0,
                    "--energy: expected a share above 0, got 0");
}

}  // namespace

void add_flags(cli::App& app, Flags& f) {
  app.group("Files");
  app.add_option(
      "--input", f.inputs,
      "LoRA file of any dialect, or a folder of PEFT or diffusers, as FILE or FILE:WEIGHT; "
      "several are added up into one");
  app.add_option("--output", f.output, "File to write; a folder for peft");
  app.add_option(
         "--to", f.to,
         "Format to write; comfyui, musubi, ai-toolkit and bfl are for FLUX, SD 3 and other "
         "transformer models, native for Stable Diffusion up to XL")
      ->check(cli::one_of(
          {"native", "diffusers", "peft", "kohya", "comfyui", "musubi", "ai-toolkit", "bfl"}));
  app.add_flag("--inspect", f.inspect, "Print what each input holds, and write nothing");
  app.add_flag("--doctor", f.doctor,
               "Say what is wrong with each input, for LoRA files of every family, and which "
               "programs load how much of it; write nothing");
  app.add_flag("--json", f.json, "With --inspect or --doctor: as JSON, one object for each input");
  app.add_flag(
      "--ignore_unmatched", f.ignore_unmatched,
      "Read the layers that are understood and list the other tensors, instead of refusing "
      "the file");
  sd::bind_single_file(app, f.extract.base);
  app.group("Extracting");
  auto extract_from = app.add_option(
      "--extract_from", f.extract.tuned,
      "Instead of --input: a fine-tuned model, folder or single file, whose difference to "
      "--base becomes the LoRA; with --rank or --energy");
  app.add_option("--base", f.extract.base.path, "The model that it was fine-tuned from");
  app.add_option(
         "--target_modules", f.extract.unet,
         "Layers of the UNet by name or end of name, such as to_q or conv1; may be repeated")
      ->needs(extract_from);
  app.add_option("--text_encoder_target_modules", f.extract.text_encoder,
                 "The same of the text encoder; may be repeated")
      ->needs(extract_from);
  app.group("Values");
  app.add_option("--rank", f.rank,
                 "Cut each layer to this rank, by the best approximation (default: as it is)")
      ->check(cli::at_least(1));
  app.add_option("--energy", f.energy,
                 "Cut each layer to the least rank that keeps this share of its energy (the sum of "
                 "the squared singular values), such as 0.99; with --rank, to at most that rank")
      ->check(cli::between(0, 1));
  app.add_choice("--dtype", f.dtype, sd::dtype_choices(), "Precision of the values written");
  app.add_flag("--embed_aux", f.embed_aux,
               "native: also write the frozen bases, which are otherwise made from their seed");
  app.add_flag("--flat_text_encoder", f.flat_text_encoder,
               "peft: names of transformers 5.6 and later, without text_model.");
}

void Flags::check() const {
  check_extract(*this);
  if (!inspect && !doctor) check_output(*this);
}

lightlora::Keep Flags::keep() const {
  auto keep = energy ? lightlora::Keep::energy(*energy) : lightlora::Keep::all();
  return rank ? keep.at_most(*rank) : keep;
}

}  // namespace lora_files
