"""How large the miniature is, and how long each part of it trains."""

from dataclasses import dataclass

from woodshed.toy.checkpoint import TOY_TEXT

SEED = 20_260
FRAMES = 128  # latent frames of a song: 5.12 s, the shortest that the models sample

TEXT = TOY_TEXT | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
VOCABULARY = 640
MODEL = {
    "architectures": ["AceStepConditionGenerationModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "audio_acoustic_hidden_dim": 32,
    "data_proportion": 0.5,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "in_channels": 96,
    "intermediate_size": 256,
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
    "rope_theta": 1_000,  # the real million tells minutes apart, this the fractions of a bar in five seconds
    "sliding_window": 128,
    "text_hidden_dim": 64,
    "timbre_fix_frame": 750,
    "timbre_hidden_dim": 32,
    "timestep_mu": -0.4,
    "timestep_sigma": 1.0,
    "use_sliding_window": True,
}


@dataclass(frozen=True)
class Budget:
    """How many songs are composed, and how long each stage trains on how many at a time."""

    songs: int = 24_000
    base_steps: int = 12_000
    base_batch: int = 128
    turbo_steps: int = 4_500
    turbo_batch: int = 128
