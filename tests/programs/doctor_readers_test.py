# SPDX-License-Identifier: Apache-2.0
"""convert_lora --doctor for transformer models: what it says of diffusers is what diffusers' own readers do, for each family,
spelling and method; what it says of PEFT is true of every method of PEFT; and what it says to mend does."""

import json
import pathlib
import warnings

import peft
import torch
import transformer_support as lora
from diffusers.loaders import lora_pipeline
from diffusers.utils import logging
from support import main, run, run_ok, scratch

A, B, DOWN, UP = ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight"
DEFAULT = [".lora_A.default.weight", ".lora_B.default.weight"]
READERS = {"FLUX": "Flux", "SD 3": "SD3", "Wan": "Wan", "Qwen-Image": "QwenImage", "Z-Image": "ZImage"}
READERS |= {"LTX": "LTX2", "FLUX.2": "Flux2", "Anima": "Anima"}


def layers_of(family):
    """A few, among them fused ones; widths that diffusers' converters have built in are kept."""
    flux, anima = lora.flux_layers(), lora.anima_layers()
    return {
        "FLUX": {k: v for k, v in flux.items() if "single" in k or "attn" in k} | {"img_in": (3072, 64)},
        "SD 3": lora.sd3_layers(),
        "Wan": lora.wan_layers(),
        "Qwen-Image": lora.qwen_layers(),
        "Z-Image": lora.z_image_layers(),
        "LTX": lora.ltx_layers(),
        "FLUX.2": lora.flux2_layers(),
        "Anima": {k: v for k, v in anima.items() if "llm" not in k},
    }[family]


def named(pairs, prefix, endings, alpha=False, flat=False):
    tensors = {}
    for name, (down, up) in pairs.items():
        layer = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {layer + endings[0]: down, layer + endings[1]: up}
        if alpha:
            tensors[layer + ".alpha"] = torch.tensor(2.0)
    return tensors


def of_method(pairs, method, prefix, flat=False, alpha=True):
    tensors = {}
    for name, (down, up) in pairs.items():
        layer = prefix + (name.replace(".", "_") if flat else name)
        if method == "LoHa":
            tensors |= {
                f"{layer}.hada_w{i}_{side}": (up if side == "a" else down).clone() for i in "12" for side in "ab"
            }
        elif method == "LoKr":
            tensors |= {f"{layer}.lokr_w1": torch.ones(len(up) // 2, 1)}
            tensors[f"{layer}.lokr_w2"] = torch.ones(2, down.shape[1])
        if alpha:
            tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    return tensors


def forms(original, diffusers):
    """Spelling: tensors. Of each family the layers under its authors' names and under diffusers'."""
    for names, pairs in [("original", original), ("diffusers", diffusers)]:
        for alpha in [False, True]:
            for prefix in ["diffusion_model.", ""]:
                yield f"{names} {prefix}{A}", named(pairs, prefix, [A, B], alpha)
                yield f"{names} {prefix}{DOWN}", named(pairs, prefix, [DOWN, UP], alpha)
            for prefix in ["lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_"]:
                yield f"{names} {prefix}", named(pairs, prefix, [DOWN, UP], alpha, flat=True)
            yield f"{names} LoKr", of_method(pairs, "LoKr", "diffusion_model.", alpha=alpha)
        yield f"{names} default", named(pairs, "", DEFAULT)
        yield f"{names} LoHa", of_method(pairs, "LoHa", "diffusion_model.")
        yield f"{names} kohya LoHa", of_method(pairs, "LoHa", "lora_unet_", flat=True)
        yield f"{names} kohya LoKr", of_method(pairs, "LoKr", "lora_unet_", flat=True)
    first = dict(list(original.items())[:2])
    yield "a part of a block", named(first, "lora_unet_", [DOWN, UP], alpha=True, flat=True)
    lengths = {f"diffusion_model.{name}.dora_scale": torch.ones(len(up), 1) for name, (_, up) in original.items()}
    yield "DoRA", named(original, "diffusion_model.", [A, B]) | lengths
    bias = {f"diffusion_model.{name}.diff_b": torch.ones(len(up)) for name, (_, up) in original.items()}
    yield "biases", named(original, "diffusion_model.", [A, B]) | bias
    for alpha in [False, True]:
        yield f"transformer.{A}", named(diffusers, "transformer.", [A, B], alpha)
        yield f"transformer.{DOWN}", named(diffusers, "transformer.", [DOWN, UP], alpha)
        yield "transformer LoKr", of_method(diffusers, "LoKr", "transformer.", alpha=alpha)
    yield "transformer LoHa", of_method(diffusers, "LoHa", "transformer.")


def diagnoses(paths):
    """What the doctor says of each file, from one run."""
    text, result = (
        run_ok("convert_lora", *[flag for path in paths for flag in ["--input", path]], "--doctor", "--json"),
        {},
    )
    for path in paths:
        result[path], end = json.JSONDecoder().raw_decode(text := text.lstrip())
        text = text[end:]
    assert not text.strip()
    return result


def outcome_there(family, tensors, wanted):
    """Whether diffusers fails, or how much of it reaches the model's layers `wanted`, or any, at its strength."""
    reader = getattr(lora_pipeline, READERS[family] + "LoraLoaderMixin")
    try:
        read = reader.lora_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    except Exception:  # whatever kind it is
        return "error"
    state = read[0] if isinstance(read, tuple) else read
    endings = [A, DEFAULT[0], ".lokr_w1"]
    found = {name.removesuffix(ending) for name in state for ending in endings if name.endswith(ending)}
    found &= found if wanted is None else wanted
    # Of LoKr's whole factors alpha is no strength.
    strong = not any(name.endswith(".alpha") for name in state) or any(name.endswith(".lokr_w1") for name in state)
    whole = bool(found) and found == (wanted or found) and strong and not any("dora_scale" in name for name in tensors)
    whole = whole and not any(name.endswith(".diff_b") for name in state)
    return "all" if whole else "some" if found else "nothing"


def test_the_doctor_says_what_diffusers_does():
    logging.set_verbosity_error()
    wrong, seen = [], set()
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for family in READERS:
            original = lora.factors(layers_of(family), rank=2)
            config = folder / "config.json"
            kind = {"LTX": "LTXVideo", "FLUX.2": "Flux2", "Anima": "Cosmos", "FLUX": "Flux"}.get(
                family, READERS[family]
            )
            wide = "3D" if family in ["Wan", "LTX", "Anima"] else "2D"
            config.write_text(json.dumps({"_class_name": f"{kind}Transformer{wide}Model"}))
            made = lora.convert(lora.dotted(original), folder, "diffusers", "--model_config", config)
            layers = {name.removesuffix(A) for name in made if name.endswith(A)}
            pairs = {name.removeprefix("transformer."): (made[name + A], made[name + B]) for name in layers}
            files = {}
            for i, (form, tensors) in enumerate(forms(original, pairs)):
                files[lora.save(tensors, folder / f"{i}.safetensors")] = (form, tensors)
            for path, shown in diagnoses(files).items():
                form, tensors = files[path]
                if shown["families"] != [family]:
                    continue  # names and sizes that do not tell
                [said] = [row for row in shown["programs"] if row["program"] == "diffusers"]
                truth = outcome_there(family, tensors, None if "part of" in form else layers)
                claim = (
                    "error" if said["fails"] else "all" if not said["why"] else "some" if said["loads"] else "nothing"
                )
                seen.add(truth)
                if claim != truth:
                    wrong.append((family, form, f"said {claim}, is {truth}", said["why"]))
    print(*wrong, sep="\n")
    assert not wrong and seen == {"all", "some", "nothing", "error"}, (len(wrong), seen)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)


def unet():
    block = torch.nn.ModuleDict({"attn1": Attention()})
    blocks = torch.nn.ModuleDict({"transformer_blocks": torch.nn.ModuleList([block])})
    return torch.nn.ModuleDict({"mid_block": torch.nn.ModuleDict({"attentions": torch.nn.ModuleList([blocks])})})


TARGETS = {"target_modules": ["to_q", "to_k"]}
METHODS = {
    "LoRA": peft.LoraConfig(r=2, **TARGETS),
    "DoRA": peft.LoraConfig(r=2, use_dora=True, **TARGETS),
    "LoHa": peft.LoHaConfig(r=2, **TARGETS),
    "LoKr": peft.LoKrConfig(r=2, **TARGETS),
    "(IA)3": peft.IA3Config(feedforward_modules=[], **TARGETS),
    "VeRA": peft.VeraConfig(r=4, **TARGETS),
    "OFT v2": peft.OFTConfig(r=0, oft_block_size=4, **TARGETS),
    "BOFT": peft.BOFTConfig(boft_block_size=4, **TARGETS),
    "HiRA": peft.HiraConfig(r=2, **TARGETS),
    "MiSS": peft.MissConfig(r=2, **TARGETS),
    "GraLoRA": peft.GraloraConfig(r=4, alpha=4, gralora_k=2, **TARGETS),
    "AdaLoRA": peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, **TARGETS),
    "SHiRA": peft.ShiraConfig(r=2, **TARGETS),
    "RandLoRA": peft.RandLoraConfig(r=2, **TARGETS),
    "DeLoRA": peft.DeloraConfig(r=2, **TARGETS),
    "HRA": peft.HRAConfig(r=2, **TARGETS),
}


def test_every_method_of_peft_is_known_by_name_and_what_mends_it_does():
    with scratch() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = pathlib.Path(folder)
        for method, config in METHODS.items():
            model = peft.get_peft_model(unet(), config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(torch.randn(parameter.shape) * 0.1)
            path = folder / method.replace("(", "").replace(")", "").replace(" ", "")
            model.save_pretrained(path)
            shown = json.loads(run_ok("convert_lora", "--input", path, "--doctor", "--json"))
            assert method in shown["methods"], (method, shown["methods"])
            assert not shown["findings"], (method, shown["findings"])
            said = {row["program"]: row for row in shown["programs"]}
            assert said["PEFT"]["loads"] == shown["tensors"] > 0 and not said["PEFT"]["why"], (method, said["PEFT"])
            for program, row in said.items():
                if not row.get("to"):
                    continue
                out = folder / f"{path.name}-{program}"
                done = run("convert_lora", "--input", path, "--output", out, "--to", row["to"])
                assert done.returncode == 0, (method, program, done.stderr)
        # A configuration of another method than the tensors' makes PEFT take none of them.
        told = json.loads((folder / "MiSS/adapter_config.json").read_text())
        (folder / "HiRA/adapter_config.json").write_text(json.dumps(told))
        shown = json.loads(run_ok("convert_lora", "--input", folder / "HiRA", "--doctor", "--json"))
        [said] = [row for row in shown["programs"] if row["program"] == "PEFT"]
        assert said["loads"] == 0 and "HiRA" in said["why"], said


main(globals())
