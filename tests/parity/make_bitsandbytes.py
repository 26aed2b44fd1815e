# SPDX-License-Identifier: Apache-2.0
"""Prints the table of tests/library/four_bit_test.cpp and writes data/bitsandbytes.safetensors: layers as bitsandbytes
0.50.2 saves them on a CPU, with the full weights that it computes with (pip install bitsandbytes)."""

import pathlib

import bitsandbytes
import safetensors.torch
import torch

KINDS = {torch.float32: "kFloat", torch.bfloat16: "kBFloat16", torch.float16: "kHalf"}


def weight(rows, columns, dtype):
    state, values = 1, []
    for _ in range(rows * columns):
        state = (state * 1103515245 + 12345) % 2**31
        values.append((state // 2**11 % 2001 - 1000) / 512)
    powers = torch.tensor([2.0 ** -(i % 5) for i in range(rows)])[:, None]
    return (torch.tensor(values).view(rows, columns).to(dtype).float() * powers).to(dtype)


def fnv(tensor):
    value = 0xCBF29CE484222325
    for byte in tensor.contiguous().flatten().view(torch.uint8).tolist():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"0x{value:016x}ULL"


def layers():
    """What is saved of a layer of each kind, and its full weight."""
    tensors = {}
    kinds = {"nf4": ("nf4", False), "nested": ("nf4", True), "fp4": ("fp4", False)}
    for name, (kind, nested) in kinds.items():
        dtype = torch.bfloat16 if name == "nested" else torch.float32
        layer = bitsandbytes.nn.Linear4bit(24, 22, compress_statistics=nested, quant_type=kind)
        layer.weight = bitsandbytes.nn.Params4bit(
            weight(22, 24, dtype), requires_grad=False, compress_statistics=nested, quant_type=kind
        )
        layer.to("cpu")
        layer.weight = layer.weight._quantize("cpu") if not layer.weight.bnb_quantized else layer.weight
        tensors |= {f"{name}.{key}": value for key, value in layer.state_dict().items()}
        state = layer.weight.quant_state
        tensors[f"{name}.dense"] = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
    q, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight(22, 24, torch.float16))
    tensors |= {"int8.weight": q, "int8.SCB": scales, "int8.weight_format": torch.tensor(0, dtype=torch.uint8)}
    tensors["int8.dense"] = bitsandbytes.functional.int8_vectorwise_dequant(q, scales)
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def main():
    data = pathlib.Path(__file__).parent / "data/bitsandbytes.safetensors"
    safetensors.torch.save_file(layers(), data)
    for rows, columns in ((3, 50), (7, 13), (260, 128)):
        for dtype, kind in KINDS.items():
            for nested in (False, True):
                if nested and rows == 260 and dtype != torch.float32:
                    continue  # the mean of so many factors depends on the order of the sum
                four, state = bitsandbytes.functional.quantize_4bit(
                    weight(rows, columns, dtype), blocksize=64, compress_statistics=nested, quant_type="nf4"
                )
                dense = bitsandbytes.functional.dequantize_4bit(four, state)
                hashes = ", ".join(fnv(tensor) for tensor in (four, state.absmax, dense))
                print(f"    {{{rows}, {columns}, torch::{kind}, {str(nested).lower()}, {hashes}}},")


if __name__ == "__main__":
    main()
