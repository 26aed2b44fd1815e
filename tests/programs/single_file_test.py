# SPDX-License-Identifier: Apache-2.0
"""Models in one file: ours load in diffusers, those of Stable Diffusion 1.x load here, and both draw the same."""

import gzip
import json
import pathlib
import shutil

import numpy
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from support import MODEL, SIDE, SOURCE, main, run, run_ok, scratch, train

PROMPT = "a red apple on a blue background"
UNET = json.loads((MODEL / "unet/config.json").read_text())
WIDEST, TEXT = UNET["block_out_channels"][-1], UNET["cross_attention_dim"]


def picture(folder, model, *more):
    run_ok("text_to_image", "--pretrained_model_name_or_path", model, "--prompt", PROMPT, "--num_inference_steps", 3,
           "--device", "cpu", "--initial_latents", folder / "latents.safetensors", "--output", folder / "x.png", *more)
    return numpy.asarray(Image.open(folder / "x.png"), dtype=float)


def latents_file(folder):
    latents = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, folder / "latents.safetensors")
    return latents


def lora_file(path):
    torch.manual_seed(1)
    tensors = {}
    for name, width in [("attn1.to_v", WIDEST), ("attn2.to_v", TEXT), ("attn2.to_out.0", WIDEST)]:
        layer = f"unet.mid_block.attentions.0.transformer_blocks.0.{name}.lora"
        tensors |= {f"{layer}.down.weight": torch.randn(2, width), f"{layer}.up.weight": torch.randn(WIDEST, 2)}
    save_file(tensors, path)


def close(title, one, other, most):
    error = abs(one - other).mean()
    print(f"{title}: mean absolute difference {error:.4f} of 255")
    assert error <= most, error


def there(pipe, latents, scheduler):
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler
    return numpy.round(pipe(PROMPT, num_inference_steps=3, latents=latents.clone(), output_type="np").images[0] * 255)

# Stable Diffusion 1.x's.
SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                          clip_sample=False, set_alpha_to_one=False)


def fails(expected, model, *more, status=1):
    done = run("text_to_image", "--pretrained_model_name_or_path", model, "--prompt", "x", "--output", "x.png", *more)
    assert done.returncode == status and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    assert expected in done.stderr, (expected, done.stderr)


def test_a_merged_file_draws_as_the_model_with_its_lora():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = latents_file(folder)
        lora_file(folder / "lora.safetensors")
        expected = picture(folder, MODEL, "--lora", folder / "lora.safetensors")
        assert abs(expected - picture(folder, MODEL)).mean() > 2
        merged = folder / "merged.safetensors"
        shown = run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--lora",
                       folder / "lora.safetensors", "--merge_to", merged)
        assert shown == f"model: {merged}\n", shown
        close("merged file", picture(folder, merged, "--model_config", MODEL), expected, 0)
        close("merged file by itself", picture(folder, merged), expected, 0)
        again = folder / "again.safetensors"
        run_ok("text_to_image", "--pretrained_model_name_or_path", merged, "--device", "cpu", "--merge_to", again)
        assert again.read_bytes() == merged.read_bytes()
        tokens = ["--prompt", PROMPT, "--print_tokens"]
        assert (run_ok("text_to_image", "--pretrained_model_name_or_path", merged, *tokens) ==
                run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, *tokens))
        pipe = StableDiffusionPipeline.from_single_file(str(merged), config=str(MODEL), local_files_only=True,
                                                        torch_dtype=torch.float32, safety_checker=None)
        scheduler = DDIMScheduler.from_pretrained(str(MODEL), subfolder="scheduler")
        close("merged file in diffusers", there(pipe, latents, scheduler), expected, 1)


def test_a_merged_file_with_more_in_it_draws_the_same():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents_file(folder)
        merged = folder / "merged.safetensors"
        run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--merge_to", merged)
        expected = picture(folder, MODEL)
        # As trainers save it, with a schedule's tensors and an averaged copy beside.
        state = load_file(merged)
        state |= {"model_ema.decay": torch.tensor(0.9), "alphas_cumprod": torch.ones(3),
                  "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
        torch.save({"state_dict": state, "epoch": 1, "global_step": 2}, folder / "merged.ckpt")
        torch.save(state, folder / "merged.bin")
        for name in ["merged.ckpt", "merged.bin"]:
            close(name, picture(folder, folder / name, "--model_config", MODEL), expected, 0)
        # Bytes behind the last tensor, as a published file has them.
        with open(merged, "ab") as file:
            file.write(bytes(4))
        fails("4 behind the last tensor); hint: accept them with --allow_trailing_bytes", merged)
        close("with trailing bytes", picture(folder, merged, "--allow_trailing_bytes"), expected, 0)
        tokens = run_ok("text_to_image", "--pretrained_model_name_or_path", merged, "--allow_trailing_bytes",
                        "--prompt", PROMPT, "--print_tokens")
        assert tokens.startswith("["), tokens


def test_bytes_behind_the_last_tensor_of_a_folder_or_a_lora():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents_file(folder)
        lora = folder / "lora.safetensors"
        lora_file(lora)
        expected = picture(folder, MODEL, "--lora", lora)
        model = folder / "model"
        shutil.copytree(MODEL, model)
        for file in [lora, *model.rglob("*.safetensors")]:
            with open(file, "ab") as stream:
                stream.write(b"more")
        hint = "hint: accept them with --allow_trailing_bytes"
        fails(hint, model)
        fails(hint, MODEL, "--lora", lora)
        close("with the flag", picture(folder, model, "--lora", lora, "--allow_trailing_bytes"), expected, 0)
        done = run("convert_lora", "--input", lora, "--inspect")
        assert done.returncode == 1 and hint in done.stderr, done.stderr
        run_ok("convert_lora", "--input", lora, "--inspect", "--allow_trailing_bytes")


def test_training_on_a_file_is_training_on_its_folder():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        file = folder / "model.safetensors"
        run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--merge_to", file)
        train(folder / "a", "--train_text_encoder", steps=2)
        train(folder / "b", "--train_text_encoder", steps=2, model=file)
        assert (folder / "a/lightlora.safetensors").read_bytes() == (folder / "b/lightlora.safetensors").read_bytes()


def clip_tokenizer(folder):
    """transformers' tokenizer from the merges that come with us; its vocabulary is built here by CLIP's own rule."""
    merges = gzip.decompress((SOURCE / "examples/stable_diffusion/assets/clip_tokenizer/clip_merges.txt.gz").read_bytes()).decode().split("\n")[1:-1]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    characters = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
    words = characters + [c + "</w>" for c in characters] + [m.replace(" ", "") for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == len(set(words)) == 49408
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def small_model(folder):
    """A model with the fixed numbers of Stable Diffusion 1.x, but few channels."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(sample_size=16, block_out_channels=(32, 64, 64), layers_per_block=2,
                                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                                cross_attention_dim=64, attention_head_dim=8)
    vae = AutoencoderKL(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=2, norm_num_groups=32,
                        scaling_factor=0.18215)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                        num_attention_heads=1, bos_token_id=49406, eos_token_id=49407))
    tokenizer = clip_tokenizer(folder / "clip")
    pipe = StableDiffusionPipeline(vae=vae, unet=unet, text_encoder=text, tokenizer=tokenizer, safety_checker=None,
                                   feature_extractor=None, requires_safety_checker=False,
                                   scheduler=SCHEDULER)
    pipe.save_pretrained(str(folder / "model"))
    return tokenizer


def test_a_stable_diffusion_1_file_needs_nothing_else():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = latents_file(folder)
        tokenizer = small_model(folder)
        expected = picture(folder, folder / "model")
        (folder / "alone").mkdir()
        single = folder / "alone/model.safetensors"
        run_ok("text_to_image", "--pretrained_model_name_or_path", folder / "model", "--device", "cpu", "--merge_to", single)
        close("file alone", picture(folder, single), expected, 0)
        pipe = StableDiffusionPipeline.from_single_file(str(single), config=str(folder / "model"), local_files_only=True,
                                                        torch_dtype=torch.float32, safety_checker=None)
        close("file in diffusers", there(pipe, latents, SCHEDULER), expected, 1)
        texts = [PROMPT, "Ünïcode ☃ 🍎 and it's 3 o'clock", "antidisestablishmentarianism,,, !!"]
        for text in texts:
            shown = run_ok("text_to_image", "--pretrained_model_name_or_path", single, "--prompt", text, "--print_tokens")
            assert json.loads(shown.splitlines()[0]) == tokenizer(text, padding="max_length", truncation=True).input_ids
        # Old folders have pickled files only.
        for part, name in [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")]:
            file = folder / "model" / part / f"{name}.safetensors"
            pickled = "pytorch_model.bin" if part == "text_encoder" else f"{name}.bin"
            torch.save(load_file(file), file.parent / pickled)
            file.unlink()
        close("pickled folder", picture(folder, folder / "model"), expected, 0)


def drawn_with(folder, merged, **changes):
    """A picture of the small model under a changed scheduler, and what a file merged from it says of itself."""
    shutil.copytree(folder / "model", folder / "other")
    file = folder / "other/scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    drawn = picture(folder, folder / "other")
    run_ok("text_to_image", "--pretrained_model_name_or_path", folder / "other", "--device", "cpu", "--merge_to", merged)
    with safe_open(merged, "pt") as opened:
        said = opened.metadata()["modelspec.prediction_type"]
    shutil.rmtree(folder / "other")
    return drawn, said


def three_predictions(folder, merged):
    """Pictures of the small model that predicts the noise, the velocity, and the velocity at zero signal."""
    epsilon, said = drawn_with(folder, merged)
    assert said == "epsilon"
    zero, said = drawn_with(folder, merged, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                            timestep_spacing="trailing")
    assert said == "v"
    velocity, said = drawn_with(folder, merged, prediction_type="v_prediction")
    assert said == "v"
    apart = [abs(a - b).mean() for a, b in [(epsilon, velocity), (epsilon, zero), (velocity, zero)]]
    assert min(apart) > 1, apart
    return epsilon, velocity, zero


def check_marks(folder, single, state, epsilon, velocity, zero):
    """What a single file says of its prediction counts; where it says nothing, that is told."""
    mark = torch.zeros(0)
    cases = [("nothing", {}, None, epsilon), ("A1111's tensor", {"v_pred": mark}, None, velocity),
             ("both tensors", {"v_pred": mark, "ztsnr": mark}, None, zero),
             ("sd-scripts, v", {}, {"modelspec.prediction_type": "v"}, velocity),
             ("sd-scripts, epsilon", {}, {"modelspec.prediction_type": "epsilon"}, epsilon),
             ("ComfyUI, v", {}, {"modelspec.predict_key": "v"}, velocity),
             ("an unknown word", {}, {"modelspec.prediction_type": "x0"}, epsilon)]
    notice = "notice: '%s': nothing says what its UNet predicts"
    for title, tensors, metadata, expected in cases:
        save_file(state | tensors, single, metadata)
        close(title, picture(folder, single), expected, 0)
        shown = run_ok("text_to_image", "--pretrained_model_name_or_path", single, "--device", "cpu", "--merge_to",
                       folder / "again.safetensors")
        told = title not in ["nothing", "an unknown word"]
        assert shown.count(notice % single) == (0 if told else 1) and shown.count("notice") == (not told), shown
    torch.save({"state_dict": state | {"v_pred": mark}}, folder / "alone/model.ckpt")
    close("a checkpoint's tensor", picture(folder, folder / "alone/model.ckpt"), velocity, 0)


def test_what_the_unet_of_a_file_predicts():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents_file(folder)
        small_model(folder)
        merged = folder / "merged.safetensors"
        epsilon, velocity, zero = three_predictions(folder, merged)
        state, single = load_file(merged), folder / "alone" / "model.safetensors"
        single.parent.mkdir()
        check_marks(folder, single, state, epsilon, velocity, zero)

        save_file(state, single)
        for text, expected in [('model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n', velocity),
                               ("model:\n  params:\n    linear_start: 0.00085\n", epsilon)]:
            single.with_suffix(".yaml").write_text(text)
            close("a configuration beside it", picture(folder, single), expected, 0)
        scheduler = folder / "given/scheduler"
        scheduler.mkdir(parents=True)
        known = json.loads((folder / "model/scheduler/scheduler_config.json").read_text())
        (scheduler / "scheduler_config.json").write_text(json.dumps(known | {"prediction_type": "v_prediction"}))
        close("a scheduler given", picture(folder, single, "--model_config", folder / "given"), velocity, 0)


def test_other_files_are_refused_by_name():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        file = folder / "model.safetensors"
        cases = [("conditioner.embedders.0.x", "SDXL"), ("cond_stage_model.model.x", "Stable Diffusion 2.x"),
                 ("double_blocks.0.x", "FLUX"), ("lora_unet_conv_in.lora_up.weight", "give it as --lora"),
                 ("down_blocks.0.x", "name the folder"), ("something", "a file of other tensors"),
                 ("model.diffusion_model.x", "without its autoencoder")]
        for name, expected in cases:
            save_file({name: torch.zeros(2)}, file)
            fails(expected, file)
        run_ok("text_to_image", "--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--merge_to", file)
        save_file(load_file(file), folder / "bare.safetensors")  # without metadata
        fails("multiples of norm_num_groups (32), got 48", folder / "bare.safetensors", status=2)
        torch.save(torch.nn.Linear(2, 2), folder / "model.ckpt")
        fails("torch.nn.modules.linear.Linear", folder / "model.ckpt")
        done = run("text_to_image", "--pretrained_model_name_or_path", MODEL, "--merge_to", folder / "x.ckpt")
        assert done.returncode == 2 and "ends in .safetensors" in done.stderr, done.stderr
        done = run("text_to_image", "--pretrained_model_name_or_path", MODEL, "--output", folder / "x.png")
        assert done.returncode == 2 and "--prompt" in done.stderr, done.stderr


main(globals())
