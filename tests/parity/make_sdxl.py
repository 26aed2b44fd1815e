# SPDX-License-Identifier: Apache-2.0
"""Makes the numbers that tests/stable_diffusion/sdxl_test.cpp and tests/programs/sdxl_parity_test.py compare with.

Made with Python 3.11, torch 2.11.0 (CPU), diffusers 0.42.1, transformers 5.23.0:

    python tests/parity/make_sdxl.py

writes below tests/parity/data: `unet_xl` and `unet_xl_lists` as make_models.py does; `clip_xl`, a text
encoder with a projection and what transformers computes with it in fp64; and `pipeline_xl`, a folder
as `StableDiffusionXLPipeline.save_pretrained` writes it, with small random models (weights in fp16),
`numbers.safetensors` with what the pipeline makes of prompts and seeds in fp32, and `cases.json` with
the flags that have to give the same with text_to_image. `block_xl` holds what one transformer block of
full width makes of values that a formula gives both sides.
"""

import json
import math
import shutil

import torch
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.models.attention import BasicTransformerBlock
from make_generation import LONG, parse_attention
from make_models import CROSS, DATA, PLAIN, UP_CROSS, UP_PLAIN, half_representable, randomise, record, save
from make_pipeline import make_scheduler, round_weights
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

EULER = dict(
    _class_name="EulerDiscreteScheduler",
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    interpolation_type="linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    steps_offset=1,
    timestep_spacing="leading",
    use_karras_sigmas=False,
)
ZERO_SNR = dict(EULER, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")

SHARED = dict(
    sample_size=8,
    block_out_channels=(8, 16, 24),
    down_block_types=(PLAIN, CROSS, CROSS),
    up_block_types=(UP_CROSS, UP_CROSS, UP_PLAIN),
    attention_head_dim=[1, 2, 3],
    cross_attention_dim=40,
    norm_num_groups=4,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=20 + 6 * 8,
)
UNETS = {
    "unet_xl": dict(
        config=dict(SHARED, layers_per_block=2, transformer_layers_per_block=[1, 2, 3]),
        size=(8, 4),
        modules=["add_embedding", "down_blocks.2.attentions.1", "mid_block.attentions.0"],
    ),
    # As SSD-1B: another number of blocks in each transformer, and a middle without one.
    "unet_xl_lists": dict(
        config=dict(
            SHARED,
            layers_per_block=2,
            transformer_layers_per_block=[1, [2, 1], [1, 3]],
            reverse_transformer_layers_per_block=[[3, 1, 1], [1, 2, 1], 1],
            mid_block_type="UNetMidBlock2D",
        ),
        size=(4, 8),
        modules=["up_blocks.0.attentions.0", "mid_block.resnets.0"],
    ),
}
NUMBERS, CASES = {}, {}


def make_unet(folder, config, size, modules):
    torch.manual_seed(len(folder) + sum(size))
    model = randomise(UNet2DConditionModel(**config))
    sample = half_representable(2, 4, *size).requires_grad_()
    context = half_representable(2, 7, 40).requires_grad_()
    pooled = half_representable(2, 20).requires_grad_()
    time_ids = torch.tensor([[1024, 768, 0, 16, 512, 512], [512, 640, 3, 0, 1024, 1000]], dtype=torch.float64)
    timesteps = torch.tensor([981, 37])
    numbers = {}
    hooks = record(model, modules, numbers)
    added = {"text_embeds": pooled, "time_ids": time_ids}
    output = model(sample, timesteps, context, added_cond_kwargs=added).sample
    for handle in hooks:
        handle.remove()
    weighting = half_representable(*output.shape)
    (output * weighting).sum().backward()
    numbers |= {
        "sample": sample.detach(),
        "timesteps": timesteps,
        "context": context.detach(),
        "text_embeds": pooled.detach(),
        "time_ids": time_ids,
        "output": output.detach(),
        "weighting": weighting,
        "grad.sample": sample.grad,
        "grad.context": context.grad,
        "grad.text_embeds": pooled.grad,
    }
    save(folder, model, numbers)


def scattered(number, *shape):
    """Values in [-0.5, 0.5) that look random, from integers alone."""
    mask = 0xFFFFFFFF
    x = (torch.arange(math.prod(shape)) * 2654435761 + number * 40503) & mask
    x = x ^ (x >> 15)
    x = (x * 2246822519) & mask
    x = x ^ (x >> 13)
    return ((x & 0xFFFF).double() / 65536 - 0.5).view(shape)


def make_block():
    block = BasicTransformerBlock(1280, 20, 64, cross_attention_dim=2048).double()
    parameters = dict(block.named_parameters())
    for number, name in enumerate(sorted(parameters)):
        value = scattered(number, *parameters[name].shape)
        if value.dim() > 1:
            value = value * math.sqrt(12 / value.shape[1])
        else:
            value = value * 0.2 + (1 if name.startswith("norm") and name.endswith("weight") else 0)
        parameters[name].data = value.float().double()
    x, context = scattered(100, 1, 16, 1280).float().double().requires_grad_(), scattered(101, 1, 7, 2048)
    output = block(x, encoder_hidden_states=context.float().double())
    output.square().sum().backward()
    part = lambda t: t.detach()[0, ::3, ::7].float().contiguous()  # noqa: E731
    folder = DATA / "block_xl"
    folder.mkdir(exist_ok=True)
    save_file({"output": part(output), "grad.x": part(x.grad)}, folder / "numbers.safetensors")
    (folder / "numbers.safetensors").chmod(0o644)


def second_encoder(tokenizer, layers=3, **more):
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            hidden_act="gelu",
            projection_dim=20,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=0,
            **more,
        )
    )


@torch.no_grad()
def make_clip():
    torch.manual_seed(5)
    folder = DATA / "clip_xl"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = CLIPTokenizer.from_pretrained(DATA / "tokenizer_demo", pad_token="!")
    model = randomise(second_encoder(tokenizer, layers=4, eos_token_id=tokenizer.eos_token_id))
    texts = ["a cat", "", "a red apple! on a blue background " * 9]
    ids = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    output = model(ids, output_hidden_states=True)
    numbers = {"ids": ids, "text_embeds": output.text_embeds}
    for skip in range(4):
        numbers[f"penultimate_{skip}"] = output.hidden_states[-(skip + 2)]
    model.half().save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    save_file({k: v.contiguous() for k, v in numbers.items()}, folder / "numbers.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)


def make_models():
    torch.manual_seed(12)
    tokenizer = CLIPTokenizer.from_pretrained(DATA / "tokenizer_demo")
    tokenizer_2 = CLIPTokenizer.from_pretrained(DATA / "tokenizer_demo", pad_token="!")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=77,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Published folders say 2 and mean the largest id.
    text_encoder_2 = second_encoder(tokenizer, eos_token_id=2)
    unet = UNet2DConditionModel(**SHARED, layers_per_block=1, transformer_layers_per_block=[1, 1, 2])
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.13025,
    )
    return StableDiffusionXLPipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        text_encoder=round_weights(text_encoder, 1.0),
        text_encoder_2=round_weights(text_encoder_2, 1.0),
        unet=round_weights(unet, 0.8),
        vae=round_weights(vae, 1.0),
        scheduler=make_scheduler("euler", EULER),
        add_watermarker=False,
    )


def add(key, flags, pipe, seed, config=EULER, name="euler", **settings):
    """One case: the flags for our program and the same call of diffusers."""
    # A file that says nothing of it is taken not to clip here, unlike in diffusers.
    pipe.scheduler = make_scheduler(name, dict(config, clip_sample=False))
    CASES[key] = {flag: str(value) for flag, value in flags.items()} | {"seed": str(seed)}
    if config is not EULER:
        CASES[key]["scheduler_config"] = json.dumps(config)
    generator = torch.Generator("cpu").manual_seed(seed)
    NUMBERS[key] = pipe(output_type="latent", generator=generator, **settings).images
    if isinstance(pipe, StableDiffusionXLPipeline):
        generator.manual_seed(seed)
        picture = pipe(output_type="np", generator=generator, **settings).images
        NUMBERS[key + ".pictures"] = torch.from_numpy(picture)
    print(key, tuple(NUMBERS[key].shape), float(NUMBERS[key].std()))


def draw(pipe):
    plain = dict(prompt="a red apple on a blue background", num_inference_steps=5, guidance_scale=5.0)
    add("zeros", plain, pipe, 1, **plain)
    negative = dict(plain, negative_prompt="blurry!", guidance_scale=4.0, guidance_rescale=0.7)
    add("negative", negative, pipe, 2, **negative)
    add("empty", dict(plain, negative_prompt=""), pipe, 2, **plain, negative_prompt="")
    sizes = dict(original_size=(24, 40), crops_coords_top_left=(3, 7), target_size=(32, 16))
    away = dict(negative_original_size=(8, 9), negative_crops_coords_top_left=(1, 2), negative_target_size=(10, 11))
    # For several pictures diffusers repeats the numbers of both prompts in turn, beside latents in another order.
    all_of_them = dict(plain, **sizes, **away, height=16, width=24)
    flags = {k: f"{v[0]} {v[1]}" if isinstance(v, tuple) else v for k, v in all_of_them.items()}
    add("sizes", flags, pipe, 3, **all_of_them)
    add("sizes_ddim", dict(flags, scheduler="ddim"), pipe, 3, name="ddim", **all_of_them)
    some = {k: v for k, v in flags.items() if not k.startswith("negative")} | {"num_images_per_prompt": 2}
    add("some_sizes", some, pipe, 3, **plain, **sizes, height=16, width=24, num_images_per_prompt=2)
    unguided = dict(plain, guidance_scale=1.0)
    add("unguided", unguided, pipe, 4, **unguided)
    for skip in (0, 1):
        add(f"clip_skip_{skip}", dict(plain, clip_skip=skip), pipe, 5, **plain, clip_skip=skip)
    for name in ("euler", "ddim"):
        rescaled = dict(plain, guidance_rescale=0.7)
        add(f"zero_snr_{name}", dict(rescaled, scheduler=name), pipe, 6, ZERO_SNR, name, **rescaled)
    for name in ("ddpm", "euler_ancestral", "lcm", "dpmpp_2m", "unipc"):
        add(f"text_{name}", dict(plain, scheduler=name), pipe, 2, name=name, **plain)


def limited(start, stop, steps, guidance_scale=5.0, **settings):
    """Settings with guidance in a part of the steps, which diffusers' guider chooses. The pipelines have none: here
    both prompts are computed in each step, and a scale of one, which its loop would take for no guidance, is missed by
    less than rounding."""
    guider = ClassifierFreeGuidance(guidance_scale=guidance_scale, start=start, stop=stop)

    def scale_of(step):
        guider.set_state(step=step, num_inference_steps=steps, timestep=None)
        return guidance_scale if guider._is_cfg_enabled() else 1 + 1e-9

    def between(pipe, step, _, values):
        pipe._guidance_scale = scale_of(step + 1)
        return values

    return dict(settings, guidance_scale=scale_of(0), callback_on_step_end=between)


def limit_cases(pipe):
    plain = dict(prompt="a red apple on a blue background", num_inference_steps=5)
    parts = {"middle": (0.3, 0.7), "late": (0.5, 1.0), "early": (0.0, 0.45), "none": (0.5, 0.5)}
    for key, (start, stop) in parts.items():
        flags = dict(plain, guidance_scale=5.0, guidance_start=start, guidance_end=stop)
        add(f"limits_{key}", flags, pipe, 7, **limited(start, stop, 5, **plain))
    more = dict(plain, negative_prompt="blurry!", guidance_rescale=0.7)
    flags = dict(more, guidance_scale=4.0, guidance_start=0.2, guidance_end=0.6, scheduler="ddim")
    add("limits_ddim", flags, pipe, 7, name="ddim", **limited(0.2, 0.6, 5, guidance_scale=4.0, **more))


def encode_chunks(tokenizer, encoder, prompt, at_least):
    """A1111's way with weights and long prompts for one encoder: its states, and the first chunk's pooled output."""
    room = tokenizer.model_max_length - 2
    chunks, current = [], []
    for text, weight in parse_attention(prompt) or [["", 1.0]]:
        if text is None:
            chunks.append(current)
            current = []
            continue
        for token in tokenizer(text, add_special_tokens=False).input_ids:
            if len(current) == room:
                chunks.append(current)
                current = []
            current.append((token, weight))
    if current or not chunks:
        chunks.append(current)
    chunks += [[]] * (at_least - len(chunks))
    states, pooled = [], None
    for chunk in chunks:
        padding = [(tokenizer.pad_token_id, 1.0)] * (room - len(chunk))
        row = [(tokenizer.bos_token_id, 1.0), *chunk, (tokenizer.eos_token_id, 1.0), *padding]
        output = encoder(torch.tensor([[token for token, _ in row]]), output_hidden_states=True)
        pooled = output[0] if pooled is None else pooled
        z = output.hidden_states[-2]
        weighted = z * torch.tensor([weight for _, weight in row])[None, :, None]
        states.append(weighted * (z.mean() / weighted.mean()))
    return torch.cat(states, dim=1), pooled


@torch.no_grad()
def encode_weighted(pipe, prompt, at_least=1):
    first, _ = encode_chunks(pipe.tokenizer, pipe.text_encoder, prompt, at_least)
    second, pooled = encode_chunks(pipe.tokenizer_2, pipe.text_encoder_2, prompt, at_least)
    return torch.cat([first, second], dim=-1), pooled


def weight_cases(pipe):
    prompts = {
        "weights": ("a (red:1.4) apple on [blue] ((background))", "blurry, (bad:1.3)"),
        "long": (LONG, "(" + LONG[:120] + ":0.8)"),
        "longer_negative": ("a cat BREAK a dog", LONG),
    }
    for key, (prompt, negative) in prompts.items():
        length = max(encode_weighted(pipe, text)[0].shape[1] // 77 for text in (prompt, negative))
        states, pooled = encode_weighted(pipe, prompt, length)
        away, away_pooled = encode_weighted(pipe, negative, length)
        flags = dict(prompt=prompt, negative_prompt=negative, num_inference_steps=4, guidance_scale=5.0)
        add(
            f"prompt_{key}",
            flags,
            pipe,
            5,
            num_inference_steps=4,
            prompt_embeds=states,
            negative_prompt_embeds=away,
            pooled_prompt_embeds=pooled,
            negative_pooled_prompt_embeds=away_pooled,
        )


def image_cases(pipe):
    image = Image.open(DATA / "generation/start.png").resize((36, 26))
    image.save(DATA / "pipeline_xl/start.png")
    plain = dict(prompt="a red apple", num_inference_steps=7, strength=0.6, guidance_scale=5.0)
    flags = dict(plain, image="pipeline_xl/start.png")
    for name in ("euler", "ddim"):
        add(f"image_{name}", dict(flags, scheduler=name), pipe, 2, name=name, image=image, **plain)
    # Of the steps that are taken, which are four here.
    part = dict(flags, guidance_start=0.3, guidance_end=0.8)
    add("image_limits", part, pipe, 2, image=image, **limited(0.3, 0.8, 4, **plain))


@torch.no_grad()
def encodings(pipe):
    states, _, pooled, _ = pipe.encode_prompt(["a cat", "a red apple!"], do_classifier_free_guidance=False)
    NUMBERS["embeds"], NUMBERS["pooled"] = states, pooled


def make_pipeline():
    folder = DATA / "pipeline_xl"
    shutil.rmtree(folder, ignore_errors=True)
    pipe = make_models()
    pipe.to(torch.float16).save_pretrained(folder)
    pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    encodings(pipe)
    draw(pipe)
    weight_cases(pipe)
    limit_cases(pipe)
    image_pipe = StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
    image_pipe.set_progress_bar_config(disable=True)
    image_cases(image_pipe)
    save_file({k: v.float().contiguous() for k, v in NUMBERS.items()}, folder / "numbers.safetensors")
    (folder / "cases.json").write_text(json.dumps(CASES, indent=1) + "\n")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(folder, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    for name, options in UNETS.items():
        make_unet(name, **options)
    make_block()
    make_clip()
    make_pipeline()
