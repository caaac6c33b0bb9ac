"""How large the miniature is, and how long each part of it trains."""

from dataclasses import dataclass

SEED = 20_260
FRAMES = 128  # latent frames of a song: 5.12 s, the shortest that the models sample

VAE = {
    "audio_channels": 2,
    "channel_multiples": [2, 2, 4, 4],
    "decoder_channels": 20,
    "decoder_input_channels": 16,
    "downsampling_ratios": [8, 6, 4, 10],  # few blocks at high rates, for the CPU's sake; together the real hop of 1920
    "encoder_hidden_size": 32,  # mean and deviation of the 16 latent channels
    "sampling_rate": 48_000,
}
TEXT = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 32_768,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
}
VOCABULARY = 640
MODEL = {
    "architectures": ["AceStepConditionGenerationModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "audio_acoustic_hidden_dim": 16,
    "data_proportion": 0.5,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "in_channels": 48,
    "intermediate_size": 336,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "model_type": "acestep",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "num_lyric_encoder_hidden_layers": 1,
    "num_timbre_encoder_hidden_layers": 1,
    "patch_size": 2,
    "pool_window_size": 5,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": 128,
    "text_hidden_dim": 64,
    "timbre_fix_frame": 750,
    "timbre_hidden_dim": 16,
    "timestep_mu": -0.4,
    "timestep_sigma": 1.0,
    "use_sliding_window": True,
}


@dataclass(frozen=True)
class Budget:
    """Steps and batches of every stage, and seconds after which a stage ends whatever it has done."""

    songs: int = 8_000
    vae_songs: int = 1_500
    vae_steps: int = 9_000
    vae_batch: int = 12
    vae_seconds: float = 600
    base_steps: int = 4_500
    base_batch: int = 128
    base_seconds: float = 600
    turbo_steps: int = 2_000
    turbo_batch: int = 128
    turbo_seconds: float = 600
    judged: int = 70  # samples for each figure
    reconstructed: int = 64  # held-out songs
