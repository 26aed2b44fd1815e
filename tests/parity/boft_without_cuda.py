# SPDX-License-Identifier: Apache-2.0
"""PEFT's (0.21.2) BOFT with several factors on a CPU.

Its CUDA extension does no more than set blocks along a diagonal. Where that does not compile, PEFT takes one factor, whatever its
configuration says.
"""

import types

import torch
from peft.tuners.boft import layer


def use_torch_for_boft():
    """Stands in for the extension."""

    def block_diagonals(blocks):
        return torch.stack([torch.block_diag(*factor) for factor in blocks])

    layer.get_fbd_cuda = lambda: True
    layer.FastBlockDiag = types.SimpleNamespace(apply=block_diagonals)
