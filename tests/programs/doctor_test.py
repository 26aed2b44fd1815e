# SPDX-License-Identifier: Apache-2.0
"""convert_lora --doctor: what it says of a file, and whether diffusers and PEFT really do what it says of them."""

import json
import pathlib
import shutil
import warnings

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from support import MODEL, main, run, run_ok, scratch

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
LAYERS = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_out.0", f"{BLOCK}.attn2.to_k", f"{BLOCK}.ff.net.2"]
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn"


def diagnose(path):
    return json.loads(run_ok("convert_lora", "--input", path, "--doctor", "--json"))


def verdict(diagnosis, program):
    return next(row for row in diagnosis["programs"] if row["program"] == program)


def text_of(diagnosis):
    return "\n".join(finding["what"] for finding in diagnosis["findings"])


def values(unet, layers=tuple(LAYERS), rank=2):
    """Factors of some layers, down and up."""
    result, random = {}, torch.Generator().manual_seed(4)
    for name in layers:
        out, inside = unet.get_submodule(name).weight.shape[:2]
        result[name] = [torch.randn(*shape, generator=random) for shape in [(rank, inside), (out, rank)]]
    return result


def spelled(factors, prefix, down, up, flat=False):
    tensors = {}
    for name, pair in factors.items():
        layer = prefix + (name.replace(".", "_") if flat else name)
        tensors[layer + down], tensors[layer + up] = pair
    return tensors


def kohya(factors, alpha=True):
    tensors = spelled(factors, "lora_unet_", ".lora_down.weight", ".lora_up.weight", flat=True)
    if alpha:
        tensors |= {f"lora_unet_{name.replace('.', '_')}.alpha": torch.tensor(2.0) for name in factors}
    return tensors


def cases(unet):
    """Name, tensors, and layers of the UNet that are adapted where everything is read."""
    all_of = values(unet)
    attention = {name: pair for name, pair in all_of.items() if ".to_" in name}
    rest = {name: pair for name, pair in all_of.items() if ".to_" not in name}
    today = spelled(attention, "unet.", ".lora.down.weight", ".lora.up.weight")
    peft = spelled(all_of, "unet.", ".lora_A.weight", ".lora_B.weight")
    yield "kohya", kohya(all_of)
    yield "kohya without alphas", kohya(all_of, alpha=False)
    yield "diffusers today", today
    yield "diffusers 0.25", peft
    yield "bare names", spelled(attention, "", ".lora.down.weight", ".lora.up.weight")
    yield "doubled", spelled(attention, "unet.unet.", ".lora.down.weight", ".lora.up.weight")
    yield "PEFT's names in one file", spelled(all_of, "base_model.model.", ".lora_A.weight", ".lora_B.weight")
    yield "alphas under diffusers' names", today | {f"unet.{LAYERS[0]}.alpha": torch.tensor(1.0)}
    first = spelled({LAYERS[0]: all_of[LAYERS[0]]}, "unet.", ".lora_A.weight", ".lora_B.weight")
    others = {name: pair for name, pair in attention.items() if name != LAYERS[0]}
    mixed = spelled(others, "unet.", ".lora.down.weight", ".lora.up.weight")
    yield "mixed, lora_A last", mixed | spelled(rest, "unet.", ".lora_A.weight", ".lora_B.weight")
    yield "mixed, lora_A first", first | {k: v for k, v in mixed.items() if "attn2" in k}
    layer = "lora_unet_" + LAYERS[0].replace(".", "_")
    out, inside = unet.get_submodule(LAYERS[0]).weight.shape
    loha = {f"{layer}.hada_w{i}_{s}": torch.randn(*((out, 2) if s == "a" else (2, inside))) for i in "12" for s in "ab"}
    yield "LoHa", loha | {f"{layer}.alpha": torch.tensor(2.0)}
    yield "an embedding beside it", kohya(all_of) | {"bundle_emb.dog.string_to_param.*": torch.randn(1, 8)}
    original = {"lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q": all_of[LAYERS[0]]}
    yield "original block names", spelled(original, "", ".lora_down.weight", ".lora_up.weight")


def loaded_there(pipe, path):
    """How many tensors diffusers uses; None if it fails."""
    pipe.unload_lora_weights()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    except Exception:  # whatever kind it is
        return None
    return 2 * sum(hasattr(module, "lora_A") for module in pipe.unet.modules())


def test_diffusers_does_with_each_file_what_is_said():
    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), torch_dtype=torch.float32, safety_checker=None)
    seen = set()
    with scratch() as folder:
        for name, tensors in cases(pipe.unet):
            path = pathlib.Path(folder) / "file.safetensors"
            save_file({key: value.contiguous() for key, value in tensors.items()}, path)
            diagnosis = diagnose(path)
            said, done = verdict(diagnosis, "diffusers"), loaded_there(pipe, path)
            print(f"{name}: {done} there; {said}")
            assert said["fails"] == (done is None), name
            alphas = sum(key.endswith(".alpha") for key in tensors)
            whole = said["loads"] == diagnosis["tensors"]
            assert said["loads"] - (alphas if whole else 0) == (done or 0), name
            assert whole == (said["why"] == ""), name
            seen.add("all" if whole else "error" if said["fails"] else "some" if done else "nothing")
            if said["to"] and not verdict(diagnosis, "lightlora")["fails"]:
                mended = path.with_name("mended.safetensors")
                run_ok("convert_lora", "--input", path, "--output", mended, "--to", said["to"])
                assert verdict(diagnose(mended), "diffusers")["why"] == "", name
                assert loaded_there(pipe, mended), name
    assert seen == {"all", "some", "nothing", "error"}, seen


def test_a_native_file_is_whole_here_and_refused_there():
    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), torch_dtype=torch.float32, safety_checker=None)
    with scratch() as folder:
        source, native = pathlib.Path(folder) / "source.safetensors", pathlib.Path(folder) / "native.safetensors"
        save_file(kohya(values(pipe.unet)), source)
        run_ok("convert_lora", "--input", source, "--output", native, "--to", "native")
        diagnosis = diagnose(native)
        assert diagnosis["findings"] == [] and diagnosis["trainer"] == "lightlora", diagnosis
        assert diagnosis["layers"] == len(LAYERS) and diagnosis["ranks"] == "2", diagnosis
        assert verdict(diagnosis, "lightlora")["loads"] == diagnosis["tensors"] == 2 * len(LAYERS)
        assert verdict(diagnosis, "diffusers")["fails"] and loaded_there(pipe, native) is None
        for program, to in [("diffusers", "diffusers"), ("PEFT", "peft"), ("ComfyUI", "kohya")]:
            said = verdict(diagnosis, program)
            assert said["loads"] == 0 and said["to"] == to, said


def test_peft_wants_its_folder_and_its_names():
    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), torch_dtype=torch.float32, safety_checker=None)
    with scratch() as folder:
        folder = pathlib.Path(folder)
        adapted = get_peft_model(pipe.unet, LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
        adapted.save_pretrained(folder / "peft")
        said = verdict(diagnose(folder / "peft"), "PEFT")
        assert said["why"] == "" and said["loads"] > 0, said
        shutil.copy(folder / "peft" / "adapter_model.safetensors", folder / "alone.safetensors")
        diagnosis = diagnose(folder / "alone.safetensors")
        alone = verdict(diagnosis, "PEFT")
        assert alone["fails"] and "adapter_config.json" in alone["why"], alone
        assert "PEFT's adapter_config.json is missing" in text_of(diagnosis)
        unet = adapted.unload()
        config = json.loads((folder / "peft" / "adapter_config.json").read_text())
        (folder / "peft" / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": True}))
        # Under diffusers' names PEFT takes nothing, and only warns.
        tensors = spelled(values(unet), "unet.", ".lora_A.weight", ".lora_B.weight")
        save_file(tensors, folder / "peft" / "adapter_model.safetensors")
        said = verdict(diagnose(folder / "peft"), "PEFT")
        assert said["loads"] == 0 and "warning alone" in said["why"], said
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = PeftModel.from_pretrained(unet, folder / "peft")
        assert any("missing adapter keys" in str(w.message) for w in caught)
        for name, parameter in loaded.named_parameters():
            assert "lora_B" not in name or not parameter.any(), name


def test_what_is_wrong_is_found():
    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), torch_dtype=torch.float32, safety_checker=None)
    whole = kohya(values(pipe.unet))
    down, up = ("lora_unet_" + LAYERS[0].replace(".", "_") + part for part in [".lora_down.weight", ".lora_up.weight"])
    alpha = down.replace("lora_down.weight", "alpha")
    faults = [
        ({}, ""),
        ({up: torch.zeros_like(whole[up])}, "layers that do nothing, as a factor or the alpha is zero: 1, such as"),
        ({key: torch.zeros_like(v) for key, v in whole.items() if "lora_up" in key}, "no layer does anything"),
        ({up: whole[up] * float("nan")}, "values that are not finite: 1, such as"),
        ({up: None}, "layers of which one factor is missing: 1"),
        ({up: whole[up][:, :1]}, "whose two factors differ in rank: 1"),
        ({alpha: torch.tensor(1000.0)}, "whose alpha is more than 32 times the rank: 1"),
        ({key: None for key in whole if key.endswith("alpha")}, "alphas are missing"),
        ({"model.diffusion_model.out.2.bias": torch.zeros(4)}, "tensors that are no adapter's: 1"),
        (
            {
                up.replace("lora_up", "lora.up"): torch.zeros(8, 2),
                down.replace("lora_down", "lora_A"): torch.zeros(2, 8),
            },
            "spellings are mixed",
        ),
    ]
    with scratch() as folder:
        path = pathlib.Path(folder) / "file.safetensors"
        for changes, expected in faults:
            tensors = {key: value.contiguous() for key, value in (whole | changes).items() if value is not None}
            save_file(tensors, path)
            found = text_of(diagnose(path))
            print(found)
            assert expected in found and (expected or not found), (expected, found)
        save_file({"weight": torch.zeros(3)}, path)
        assert "this is no LoRA" in text_of(diagnose(path))
        path.write_bytes(b"no tensors at all")
        done = run("convert_lora", "--input", path, "--doctor")
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr


FAMILIES = {
    "SD 1.x": {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": 768},
    "SD 2.x": {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v": 1024},
    "SDXL": {
        "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k": 2048,
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": 1280,
    },
    "FLUX": {"lora_unet_double_blocks_0_img_attn_qkv": 3072, "lora_unet_single_blocks_0_linear1": 3072},
    "SD 3": {"transformer.transformer_blocks.0.attn.add_q_proj": 1536},
    "Qwen-Image": {"transformer.transformer_blocks.0.attn.add_q_proj": 3072},
    "Wan": {"diffusion_model.blocks.0.cross_attn.q": 1536},
    "Z-Image": {"diffusion_model.noise_refiner.0.attention.to_q": 3840},
    "Anima": {"diffusion_model.blocks.0.self_attn.q_proj": 2048},
    "LTX": {"transformer.transformer_blocks.0.attn1.to_q": 2048},
}


def test_families_are_told_apart():
    with scratch() as folder:
        path = pathlib.Path(folder) / "file.safetensors"
        for family, layers in FAMILIES.items():
            tensors = {}
            for layer, width in layers.items():
                kinds = (
                    [".lora_down.weight", ".lora_up.weight"]
                    if layer.startswith("lora_")
                    else [".lora_A.weight", ".lora_B.weight"]
                )
                tensors |= {layer + kinds[0]: torch.ones(2, width), layer + kinds[1]: torch.ones(8, 2)}
            save_file(tensors, path, metadata={"ss_network_module": "networks.lora"})
            diagnosis = diagnose(path)
            assert diagnosis["families"] == [family], (family, diagnosis["families"])
            assert diagnosis["trainer"] == "sd-scripts"
            text = run_ok("convert_lora", "--input", path, "--doctor")
            assert f"for       {family}\n" in text and "lightlora " in text and "sd-scripts " in text, text
        save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 9)}, path)
        assert diagnose(path)["families"] == ["SD 1.x", "SD 2.x", "SDXL"]


main(globals())
