"""The settings are those that the reference promises: titles, defaults, sections, tiers, and what is accepted.

The tables are written out here on purpose: whoever changes a default in the schema breaks a promise and sees it.
"""

import math
from pathlib import Path

import pytest

from woodshed.errors import SettingsError
from woodshed.settings.declare import declarations
from woodshed.settings.flags import default_text
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import TrainSettings

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

BASIC = {
    "checkpoint_dir": ("Checkpoint directory", "Required", Path("checkpoints")),
    "model": ("Model", "Required", ...),
    "dataset_dir": ("Dataset directory", "Required", ...),
    "output_dir": ("Output directory", "Required", ...),
    "rank": ("Rank", "LoRA", 64),
    "alpha": ("Alpha", "LoRA", 128.0),
    "dropout": ("Dropout", "LoRA", 0.1),
    "attention_type": ("Attention type", "Adapter", "both"),
    "target_modules": ("Target projections", "Adapter", PROJECTIONS),
    "lokr_linear_dim": ("Linear dimension", "LoKr", 64),
    "lokr_linear_alpha": ("Linear alpha", "LoKr", 128.0),
    "lokr_factor": ("Factor", "LoKr", -1),
    "lokr_decompose_both": ("Decompose both", "LoKr", False),
    "lokr_use_tucker": ("Tucker decomposition", "LoKr", False),
    "lokr_use_scalar": ("Scalar scaling", "LoKr", False),
    "lokr_weight_decompose": ("DoRA weight decompose", "LoKr", False),
    "learning_rate": ("Learning rate", "Training", 1e-4),
    "batch_size": ("Batch size", "Training", 1),
    "gradient_accumulation": ("Gradient accumulation", "Training", 4),
    "epochs": ("Max epochs", "Training", 100),
    "warmup_steps": ("Warmup steps", "Training", 100),
    "seed": ("Seed", "Training", 42),
    "cfg_ratio": ("CFG dropout ratio", "CFG", 0.15),
    "save_every": ("Save every N epochs", "Logging & Checkpoints", 10),
    "log_every": ("Log every N steps", "Logging & Checkpoints", 10),
    "resume_from": ("Resume from", "Logging & Checkpoints", None),
}
ADVANCED = {
    "device": ("Device", "Device & Precision", "auto"),
    "precision": ("Precision", "Device & Precision", "auto"),
    "optimizer_type": ("Optimizer", "Optimizer & Scheduler", "adamw"),
    "scheduler_type": ("Scheduler", "Optimizer & Scheduler", "cosine"),
    "gradient_checkpointing": ("Gradient checkpointing", "VRAM Savings", True),
    "offload_encoder": ("Offload encoder", "VRAM Savings", False),
    "weight_decay": ("Weight decay", "Advanced Training", 0.01),
    "max_grad_norm": ("Max grad norm", "Advanced Training", 1.0),
    "bias": ("Bias mode", "Advanced Training", "none"),
    "num_workers": ("Workers", "Data Loading", 4),
    "pin_memory": ("Pin memory", "Data Loading", True),
    "prefetch_factor": ("Prefetch factor", "Data Loading", 2),
    "persistent_workers": ("Persistent workers", "Data Loading", True),
    "log_dir": ("TensorBoard dir", "Advanced Logging", None),
    "log_heavy_every": ("Heavy log every N steps", "Advanced Logging", 50),
    "sample_every_n_epochs": ("Sample every N epochs", "Advanced Logging", 0),
}
"""Setting -> title, section and default, row by row as the reference's tables have them."""

CHOICES = {
    "attention_type": ("both", "self", "cross"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "optimizer_type": ("adamw", "adamw8bit", "adafactor", "prodigy"),
    "scheduler_type": ("cosine", "cosine_restarts", "linear", "constant", "constant_with_warmup"),
    "bias": ("none", "all", "lora_only"),
    "mode": ("corrected", "vanilla"),
}
ACCEPTED = {
    "rank": (1, 16, "128"),
    "alpha": (0.5, 256, "64"),
    "dropout": (0, 0.3, 0.999),
    "lokr_linear_dim": (1, 10_000),
    "lokr_factor": (-1, 1, 8),
    "learning_rate": (1e-8, "5e-5", 1.0),
    "batch_size": (1, 64),
    "gradient_accumulation": (1, 32),
    "epochs": (1, 10_000),
    "warmup_steps": (0, 5_000),
    "seed": (0, 2**32 - 1),
    "cfg_ratio": (0, 0.5, 1),
    "save_every": (0, 1),
    "log_every": (0, 1),
    "weight_decay": (0, 0.05, 1),
    "max_grad_norm": (0, 10),
    "num_workers": (0, 16),
    "prefetch_factor": (1, 8),
    "log_heavy_every": (0, 1),
    "sample_every_n_epochs": (0, 5),
    "validation_share": (0, 0.1, 0.5),
    "early_stop": (0, 3),
    "max_time": (0, 0.5, 600),
    "shift": ("auto", 1, 3.0),
    "num_inference_steps": ("auto", 8, 50),
    "target_modules": ("q_proj, v_proj", ["q_proj", "down_proj"], "layers.3.cross_attn.v_proj"),
}
REFUSED = {
    "rank": (0, -1, 1.5, "many", math.nan),
    "alpha": (0, -1, math.inf),
    "dropout": (1, -0.1, "none", math.nan),
    "lokr_linear_dim": (0, "x"),
    "lokr_factor": (0, -2),
    "learning_rate": (0, -1e-4, 11, math.nan, math.inf),
    "batch_size": (0, 2.5),
    "gradient_accumulation": (0,),
    "epochs": (0, -5, "forever"),
    "warmup_steps": (-1,),
    "seed": (-1, 2**32),
    "cfg_ratio": (2, -0.1, math.nan),
    "save_every": (-1,),
    "log_every": (-1, 0.5),
    "weight_decay": (-0.01, 1.5),
    "max_grad_norm": (-1, math.nan),
    "num_workers": (-1,),
    "prefetch_factor": (0,),
    "log_heavy_every": (-1,),
    "sample_every_n_epochs": (-1,),
    "validation_share": (-0.1, 0.9),
    "early_stop": (-1,),
    "max_time": (-1, math.nan),
    "shift": (0, -1, "fast", math.nan),
    "num_inference_steps": (0, 2.5, "all"),
    "target_modules": ("", " , "),
    "attention_type": ("all", "SELF "),
    "precision": ("fp8", "float32"),
    "optimizer_type": ("sgd", ""),
    "scheduler_type": ("step",),
    "bias": ("some",),
    "mode": ("fixed",),
    "gradient_checkpointing": ("perhaps",),
    "pin_memory": (2,),
}

ROWS = [(name, "basic", *row) for name, row in BASIC.items()] + [
    (name, "advanced", *row) for name, row in ADVANCED.items()
]


def settings_with(**values):
    given = {"model": "base", "dataset_dir": "songs", "output_dir": "out"}
    return resolve(TrainSettings, [Layer("test", given | values)]).settings


def pairs(table):
    return [(name, value) for name, values in table.items() for value in values]


@pytest.mark.parametrize(("name", "tier", "title", "section", "default"), ROWS)
def test_every_row_of_the_reference_is_declared_as_promised(name, tier, title, section, default):
    said, field = declarations(TrainSettings)[name], TrainSettings.model_fields[name]
    assert (said.title, said.section, said.tier) == (title, section, tier)
    assert field.is_required() if default is ... else field.default == default
    assert said.what.endswith(".")
    assert said.why.endswith(".")


def test_what_is_not_in_the_reference_does_not_make_the_basic_mode_longer():
    known = set(BASIC) | {"adapter_type", "mode"}
    assert {name for name, said in declarations(TrainSettings).items() if said.tier == "basic"} == known


@pytest.mark.parametrize(("name", "words"), CHOICES.items())
def test_every_choice_of_the_reference_is_accepted(name, words):
    assert tuple(getattr(settings_with(**{name: word}), name) for word in words) == words


@pytest.mark.parametrize(("name", "value"), pairs(ACCEPTED))
def test_good_values_are_accepted(name, value):
    taken = getattr(settings_with(**{name: value}), name)
    if isinstance(value, int | float):
        assert taken == value


@pytest.mark.parametrize(("name", "value"), pairs(REFUSED))
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(SettingsError) as caught:
        settings_with(**{name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name} must ")
    assert problem.rstrip().endswith((".", "?"))


def test_alpha_follows_rank_and_prodigy_brings_its_rate_and_schedule():
    assert settings_with(rank=16).alpha == 32
    assert settings_with(rank=16, alpha=8).alpha == 8
    assert settings_with(lokr_linear_dim=8).lokr_linear_alpha == 16
    prodigy = settings_with(optimizer_type="prodigy")
    assert (prodigy.learning_rate, prodigy.scheduler_type) == (1.0, "constant")
    kept = settings_with(optimizer_type="prodigy", learning_rate=0.5, scheduler_type="cosine")
    assert (kept.learning_rate, kept.scheduler_type) == (0.5, "cosine")


@pytest.mark.parametrize("name", list(TrainSettings.model_fields))
def test_a_default_is_written_as_people_write_it(name):
    text = default_text(TrainSettings.model_fields[name])
    assert text
    assert "0e+00" not in text
    assert "None" not in text
