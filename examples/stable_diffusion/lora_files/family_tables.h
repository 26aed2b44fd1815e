// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "lora_files/families.h"

// The tables of families.cpp. Lists of names are folded, as "a.{b,c}" for a.b and a.c; both sides of
// a pair have theirs in one order.

namespace lora_files {

/// Names of the same layers.
struct LayerPair {
  const char *original, *diffusers;
  Rows rows = Rows::same;
  double ratio = 0;
  bool alias = false;
};

inline LayerPair alike(const char* names) { return {names, names}; }

// CLIP and T5 as transformers calls them, which all others follow.
inline const std::vector<LayerPair> kClip{
    alike("text_model.encoder.layers.*.{self_attn.{q_proj,k_proj,v_proj,out_proj},mlp.{fc1,fc2}}"),
    alike("text_projection"),
    // As transformers has had them since 5.6.
    {"encoder.layers.*.{self_attn.{q_proj,k_proj,v_proj,out_proj},mlp.{fc1,fc2}}",
     "text_model.encoder.layers.*.{self_attn.{q_proj,k_proj,v_proj,out_proj},mlp.{fc1,fc2}}",
     Rows::same, 0, true}};
inline const std::vector<LayerPair> kT5{
    alike("encoder.block.*.layer.{0.SelfAttention.{q,k,v,o},1.DenseReluDense.{wi_0,wi_1,wo}}")};

// Qwen's language models as transformers calls their layers.
inline const std::vector<LayerPair> kQwen3{
    alike("layers.*.{self_attn.{q_proj,k_proj,v_proj,o_proj},mlp.{gate_proj,up_proj,down_proj}}")};
// In Qwen2.5-VL transformers has had the language model beside the one of pictures since 4.52.
inline const std::vector<LayerPair> kQwenVL{
    {"model.layers.*.{self_attn.{q_proj,k_proj,v_proj,o_proj},mlp.{gate_proj,up_proj,down_proj}}",
     "model.language_model.layers.*.{self_attn.{q_proj,k_proj,v_proj,o_proj},mlp.{gate_proj,up_"
     "proj,"
     "down_proj}}"}};

// _convert_kohya_flux_lora_to_diffusers; the last three are _convert_xlabs_flux_lora_to_diffusers,
// the norms _convert_bfl_flux_control_lora_to_diffusers.
inline const std::vector<LayerPair> kFlux1{
    {"double_blocks.*.img_attn.qkv", "transformer_blocks.*.attn.{to_q,to_k,to_v}",
     Rows::equal_parts},
    {"double_blocks.*.txt_attn.qkv", "transformer_blocks.*.attn.{add_q_proj,add_k_proj,add_v_proj}",
     Rows::equal_parts},
    {"double_blocks.*.{img_attn.proj,txt_attn.proj,img_mlp.2,txt_mlp.2,img_mod.lin,txt_mod.lin}",
     "transformer_blocks.*.{attn.{to_out.0,to_add_out},ff.net.2,ff_context.net.2,norm1.linear,"
     "norm1_context.linear}"},
    {"double_blocks.*.{img_mlp.0,txt_mlp.0}",
     "transformer_blocks.*.{ff.net.0.proj,ff_context.net.0.proj}", Rows::same, 4},
    {"double_blocks.*.{img_attn.norm.{query_norm.scale,key_norm.scale},txt_attn.norm.{query_norm."
     "scale,key_norm.scale}}",
     "transformer_blocks.*.attn.{norm_q.weight,norm_k.weight,norm_added_q.weight,norm_added_k."
     "weight}"},
    {"single_blocks.*.linear1", "single_transformer_blocks.*.{attn.{to_q,to_k,to_v},proj_mlp}",
     Rows::qkv_mlp, 7},
    {"single_blocks.*.{linear2,modulation.lin}",
     "single_transformer_blocks.*.{proj_out,norm.linear}"},
    {"single_blocks.*.norm.{query_norm.scale,key_norm.scale}",
     "single_transformer_blocks.*.attn.{norm_q.weight,norm_k.weight}"},
    {"{guidance_in.{in_layer,out_layer},time_in.{in_layer,out_layer},vector_in.{in_layer,out_"
     "layer}}",
     "time_text_embed.{guidance_embedder.{linear_1,linear_2},timestep_embedder.{linear_1,linear_2}"
     ",text_embedder.{linear_1,linear_2}}"},
    {"{img_in,txt_in,final_layer.linear}", "{x_embedder,context_embedder,proj_out}"},
    {"final_layer.adaLN_modulation.1", "norm_out.linear", Rows::halves},
    {"double_blocks.*.processor.qkv_lora1", "transformer_blocks.*.attn.{to_q,to_k,to_v}",
     Rows::equal_parts, 0, true},
    {"double_blocks.*.processor.qkv_lora2",
     "transformer_blocks.*.attn.{add_q_proj,add_k_proj,add_v_proj}", Rows::equal_parts, 0, true},
    {"double_blocks.*.processor.{proj_lora1,proj_lora2}",
     "transformer_blocks.*.attn.{to_out.0,to_add_out}", Rows::same, 0, true},
    {"single_blocks.*.processor.qkv_lora", "single_transformer_blocks.*.attn.{to_q,to_k,to_v}",
     Rows::equal_parts, 0, true},
    {"single_blocks.*.processor.proj_lora", "single_transformer_blocks.*.proj_out", Rows::same, 0,
     true},
};

// convert_sd3_transformer_checkpoint_to_diffusers; sd-scripts trains the original model.
inline const std::vector<LayerPair> kSd3{
    {"joint_blocks.*.x_block.attn.qkv", "transformer_blocks.*.attn.{to_q,to_k,to_v}",
     Rows::equal_parts},
    {"joint_blocks.*.context_block.attn.qkv",
     "transformer_blocks.*.attn.{add_q_proj,add_k_proj,add_v_proj}", Rows::equal_parts},
    {"joint_blocks.*.x_block.attn2.qkv", "transformer_blocks.*.attn2.{to_q,to_k,to_v}",
     Rows::equal_parts},
    {"joint_blocks.*.x_block.{attn.proj,attn2.proj,mlp.{fc1,fc2},adaLN_modulation.1,attn.{ln_q,ln_"
     "k},attn2.{ln_q,ln_k}}",
     "transformer_blocks.*.{attn.to_out.0,attn2.to_out.0,ff.net.{0.proj,2},norm1.linear,attn.{norm_"
     "q,norm_k},attn2.{norm_q,norm_k}}"},
    {"joint_blocks.*.context_block.{attn.{proj,ln_q,ln_k},mlp.{fc1,fc2}}",
     "transformer_blocks.*.{attn.{to_add_out,norm_added_q,norm_added_k},ff_context.net.{0.proj,2}"
     "}"},
    {"joint_blocks.*.context_block.adaLN_modulation.1", "transformer_blocks.*.norm1_context.linear",
     Rows::last_halves},
    {"{x_embedder.proj,context_embedder,t_embedder.mlp.{0,2},y_embedder.mlp.{0,2},final_layer."
     "linear}",
     "{pos_embed.proj,context_embedder,time_text_embed.{timestep_embedder.{linear_1,linear_2},text_"
     "embedder.{linear_1,linear_2}},proj_out}"},
    {"final_layer.adaLN_modulation.1", "norm_out.linear", Rows::halves},
};

// _convert_non_diffusers_wan_lora_to_diffusers, _convert_musubi_wan_lora_to_diffusers; the norms and
// VACE: convert_wan_transformer_to_diffusers.
inline const std::vector<LayerPair> kWan{
    {"blocks.*.{self_attn.{q,k,v,o,norm_q,norm_k},ffn.{0,2},norm3}",
     "blocks.*.{attn1.{to_q,to_k,to_v,to_out.0,norm_q,norm_k},ffn.net.{0.proj,2},norm2}"},
    {"blocks.*.cross_attn.{q,k,v,o,k_img,v_img,norm_q,norm_k,norm_k_img}",
     "blocks.*.attn2.{to_q,to_k,to_v,to_out.0,add_k_proj,add_v_proj,norm_q,norm_k,norm_added_k}"},
    {"vace_blocks.*.{self_attn.{q,k,v,o},cross_attn.{q,k,v,o},ffn.{0,2},before_proj,after_proj}",
     "vace_blocks.*.{attn1.{to_q,to_k,to_v,to_out.0},attn2.{to_q,to_k,to_v,to_out.0},ffn.net.{0."
     "proj,2},proj_in,proj_out}"},
    {"{time_embedding.{0,2},text_embedding.{0,2},time_projection.1,head.head,patch_embedding}",
     "{condition_embedder.{time_embedder.{linear_1,linear_2},text_embedder.{linear_1,linear_2},"
     "time_"
     "proj},proj_out,patch_embedding}"},
    {"img_emb.proj.{0,1,3,4}", "condition_embedder.image_embedder.{norm1,ff.net.{0.proj,2},norm2}"},
};

// _convert_non_diffusers_qwen_lora_to_diffusers: diffusers took the names over.
inline const std::vector<LayerPair> kQwenImage{
    alike("transformer_blocks.*.{attn.{to_q,to_k,to_v,to_out.0,add_q_proj,add_k_proj,add_v_proj,to_"
          "add_out,norm_q,norm_k,norm_added_q,norm_added_k},img_mlp.net.{0.proj,2},txt_mlp.net.{0."
          "proj,2},img_mod.1,txt_mod.1}"),
    alike("{img_in,txt_in,txt_norm,norm_out.linear,proj_out,time_text_embed.timestep_embedder."
          "{linear_1,linear_2}}"),
};

// _convert_non_diffusers_z_image_lora_to_diffusers,
// convert_z_image_transformer_checkpoint_to_diffusers
inline const std::vector<LayerPair> kZImage{
    {"layers.*.attention.qkv", "layers.*.attention.{to_q,to_k,to_v}", Rows::equal_parts},
    {"noise_refiner.*.attention.qkv", "noise_refiner.*.attention.{to_q,to_k,to_v}",
     Rows::equal_parts},
    {"context_refiner.*.attention.qkv", "context_refiner.*.attention.{to_q,to_k,to_v}",
     Rows::equal_parts},
    {"{layers.*.attention.{out,q_norm,k_norm},noise_refiner.*.attention.{out,q_norm,k_norm},"
     "context_"
     "refiner.*.attention.{out,q_norm,k_norm}}",
     "{layers.*.attention.{to_out.0,norm_q,norm_k},noise_refiner.*.attention.{to_out.0,norm_q,norm_"
     "k}"
     ",context_refiner.*.attention.{to_out.0,norm_q,norm_k}}"},
    alike(
        "{layers.*.{feed_forward.{w1,w2,w3},adaLN_modulation.0},noise_refiner.*.{feed_forward.{w1,"
        "w2,w3},adaLN_modulation.0},context_refiner.*.feed_forward.{w1,w2,w3}}"),
    alike(
        "{layers.*.{attention_norm1,attention_norm2,ffn_norm1,ffn_norm2},noise_refiner.*."
        "{attention_norm1,attention_norm2,ffn_norm1,ffn_norm2},context_refiner.*.{attention_norm1,"
        "attention_norm2,ffn_norm1,ffn_norm2}}"),
    alike("{cap_embedder.{0,1},t_embedder.mlp.{0,2}}"),
    {"{x_embedder,final_layer.{linear,adaLN_modulation.1}}",
     "{all_x_embedder.2-1,all_final_layer.2-1.{linear,adaLN_modulation.1}}"},
};

// _convert_non_diffusers_ltxv_lora_to_diffusers, _convert_non_diffusers_ltx2_lora_to_diffusers
inline const std::vector<LayerPair> kLtx{
    alike(
        "transformer_blocks.*.{attn1.{to_q,to_k,to_v,to_out.0},attn2.{to_q,to_k,to_v,to_out.0},ff."
        "net.{0.proj,2}}"),
    alike(
        "transformer_blocks.*.{audio_attn1.{to_q,to_k,to_v,to_out.0},audio_attn2.{to_q,to_k,to_v,to"
        "_out.0},audio_to_video_attn.{to_q,to_k,to_v,to_out.0},video_to_audio_attn.{to_q,to_k,to_v,"
        "to_out.0},audio_ff.net.{0.proj,2}}"),
    {"transformer_blocks.*.{attn1.{q_norm,k_norm},attn2.{q_norm,k_norm},audio_attn1.{q_norm,k_norm}"
     ","
     "audio_attn2.{q_norm,k_norm},audio_to_video_attn.{q_norm,k_norm},video_to_audio_attn.{q_norm,"
     "k_"
     "norm}}",
     "transformer_blocks.*.{attn1.{norm_q,norm_k},attn2.{norm_q,norm_k},audio_attn1.{norm_q,norm_k}"
     ","
     "audio_attn2.{norm_q,norm_k},audio_to_video_attn.{norm_q,norm_k},video_to_audio_attn.{norm_q,"
     "norm_k}}"},
    alike(
        "{caption_projection.{linear_1,linear_2},audio_caption_projection.{linear_1,linear_2},proj_"
        "out,audio_proj_out}"),
    {"{patchify_proj,audio_patchify_proj}", "{proj_in,audio_proj_in}"},
    {"adaln_single.{emb.timestep_embedder.{linear_1,linear_2},linear}",
     "time_embed.{emb.timestep_embedder.{linear_1,linear_2},linear}"},
    {"audio_adaln_single.{emb.timestep_embedder.{linear_1,linear_2},linear}",
     "audio_time_embed.{emb.timestep_embedder.{linear_1,linear_2},linear}"},
    {"prompt_adaln_single.{emb.timestep_embedder.{linear_1,linear_2},linear}",
     "prompt_adaln.{emb.timestep_embedder.{linear_1,linear_2},linear}"},
    {"audio_prompt_adaln_single.{emb.timestep_embedder.{linear_1,linear_2},linear}",
     "audio_prompt_adaln.{emb.timestep_embedder.{linear_1,linear_2},linear}"},
    {"av_ca_video_scale_shift_adaln_single.{emb.timestep_embedder.{linear_1,linear_2},linear}",
     "av_cross_attn_video_scale_shift.{emb.timestep_embedder.{linear_1,linear_2},linear}"},
    {"av_ca_audio_scale_shift_adaln_single.{emb.timestep_embedder.{linear_1,linear_2},linear}",
     "av_cross_attn_audio_scale_shift.{emb.timestep_embedder.{linear_1,linear_2},linear}"},
    {"av_ca_a2v_gate_adaln_single.{emb.timestep_embedder.{linear_1,linear_2},linear}",
     "av_cross_attn_video_a2v_gate.{emb.timestep_embedder.{linear_1,linear_2},linear}"},
    {"av_ca_v2a_gate_adaln_single.{emb.timestep_embedder.{linear_1,linear_2},linear}",
     "av_cross_attn_audio_v2a_gate.{emb.timestep_embedder.{linear_1,linear_2},linear}"},
};

// _convert_non_diffusers_flux2_lora_to_diffusers, _convert_kohya_flux2_lora_to_diffusers; that shift
// and scale trade places: convert_flux2_transformer_checkpoint_to_diffusers. What is one layer in a
// single block is one in diffusers too.
inline const std::vector<LayerPair> kFlux2{
    {"double_blocks.*.img_attn.qkv", "transformer_blocks.*.attn.{to_q,to_k,to_v}",
     Rows::equal_parts},
    {"double_blocks.*.txt_attn.qkv", "transformer_blocks.*.attn.{add_q_proj,add_k_proj,add_v_proj}",
     Rows::equal_parts},
    {"double_blocks.*.{img_attn.{proj,norm.{query_norm,key_norm}},txt_attn.{proj,norm.{query_norm,"
     "key_norm}},img_mlp.2,txt_mlp.2}",
     "transformer_blocks.*.{attn.{to_out.0,norm_q,norm_k,to_add_out,norm_added_q,norm_added_k},ff."
     "linear_out,ff_context.linear_out}"},
    {"double_blocks.*.{img_mlp.0,txt_mlp.0}",
     "transformer_blocks.*.{ff.linear_in,ff_context.linear_in}", Rows::same, 6},
    {"single_blocks.*.linear1", "single_transformer_blocks.*.attn.to_qkv_mlp_proj", Rows::same, 9},
    {"single_blocks.*.{linear2,norm.{query_norm,key_norm}}",
     "single_transformer_blocks.*.attn.{to_out,norm_q,norm_k}"},
    {"{img_in,txt_in,time_in.{in_layer,out_layer},guidance_in.{in_layer,out_layer},final_layer."
     "linear}",
     "{x_embedder,context_embedder,time_guidance_embed.{timestep_embedder.{linear_1,linear_2},"
     "guidance_embedder.{linear_1,linear_2}},proj_out}"},
    {"{single_stream_modulation.lin,double_stream_modulation_img.lin,double_stream_modulation_txt."
     "lin}",
     "{single_stream_modulation.linear,double_stream_modulation_img.linear,double_stream_"
     "modulation_"
     "txt.linear}"},
    {"final_layer.adaLN_modulation.1", "norm_out.linear", Rows::halves},
};

// _convert_non_diffusers_anima_lora_to_diffusers
inline const std::vector<LayerPair> kAnima{
    {"blocks.*.{self_attn.{q_proj,k_proj,v_proj,output_proj,q_norm,k_norm},cross_attn.{q_proj,k_"
     "proj,"
     "v_proj,output_proj,q_norm,k_norm},mlp.{layer1,layer2}}",
     "transformer_blocks.*.{attn1.{to_q,to_k,to_v,to_out.0,norm_q,norm_k},attn2.{to_q,to_k,to_v,to_"
     "out.0,norm_q,norm_k},ff.net.{0.proj,2}}"},
    {"blocks.*.{adaln_modulation_self_attn.{1,2},adaln_modulation_cross_attn.{1,2},adaln_"
     "modulation_"
     "mlp.{1,2}}",
     "transformer_blocks.*.{norm1.{linear_1,linear_2},norm2.{linear_1,linear_2},norm3.{linear_1,"
     "linear_2}}"},
    {"{final_layer.{adaln_modulation.{1,2},linear},t_embedder.1.{linear_1,linear_2},t_embedding_"
     "norm,"
     "x_embedder.proj.1}",
     "{norm_out.{linear_1,linear_2},proj_out,time_embed.{t_embedder.{linear_1,linear_2},norm},"
     "patch_"
     "embed.proj}"},
};
inline const std::vector<LayerPair> kAnimaText{
    alike(
        "blocks.*.{self_attn.{q_proj,k_proj,v_proj,o_proj,q_norm,k_norm},cross_attn.{q_proj,k_proj,"
        "v_proj,o_proj,q_norm,k_norm},mlp.{0,2},norm_self_attn,norm_cross_attn,norm_mlp}"),
    alike("{embed,out_proj,norm}"),
};

}  // namespace lora_files
