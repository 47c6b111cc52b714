"""Networks so small that tests train them in a second."""

TINY_UNET = {
    "kind": "ldm_unet",
    "channels": 8,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_levels": [1],
    "head_dim": 8,
    "norm_groups": 4,
}

TINY_IUNET = TINY_UNET | {
    "kind": "iunet",
    "head_dim": 4,
    "mixer_levels": [1],
    "attention_share": ["1/2"],
    "pool_sizes": [1],
}
