"""Every setting says what it must, once."""

import pytest
from pydantic import ValidationError

from woodshed.errors import SettingsError
from woodshed.settings.declare import choices_of, declaration_of, declarations, did_you_mean, sections
from woodshed.settings.resolve import Layer, resolve
from woodshed.settings.schema import CheckpointSettings, PreprocessSettings, TrainSettings

KINDS = [TrainSettings, PreprocessSettings]
EVERY = [(kind, name) for kind in KINDS for name in kind.model_fields]


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind.__name__}.{name}" for kind, name in EVERY])
def test_every_setting_explains_itself_in_full_sentences(kind, name):
    said = declarations(kind)[name]
    assert said.title
    assert said.section
    for text in (said.what, said.why):
        assert text.endswith("."), text
        assert text[0].isupper() or text[0] == "`", text


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_frozen(kind):
    settings = kind.model_construct()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1


def test_declared_defaults_are_valid_values():
    TrainSettings(model="base", dataset_dir="a", output_dir="b")
    PreprocessSettings(model="base", tensor_output="a")


def test_sections_keep_the_order_of_the_reference():
    names = list(sections(TrainSettings))
    wanted = [
        "Required",
        "LoRA",
        "LoKr",
        "Training",
        "CFG",
        "Logging & Checkpoints",
        "Device & Precision",
        "Optimizer & Scheduler",
        "VRAM Savings",
        "Advanced Training",
        "Data Loading",
        "Advanced Logging",
    ]
    assert [name for name in names if name in wanted] == wanted


REFERENCE = {
    # the reference's own defaults, typed from its tables and compared with the declarations
    "rank": 64,
    "alpha": 128,
    "dropout": 0.1,
    "attention_type": "both",
    "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "lokr_linear_dim": 64,
    "lokr_linear_alpha": 128,
    "lokr_factor": -1,
    "lokr_decompose_both": False,
    "lokr_use_tucker": False,
    "lokr_use_scalar": False,
    "lokr_weight_decompose": False,
    "learning_rate": 1e-4,
    "batch_size": 1,
    "gradient_accumulation": 4,
    "epochs": 100,
    "warmup_steps": 100,
    "seed": 42,
    "cfg_ratio": 0.15,
    "save_every": 10,
    "log_every": 10,
    "resume_from": None,
    "device": "auto",
    "precision": "auto",
    "optimizer_type": "adamw",
    "scheduler_type": "cosine",
    "gradient_checkpointing": True,
    "offload_encoder": False,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "bias": "none",
    "num_workers": 4,
    "pin_memory": True,
    "prefetch_factor": 2,
    "persistent_workers": True,
    "log_dir": None,
    "log_heavy_every": 50,
    "sample_every_n_epochs": 0,
}


@pytest.mark.parametrize(("name", "default"), REFERENCE.items(), ids=list(REFERENCE))
def test_defaults_are_those_of_the_reference(name, default):
    assert TrainSettings.model_fields[name].default == default


ADVANCED = ["device", "optimizer_type", "gradient_checkpointing", "weight_decay", "num_workers", "log_dir"]


@pytest.mark.parametrize("name", ADVANCED)
def test_advanced_rows_of_the_reference_are_advanced(name):
    assert declaration_of(TrainSettings.model_fields[name]).tier == "advanced"


@pytest.mark.parametrize("name", ["model", "rank", "lokr_factor", "learning_rate", "cfg_ratio", "save_every"])
def test_basic_rows_of_the_reference_are_basic(name):
    assert declaration_of(TrainSettings.model_fields[name]).tier == "basic"


def test_numbers_from_elsewhere_name_their_source():
    said = declarations(TrainSettings)
    for name in ("cfg_ratio", "mode", "shift", "num_inference_steps"):
        assert "ACE-Step" in said[name].source


def test_choices_are_read_from_the_type():
    assert choices_of(TrainSettings.model_fields["bias"]) == ("none", "all", "lora_only")
    assert choices_of(TrainSettings.model_fields["rank"]) == ()
    assert choices_of(TrainSettings.model_fields["shift"]) == ()  # a word or a number


@pytest.mark.parametrize(("typed", "meant"), [("lerning_rate", "learning_rate"), ("optimiser_type", "optimizer_type")])
def test_a_misspelling_is_answered_with_the_nearest_name(typed, meant):
    assert did_you_mean(typed, TrainSettings.model_fields) == f" Did you mean {meant}?"


def test_nonsense_is_not_answered_with_a_guess():
    assert did_you_mean("zzzzzz", TrainSettings.model_fields) == ""


@pytest.mark.parametrize("path", ["x" * 256, "a/" + "\u97f3" * 86 + "/b", "a\0b"])
def test_a_path_that_no_file_system_knows_is_refused_in_words(path):
    with pytest.raises(SettingsError, match="must be a path whose every part has at most 255 bytes"):
        resolve(CheckpointSettings, [Layer("test", {"checkpoint_dir": path})])
    assert resolve(CheckpointSettings, [Layer("test", {"checkpoint_dir": "/".join(["x" * 255] * 3)})])
