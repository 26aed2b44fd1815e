# SPDX-License-Identifier: Apache-2.0
"""Makes the numbers that tests/stable_diffusion/{schedulers,pipeline}_test.cpp compare with.

Made with Python 3.11, torch 2.11.0 (CPU), diffusers 0.42.1, transformers 5.23.0:

    python tests/parity/make_pipeline.py

writes tests/parity/data/schedulers.json (timesteps, noise levels and whole trajectories of
diffusers' schedulers over a stand-in for the model) and tests/parity/data/pipeline: a folder as
`StableDiffusionPipeline.save_pretrained` writes it, with small random models (weights in fp16), the
tokenizer of tests/parity/data/tokenizer_demo, and `numbers.safetensors` with what the pipeline makes
of prompts and seeds in fp32.
"""

import json
import logging
import os
import pathlib
import shutil

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

logging.disable(logging.WARNING)
diffusers.utils.logging.disable_progress_bar()
DATA = pathlib.Path(__file__).parent / "data"

# The numbers of the Stable Diffusion 1.5 folder, which names PNDM.
SD15 = dict(
    _class_name="PNDMScheduler",
    _diffusers_version="0.6.0",
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    trained_betas=None,
    clip_sample=False,
)
SD21_V = dict(SD15, _class_name="DDIMScheduler", prediction_type="v_prediction")
ZERO_SNR = dict(SD21_V, rescale_betas_zero_snr=True, timestep_spacing="trailing")
EULER_FILE = dict(
    _class_name="EulerDiscreteScheduler",
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    interpolation_type="linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    use_karras_sigmas=False,
)
COSINE = dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=200, clip_sample_range=1.5)
TRAINED = dict(trained_betas=[0.001 * (i + 1) for i in range(50)], num_train_timesteps=50)
CONFIGS = {
    "sd15": SD15,
    "v_prediction": SD21_V,
    "zero_snr": ZERO_SNR,
    "euler_file": EULER_FILE,
    "defaults": {},
    "cosine": COSINE,
    "trained_betas": TRAINED,
    "predicts_sample": dict(SD15, prediction_type="sample", clip_sample=True),
    "linspace": dict(SD15, timestep_spacing="linspace"),
    "trailing": dict(SD15, timestep_spacing="trailing", set_alpha_to_one=True),
    "use_defaults": dict(SD15, _use_default_values=["set_alpha_to_one", "clip_sample"]),
}
CLASSES = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "dpmpp_2m_karras": DPMSolverMultistepScheduler,
    "pndm": PNDMScheduler,
    "lcm": LCMScheduler,
    "unipc": UniPCMultistepScheduler,
}
TAKES_GENERATOR = ("ddim", "ddpm", "euler_ancestral", "lcm")


def make_scheduler(name, config):
    extra = {"use_karras_sigmas": True} if name == "dpmpp_2m_karras" else {}
    return CLASSES[name].from_config(dict(config), **extra)


def stand_in(sample, timestep):
    """What takes the model's place: bounded, and different at every value and timestep."""
    return torch.sin(sample * 0.7 + float(timestep) / 500) * 0.9


def run(name, config, steps, eta=0.0, seed=3, begin=0):
    """A whole run, or one that begins in the middle with a noisy sample, as image to image does."""
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn((1, 4, 4, 5), generator=generator)
    sample = noise * scheduler.init_noise_sigma
    times = scheduler.timesteps[begin:]
    if begin:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        sample = scheduler.add_noise(torch.cos(noise * 3), noise, times[:1])
    extra = {"eta": eta} if name == "ddim" else {}
    if name in TAKES_GENERATOR:
        extra["generator"] = generator
    states = []
    for t in times:
        output = stand_in(scheduler.scale_model_input(sample, t), t)
        sample = scheduler.step(output, t, sample, **extra, return_dict=False)[0]
        states.append(sample)
    assert torch.isfinite(sample).all(), (name, config, steps)
    return {
        "scheduler": name,
        "steps": steps,
        "eta": eta,
        "seed": seed,
        "begin": begin,
        "timesteps": scheduler.timesteps.tolist(),
        "init_noise_sigma": float(scheduler.init_noise_sigma),
        "first": states[0].flatten().tolist(),
        "last": states[-1].flatten().tolist(),
    }


def cases_of(key):
    steps = 7 if key == "trained_betas" else 10
    cases = [("ddim", steps, 0.0), ("ddim", 4, 0.7), ("ddpm", steps, 0.0)]
    cases += [("lcm", 3, 0.0), ("lcm", 7, 0.0), ("unipc", steps + 1, 0.0), ("unipc", 4, 0.0)]
    if key != "predicts_sample":
        cases += [("pndm", steps, 0.0), ("pndm", 5, 0.0)]
    if key in ("predicts_sample", "cosine", "trained_betas"):
        return cases if key == "predicts_sample" else cases + [("euler", steps, 0.0)]
    cases += [("euler", steps, 0.0), ("euler_ancestral", steps, 0.0)]
    cases += [("dpmpp_2m", 20, 0.0), ("dpmpp_2m", 5, 0.0), ("dpmpp_2m_karras", steps, 0.0)]
    return cases


def make_timesteps():
    """Timesteps alone, for many numbers of steps."""
    rows = []
    for spacing in ("leading", "linspace", "trailing"):
        for offset in (0, 1):
            config = dict(SD15, timestep_spacing=spacing, steps_offset=offset)
            for n in (1, 2, 3, 7, 13, 20, 25, 30, 33, 50, 99, 100, 150, 250, 333, 499, 500, 998):
                for name in ("ddim", "euler", "dpmpp_2m", "dpmpp_2m_karras"):
                    if name != "ddim" and n > 100:
                        continue
                    scheduler = make_scheduler(name, config)
                    scheduler.set_timesteps(n)
                    times = scheduler.timesteps.tolist()
                    if len(times) != n:  # rounding in numpy.arange; we give n steps
                        continue
                    if name != "ddim" or n <= 50:
                        kept = times
                    else:
                        kept = times[:3] + times[n // 2 : n // 2 + 3] + times[-3:]
                    rows.append([name, spacing, offset, n, sum(times), kept])
    return rows


def make_schedule(config):
    scheduler = DDPMScheduler.from_config(dict(config))
    count = len(scheduler.alphas_cumprod)
    times = torch.tensor([0, 1, count // 3, count // 2, count - 2, count - 1])
    generator = torch.Generator("cpu").manual_seed(1)
    sample = torch.randn((6, 3), generator=generator)
    noise = torch.randn((6, 3), generator=generator)
    return {
        "timesteps": times.tolist(),
        "alphas_cumprod": scheduler.alphas_cumprod[times].tolist(),
        "sample": sample.tolist(),
        "noise": noise.tolist(),
        "noisy": scheduler.add_noise(sample, noise, times).tolist(),
        "velocity": scheduler.get_velocity(sample, noise, times).tolist(),
    }


def make_schedulers():
    out = {"configs": CONFIGS, "timesteps": make_timesteps(), "schedules": {}, "runs": {}}
    for key, config in CONFIGS.items():
        out["schedules"][key] = make_schedule(config)
        out["runs"][key] = [run(name, config, steps, eta) for name, steps, eta in cases_of(key)]
    karras = dict(EULER_FILE, use_karras_sigmas=True)
    out["configs"]["karras"] = karras
    out["runs"]["karras"] = [run("euler", karras, 10), run("dpmpp_2m", karras, 10)]
    for key, extra in {
        "heun": dict(solver_type="heun", final_sigmas_type="sigma_min"),
        "clipped": dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
        "first_order": dict(solver_order=1, euler_at_final=True),
    }.items():
        config = dict(EULER_FILE, **extra)
        out["configs"][key] = config
        out["runs"][key] = [run("dpmpp_2m", config, 9), run("dpmpp_2m", config, 17)]
    for key, (extra, names) in {
        "thresholding": (
            dict(thresholding=True, sample_max_value=1.3, dynamic_thresholding_ratio=0.9),
            ("ddim", "ddpm", "dpmpp_2m", "unipc", "lcm"),
        ),
        "third_order": (dict(solver_order=3), ("unipc",)),
        "first_kind": (
            dict(
                solver_order=3,
                solver_type="bh1",
                final_sigmas_type="sigma_min",
                timestep_spacing="linspace",
                prediction_type="v_prediction",
            ),
            ("unipc",),
        ),
        "unipc_karras": (dict(use_karras_sigmas=True, disable_corrector=[0, 2]), ("unipc",)),
        "lcm": (
            dict(original_inference_steps=40, timestep_scaling=3.0, clip_sample=True, clip_sample_range=1.2),
            ("lcm",),
        ),
        "runge_kutta": (
            dict(skip_prk_steps=False, timestep_spacing="linspace", prediction_type="v_prediction"),
            ("pndm",),
        ),
    }.items():
        out["configs"][key] = config = dict(SD15, **extra)
        out["runs"][key] = [run(name, config, n) for name in names for n in (9, 14)]
    out["runs"]["begins"] = [run(name, SD15, 9, begin=4) for name in CLASSES]
    out["configs"]["begins"] = SD15
    path = DATA / "schedulers.json"
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


def round_weights(model, spread):
    """Random weights that are large enough to matter, as fp16 can hold them."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                fan_in = value[0].numel()
                value.normal_(0.0, spread / fan_in**0.5)
            elif name.endswith("weight"):
                value.normal_(1.0, 0.2)
            else:
                value.normal_(0.0, 0.2)
            value.copy_(value.half())
    return model.eval()


def make_models():
    torch.manual_seed(11)
    tokenizer = CLIPTokenizer.from_pretrained(DATA / "tokenizer_demo")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 24),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.4,
    )
    return tokenizer, round_weights(text_encoder, 1.0), round_weights(unet, 0.8), round_weights(vae, 1.0)


def saved_pipeline(folder):
    """The small pipeline, in half precision in the folder and in fp32 as it is returned."""
    tokenizer, text_encoder, unet, vae = make_models()
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler.from_config(dict(SD15)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder)
    pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, numbers):
    """Pictures and latents of every way to draw."""

    def generate(key, config=None, name="ddim", **settings):
        pipe.scheduler = make_scheduler(name, config or SD15)
        if "seed" in settings:
            settings["generator"] = torch.Generator("cpu").manual_seed(settings.pop("seed"))
        numbers[key + ".latents"] = pipe(output_type="latent", **settings).images
        if "generator" in settings:
            settings["generator"].manual_seed(settings["generator"].initial_seed())
        picture = pipe(output_type="np", **settings).images
        numbers[key + ".pictures"] = torch.from_numpy(picture).permute(0, 3, 1, 2)

    generate("plain", prompt="a red apple on a blue background", num_inference_steps=6, seed=1)
    generate(
        "negative",
        prompt="a Cat, ÉCLAIR 🍎",
        negative_prompt="blurry",
        num_inference_steps=5,
        guidance_scale=4.0,
        num_images_per_prompt=3,
        height=24,
        width=16,
        seed=2**40 + 5,
    )
    generate("unguided", prompt="a dog", num_inference_steps=4, guidance_scale=1.0, seed=3)
    start = torch.randn((2, 4, 8, 12), generator=torch.Generator("cpu").manual_seed(9))
    numbers["given.initial"] = start
    generate(
        "given", prompt="a dog", num_inference_steps=4, latents=start, num_images_per_prompt=2, height=16, width=24
    )
    generate("eta", ZERO_SNR, prompt="a cat", num_inference_steps=4, seed=4, eta=0.5)
    generate("euler", EULER_FILE, "euler", prompt="a cat", num_inference_steps=5, seed=5)
    # diffusers 0.42 looks for the layer norm where transformers had it before 5.6.
    CLIPTextModel.text_model = property(lambda encoder: encoder)
    generate("clip_skip", prompt="a cat", num_inference_steps=3, seed=6, clip_skip=1)


@torch.no_grad()
def compute_parts(pipe, numbers):
    """What the text encoder and both halves of the autoencoder give."""
    tokenizer, text_encoder, vae = pipe.tokenizer, pipe.text_encoder, pipe.vae
    ids = tokenizer(["a cat", ""], padding="max_length", return_tensors="pt").input_ids
    numbers["embeds"] = text_encoder(ids).last_hidden_state
    picture = torch.rand((2, 3, 12, 16), generator=torch.Generator("cpu").manual_seed(7)) * 2 - 1
    generator = torch.Generator("cpu").manual_seed(8)
    numbers["encode.pixels"] = picture
    latents = vae.encode(picture).latent_dist.sample(generator) * vae.config.scaling_factor
    numbers["encode.latents"] = latents
    decoded = vae.decode(latents / vae.config.scaling_factor).sample
    numbers["decode.pictures"] = (decoded / 2 + 0.5).clamp(0, 1)


def make_pipeline():
    folder = DATA / "pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    pipe, numbers = saved_pipeline(folder), {}
    draw(pipe, numbers)
    compute_parts(pipe, numbers)
    for key, value in numbers.items():
        if key.endswith("latents"):
            print(key, tuple(value.shape), "std", float(value.std()), "max", float(value.abs().max()))
    path = folder / "numbers.safetensors"
    save_file({k: v.float().contiguous() for k, v in numbers.items()}, path)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(folder, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    make_schedulers()
    make_pipeline()
