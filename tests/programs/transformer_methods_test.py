# SPDX-License-Identifier: Apache-2.0
"""convert_lora for transformer models: fused layers, methods beside LoRA, what peers drop, and what has to be asked."""

import json
import pathlib

import diffusers.loaders.lora_conversion_utils as converters
import torch
import transformer_support as lora
from diffusers import (
    FluxTransformer2DModel,
    LTXVideoTransformer3DModel,
    StableDiffusion3Pipeline,
    ZImageTransformer2DModel,
)
from peft import PeftModel
from safetensors.torch import load_file
from support import main, run, run_ok, scratch

Z = "layers.5.attention"
Z_KOHYA = "lora_unet_layers_5_attention"
WIDTH = lora.WIDTH


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotations(tensors, layer):
    """LyCORIS' (4.1.3) get_r of a layer, whose alpha bounds all of its blocks together."""
    blocks, alpha = tensors[f"{layer}.oft_blocks"], tensors[f"{layer}.alpha"].item()
    skew = blocks - blocks.transpose(1, 2)
    bound = alpha * blocks.shape[0] * blocks.shape[1]
    if alpha > 0 and skew.norm() > bound:
        skew = skew * bound / skew.norm()
    one = torch.eye(blocks.shape[1])
    return (one + skew) @ torch.linalg.inv(one - skew)


def refused(expected, tensors, folder, *arguments):
    source = lora.save(tensors, folder / "refused.safetensors")
    done = run("convert_lora", "--input", source, "--output", folder / "out.safetensors", *arguments)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    assert expected in done.stderr, (expected, done.stderr)
    assert not (folder / "out.safetensors").exists()


def test_parts_with_factors_of_their_own_stand_block_by_block():
    parts = {
        f"{Z}.{name}": (rand(2 + i, WIDTH, seed=i), rand(WIDTH, 2 + i, seed=9 + i))
        for i, name in enumerate(["to_q", "to_v"])
    }
    with scratch() as folder:
        folder = pathlib.Path(folder)
        start = lora.dotted(parts, prefix="transformer.")
        made = lora.convert(start, folder, "kohya")
        up = made[f"{Z_KOHYA}_qkv.lora_up.weight"]
        assert up.shape == (3 * WIDTH, 5), up.shape
        assert not up[:WIDTH, 2:].any() and not up[WIDTH : 2 * WIDTH].any() and not up[2 * WIDTH :, :2].any()
        again = lora.convert(folder / "kohya.safetensors", folder, "diffusers")
        assert again.keys() == start.keys() and all(torch.equal(again[name], start[name]) for name in start)


def test_parts_with_one_down_keep_it():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        start = lora.dotted(lora.factors({f"{Z}.qkv": (3 * WIDTH, WIDTH)}))
        lora.convert(start, folder, "diffusers")
        again = lora.convert(folder / "diffusers.safetensors", folder, "comfyui")
        assert again.keys() == start.keys() and all(torch.equal(again[name], start[name]) for name in start)


def test_a_single_block_without_its_feed_forward():
    block = "single_transformer_blocks.0"
    with scratch() as folder:
        folder = pathlib.Path(folder)
        start = lora.dotted({f"{block}.attn.to_k": (rand(2, WIDTH), rand(WIDTH, 2))}, prefix="transformer.")
        made = lora.convert(start, folder, "kohya")
        assert made["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (7 * WIDTH, 2)
        lora.assert_same(lora.convert(folder / "kohya.safetensors", folder, "diffusers"), start)


def parts_of(whole, tensors):
    """Rows of the delta of each part, in order, against the whole's."""
    return torch.cat([delta(tensors, f"{Z_KOHYA}_{name}") for name in ["to_q", "to_k", "to_v"]]) - whole


def delta(tensors, layer):
    def part(name):
        return tensors[f"{layer}.{name}"].double()

    if f"{layer}.hada_w1_a" in tensors:
        rank = len(part("hada_w1_b"))
        product = (part("hada_w1_a") @ part("hada_w1_b")) * (part("hada_w2_a") @ part("hada_w2_b"))
        return product * (part("alpha") / rank if f"{layer}.alpha" in tensors else 1)
    return torch.kron(part("lokr_w1"), part("lokr_w2"))


METHODS = {
    "LoHa": {"hada_w1_a": (96, 2), "hada_w1_b": (2, WIDTH), "hada_w2_a": (96, 2), "hada_w2_b": (2, WIDTH)},
    "LoKr": {"lokr_w1": (6, 4), "lokr_w2": (16, 8)},
}


def test_loha_and_lokr_are_cut_and_put_together():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for method, shapes in METHODS.items():
            start = {f"{Z_KOHYA}_qkv.{name}": rand(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
            if method == "LoHa":
                start[f"{Z_KOHYA}_qkv.alpha"] = torch.tensor(3.0)
            whole = delta(start, f"{Z_KOHYA}_qkv")
            parts = lora.convert(start, folder, "musubi")
            assert parts_of(whole, parts).norm() <= 1e-6 * whole.norm(), method
            again = lora.convert(folder / "musubi.safetensors", folder, "kohya")
            assert again.keys() == start.keys() and all(torch.equal(again[name], start[name]) for name in start), method
            plain = lora.convert(start, folder, "diffusers", "--rank", WIDTH)
            cut = [
                plain[f"transformer.{Z}.to_{x}.lora_B.weight"].double()
                @ plain[f"transformer.{Z}.to_{x}.lora_A.weight"].double()
                for x in "qkv"
            ]
            assert (torch.cat(cut) - whole).norm() <= 1e-5 * whole.norm(), method
        loha = {f"{Z_KOHYA}_qkv.{name}": rand(*shape) for name, shape in METHODS["LoHa"].items()}
        refused("--rank R", loha, folder, "--to", "diffusers")


def test_other_methods():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        dora = lora.kohya({f"{Z}.qkv": (rand(2, WIDTH), rand(96, 2))}) | {f"{Z_KOHYA}_qkv.dora_scale": rand(96, 1)}
        made = lora.convert(dora, folder, "diffusers")
        assert torch.equal(
            made[f"transformer.{Z}.to_k.lora_magnitude_vector"], dora[f"{Z_KOHYA}_qkv.dora_scale"][32:64, 0]
        )
        again = lora.convert(folder / "diffusers.safetensors", folder, "kohya")
        assert torch.equal(again[f"{Z_KOHYA}_qkv.dora_scale"], dora[f"{Z_KOHYA}_qkv.dora_scale"])
        lora.assert_same(again, dora)

        difference = {f"{Z_KOHYA}_qkv.diff": rand(96, WIDTH)}
        made = lora.convert(difference, folder, "diffusers")
        up, down = (made[f"transformer.{Z}.to_v.lora_{side}.weight"] for side in "BA")
        assert torch.equal(up @ down, difference[f"{Z_KOHYA}_qkv.diff"][64:])

        oft = {f"{Z_KOHYA}_qkv.oft_blocks": rand(6, 16, 16), f"{Z_KOHYA}_qkv.alpha": torch.tensor(0.5)}
        made = lora.convert(oft, folder, "musubi")
        parts = [rotations(made, f"{Z_KOHYA}_to_{name}") for name in "qkv"]
        assert (torch.cat(parts) - rotations(oft, f"{Z_KOHYA}_qkv")).norm() < 1e-5
        again = lora.convert(folder / "musubi.safetensors", folder, "kohya")
        assert (rotations(again, f"{Z_KOHYA}_qkv") - torch.cat(parts)).norm() < 1e-5
        free = oft | {f"{Z_KOHYA}_qkv.alpha": torch.tensor(0.0)}
        made = lora.convert(free, folder, "musubi")
        assert torch.equal(made[f"{Z_KOHYA}_to_k.oft_blocks"], oft[f"{Z_KOHYA}_qkv.oft_blocks"][2:4])
        butterfly = {f"{Z_KOHYA}_qkv.oft_blocks": rand(2, 6, 16, 16)}
        refused("delta can be cut", butterfly, folder, "--to", "musubi")
        kept = lora.convert(butterfly, folder, "comfyui")
        assert torch.equal(kept[f"diffusion_model.{Z}.qkv.oft_blocks"], butterfly[f"{Z_KOHYA}_qkv.oft_blocks"])


def test_sizes_of_every_method_tell_families_apart():
    layer = "lora_unet_single_blocks_0_linear1"  # seven times as wide as its input in FLUX.1, nine times in FLUX.2
    with scratch() as folder:
        folder = pathlib.Path(folder)
        factors = {f"{layer}.lokr_w1": rand(7, 4), f"{layer}.lokr_w2": rand(WIDTH, WIDTH // 4)}
        made = lora.convert(factors, folder, "diffusers")
        assert "transformer.single_transformer_blocks.0.proj_mlp.lokr_w1" in made, made.keys()
        made = lora.convert({f"{layer}.diff": rand(9 * WIDTH, WIDTH)}, folder, "diffusers")
        assert "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight" in made, made.keys()


def test_biases_and_norms():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        layer = "blocks.0.self_attn.q"
        start = lora.dotted({layer: (rand(2, WIDTH), rand(WIDTH, 2))}) | {
            f"diffusion_model.{layer}.diff_b": rand(WIDTH)
        }
        made = lora.convert(start, folder, "diffusers")
        reference = converters._convert_non_diffusers_wan_lora_to_diffusers(dict(start))
        assert made.keys() == reference.keys() and all(torch.equal(made[name], reference[name]) for name in made)
        norm = start | {"diffusion_model.blocks.0.norm3.diff": rand(WIDTH)}
        again = lora.convert(norm, folder, "kohya")
        assert torch.equal(again["lora_unet_blocks_0_norm3.diff"], norm["diffusion_model.blocks.0.norm3.diff"])
        refused("has names for, got whole differences", norm, folder, "--to", "diffusers")


def test_files_are_added_up_and_cut():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        first = lora.factors({f"{Z}.qkv": (96, WIDTH)}, seed=1)
        second = lora.factors({f"{Z}.to_k": (WIDTH, WIDTH)}, rank=2, seed=2)
        lora.save(lora.kohya(first, alpha=2.0), folder / "first")
        lora.save(lora.dotted(second, prefix="transformer."), folder / "second")
        out = folder / "sum.safetensors"
        run_ok(
            "convert_lora",
            "--input",
            folder / "first",
            "--input",
            f"{folder / 'second'}:-0.5",
            "--output",
            out,
            "--to",
            "comfyui",
        )
        (down, up), (other_down, other_up) = first[f"{Z}.qkv"], second[f"{Z}.to_k"]
        expected = (up @ down) * 0.5
        expected[32:64] -= 0.5 * other_up @ other_down
        made = load_file(out)
        got = made[f"diffusion_model.{Z}.qkv.lora_B.weight"] @ made[f"diffusion_model.{Z}.qkv.lora_A.weight"]
        assert (got - expected).norm() <= 1e-5 * expected.norm()
        cut = lora.convert(folder / "first", folder, "diffusers", "--rank", 1)
        assert {len(value) for name, value in cut.items() if "lora_A" in name} == {1}


def bfl_control(width=16):
    """All layers that diffusers' converter asks for; it has the sizes of a single block built in."""
    layers = lora.flux_other_layers(width)
    for i in range(19):
        layers |= {
            name.replace(".1.", f".{i}.", 1): shape
            for name, shape in lora.flux_layers(width).items()
            if "double" in name
        }
    for i in range(38):
        block = f"single_blocks.{i}"
        layers |= {
            f"{block}.linear1": (7 * 3072, 3072),
            f"{block}.linear2": (width, 5 * width),
            f"{block}.modulation.lin": (3 * width, width),
        }
    tensors = lora.dotted(lora.factors(layers, rank=2), prefix="")
    for i in range(19):
        for stream in ["img", "txt"]:
            tensors |= {
                f"double_blocks.{i}.{stream}_attn.norm.{x}_norm.scale": rand(8, seed=i) for x in ["query", "key"]
            }
    for i in range(38):
        tensors |= {f"single_blocks.{i}.norm.{x}_norm.scale": rand(8, seed=i) for x in ["query", "key"]}
    return tensors | {"img_in.lora_B.bias": rand(width)}


def test_bfl_control_files_and_where_diffusers_exchanges_ranks():
    tensors = bfl_control()
    reference = converters._convert_bfl_flux_control_lora_to_diffusers(dict(tensors))
    with scratch() as folder:
        folder = pathlib.Path(folder)
        made = lora.convert(tensors, folder, "diffusers")
        assert made.keys() == reference.keys()
        for name in reference:
            assert ".lora_" in name or torch.equal(made[name], reference[name]), name
        swapped = "transformer.norm_out.linear"
        others = [{k: v for k, v in t.items() if not k.startswith(swapped)} for t in [made, reference]]
        lora.assert_same(*others)
        # Shift and scale are halves of the outputs; diffusers exchanges the halves of the ranks too.
        down, up = (tensors[f"final_layer.adaLN_modulation.1.lora_{side}.weight"] for side in "AB")
        right = torch.cat((up @ down).chunk(2)[::-1])
        products = [t[f"{swapped}.lora_B.weight"] @ t[f"{swapped}.lora_A.weight"] for t in [made, reference]]
        assert (products[0] - right).norm() <= 1e-6 * right.norm() < 0.1 * (products[1] - right).norm()
        again = lora.convert(folder / "diffusers.safetensors", folder, "bfl")
        assert again.keys() == tensors.keys()
        lora.assert_same(again, tensors)


def mended(tensors, folder, model=None):
    """What convert_lora makes of them for diffusers; all its layers are the model's."""
    made = lora.convert(tensors, folder, "diffusers")
    assert all(name.startswith("transformer.") for name in made), made.keys()
    if model:
        layers = {name for name, _ in model.named_modules()}
        assert {name.removeprefix("transformer.") for name in lora.deltas(made)} <= layers
    return made


def test_what_diffusers_drops_or_breaks_is_mended():
    with scratch() as folder, torch.device("meta"):
        ltx, z = LTXVideoTransformer3DModel(num_layers=1), ZImageTransformer2DModel(n_layers=6, n_refiner_layers=1)
    with scratch() as folder:
        folder = pathlib.Path(folder)
        # FLUX.1, kohya's names: layers outside of blocks lose the model's name, which the pipeline picks them by, and the last
        # ones their alpha.
        pairs = lora.factors(lora.flux_layers(16) | lora.flux_other_layers(16))
        outside = {name: pair for name, pair in pairs.items() if "blocks" not in name}
        left = converters._convert_kohya_flux_lora_to_diffusers(lora.kohya(outside))
        assert left and not any(name.startswith("transformer.") for name in left)
        made = mended(lora.kohya(outside), folder)
        right, there = lora.deltas(made)["transformer.proj_out"], lora.deltas(left)["proj_out"]
        assert torch.allclose(there, right * 4)  # alpha 1, rank 4
        # SD 3, sd-scripts' names: nothing is left for the pipeline to pick.
        tensors = lora.kohya(lora.factors(lora.sd3_layers()))
        assert not any(
            name.startswith("transformer.") for name in StableDiffusion3Pipeline.lora_state_dict(dict(tensors))
        )
        mended(tensors, folder)
        # Wan, musubi's names: a part of the attention is an error.
        tensors = lora.kohya(lora.factors({"blocks.0.self_attn.q": (WIDTH, WIDTH)}))
        try:
            converters._convert_musubi_wan_lora_to_diffusers(dict(tensors))
            raise AssertionError("diffusers reads it now")
        except KeyError:
            mended(tensors, folder)
        # LTX, ComfyUI's names: layers outside of blocks keep names that the model does not have.
        tensors = lora.dotted(
            lora.factors({"patchify_proj": (WIDTH, 16), "transformer_blocks.0.attn1.to_q": (WIDTH, WIDTH)})
        )
        assert "transformer.patchify_proj.lora_A.weight" in converters._convert_non_diffusers_ltxv_lora_to_diffusers(
            tensors
        )
        mended(tensors, folder, ltx)
        # Z-Image, the original names with lora_A: one layer stays where the model has three.
        tensors = lora.dotted(lora.factors({f"{Z}.qkv": (96, WIDTH)}))
        assert f"transformer.{Z}.qkv.lora_A.weight" in converters._convert_non_diffusers_z_image_lora_to_diffusers(
            dict(tensors)
        )
        mended(tensors, folder, z)
        # FLUX.2: shift and scale stay as they were, which diffusers' own reader of models exchanges.
        pairs = lora.factors(lora.flux2_layers() | {"final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH)})
        there = lora.deltas(converters._convert_non_diffusers_flux2_lora_to_diffusers(lora.dotted(pairs)))
        right = lora.deltas(mended(lora.dotted(pairs), folder))
        layer = "transformer.norm_out.linear"
        assert torch.allclose(torch.cat(there[layer].chunk(2)[::-1]), right[layer])


def test_peft_loads_the_folder():
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    model = FluxTransformer2DModel(
        in_channels=4, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6), **sizes
    )
    modules = dict(model.named_modules())
    layers = [
        "transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.0.proj_out",
        "proj_out",
        "single_transformer_blocks.0.attn.to_v",
    ]
    pairs = {}
    for i, name in enumerate(layers):
        out, inside = modules[name].weight.shape
        pairs[name] = (rand(2 + i % 2, inside, seed=i), rand(out, 2 + i % 2, seed=9 + i))
    with scratch() as folder:
        folder = pathlib.Path(folder)
        lora.convert(lora.dotted(pairs, prefix="transformer."), folder, "peft")
        adapted = PeftModel.from_pretrained(model, folder / "peft.safetensors" / "transformer")
        found = {
            name.removeprefix("base_model.model."): module
            for name, module in adapted.named_modules()
            if hasattr(module, "get_delta_weight")
        }
        for name, (down, up) in pairs.items():
            assert (found[name].get_delta_weight("default") - up @ down).norm() <= 1e-6 * (up @ down).norm(), name
        again = lora.convert(folder / "peft.safetensors", folder, "diffusers")
        lora.assert_same(again, lora.dotted(pairs, prefix="transformer."))


def test_what_names_and_sizes_do_not_tell_is_asked():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        tensors = lora.dotted({"transformer_blocks.0.attn.to_q": (rand(1, 3072), rand(3072, 1))}, prefix="transformer.")
        refused("FLUX.1 or Qwen-Image or FLUX.2; hint: --model_config", tensors, folder, "--to", "kohya")
        assert lora.convert(tensors, folder, "diffusers").keys() == tensors.keys()
        for name, layer in [
            ("QwenImage", "lora_unet_transformer_blocks_0_attn_to_q"),
            ("Flux", "lora_unet_double_blocks_0_img_attn_qkv"),
        ]:
            (folder / "transformer").mkdir(exist_ok=True)
            (folder / "transformer/config.json").write_text(json.dumps({"_class_name": f"{name}Transformer2DModel"}))
            made = lora.convert(tensors, folder, "kohya", "--model_config", folder)
            assert f"{layer}.alpha" in made, made.keys()
        (folder / "transformer/config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
        refused("expected _class_name of a transformer", tensors, folder, "--to", "kohya", "--model_config", folder)


def test_errors():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        whole = lora.kohya({f"{Z}.qkv": (rand(2, WIDTH), rand(96, 2))})
        up = f"{Z_KOHYA}_qkv.lora_up.weight"
        faults = [
            ({up: None}, "expected both 'down' and 'up'"),
            ({up: rand(96, 3)}, "expected one rank"),
            ({f"{Z_KOHYA}_qkv.alpha": torch.tensor(0.0)}, "an alpha other than zero"),
            ({"lora_unet_layers_5_something.lora_up.weight": rand(4, 2)}, "that are none's"),
            ({up.replace("lora_up", "lora_B"): rand(96, 2)}, "got a second one"),
        ]
        for changes, expected in faults:
            tensors = {name: tensor for name, tensor in (whole | changes).items() if tensor is not None}
            refused(expected, tensors, folder, "--to", "diffusers")
        refused("expected diffusers, peft, kohya", whole, folder, "--to", "bfl")
        sd = {
            "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": rand(2, 8),
            "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": rand(8, 2),
        }
        refused("expected a LoRA of a transformer model", sd, folder, "--to", "comfyui")
        peft = lora.dotted({f"{Z}.to_q": (rand(2, WIDTH), rand(WIDTH, 2))}, prefix="base_model.model.")
        refused("expected PEFT's adapter_config.json", peft, folder, "--to", "diffusers")


main(globals())
