# SPDX-License-Identifier: Apache-2.0
"""Prints the table of tests/library/gguf_test.cpp, from ggml's own Python package (pip install gguf)."""

import gguf
import numpy

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# Where a block has its factors in fp16.
FACTORS = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def blocks(kind, count=5):
    """Bytes of a small generator, with factors that are numbers."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    state, values = 7, bytearray()
    for i in range(size * count):
        state = (state * 1103515245 + 12345) % 2**31
        values.append(state >> 16 & 255)
        if any(i % size == at + 1 for at in FACTORS[kind]):
            values[-1] = values[-1] & 0x83 | 0x28
    return numpy.frombuffer(bytes(values), numpy.uint8)


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"0x{value:016x}ULL"


def main():
    for kind in KINDS:
        which = gguf.GGMLQuantizationType[kind]
        numbers = gguf.quants.dequantize(blocks(kind), which)
        assert numpy.isfinite(numbers).all()
        at = ", ".join(str(place) for place in FACTORS[kind])
        print(f'    {{"{kind}", {which.value}, {{{at}}}, {fnv(numbers.astype("<f4").tobytes())}}},')


if __name__ == "__main__":
    main()
