# SPDX-License-Identifier: Apache-2.0
"""convert_lora for FLUX, SD 3, Wan, Qwen-Image, Z-Image, LTX and Anima: deltas as diffusers' own converters make them."""

import json
import pathlib
import re

import diffusers.loaders.lora_conversion_utils as converters
import diffusers.loaders.single_file_utils as single_files
import torch
import transformer_support as lora
from safetensors.torch import load_file, save_file
from support import main, run, run_ok, scratch

FORMATS = ["diffusers", "peft", "kohya", "comfyui", "musubi", "ai-toolkit"]


def by_weights(converter, layers, extra=()):
    """What a converter of single files makes of the deltas, as if they were the weights."""

    def convert(tensors):
        pairs = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in layers}
        weights = {f"{name}.weight": up @ down for name, (down, up) in pairs.items()}
        weights |= {f"{name}.bias": torch.zeros(len(up)) for name, (_, up) in pairs.items()}
        made = converter(weights | dict(extra))
        result = {}
        for name, weight in made.items():
            if not name.endswith(".weight") or weight.dim() != 2 or not weight.any():
                continue
            layer = "transformer." + name.removesuffix(".weight")
            result |= {f"{layer}.lora_A.weight": torch.eye(weight.shape[1]), f"{layer}.lora_B.weight": weight}
        return result

    return convert


def sd3_by_weights():
    extra = {"pos_embed": torch.zeros(1, 4, lora.WIDTH), "x_embedder.proj.weight": torch.zeros(lora.WIDTH, 4, 2, 2)}
    extra["x_embedder.proj.bias"] = torch.zeros(lora.WIDTH)
    return by_weights(single_files.convert_sd3_transformer_checkpoint_to_diffusers, lora.sd3_layers(), extra.items())


def xlabs(pairs):
    """xlabs' names, of attention alone; a single block's has no feed-forward in it."""
    names = {"img_attn.qkv": "qkv_lora1", "txt_attn.qkv": "qkv_lora2", "img_attn.proj": "proj_lora1"}
    names |= {"txt_attn.proj": "proj_lora2", "linear2": "proj_lora"}
    tensors = {}
    for name, (down, up) in pairs.items():
        container, number, rest = name.split(".", 2)
        if rest == "linear1":
            rest, up = "qkv_lora", up[: 3 * down.shape[1]]
        elif rest in names:
            rest = names[rest]
        else:
            continue
        layer = f"{container}.{number}.processor.{rest}"
        tensors |= {f"{layer}.down.weight": down, f"{layer}.up.weight": up}
    return tensors


def cases():
    """Family, format, a file, and the converter that reads it."""
    flux = lora.factors(lora.flux_layers())
    yield "FLUX.1", "kohya", lora.kohya(flux), converters._convert_kohya_flux_lora_to_diffusers
    comfy = lora.dotted(flux, down=".lora_down.weight", up=".lora_up.weight")
    yield "FLUX.1", "comfyui", comfy, converters._convert_kohya_flux_lora_to_diffusers
    yield "FLUX.1", "", xlabs(flux), converters._convert_xlabs_flux_lora_to_diffusers
    sd3 = lora.factors(lora.sd3_layers())
    yield "SD 3", "bare", lora.dotted(sd3, prefix=""), sd3_by_weights()
    wan = lora.factors(lora.wan_layers())
    yield "Wan", "kohya", lora.kohya(wan), converters._convert_musubi_wan_lora_to_diffusers
    wan |= lora.factors(lora.wan_other_layers(), seed=1)
    yield "Wan", "comfyui", lora.dotted(wan), converters._convert_non_diffusers_wan_lora_to_diffusers
    qwen = lora.factors(lora.qwen_layers())
    yield "Qwen-Image", "kohya", lora.kohya(qwen), converters._convert_non_diffusers_qwen_lora_to_diffusers
    yield "Qwen-Image", "comfyui", lora.dotted(qwen), converters._convert_non_diffusers_qwen_lora_to_diffusers
    z = lora.factors(lora.z_image_layers())
    yield "Z-Image", "kohya", lora.kohya(z), converters._convert_non_diffusers_z_image_lora_to_diffusers
    z_all = z | lora.factors(lora.z_image_other_layers(), seed=1)
    z_weights = by_weights(single_files.convert_z_image_transformer_checkpoint_to_diffusers, z_all)
    yield "Z-Image", "bare", lora.dotted(z_all, prefix=""), z_weights
    ltx = lora.factors(lora.ltx_layers())
    yield "LTX", "comfyui", lora.dotted(ltx), converters._convert_non_diffusers_ltx2_lora_to_diffusers
    flux2 = lora.factors(lora.flux2_layers())
    yield "FLUX.2", "kohya", lora.kohya(flux2), converters._convert_kohya_flux2_lora_to_diffusers
    flux2 |= lora.factors(lora.flux2_other_layers(), seed=1)
    yield "FLUX.2", "comfyui", lora.dotted(flux2), converters._convert_non_diffusers_flux2_lora_to_diffusers
    flux2 |= lora.factors({"final_layer.adaLN_modulation.1": (2 * lora.WIDTH, lora.WIDTH)}, seed=2)
    flux2_weights = by_weights(single_files.convert_flux2_transformer_checkpoint_to_diffusers, flux2)
    yield "FLUX.2", "bare", lora.dotted(flux2, prefix=""), flux2_weights
    anima = lora.factors(lora.anima_layers())
    yield "Anima", "comfyui", lora.dotted(anima), converters._convert_non_diffusers_anima_lora_to_diffusers


def test_diffusers_converters_make_the_same_of_files_of_others():
    with scratch() as folder:
        for family, form, tensors, converter in cases():
            print(family, form or "xlabs", len(tensors))
            made = lora.convert(tensors, pathlib.Path(folder), "diffusers", *config(family, folder))
            lora.assert_same(made, converter(dict(tensors)))


def test_diffusers_converters_read_what_is_written_for_others():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for family, form, tensors, converter in cases():
            start = lora.convert(tensors, folder, "diffusers", *config(family, folder))
            if form in ["", "bare"]:
                continue
            made = lora.convert(start, folder, form, *config(family, folder))
            assert made.keys() == tensors.keys() | {name for name in made if name.endswith(".alpha")}, (family, form)
            lora.assert_same(converter(dict(made)), start)


def test_every_pair_of_formats_keeps_the_deltas_and_the_size():
    with scratch() as folder:
        folder, done = pathlib.Path(folder), set()
        for family, _, tensors, _ in cases():
            if family in done:
                continue
            done.add(family)
            options = config(family, folder)
            reference = lora.convert(tensors, folder, "diffusers", *options)
            original = lora.convert(tensors, folder, "comfyui", *options)
            for first in FORMATS:
                made = lora.convert(tensors, folder, first, *options)
                source = folder / f"{first}.safetensors"
                for second in FORMATS:
                    again = lora.convert(source, folder / "again", second, *options) if second != first else made
                    if second == "diffusers":
                        lora.assert_same(again, reference)
                    if second == "comfyui":
                        lora.assert_same(again, original)
                        assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in original.items()}


def test_text_encoders_travel_along():
    layers = {"double_blocks.0.img_mod.lin": (6 * 32, 32)}
    names = {
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    }
    names["lora_te3_encoder_block_1_layer_0_SelfAttention_k"] = "text_encoder_2.encoder.block.1.layer.0.SelfAttention.k"
    with scratch() as folder:
        folder = pathlib.Path(folder)
        text = lora.factors({name: (16, 16) for name in names}, seed=5)
        start = lora.kohya(lora.factors(layers), alpha=2.0) | lora.dotted(
            text, "", ".lora_down.weight", ".lora_up.weight"
        )
        made = lora.convert(start, folder, "diffusers")
        found, expected = lora.deltas(made), lora.deltas(lora.dotted(text, ""))
        assert len(found) == 3, found.keys()
        for kohya, diffusers_name in names.items():
            assert torch.equal(found[diffusers_name], expected[kohya]), kohya
        peft = lora.convert(start, folder, "peft")
        assert lora.deltas(peft).keys() == found.keys()
        lora.assert_same(lora.convert(folder / "peft.safetensors", folder, "kohya"), start)


# A layer of the transformer, and one of its text encoder under ComfyUI's and PEFT's names; of the models' classes in
# transformers 5.24 and in ComfyUI's comfy/text_encoders.
LANGUAGE_MODELS = {
    "Qwen-Image": (
        "transformer_blocks.0.img_mod.1",
        "text_encoders.qwen25_7b.transformer.model.layers.3.mlp.gate_proj",
        "text_encoder.model.language_model.layers.3.mlp.gate_proj",
    ),
    "Wan": (
        "blocks.0.cross_attn.q",
        "text_encoders.umt5xxl.transformer.encoder.block.2.layer.0.SelfAttention.q",
        "text_encoder.encoder.block.2.layer.0.SelfAttention.q",
    ),
    "Z-Image": (
        "noise_refiner.0.feed_forward.w1",
        "text_encoders.qwen3_4b.transformer.model.layers.3.self_attn.o_proj",
        "text_encoder.layers.3.self_attn.o_proj",
    ),
    "Anima": (
        "blocks.0.mlp.layer1",
        "text_encoders.qwen3_06b.transformer.model.layers.3.self_attn.q_proj",
        "text_encoder.layers.3.self_attn.q_proj",
    ),
}


def test_language_models_travel_where_a_program_reads_them():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for family, (layer, comfyui, peft) in LANGUAGE_MODELS.items():
            start = lora.dotted(lora.factors({f"diffusion_model.{layer}": (32, 24), comfyui: (16, 12)}, seed=6), "")
            made = lora.convert(start, folder, "peft")
            assert any(name.startswith(peft + ".") for name in made), (family, made.keys())
            lora.assert_same(lora.convert(folder / "peft.safetensors", folder, "comfyui"), start)
            save_file(start, folder / "start.safetensors")
            for name in ["diffusers", "musubi"]:
                printed = run_ok(
                    "convert_lora", "--input", folder / "start.safetensors", "--output", folder / "x", "--to", name
                )
                assert f"no program reads adapters of the text encoder of {family} from {name}'s" in printed, printed
                assert len(load_file(folder / "x")) == (3 if name == "musubi" else 2)
        kohya = load_file(lora_in_kohya(folder, start))
        assert "lora_te_layers_3_self_attn_q_proj.lora_down.weight" in kohya, kohya.keys()
        lora.assert_same(lora.convert(kohya, folder, "comfyui"), start)


def lora_in_kohya(folder, tensors):
    save_file(tensors, folder / "anima.safetensors")
    run_ok("convert_lora", "--input", folder / "anima.safetensors", "--output", folder / "kohya", "--to", "kohya")
    return folder / "kohya"


def test_inspect_shows_what_the_doctor_reads():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        files = {
            "FLUX": lora.kohya(lora.factors({"double_blocks.1.img_attn.qkv": (96, 32)}), alpha=2.0),
            "Z-Image": lora.dotted(lora.factors({"diffusion_model.context_refiner.0.attention.to_q": (32, 32)}), ""),
        }
        for family, tensors in files.items():
            save_file(tensors, folder / "a.safetensors")
            text = run_ok("convert_lora", "--input", folder / "a.safetensors", "--inspect")
            assert re.search(rf"^for +{family}$", text, re.M) and "*" in text, text
            shown = json.loads(run_ok("convert_lora", "--input", folder / "a.safetensors", "--inspect", "--json"))
            assert shown["families"] == [family] and shown["tensors"] == len(tensors), shown
            (layers,) = shown["components"].values()
            assert layers[0]["methods"] == ["LoRA"] and layers[0]["rank"] == 4, layers


def test_peft_s_boft_is_passed_on_under_no_other_names():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        layer = "base_model.model.blocks.0.self_attn.q"
        save_file({f"{layer}.boft_R": torch.zeros(1, 8, 4, 4), f"{layer}.boft_s": torch.ones(32, 1)}, folder / "a")
        for name in FORMATS:
            done = run("convert_lora", "--input", folder / "a", "--output", folder / "out", "--to", name)
            assert done.returncode == 1 and "BOFT of inputs, which PEFT alone has" in done.stderr, (name, done.stderr)


READERS = {"FLUX.1": "Flux", "SD 3": "SD3", "Wan": "Wan", "Qwen-Image": "QwenImage", "Z-Image": "ZImage"}
READERS |= {"LTX": "LTX2", "FLUX.2": "Flux2", "Anima": "Anima"}


def test_the_doctor_knows_whose_names_diffusers_reads():
    from diffusers.loaders import lora_pipeline

    with scratch() as folder:
        folder, seen = pathlib.Path(folder), set()
        for family, _, tensors, _ in cases():
            for form in ["kohya", "comfyui"]:
                if (family, form) in seen or (family, form) == ("Z-Image", "comfyui"):
                    continue
                seen.add((family, form))
                made = lora.convert(tensors, folder, form, *config(family, folder))
                reader = getattr(lora_pipeline, READERS[family] + "LoraLoaderMixin")
                read = reader.lora_state_dict(made)
                read = read[0] if isinstance(read, tuple) else read
                there = any(name.startswith(("transformer.", "text_conditioner.")) for name in read)
                shown = json.loads(
                    run_ok("convert_lora", "--input", folder / f"{form}.safetensors", "--doctor", "--json")
                )
                [said] = [row for row in shown["programs"] if row["program"] == "diffusers"]
                assert shown["families"] == [family.replace("FLUX.1", "FLUX")], (family, form, shown["families"])
                assert (said["loads"] > 0) == there and not said["fails"], (family, form, said, there)
                assert said["to"] == ("" if there else "diffusers"), (family, form, said)


def config(family, folder):
    """--model_config with the class that diffusers has for the family: small widths do not tell all of them apart."""
    classes = {"FLUX.1": "Flux", "SD 3": "SD3", "Wan": "Wan", "Qwen-Image": "QwenImage", "Z-Image": "ZImage"}
    classes |= {"LTX": "LTXVideo", "FLUX.2": "Flux2", "Anima": "Cosmos"}
    path = pathlib.Path(folder) / "config.json"
    kind = "3D" if family in ["Wan", "LTX", "Anima"] else "2D"
    path.write_text(f'{{"_class_name": "{classes[family]}Transformer{kind}Model"}}')
    (path.parent / "again").mkdir(exist_ok=True)
    return ["--model_config", path]


MODELS = {
    "FLUX.1": ("FluxTransformer2DModel", {"num_layers": 2, "num_single_layers": 13, "guidance_embeds": True}),
    "SD 3": ("SD3Transformer2DModel", {"num_layers": 2, "dual_attention_layers": (0,)}),
    "Wan": ("WanTransformer3DModel", {"num_layers": 2, "image_dim": 24, "added_kv_proj_dim": 32}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {"num_layers": 4}),
    "Z-Image": ("ZImageTransformer2DModel", {"n_layers": 6}),
    "LTX": ("LTX2VideoTransformer3DModel", {"num_layers": 8}),
    "FLUX.2": ("Flux2Transformer2DModel", {"num_layers": 3, "num_single_layers": 10}),
    "Anima": ("CosmosTransformer3DModel", {"num_layers": 5}),
}


def test_every_name_is_a_layer_of_diffusers_model():
    import diffusers

    with scratch() as folder:
        for family, _, tensors, _ in cases():
            name, options = MODELS[family]
            with torch.device("meta"):
                model = getattr(diffusers, name)(**options)
            layers = {layer for layer, module in model.named_modules() if hasattr(module, "weight")}
            made = lora.convert(tensors, pathlib.Path(folder), "diffusers", *config(family, folder))
            # Of LTX-2.3, whose model has them and this one's configuration has not.
            wanted = {layer.removeprefix("transformer.") for layer in lora.deltas(made) if "prompt_adaln" not in layer}
            wanted = {layer for layer in wanted if not layer.startswith("text_conditioner.")}
            assert wanted <= layers, (family, sorted(wanted - layers))


main(globals())
