# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of LyCORIS' and PEFT's methods beside LoRA, for make_corpus.py."""


def keys(flat, layer):
    """Names of tensors that are read."""
    return [
        f"{flat}_to_q.oft_blocks",
        f"{flat}_to_q.b2.weight",
        f"{flat}_to_q.lambda_layer",
        f"{flat}_to_q.weight",
        f"{flat}_to_q.on_input",
        "lora_unet_input_blocks_1_0_in_layers_0.w_norm",
        "lora_te_text_model_final_layer_norm.b_norm",
        "lora_unet_conv_in.diff_b",
        f"base_model.model.{layer}.to_q.lora_E",
        f"base_model.model.{layer}.to_q.boft_R",
        f"base_model.model.{layer}.to_q.boft_s",
    ]


def files(flat, conv):
    """Files by name, each as the shapes of its tensors."""
    return {
        "lora_diag_oft": {f"{flat}_to_q.oft_blocks": [2, 3, 3], f"{flat}_to_q.rescale": [6, 1]},
        "lora_glora": {
            f"{conv}.a1.weight": [4, 2, 1, 1],
            f"{conv}.a2.weight": [2, 4, 1, 1],
            f"{conv}.b1.weight": [3, 2, 1, 1],
            f"{conv}.b2.weight": [2, 4, 3, 3],
        },
        "lora_ia3": {f"{flat}_to_q.weight": [3], f"{flat}_to_q.on_input": []},
        "lora_tlora": {
            f"{flat}_to_q.q_layer.weight": [2, 4],
            f"{flat}_to_q.p_layer.weight": [3, 2],
            f"{flat}_to_q.lambda_layer": [1, 2],
        },
        "lora_vectors": {
            f"{conv}.diff": [3, 4, 3, 3],
            f"{conv}.diff_b": [3],
            "lora_unet_conv_norm_out.w_norm": [4],
            "lora_unet_conv_norm_out.b_norm": [4],
        },
        "lora_boft": {f"{flat}_to_q.oft_blocks": [2, 2, 4, 4]},
        "none_oft": {f"{flat}_to_q.oft_blocks": [2, 2]},
        "none_boft": {f"{flat}_to_q.oft_blocks": [2, 2, 3, 3]},
    }
