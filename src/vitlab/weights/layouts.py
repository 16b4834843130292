"""Names and shapes of a Vision Transformer's tensors in each library: ours (timm's), then theirs, in `rules`."""

from dataclasses import replace

from vitlab.weights.rules import (
    HALVES,
    STACKED,
    TABLE,
    TOKEN,
    TRANSPOSED,
    Layout,
    Rule,
    block_layers,
    in_projection,
    jax_attention,
    jax_linear,
    jax_norm,
    weight_and_bias,
)

MASK = (r"(embeddings\.)?mask_token", "the token of masked patches in pre-training")
MAE = ((r"decoder_.*|decoder\..*", "the decoder of masked pre-training"), MASK)
PRETRAINING = (
    *MAE,
    (r"(last_layer|projection_head|dino_head|ibot_head)\..*", "a projection head of self-supervised pre-training"),
)

TIMM_LAYERS = (
    *("patch_embed.proj", "norm_pre"),
    *(f"blocks.{{i}}.{layer}" for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    *("norm", "fc_norm", "pre_logits", "head", "head_dist"),
)
TIMM_VECTORS = ("cls_token", "dist_token", "reg_token", "pos_embed", "blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma")
TIMM_RULES = (
    *(Rule(name, (name,)) for name in TIMM_VECTORS),
    *(rule for layer in TIMM_LAYERS for rule in weight_and_bias(layer, layer)),
)
TIMM = Layout(
    name="timm",
    title="timm's names (DeiT's, DINO's and MAE's too)",
    anchor="patch_embed.proj.weight",
    rules=TIMM_RULES,
    spellings=((r"\.gamma_([12])$", r".ls\1.gamma"), (r"^pre_logits\.fc\.", "pre_logits.")),
    skipped=PRETRAINING,
)
DINOV2 = Layout(
    name="dinov2",
    title="DINOv2's own code",
    anchor="patch_embed.proj.weight",
    marks=(r"mask_token", r"pos_embed", r"blocks\.(\d+\.)?0\.ls1\.gamma"),
    rules=(
        Rule("reg_token", ("register_tokens",)),
        *block_layers("blocks.{i}", gated=True, mlp_fc1="mlp.w12", mlp_fc2="mlp.w3"),
        *(rule for rule in TIMM_RULES if rule.ours != "reg_token"),
    ),
    spellings=((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),),  # blocks in chunks, for sharding
    positions="class",
    skipped=PRETRAINING,
    zeros={"mask_token": (1, "D")},
)

HF_LAYER = "encoder.layer.{i}"
HF_QKV = tuple(f"{HF_LAYER}.attention.attention.{part}" for part in ("query", "key", "value"))
HF_BODY = (
    Rule("cls_token", ("embeddings.cls_token",)),
    Rule("pos_embed", ("embeddings.position_embeddings",)),
    *weight_and_bias("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    *weight_and_bias("blocks.{i}.attn.qkv", *HF_QKV, form=STACKED),
    *block_layers(HF_LAYER, attn_proj="attention.output.dense"),
    *weight_and_bias("norm", "layernorm"),
)
HF_VIT_RULES = (
    *HF_BODY,
    *block_layers(HF_LAYER, norm1="layernorm_before", norm2="layernorm_after"),
    *block_layers(HF_LAYER, mlp_fc1="intermediate.dense", mlp_fc2="output.dense"),
    *weight_and_bias("pre_logits", "pooler.dense"),
)
# transformers 5 renamed the modules, and still writes files with the former names
HF_SPELLINGS = (
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
HF_VIT = Layout(
    name="hf_vit",
    title="transformers' ViT",
    anchor="embeddings.patch_embeddings.projection.weight",
    marks=(r"encoder\.layer\.0\.layernorm_before\.weight",),
    rules=(*HF_VIT_RULES, *weight_and_bias("head", "classifier")),
    inner=("vit.",),
    spellings=(
        *HF_SPELLINGS,
        (r"^(encoder\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        (r"^(encoder\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    ),
    positions="all",
    skipped=MAE,
    settings={"pool": "cls", "norm_eps": 1e-12},
)
HF_DEIT_TEACHER = replace(
    HF_VIT,
    name="hf_deit_with_teacher",
    title="transformers' DeiT with both heads",
    marks=(r"embeddings\.distillation_token", r"distillation_classifier\.weight"),
    rules=(
        *HF_VIT_RULES,
        Rule("dist_token", ("embeddings.distillation_token",)),
        *weight_and_bias("head", "cls_classifier"),
        *weight_and_bias("head_dist", "distillation_classifier"),
    ),
    inner=("deit.",),
    skipped=(MASK,),
)
HF_DEIT = replace(
    HF_DEIT_TEACHER,
    name="hf_deit",
    title="transformers' DeiT",
    marks=(r"embeddings\.distillation_token",),
    # without its own head, the distillation token is a register
    rules=(*HF_VIT.rules, Rule("reg_token", ("embeddings.distillation_token",))),
)
HF_DINOV2 = Layout(
    name="hf_dinov2",
    title="transformers' DINOv2",
    anchor=HF_VIT.anchor,
    marks=(r"encoder\.layer\.0\.layer_scale1\.lambda1",),
    rules=(
        *HF_BODY,
        Rule("reg_token", ("embeddings.register_tokens",)),
        *block_layers(HF_LAYER, norm1="norm1", norm2="norm2"),
        *(Rule(f"blocks.{{i}}.ls{n}.gamma", (f"{HF_LAYER}.layer_scale{n}.lambda1",)) for n in (1, 2)),
        *block_layers(HF_LAYER, gated=False, mlp_fc1="mlp.fc1", mlp_fc2="mlp.fc2"),
        *block_layers(HF_LAYER, gated=True, mlp_fc1="mlp.weights_in", mlp_fc2="mlp.weights_out"),
        *weight_and_bias(
            "blocks.{i}.mlp.fc1", f"{HF_LAYER}.mlp.gate_proj", f"{HF_LAYER}.mlp.up_proj", form=HALVES, gated=True
        ),
        *block_layers(HF_LAYER, gated=True, mlp_fc2="mlp.down_proj"),
        *weight_and_bias("head", "classifier"),
    ),
    inner=("dinov2.", "dinov2_with_registers."),
    spellings=HF_SPELLINGS,
    positions="class",
    skipped=(MASK,),
    zeros={"embeddings.mask_token": (1, "D")},
    settings={"pool": "cls", "norm_eps": 1e-6},
)

HF_CLIP_LAYER = "encoder.layers.{i}"
HF_CLIP_QKV = tuple(f"{HF_CLIP_LAYER}.self_attn.{part}_proj" for part in "qkv")
HF_CLIP = Layout(
    name="hf_clip",
    title="transformers' CLIP image tower",
    anchor="embeddings.patch_embedding.weight",
    marks=(r"pre_layrnorm\.weight",),
    rules=(
        Rule("cls_token", ("embeddings.class_embedding",), TOKEN),
        Rule("pos_embed", ("embeddings.position_embedding.weight",), TABLE),
        Rule("patch_embed.proj.weight", ("embeddings.patch_embedding.weight",)),
        *weight_and_bias("norm_pre", "pre_layrnorm"),  # the library's own spelling
        *weight_and_bias("blocks.{i}.attn.qkv", *HF_CLIP_QKV, form=STACKED),
        *block_layers(HF_CLIP_LAYER, norm1="layer_norm1", attn_proj="self_attn.out_proj", norm2="layer_norm2"),
        *block_layers(HF_CLIP_LAYER, mlp_fc1="mlp.fc1", mlp_fc2="mlp.fc2"),
        *weight_and_bias("norm", "post_layernorm"),
        Rule("head.weight", ("visual_projection.weight",)),
    ),
    inner=("vision_model.",),
    positions="all",
    skipped=((r"embeddings\.position_ids", "the numbers of the positions"),),
    settings={"pool": "cls", "norm_eps": 1e-5, "activation": "quick_gelu"},
)
CLIP_BLOCK = "transformer.resblocks.{i}"
OPEN_CLIP = Layout(
    name="open_clip",
    title="OpenAI's or OpenCLIP's image tower",
    anchor="conv1.weight",
    marks=(r"class_embedding", r"transformer\.resblocks\.0\.ln_1\.weight"),
    rules=(
        Rule("cls_token", ("class_embedding",), TOKEN),
        Rule("pos_embed", ("positional_embedding",), TABLE),
        Rule("patch_embed.proj.weight", ("conv1.weight",)),
        *weight_and_bias("norm_pre", "ln_pre"),
        *in_projection(f"{CLIP_BLOCK}.attn"),
        *block_layers(CLIP_BLOCK, norm1="ln_1", attn_proj="attn.out_proj", norm2="ln_2"),
        *block_layers(CLIP_BLOCK, mlp_fc1="mlp.c_fc", mlp_fc2="mlp.c_proj"),
        *weight_and_bias("norm", "ln_post"),
        Rule("head.weight", ("proj",), TRANSPOSED),
    ),
    positions="all",
    settings={"pool": "cls", "norm_eps": 1e-5},
)

TORCHVISION_BLOCK = "encoder.layers.encoder_layer_{i}"
TORCHVISION = Layout(
    name="torchvision",
    title="torchvision's VisionTransformer",
    anchor="conv_proj.weight",
    marks=(r"encoder\.layers\.encoder_layer_0\.ln_1\.weight",),
    rules=(
        Rule("cls_token", ("class_token",)),
        Rule("pos_embed", ("encoder.pos_embedding",)),
        *weight_and_bias("patch_embed.proj", "conv_proj"),
        *in_projection(f"{TORCHVISION_BLOCK}.self_attention"),
        *block_layers(TORCHVISION_BLOCK, norm1="ln_1", attn_proj="self_attention.out_proj", norm2="ln_2"),
        *block_layers(TORCHVISION_BLOCK, mlp_fc1="mlp.0", mlp_fc2="mlp.3"),
        *weight_and_bias("norm", "encoder.ln"),
        *weight_and_bias("pre_logits", "heads.pre_logits"),
        *weight_and_bias("head", "heads.head"),
    ),
    spellings=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    positions="all",
    settings={"pool": "cls", "norm_eps": 1e-6},
)

GOOGLE_BLOCK = "Transformer/encoderblock_{i}"
GOOGLE = Layout(
    name="google",
    title="Google's own code (JAX)",
    anchor="embedding/kernel",
    marks=(r"Transformer/encoderblock_0/LayerNorm_0/scale",),
    rules=(
        Rule("cls_token", ("cls",)),
        Rule("pos_embed", ("Transformer/posembed_input/pos_embedding",)),
        *jax_linear("patch_embed.proj", "embedding"),
        *jax_norm("blocks.{i}.norm1", f"{GOOGLE_BLOCK}/LayerNorm_0"),
        *jax_attention(f"{GOOGLE_BLOCK}/MultiHeadDotProductAttention_1"),
        *jax_norm("blocks.{i}.norm2", f"{GOOGLE_BLOCK}/LayerNorm_2"),
        *jax_linear("blocks.{i}.mlp.fc1", f"{GOOGLE_BLOCK}/MlpBlock_3/Dense_0"),
        *jax_linear("blocks.{i}.mlp.fc2", f"{GOOGLE_BLOCK}/MlpBlock_3/Dense_1"),
        *jax_norm("norm", "Transformer/encoder_norm"),
        *jax_linear("pre_logits", "pre_logits"),
        *jax_linear("head", "head"),
    ),
    spellings=(  # big_vision, its successor, numbers the layers of a block differently
        (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding"),
        (r"(encoderblock_\d+)/MultiHeadDotProductAttention_0/", r"\1/MultiHeadDotProductAttention_1/"),
        (r"(encoderblock_\d+)/MlpBlock_0/", r"\1/MlpBlock_3/"),
        (r"(encoderblock_\d+)/LayerNorm_1/", r"\1/LayerNorm_2/"),
    ),
    settings={"norm_eps": 1e-6},
)

# The first whose marks all exist is taken: the more specific before the more general.
LAYOUTS: dict[str, Layout] = {
    each.name: each
    for each in (DINOV2, TIMM, HF_DEIT_TEACHER, HF_DEIT, HF_DINOV2, HF_VIT, HF_CLIP, OPEN_CLIP, TORCHVISION, GOOGLE)
}
