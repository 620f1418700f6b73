"""Names of the built-in components and where they live. Strings only: reading this imports nothing."""

SCALERS = {
    "average-pool": "tokenflex.scalers.average_pool:AveragePoolScaler",
    "random": "tokenflex.scalers.random:RandomScaler",
    "resize": "tokenflex.scalers.resize:ResizeScaler",
    "resolution": "tokenflex.scalers.resolution:ResolutionScaler",
    "stride": "tokenflex.scalers.stride:StrideScaler",
}
ROUTERS = {
    "attention-mass": "tokenflex.routers.attention_mass:AttentionMassRouter",
    "avg": "tokenflex.routers.avg:AVGRouter",
    "constant": "tokenflex.routers.constant:ConstantRouter",
    "random": "tokenflex.routers.random:RandomRouter",
    "reconstruction": "tokenflex.routers.reconstruction:ReconstructionRouter",
}
VOTERS = {
    "attention": "tokenflex.voters.attention:AttentionVoter",
    "majority": "tokenflex.voters.majority:MajorityVoter",
    "max-detail": "tokenflex.voters.max_detail:MaxDetailVoter",
    "mean": "tokenflex.voters.mean:MeanVoter",
    "position-weighted": "tokenflex.voters.position_weighted:PositionWeightedVoter",
    "quantile": "tokenflex.voters.quantile:QuantileVoter",
}
POLICIES = {
    "argmax": "tokenflex.policies.argmax:ArgmaxPolicy",
    "budget": "tokenflex.policies.budget:BudgetPolicy",
    "constant": "tokenflex.policies.constant:ConstantPolicy",
    "fade": "tokenflex.policies.fade:FadePolicy",
}
CONFIDENCES = {
    "first-entropy": "tokenflex.confidences.first:FirstEntropy",
    "first-margin": "tokenflex.confidences.first:FirstMargin",
    "first-probability": "tokenflex.confidences.first:FirstProbability",
    "mean-log-probability": "tokenflex.confidences.answer:MeanLogProbability",
    "min-margin": "tokenflex.confidences.answer:MinMargin",
}
AUTO_MODELS = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
"""Auto classes of transformers that load this package's models; pipelines go by them."""
SETTINGS = ("levels", "level", "router", "escalate", "router+escalate", "random", "scaler")
"""What an evaluation can compare; see `tokenflex.evaluation.settings`."""
SETTING_FORMS = (
    "levels, level:N, router, router@ratio=0.3, escalate@threshold=0.9, random, scaler:NAME or scaler:NAME:N"
)
ELSEWHERE = {
    "scaler": {
        "adaptive-pool": "tokenflex-resampling",
        "cdpruner": "tokenflex-selection",
        "dart": "tokenflex-selection",
        "density-peaks": "tokenflex-matching",
        "divprune": "tokenflex-selection",
        "farthest-point": "tokenflex-selection",
        "holov": "tokenflex-selection",
        "id-selection": "tokenflex-selection",
        "mmtok": "tokenflex-selection",
        "nested-queries": "tokenflex-resampling",
        "norm": "tokenflex-selection",
        "prumerge": "tokenflex-matching",
        "prumerge-plus": "tokenflex-matching",
        "region-attention": "tokenflex-resampling",
        "tome": "tokenflex-matching",
        "top-attention": "tokenflex-selection",
        "two-rates": "tokenflex-vir",
        "vispruner": "tokenflex-selection",
        "visionzip": "tokenflex-matching",
    },
    "router": {
        "effective-rank": "tokenflex-selection",
        "mutual-information": "tokenflex-selection",
        "outliers": "tokenflex-matching",
        "redundancy": "tokenflex-matching",
        "tile-gate": "tokenflex-vir",
    },
    "policy": {"quantile-gate": "tokenflex-vir"},
}
"""Kind -> name -> this project's own distribution that has it."""
GRID_HOSTS = (
    "aya_vision", "cohere2_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni", "deepseek_vl",
    "deepseek_vl_hybrid", "dots3_note", "ernie4_5_vl_moe", "exaone4_5", "fast_vlm", "gemma3", "gemma4",
    "gemma4_unified", "glm46v", "glm4v", "glm4v_moe", "glm5_next", "glm_ocr", "glmga", "got_ocr2", "granite_docling",
    "hunyuan_vl", "hy_v4_vl", "hyperclovax_vision_v2", "idefics2", "idefics3", "inkling2", "inkling2_loop", "internvl",
    "janus", "kimi_k25", "lfm2_vl", "lfm3_vl", "lighton_ocr", "llava", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7",
    "minimax_m3_vl", "mistral3", "mistral_large4", "molmo2", "muse_glimmer", "muse_spark", "nemotron_h_omni", "ovis2",
    "paddleocr_vl", "paligemma", "perception_lm", "pp_chart2table", "qianfan_ocr", "qwen2_5_omni_thinker",
    "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe",
    "qwen4_exp", "shieldgemma2", "smolvlm", "step3p7", "tokenflex_composed", "unlimited_ocr", "video_llama_3",
    "video_llava",
    "vipllava",
)  # fmt: skip
"""Architectures that one generic adapter serves, by ``model_type``."""
HOSTS = {
    "granite4_vision": "tokenflex.hosts.granite4_vision:Granite4VisionAdapter",
    "llava_next": "tokenflex.hosts.llava_next:LlavaNextAdapter",
    "llava_next_video": "tokenflex.hosts.llava_next:LlavaNextAdapter",
    "llava_onevision": "tokenflex.hosts.llava_onevision:LlavaOnevisionAdapter",
    **dict.fromkeys(GRID_HOSTS, "tokenflex.hosts.grid:GridAdapter"),
}
REFUSED_HOSTS = {
    "apertus1p5": "its images are codes of its vocabulary, and the prompt spells their size out",
    "aria": "its visual tokens are learned queries, which lie on no grid",
    "blip-2": "its visual tokens are learned queries, which lie on no grid",
    "chameleon": "its images are codes of its vocabulary; a mean of codes is none",
    "deepseek_ocr2": "its visual tokens are learned queries read in order, which lie on no grid",
    "diffusion_gemma": "it generates by block diffusion, not through generate()",
    "emu3": "its images are codes of its vocabulary; a mean of codes is none",
    "fuyu": "its encoder's output can't be repeated for beams, and its line breaks aren't in its settings",
    "gemma3n": "not tried: its tower needs timm's MobileNet",
    "inkling_mm_model": "its inputs don't say where one image ends, so its grids aren't known",
    "instructblip": "its visual tokens are learned queries, which lie on no grid",
    "instructblipvideo": "its visual tokens are learned queries, which lie on no grid",
    "llama4": "its forward fails in transformers 5.24 whenever it returns an output object",
}
"""Architectures that take pre-encoded images and yet aren't served, with the reason."""
HOSTS_SINCE = {
    "aya_vision": "5.19",
    "llava_onevision": "5.19",
    "tokenflex_composed": "5.19",
    "cohere2_vision": "5.19",
    "deepseek_vl": "5.19",
    "deepseek_vl_hybrid": "5.19",
    "fast_vlm": "5.19",
    "gemma3": "5.19",
    "got_ocr2": "5.19",
    "internvl": "5.19",
    "janus": "5.19",
    "minicpmv4_6": "5.19",
    "ovis2": "5.19",
    "paligemma": "5.19",
    "pp_chart2table": "5.19",
    "qianfan_ocr": "5.19",
    "shieldgemma2": "5.19",
    "exaone4_5": "5.20",
    "glm5_next": "5.20",
    "granite4_vision": "5.20",
    "hunyuan_vl": "5.20",
    "idefics2": "5.20",
    "idefics3": "5.20",
    "llava_next_video": "5.20",
    "muse_glimmer": "5.20",
    "qwen3_5": "5.20",
    "qwen3_5_moe": "5.20",
    "qwen4_exp": "5.20",
    "qwen2_5_omni_thinker": "5.22",
    "qwen3_omni_moe_thinker": "5.22",
    "smolvlm": "5.22",
    "video_llava": "5.22",
    "minimax_m3_vl": "5.23",
    "vipllava": "5.23",
}
"""Architectures that older transformers encode, place or repeat for beams in another way; all others: 5.18."""
