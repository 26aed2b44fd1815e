# SPDX-License-Identifier: Apache-2.0
"""LoRA files of diffusers and PEFT, and of kohya's kind, draw the same picture here; ours load there in full."""

import hashlib
import json
import pathlib

import numpy
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from support import LATENTS, MODEL, draw, main, run, run_ok, scratch, train

PROMPT = "a red apple on a blue background"
UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
RANK, ALPHA = 3, 6


def pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_pretrained(str(MODEL), subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture_there(pipe, latents):
    result = pipe(PROMPT, num_inference_steps=4, guidance_scale=7.5, latents=latents.clone(), output_type="np")
    return numpy.round(result.images[0] * 255)


def picture_here(folder, lora):
    draw(folder / "here.png", "--prompt", PROMPT, "--initial_latents", folder / "latents.safetensors", "--lora", lora)
    return numpy.asarray(Image.open(folder / "here.png"), dtype=float)


def randomise(model):
    """Values large enough to be seen in the picture."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)


def config(layers, **more):
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=layers, init_lora_weights="gaussian", **more)


def compare(title, here, there, base):
    error, effect = abs(here - there).mean(), abs(there - base).mean()
    print(f"{title}: mean absolute difference {error:.4f} of 255, effect of the LoRA {effect:.2f}")
    assert error <= 1.0, error
    assert effect > 2.0, "the LoRA changed too little for this test to mean anything"


def start(folder):
    latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, folder / "latents.safetensors")
    return latents


def save_with_diffusers(pipe, folder):
    """Both models' adapters as the training scripts of diffusers save them, alpha in the metadata."""
    metadata = _collate_lora_metadata({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    StableDiffusionPipeline.save_lora_weights(
        str(folder),
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.text_encoder)),
        **metadata,
    )


def kohya_file(state, path):
    """The same adapters under kohya's names, with alpha tensors, and text_model. in front as everybody writes it."""
    tensors = {}
    for key, value in state.items():
        component, layer = key.split(".", 1)
        for ending, factor in [
            (".lora.down.weight", "lora_down"),
            (".lora.up.weight", "lora_up"),
            (".lora_A.weight", "lora_down"),
            (".lora_B.weight", "lora_up"),
            (".lora_linear_layer.down.weight", "lora_down"),
            (".lora_linear_layer.up.weight", "lora_up"),
        ]:
            if layer.endswith(ending):
                name = layer[: -len(ending)]
                if component == "text_encoder" and not name.startswith("text_model."):
                    name = "text_model." + name
                flat = ("lora_unet_" if component == "unet" else "lora_te_") + name.replace(".", "_")
                tensors[f"{flat}.{factor}.weight"] = value
                tensors[f"{flat}.alpha"] = torch.tensor(ALPHA)
    assert len(tensors) * 2 == len(state) * 3
    save_file(tensors, path)


def test_diffusers_and_kohya_files_draw_the_same_picture():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = start(folder)
        pipe = pipeline()
        base = picture_there(pipe, latents)
        pipe.unet.add_adapter(config(UNET_LAYERS + ["proj_in", "conv1"]))
        pipe.text_encoder.add_adapter(config(TEXT_LAYERS))
        randomise(pipe.unet)
        randomise(pipe.text_encoder)
        there = picture_there(pipe, latents)
        save_with_diffusers(pipe, folder / "diffusers")
        saved = folder / "diffusers/pytorch_lora_weights.safetensors"
        compare("diffusers file", picture_here(folder, saved), there, base)
        kohya_file(load_file(saved), folder / "kohya.safetensors")
        compare("kohya file", picture_here(folder, folder / "kohya.safetensors"), there, base)
        torch.save(load_file(folder / "kohya.safetensors"), folder / "kohya.pt")
        compare("the same from torch.save", picture_here(folder, folder / "kohya.pt"), there, base)


def test_peft_folder_draws_the_same_picture():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = start(folder)
        pipe = pipeline()
        base = picture_there(pipe, latents)
        adapted = get_peft_model(
            pipe.unet,
            config(UNET_LAYERS, use_rslora=True, rank_pattern={"attn2.to_q": 5}, alpha_pattern={"attn1.to_k": 1}),
        )
        randomise(adapted)
        pipe.unet = adapted.base_model.model
        there = picture_there(pipe, latents)
        adapted.save_pretrained(str(folder / "peft"))
        compare("PEFT folder", picture_here(folder, folder / "peft"), there, base)
        # One folder for each model, as PEFT's DreamBooth example has them.
        adapted_text = get_peft_model(pipe.text_encoder, config(TEXT_LAYERS))
        randomise(adapted_text)
        pipe.text_encoder = adapted_text.base_model.model
        both = picture_there(pipe, latents)
        adapted.save_pretrained(str(folder / "both/unet"))
        adapted_text.save_pretrained(str(folder / "both/text_encoder"))
        compare("PEFT folders of both models", picture_here(folder, folder / "both"), both, there)


def test_dora_and_lycoris_methods_draw_the_same_picture():
    layers = UNET_LAYERS + ["proj_in", "conv1"]
    methods = {
        "DoRA": config(layers, use_dora=True),
        "LoHa": LoHaConfig(r=2, alpha=4, target_modules=layers),
        "LoKr": LoKrConfig(r=2, alpha=4, target_modules=layers, decompose_both=True, use_effective_conv2d=True),
    }
    for name, method in methods.items():
        with scratch() as folder:
            folder = pathlib.Path(folder)
            latents = start(folder)
            pipe = pipeline()
            base = picture_there(pipe, latents)
            adapted = get_peft_model(pipe.unet, method)
            torch.manual_seed(4)
            with torch.no_grad():
                for key, parameter in adapted.named_parameters():
                    if parameter.requires_grad:
                        noise = torch.randn_like(parameter)
                        parameter.mul_(1 + 0.2 * noise) if "magnitude" in key else parameter.copy_(noise * 0.3)
            pipe.unet = adapted.base_model.model
            there = picture_there(pipe, latents)
            adapted.save_pretrained(str(folder / "peft"))
            compare(f"{name} folder", picture_here(folder, folder / "peft"), there, base)
            if name != "DoRA":
                continue
            # As a file of diffusers, and ours in diffusers.
            run_ok(
                "convert_lora", "--input", folder / "peft", "--output", folder / "ours.safetensors", "--to", "diffusers"
            )
            compare("our DoRA file here", picture_here(folder, folder / "ours.safetensors"), there, base)
            fresh = pipeline()
            fresh.load_lora_weights(str(folder), weight_name="ours.safetensors")
            compare("our DoRA file there", picture_there(fresh, latents), there, base)


def lora_layers(model):
    return sum(hasattr(module, "lora_A") for module in model.modules())


def test_our_files_load_in_full():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = start(folder)
        pipe = pipeline()
        base = picture_there(pipe, latents)
        pipe.unet.add_adapter(config(UNET_LAYERS))
        pipe.text_encoder.add_adapter(config(TEXT_LAYERS))
        randomise(pipe.unet)
        randomise(pipe.text_encoder)
        expected = picture_there(pipe, latents)
        counts = lora_layers(pipe.unet), lora_layers(pipe.text_encoder)
        save_with_diffusers(pipe, folder / "diffusers")
        source = folder / "diffusers/pytorch_lora_weights.safetensors"
        for to, name in [("diffusers", "ours.safetensors"), ("kohya", "kohya.safetensors"), ("peft", "peft")]:
            extra = ["--flat_text_encoder"] if to == "peft" and not hasattr(pipe.text_encoder, "text_model") else []
            run_ok("convert_lora", "--input", source, "--output", folder / name, "--to", to, *extra)
            fresh = pipeline()
            if to == "peft":
                for part in ["unet", "text_encoder"]:
                    model = PeftModel.from_pretrained(getattr(fresh, part), str(folder / name / part))
                    setattr(fresh, part, model.base_model.model)
                    stored = json.loads((folder / name / part / "adapter_config.json").read_text())
                    assert len(stored["target_modules"]) == lora_layers(getattr(fresh, part))
            else:
                fresh.load_lora_weights(str(folder), weight_name=name)
            assert (lora_layers(fresh.unet), lora_layers(fresh.text_encoder)) == counts, to
            compare(f"our {to} file there", picture_there(fresh, latents), expected, base)


def layers_here(folder, lora):
    """The models with a LoRA of ours merged in, as diffusers' modules."""
    merged = folder / "merged.safetensors"
    run_ok(
        "text_to_image",
        "--pretrained_model_name_or_path",
        MODEL,
        "--device",
        "cpu",
        "--lora",
        lora,
        "--merge_to",
        merged,
    )
    return StableDiffusionPipeline.from_single_file(
        str(merged), config=str(MODEL), local_files_only=True, torch_dtype=torch.float32, safety_checker=None
    )


def inputs_of(layer):
    torch.manual_seed(5)
    if isinstance(layer.base_layer, torch.nn.Conv2d):
        return torch.randn(2, layer.base_layer.in_channels, 8, 8)
    return torch.randn(2, 7, layer.base_layer.in_features)


@torch.no_grad()
def compare_layers(title, there, here):
    """Every adapted layer gives the same outputs, beside what its adapter adds to them."""
    worst, count = 0, 0
    for component in ["unet", "text_encoder"]:
        for name, layer in getattr(there, component).named_modules():
            if not hasattr(layer, "lora_A"):
                continue
            x = inputs_of(layer)
            expected = layer(x)
            effect = (expected - layer.base_layer(x)).norm() / expected.norm()
            assert effect > 0.05, (name, effect)
            outputs = getattr(here, component).get_submodule(name)(x)
            worst, count = max(worst, ((outputs - expected).norm() / expected.norm()).item()), count + 1
    print(f"{title}: {count} layers, largest relative difference {worst:.1e}")
    assert count > 60 and worst <= 1e-5, (count, worst)


def test_every_layer_gives_the_same_outputs():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        pipe = pipeline()
        pipe.unet.add_adapter(config(UNET_LAYERS + ["proj_in", "conv1"]))
        pipe.text_encoder.add_adapter(config(TEXT_LAYERS))
        randomise(pipe.unet)
        randomise(pipe.text_encoder)
        save_with_diffusers(pipe, folder / "diffusers")
        saved = folder / "diffusers/pytorch_lora_weights.safetensors"
        kohya_file(load_file(saved), folder / "kohya.safetensors")
        for part in ["unet", "text_encoder"]:
            adapted = get_peft_model(getattr(pipeline(), part), getattr(pipe, part).peft_config["default"])
            weights = dict(getattr(pipe, part).named_parameters())
            with torch.no_grad():
                for name, parameter in adapted.base_model.model.named_parameters():
                    if "lora_" in name:
                        parameter.copy_(weights[name])
            adapted.save_pretrained(str(folder / "peft" / part))
        for title, file in [
            ("diffusers' file", saved),
            ("kohya file", folder / "kohya.safetensors"),
            ("PEFT's folders", folder / "peft"),
        ]:
            compare_layers(title, pipe, layers_here(folder, file))
        # The other way: what is written here, in the real programs.
        trained = folder / "trained"
        train(trained, "--train_text_encoder", "--rank", 3, "--network_alpha", 6, "--learning_rate", 0.03, steps=6)
        fresh = pipeline()
        fresh.load_lora_weights(str(trained))
        compare_layers("our trained file", fresh, layers_here(folder, trained / "lightlora.safetensors"))


def test_a_trained_text_encoder_draws_the_same_picture_there():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = start(folder)
        fresh = pipeline()
        base = picture_there(fresh, latents)
        train(folder / "out", "--train_text_encoder", "--instance_prompt", PROMPT, "--learning_rate", "3e-2", steps=8)
        here = picture_here(folder, folder / "out/lightlora.safetensors")
        fresh.load_lora_weights(str(folder / "out"))
        assert lora_layers(fresh.text_encoder) > 0
        compare("trained with its text encoder", here, picture_there(fresh, latents), base)


def sd_scripts_hashes(path):
    """What sd-scripts' precalculate_safetensors_hashes gives: of a copy that has the ss_ metadata only."""
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key.startswith("ss_")}
    copy = save(load_file(path), metadata)
    header = 8 + int.from_bytes(copy[:8], "little")
    return hashlib.sha256(copy[header:]).hexdigest(), hashlib.sha256(copy[0x100000:0x110000]).hexdigest()[:8]


def test_kohya_files_have_the_hashes_of_sd_scripts():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        layer = "unet.mid_block.attentions.0.proj_in"
        for width in [64, 12000]:  # below and above 1 MiB
            torch.manual_seed(width)
            save_file(
                {f"{layer}.lora_A.weight": torch.randn(16, width), f"{layer}.lora_B.weight": torch.randn(width, 16)},
                folder / "lora",
            )
            run_ok("convert_lora", "--input", folder / "lora", "--output", folder / "kohya", "--to", "kohya")
            with safe_open(folder / "kohya", "pt") as file:
                metadata = file.metadata()
            hashes = metadata["sshs_model_hash"], metadata["sshs_legacy_hash"]
            assert hashes == sd_scripts_hashes(folder / "kohya"), width
            assert (hashes[1] == "e3b0c442") == (width == 64), hashes


def native_file(path, down, up, **fields):
    """A file of ours for a layer "0" of a model of one's own."""
    fields = {"variant": "classic", "component": "", "layers": "0", "init": "up_zero", "scale": "1", **fields}
    sizes = {"in": down.shape[1], "out": up.shape[0], "rank": down.shape[0]}
    metadata = {f"0.{key}": str(value) for key, value in {**fields, **sizes}.items()}
    head = {"format": "lightlora", "format_version": "1", "basis_version": "1", "groups": "1"}
    save_file({"0.down": down.unsqueeze(0), "0.up": up.unsqueeze(0)}, path, {**head, **metadata})


@torch.no_grad()
def test_peft_adds_nothing_to_the_padding_row_of_an_embedding():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        torch.manual_seed(6)
        down, up = torch.randn(RANK, 5), torch.randn(4, RANK)
        native_file(folder / "native.safetensors", down, up, type="Embedding", padding_row=2)
        run_ok("convert_lora", "--input", folder / "native.safetensors", "--output", folder / "peft", "--to", "peft")
        model = torch.nn.Sequential(torch.nn.Embedding(5, 4, padding_idx=2))
        ids = torch.arange(5)
        expected = model(ids) + (up @ down).T * (ids != 2).unsqueeze(1)
        outputs = PeftModel.from_pretrained(model, str(folder / "peft"))(ids)
        assert torch.allclose(outputs, expected, atol=1e-5), (outputs, expected)


# Of a convolution of 6 channels with a 3x3 kernel; the names of the options that our native files hold of it.
CALLS = [
    ({"padding": 1, "padding_mode": "circular"}, "padding_mode"),
    ({"padding": "same", "dilation": 2}, "dilation"),
    ({"padding": (1, 0), "stride": (2, 1)}, ""),
]


@torch.no_grad()
def test_convolutions_that_peft_computes_otherwise_are_refused_and_no_others():
    for options, refused in CALLS:
        with scratch() as folder:
            folder = pathlib.Path(folder)
            torch.manual_seed(6)
            down, up = torch.randn(RANK, 54), torch.randn(8, RANK)
            model = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3, **options))
            x = torch.randn(2, 6, 9, 9)
            base = model(x)
            # The layer itself with the sum of both weights, as an adapter of ours computes.
            model[0].weight += (up @ down).view(8, 6, 3, 3)
            expected = model(x)
            model[0].weight -= (up @ down).view(8, 6, 3, 3)
            files = ["--input", folder / "native", "--output", folder / "peft", "--to", "peft"]
            native_file(folder / "native", down, up, kernel="3 3 ", **({"uncommon": refused} if refused else {}))
            done = run("convert_lora", *files)
            if refused:
                assert done.returncode != 0 and f"got one whose {refused} it does not take over" in done.stderr, done
                # Without the mark the file is written, and PEFT computes something else, as this library says.
                native_file(folder / "native", down, up, kernel="3 3 ")
                done = run("convert_lora", *files)
            assert done.returncode == 0, done
            outputs = PeftModel.from_pretrained(model, str(folder / "peft"))(x)
            error = ((outputs - expected).norm() / (expected - base).norm()).item()
            assert error > 0.1 if refused else error < 1e-5, (options, error)


main(globals())
