# SPDX-License-Identifier: Apache-2.0
"""Training SDXL: ten steps equal those of diffusers' train_dreambooth_lora_sdxl with the same pictures, crops, noise and
timesteps, and the files open in diffusers and draw the same."""

import json
import math
import pathlib

import numpy
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from peft import LoraConfig, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from support import SOURCE, main, run_ok, scratch

MODEL = SOURCE / "tests/parity/data/pipeline_xl"
SIDE, SEED, STEPS, BATCH, RATE = 16, 3, 10, 2, 1e-3
ORDER, SAMPLE = 0, 1  # training::Stream
PROMPT = "a sks toy"
UNET_LAYERS, TEXT_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"], ["q_proj", "k_proj", "v_proj", "out_proj"]
# fp32 on both sides through ten steps of AdamW, which divides by the root of small numbers.
TOLERANCE = 1e-4


def generator_for(stream, index):
    """training/random.h in Python."""
    mask = 2**64 - 1
    x = (SEED * 0x9E3779B97F4A7C15 + stream) & mask
    for part in (index, 0x2545F4914F6CDD1D):
        x = ((x ^ part) + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return torch.Generator("cpu").manual_seed(x)


def pictures(folder):
    """Four pictures of different sizes and shapes, the first as large as the samples."""
    folder.mkdir()
    random = numpy.random.default_rng(1)
    sizes = [(16, 16), (40, 30), (21, 60), (33, 33)]
    for i, (width, height) in enumerate(sizes):
        small = random.integers(0, 256, (5, 5, 3), dtype=numpy.uint8)
        Image.fromarray(small).resize((width, height), Image.BICUBIC).save(folder / f"{i}.png")


def resized(path):
    image = Image.open(path).convert("RGB")
    original = (image.height, image.width)
    short = min(image.size)
    size = [SIDE if side == short else int(SIDE * side / short) for side in image.size]
    return image.resize(size, Image.LANCZOS), original


def pipeline():
    pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, torch_dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start_values(pipe, path, text_encoders):
    """Adapters of small random values, in the form that diffusers saves."""
    torch.manual_seed(0)
    tensors = {}
    models = {"unet": (pipe.unet, UNET_LAYERS)}
    if text_encoders:
        models |= {
            "text_encoder": (pipe.text_encoder, TEXT_LAYERS),
            "text_encoder_2": (pipe.text_encoder_2, TEXT_LAYERS),
        }
    for component, (model, endings) in models.items():
        for name, module in model.named_modules():
            if not isinstance(module, torch.nn.Linear) or not any(name.endswith("." + e) for e in endings):
                continue
            down = torch.randn(3, module.in_features) / math.sqrt(module.in_features)
            tensors[f"{component}.{name}.lora_A.weight"] = down
            tensors[f"{component}.{name}.lora_B.weight"] = torch.randn(module.out_features, 3) * 0.1
    save_file(tensors, path)
    return tensors


def add_adapters(pipe, tensors):
    parameters = []
    for component in sorted({name.split(".")[0] for name in tensors}):
        model = getattr(pipe, component)
        endings = UNET_LAYERS if component == "unet" else TEXT_LAYERS
        model.requires_grad_(False)
        model.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=endings, init_lora_weights=False))
        own = {k[len(component) + 1 :]: v for k, v in tensors.items() if k.startswith(component + ".")}
        result = set_peft_model_state_dict(model, own, adapter_name="default")
        assert not result.unexpected_keys, result
        parameters += [p for p in model.parameters() if p.requires_grad]
    return parameters


def encode(pipe, ids, ids_2):
    """encode_prompt of diffusers' script."""
    first = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    second = pipe.text_encoder_2(ids_2, output_hidden_states=True)
    return torch.cat([first, second.hidden_states[-2]], dim=-1), second[0]


def token_ids(pipe):
    settings = dict(padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return pipe.tokenizer(PROMPT, **settings).input_ids, pipe.tokenizer_2(PROMPT, **settings).input_ids


def sample_of(pipe, image, original, generator):
    """Latents, size conditions, noise and timestep of one sample, drawn as our trainer draws them."""
    draw = lambda limit: 0 if limit == 1 else int(torch.randint(limit, (1,), generator=generator))  # noqa: E731
    top, left = draw(image.height - SIDE + 1), draw(image.width - SIDE + 1)
    flipped = draw(2) == 1
    if flipped:  # diffusers mirrors the whole picture first
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
        left = image.width - left - SIDE
    pixels = numpy.asarray(image.crop((left, top, left + SIDE, top + SIDE)), dtype=numpy.float32)
    pixels = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = pipe.vae.encode(pixels).latent_dist
    shape = posterior.mean.shape[1:]
    latents = posterior.mean + posterior.std * torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)[None]
    timestep = torch.randint(1000, (1,), generator=generator)
    return latents * pipe.vae.config.scaling_factor, [*original, top, left, SIDE, SIDE], noise, timestep


def batches(pipe, folder):
    files = [resized(path) for path in sorted(folder.glob("*.png"))]
    for step in range(STEPS):
        parts = []
        for i in range(BATCH):
            position = step * BATCH + i
            order = torch.randperm(len(files), generator=generator_for(ORDER, position // len(files)))
            image, original = files[int(order[position % len(files)])]
            parts.append(sample_of(pipe, image, original, generator_for(SAMPLE, position)))
        latents, sizes, noise, times = zip(*parts)
        yield torch.cat(latents), torch.tensor(sizes, dtype=torch.float32), torch.cat(noise), torch.cat(times)


def loop_of_diffusers(pipe, folder, tensors):
    """The losses of the script's loop, and what its adapters are in the end."""
    parameters = add_adapters(pipe, tensors)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    ids, losses = token_ids(pipe), []
    for latents, sizes, noise, times in batches(pipe, folder):
        states, pooled = encode(pipe, *ids)
        added = {"text_embeds": pooled.repeat(BATCH, 1), "time_ids": sizes}
        noisy = scheduler.add_noise(latents, noise, times)
        predicted = pipe.unet(noisy, times, states.repeat(BATCH, 1, 1), added_cond_kwargs=added).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, [p.detach() for p in parameters]


def train(folder, start, output, *more, steps=STEPS):
    return run_ok(
        "train_dreambooth_lora_sdxl",
        "--pretrained_model_name_or_path",
        MODEL,
        "--instance_data_dir",
        folder,
        "--instance_prompt",
        PROMPT,
        "--output_dir",
        output,
        "--init_from",
        start,
        "--random_flip",
        "--resolution",
        SIDE,
        "--train_batch_size",
        BATCH,
        "--max_train_steps",
        steps,
        "--learning_rate",
        RATE,
        "--lr_scheduler",
        "constant",
        "--seed",
        SEED,
        "--device",
        "cpu",
        *more,
    )


def losses_of(output):
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def trained_values(output, tensors):
    """Our file's values in the order of diffusers' parameters."""
    file = load_file(output / "pytorch_lora_weights.safetensors")
    spelt = {}
    for name, value in file.items():
        for old, new in [
            (".lora.down.", ".lora_A."),
            (".lora.up.", ".lora_B."),
            (".lora_linear_layer.down.", ".lora_A."),
            (".lora_linear_layer.up.", ".lora_B."),
        ]:
            name = name.replace(old, new)
        spelt[name.replace("text_encoder.text_model.", "text_encoder.")] = value
    return spelt


def check_training(text_encoders):
    with scratch() as folder:
        folder = pathlib.Path(folder)
        pictures(folder / "pictures")
        pipe = pipeline()
        tensors = start_values(pipe, folder / "start.safetensors", text_encoders)
        more = ["--train_text_encoder"] if text_encoders else []
        shown = train(folder / "pictures", folder / "start.safetensors", folder / "out", *more)
        assert "text_encoder_2" not in shown or text_encoders
        losses, values = loop_of_diffusers(pipe, folder / "pictures", tensors)
        ours = losses_of(folder / "out")
        assert len(ours) == STEPS
        error = max(abs(a - b) / b for a, b in zip(ours, losses))
        own = trained_values(folder / "out", tensors)
        worst, moved = 0, 0
        for component in sorted({name.split(".")[0] for name in tensors}):
            model = getattr(pipe, component)
            for name, value in model.named_parameters():
                if not value.requires_grad:
                    continue
                key = f"{component}.{name.replace('.default', '')}"
                # The file has the scale folded in evenly: the product is what counts.
                if ".lora_A." not in key:
                    continue
                up = dict(model.named_parameters())[name.replace("lora_A", "lora_B")]
                mine = own[key.replace("lora_A", "lora_B")] @ own[key]
                theirs, before = up @ value, tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
                if torch.equal(theirs, before):
                    # The last layer of the first encoder, which nothing reads: torch skips what has no gradient,
                    # where we let its values decay.
                    assert "text_encoder.encoder.layers.2." in key, key
                    continue
                worst = max(worst, float((mine - theirs).norm() / theirs.norm()))
                moved = max(moved, float((theirs - before).norm() / before.norm()))
        print(f"text encoders {text_encoders}: losses {error:.1e}, adapters {worst:.1e}, moved by {moved:.1e}")
        assert error <= TOLERANCE, (ours, losses)
        assert worst <= TOLERANCE, worst
        assert moved > 1e-2, moved


def test_ten_steps_equal_those_of_diffusers():
    check_training(text_encoders=False)


def test_ten_steps_with_both_text_encoders_equal_those_of_diffusers():
    check_training(text_encoders=True)


def test_a_run_that_stops_and_goes_on_equals_one_that_does_not():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        pictures(folder / "pictures")
        start_values(pipeline(), folder / "start.safetensors", text_encoders=True)
        arguments = [folder / "pictures", folder / "start.safetensors"]
        more = ["--train_text_encoder", "--checkpointing_steps", 2]
        train(*arguments, folder / "whole", *more, steps=4)
        train(*arguments, folder / "parts", *more, steps=2)
        train(*arguments, folder / "parts", *more, "--resume_from_checkpoint", "latest", steps=4)
        for name in ["lightlora.safetensors", "pytorch_lora_weights.safetensors"]:
            assert (folder / "whole" / name).read_bytes() == (folder / "parts" / name).read_bytes(), name


def test_caching_and_checkpointing_change_nothing_but_rounding():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        pictures(folder / "pictures")
        start_values(pipeline(), folder / "start.safetensors", text_encoders=False)
        arguments = [folder / "pictures", folder / "start.safetensors"]
        train(*arguments, folder / "plain", "--center_crop", steps=3)
        flags = ["--cache_latents", "--gradient_checkpointing", "--pre_compute_text_embeddings"]
        train(*arguments, folder / "flags", "--center_crop", *flags, steps=3)
        for a, b in zip(losses_of(folder / "plain"), losses_of(folder / "flags")):
            assert abs(a - b) <= 1e-5 * b, (a, b)
        train(*arguments, folder / "buckets", "--enable_bucket", "--bucket_reso_steps", 8, steps=3)


def test_trained_files_draw_the_same_picture_in_diffusers():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        pictures(folder / "pictures")
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        save_file({"latents": latents}, folder / "latents.safetensors")
        run_ok(
            "train_dreambooth_lora",
            "--pretrained_model_name_or_path",
            MODEL,
            "--instance_data_dir",
            folder / "pictures",
            "--instance_prompt",
            PROMPT,
            "--output_dir",
            folder / "out",
            *["--variant", "light", "--aux_in", 12, "--aux_out", 8, "--rank", 3, "--train_text_encoder"],
            *["--learning_rate", "0.05", "--max_train_steps", 4, "--device", "cpu"],
        )
        pipe = pipeline()
        draw = lambda: numpy.round(  # noqa: E731
            pipe(PROMPT, num_inference_steps=3, latents=latents.clone(), output_type="np").images[0] * 255
        )
        base = draw()
        card = (folder / "out/README.md").read_text()
        assert "StableDiffusionXLPipeline" in card and "- stable-diffusion-xl\n" in card, card
        files = {"diffusers": folder / "out/pytorch_lora_weights.safetensors", "kohya": folder / "kohya.safetensors"}
        run_ok("convert_lora", "--input", files["diffusers"], "--output", files["kohya"], "--to", "kohya")
        for dialect, file in files.items():
            pipe.load_lora_weights(str(file.parent), weight_name=file.name)
            for model in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
                assert any(hasattr(module, "lora_A") for module in model.modules()), dialect
            there = draw()
            pipe.unload_lora_weights()
            run_ok(
                "text_to_image",
                "--pretrained_model_name_or_path",
                MODEL,
                *["--prompt", PROMPT, "--num_inference_steps", 3, "--guidance_scale", 5, "--device", "cpu"],
                *["--initial_latents", folder / "latents.safetensors", "--lora", file],
                *["--output", folder / "here.png"],
            )
            here = numpy.asarray(Image.open(folder / "here.png"), dtype=float)
            print(f"{dialect}: difference {abs(here - there).max():.2f}, effect {abs(there - base).mean():.2f} of 255")
            assert abs(here - there).max() <= 1, dialect
            assert abs(there - base).mean() > 2, "the LoRA changed too little for this test to mean anything"


main(globals())
