# SPDX-License-Identifier: Apache-2.0
"""LoRA files of transformer models for the tests: layers by their original names, random factors, and deltas."""

import torch
from safetensors.torch import load_file, save_file
from support import run_ok

WIDTH = 32  # of a model, where diffusers' converters have no sizes of their own


def flux_layers(width=3072):
    """Original name: outputs and inputs, of one block of each kind."""
    layers = {}
    for stream in ["img", "txt"]:
        block = f"double_blocks.1.{stream}"
        layers[f"{block}_attn.qkv"] = (3 * width, width)
        layers[f"{block}_attn.proj"] = (width, width)
        layers[f"{block}_mlp.0"] = (4 * width, width)
        layers[f"{block}_mlp.2"] = (width, 4 * width)
        layers[f"{block}_mod.lin"] = (6 * width, width)
    layers["single_blocks.12.linear1"] = (7 * width, width)
    layers["single_blocks.12.linear2"] = (width, 5 * width)
    layers["single_blocks.12.modulation.lin"] = (3 * width, width)
    return layers


def flux_other_layers(width=3072):
    layers = {
        f"{name}.{side}": (width, 256) for name in ["time_in", "guidance_in"] for side in ["in_layer", "out_layer"]
    }
    layers |= {"vector_in.in_layer": (width, 768), "vector_in.out_layer": (width, width)}
    layers |= {"img_in": (width, 64), "txt_in": (width, 4096)}
    return layers | {"final_layer.linear": (64, width), "final_layer.adaLN_modulation.1": (2 * width, width)}


def sd3_layers(width=WIDTH, blocks=2):
    """All of a model with two attentions in its first block; the last has no context behind its attention."""
    layers = {"context_embedder": (width, 48), "final_layer.linear": (64, width)}
    layers |= {"final_layer.adaLN_modulation.1": (2 * width, width)}
    layers |= {f"{name}.mlp.{i}": (width, n) for name in ["t_embedder", "y_embedder"] for i, n in [(0, 40), (2, width)]}
    for i in range(blocks):
        for side in ["x_block", "context_block"]:
            block = f"joint_blocks.{i}.{side}"
            last = i == blocks - 1 and side == "context_block"
            layers[f"{block}.attn.qkv"] = (3 * width, width)
            layers[f"{block}.adaLN_modulation.1"] = ((2 if last else 6) * width, width)
            if last:
                continue
            layers[f"{block}.attn.proj"] = (width, width)
            layers |= {f"{block}.mlp.fc1": (4 * width, width), f"{block}.mlp.fc2": (width, 4 * width)}
    layers["joint_blocks.0.x_block.adaLN_modulation.1"] = (9 * width, width)
    layers |= {
        "joint_blocks.0.x_block.attn2.qkv": (3 * width, width),
        "joint_blocks.0.x_block.attn2.proj": (width, width),
    }
    return layers


def wan_layers(width=WIDTH, image=True):
    layers = {}
    for i in range(2):
        for attention in ["self_attn", "cross_attn"]:
            layers |= {f"blocks.{i}.{attention}.{name}": (width, width) for name in "qkvo"}
        if image:
            layers |= {f"blocks.{i}.cross_attn.{name}_img": (width, width) for name in "kv"}
        layers |= {f"blocks.{i}.ffn.0": (4 * width, width), f"blocks.{i}.ffn.2": (width, 4 * width)}
    return layers


def wan_other_layers(width=WIDTH):
    layers = {
        f"{name}.{i}": (width, 16 if i == 0 else width) for name in ["time_embedding", "text_embedding"] for i in [0, 2]
    }
    layers |= {"time_projection.1": (6 * width, width), "head.head": (64, width)}
    return layers | {"img_emb.proj.1": (24, 24), "img_emb.proj.3": (width, 24)}


def qwen_layers(width=WIDTH):
    block, layers = "transformer_blocks.3", {}
    for name in ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]:
        layers[f"{block}.attn.{name}"] = (width, width)
    for side in ["img", "txt"]:
        layers[f"{block}.{side}_mlp.net.0.proj"] = (4 * width, width)
        layers[f"{block}.{side}_mlp.net.2"] = (width, 4 * width)
        layers[f"{block}.{side}_mod.1"] = (6 * width, width)
    layers |= {
        "img_in": (width, 64),
        "txt_in": (width, 48),
        "proj_out": (64, width),
        "norm_out.linear": (2 * width, width),
    }
    return layers | {f"time_text_embed.timestep_embedder.linear_{i}": (width, width) for i in [1, 2]}


def z_image_layers(width=WIDTH):
    layers = {}
    for block in ["layers.5", "noise_refiner.0", "context_refiner.1"]:
        layers |= {f"{block}.attention.qkv": (3 * width, width), f"{block}.attention.out": (width, width)}
        layers |= {f"{block}.feed_forward.w{i}": (64, width) if i != 2 else (width, 64) for i in [1, 2, 3]}
        if block != "context_refiner.1":
            layers[f"{block}.adaLN_modulation.0"] = (4 * width, 16)
    return layers


def z_image_other_layers(width=WIDTH):
    layers = {
        "x_embedder": (width, 64),
        "final_layer.linear": (64, width),
        "final_layer.adaLN_modulation.1": (width, 16),
    }
    return layers | {"cap_embedder.1": (width, 40), "t_embedder.mlp.0": (24, 16), "t_embedder.mlp.2": (16, 24)}


def ltx_layers(width=WIDTH):
    block, layers = "transformer_blocks.7", {}
    for attention in ["attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"]:
        layers |= {f"{block}.{attention}.{name}": (width, width) for name in ["to_q", "to_k", "to_v", "to_out.0"]}
    for name in ["ff", "audio_ff"]:
        layers |= {f"{block}.{name}.net.0.proj": (4 * width, width), f"{block}.{name}.net.2": (width, 4 * width)}
    layers |= {"patchify_proj": (width, 16), "audio_patchify_proj": (width, 16), "proj_out": (16, width)}
    for name in ["adaln_single", "audio_adaln_single", "av_ca_video_scale_shift_adaln_single", "prompt_adaln_single"]:
        layers |= {f"{name}.linear": (6 * width, width), f"{name}.emb.timestep_embedder.linear_1": (width, 16)}
    return layers


def flux2_layers(width=WIDTH):
    layers = {}
    for stream in ["img", "txt"]:
        block = f"double_blocks.2.{stream}"
        layers |= {f"{block}_attn.qkv": (3 * width, width), f"{block}_attn.proj": (width, width)}
        layers |= {f"{block}_mlp.0": (6 * width, width), f"{block}_mlp.2": (width, 3 * width)}
    return layers | {"single_blocks.9.linear1": (9 * width, width), "single_blocks.9.linear2": (width, 4 * width)}


def flux2_other_layers(width=WIDTH):
    layers = {"img_in": (width, 16), "txt_in": (width, 48), "final_layer.linear": (16, width)}
    layers |= {
        f"{name}.{side}": (width, width) for name in ["time_in", "guidance_in"] for side in ["in_layer", "out_layer"]
    }
    return layers | {
        f"{name}.lin": (6 * width, width) for name in ["single_stream_modulation", "double_stream_modulation_img"]
    }


def anima_layers(width=WIDTH):
    block, layers = "blocks.4", {}
    for attention in ["self_attn", "cross_attn"]:
        layers |= {f"{block}.{attention}.{name}_proj": (width, width) for name in ["q", "k", "v", "output"]}
    layers |= {f"{block}.mlp.layer1": (4 * width, width), f"{block}.mlp.layer2": (width, 4 * width)}
    for name in ["self_attn", "cross_attn", "mlp"]:
        layers |= {
            f"{block}.adaln_modulation_{name}.1": (16, width),
            f"{block}.adaln_modulation_{name}.2": (3 * width, 16),
        }
    layers |= {"final_layer.adaln_modulation.1": (16, width), "final_layer.adaln_modulation.2": (2 * width, 16)}
    layers |= {
        "final_layer.linear": (64, width),
        "t_embedder.1.linear_1": (width, width),
        "x_embedder.proj.1": (width, 68),
    }
    layers |= {f"llm_adapter.blocks.0.self_attn.{name}_proj": (24, 24) for name in "qkvo"}
    return layers | {"llm_adapter.blocks.0.mlp.0": (48, 24), "llm_adapter.out_proj": (24, 24)}


def factors(layers, rank=4, seed=0):
    """Layer: down and up."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, inside, generator=random), torch.randn(out, rank, generator=random))
        for name, (out, inside) in layers.items()
    }


def dotted(pairs, prefix="diffusion_model.", down=".lora_A.weight", up=".lora_B.weight"):
    tensors = {}
    for name, pair in pairs.items():
        tensors[prefix + name + down], tensors[prefix + name + up] = pair
    return tensors


def kohya(pairs, alpha=1.0):
    """With underscores and a strength of alpha by rank."""
    tensors = {}
    for name, (down, up) in pairs.items():
        layer = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
        tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    return tensors


def deltas(tensors):
    """Layer: the delta of some of its inputs, in fp64; layers whose delta is zero are left out."""
    result = {}
    for down_end, up_end in [(".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")]:
        for name, down in tensors.items():
            if not name.endswith(down_end):
                continue
            layer = name.removesuffix(down_end)
            scale = tensors[layer + ".alpha"].item() / len(down) if layer + ".alpha" in tensors else 1
            columns = down.double()[:, :: max(1, down.shape[1] // 24)]
            delta = scale * tensors[layer + up_end].double() @ columns
            if delta.any():
                result[layer] = delta
    return result


def assert_same(one, other, tolerance=1e-6):
    """Both are tensors by name; the deltas of the same layers are equal."""
    one, other = deltas(one), deltas(other)
    assert one.keys() == other.keys() and one, (sorted(one.keys() ^ other.keys())[:6], len(one), len(other))
    for layer, delta in one.items():
        assert delta.shape == other[layer].shape, (layer, delta.shape, other[layer].shape)
        error = ((delta - other[layer]).norm() / other[layer].norm()).item()
        assert error <= tolerance, (layer, error)


def save(tensors, path, **metadata):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def convert(source, folder, to, *more):
    """What convert_lora makes of a file or of tensors."""
    if isinstance(source, dict):
        source = save(source, folder / "source.safetensors")
    target = folder / f"{to}.safetensors"
    run_ok("convert_lora", "--input", source, "--output", target, "--to", to, *more)
    if to == "peft":
        found = {}
        for file in sorted(target.glob("*/adapter_model.safetensors")):
            found |= {
                name.replace("base_model.model", file.parent.name, 1): tensor
                for name, tensor in load_file(file).items()
            }
        return found
    return load_file(target)
