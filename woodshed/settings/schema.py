"""Every setting, once. Flags, run files, presets, wizard and docs are read out of these classes.

The wording of "what it does" and "why you'd change it" and the defaults follow the project's settings reference;
numbers from elsewhere name their source.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from woodshed.settings.declare import REQUIRED, Settings, setting
from woodshed.settings.ranks import read_rank_pattern

AdapterType = Literal["lora", "dora", "lokr", "loha", "oft"]
ExportFormat = Literal["comfyui", "diffusers", "diffusers-lokr", "peft", "peft-faithful", "lycoris", "lora"]
DoraNorms = Literal["today", "true", "diff"]
AttentionType = Literal["both", "self", "cross"]
BiasMode = Literal["none", "all", "lora_only"]
Mode = Literal["corrected", "vanilla"]
OptimizerType = Literal["adamw", "adamw8bit", "adafactor", "prodigy"]
SchedulerType = Literal["cosine", "cosine_restarts", "linear", "constant", "constant_with_warmup"]
Granularity = Literal["module", "layer"]
SoundFormat = Literal["wav", "flac"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Conditioning = Literal["inference", "legacy"]


def _split_words(value: Any) -> Any:
    """Accept one string with spaces or commas, or several of them, as a list of words."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple(word for item in value for word in re.split(r"[\s,]+", str(item)) if word)
    return value


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _one_or_many(value: Any) -> Any:
    """Accept one path as a list of one; a path may hold spaces and commas, so nothing is split."""
    if isinstance(value, str | Path):
        return (value,) if str(value) else ()
    return value


def _is_interval(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) != 2 or not 0 <= value[0] <= value[1] <= 1:
        raise ValueError("two numbers from 0 to 1, the smaller first")
    return value


def _are_finite(value: tuple[float, ...]) -> tuple[float, ...]:
    if not value or not all(math.isfinite(number) and abs(number) <= 10 for number in value):
        raise ValueError("numbers from -10 to 10")
    return value


def _is_shard(value: str) -> str:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value)
    if value and not (found and 1 <= int(found[1]) <= int(found[2])):
        raise ValueError("I/N, part I of N, from 1/N to N/N")
    return value


def _is_rank_pattern(value: tuple[str, ...]) -> tuple[str, ...]:
    read_rank_pattern(value)
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_split_words)]
RankPattern = Annotated[tuple[str, ...], BeforeValidator(_split_words), AfterValidator(_is_rank_pattern)]
Part = Annotated[str, AfterValidator(_is_shard)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_one_or_many)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_split_words), AfterValidator(_are_finite)]
Interval = Annotated[tuple[float, ...], BeforeValidator(_split_words), AfterValidator(_is_interval)]
Auto = Literal["auto"]


class CheckpointSettings(Settings):
    """Where the models lie."""

    checkpoint_dir: Path = setting(
        Path("checkpoints"),
        "Checkpoint directory",
        "Where model weights live.",
        why="Point to your ACE-Step checkout or custom weights.",
        section="Required",
        tier="basic",
        default_text="From your user settings or `./checkpoints`",
    )


class ModelSettings(CheckpointSettings):
    """Which model: shared by every command that loads one."""

    model: str = setting(
        REQUIRED,
        "Model",
        "Which model variant to train on.",
        why="Pick base, turbo, sft, or a community fine-tune.",
        section="Required",
        tier="basic",
    )


class DeviceSettings(Settings):
    """Where and in what number format the model computes."""

    device: str = setting(
        "auto",
        "Device",
        "GPU selection. Auto picks: CUDA > MPS > XPU > CPU.",
        why="Multi-GPU: pick `cuda:0` or `cuda:1`. Force CPU for debugging.",
        section="Device & Precision",
    )
    precision: Precision = setting(
        "auto",
        "Precision",
        "Float format. Auto picks: bf16 (CUDA), fp16 (MPS), fp32 (CPU).",
        why="Force `fp32` for debugging NaN issues. `fp16` if your GPU lacks bf16.",
        section="Device & Precision",
    )


class TensorSettings(Settings):
    """Which preprocessed songs: shared by every command that computes the training objective."""

    dataset_dir: Path = setting(
        REQUIRED,
        "Dataset directory",
        "Folder with preprocessed `.pt` files.",
        why="Always required -- your training data.",
        section="Required",
        tier="basic",
    )


class RunFolderSettings(TensorSettings):
    """Where a training run reads from and writes to."""

    output_dir: Path = setting(
        REQUIRED,
        "Output directory",
        "Where adapter weights and logs are saved.",
        why="Always required -- pick a descriptive name.",
        section="Required",
        tier="basic",
    )


class RankingSettings(Settings):
    """How far down an estimate's ranking training goes: for the command that writes it and the one that reads it."""

    top_k: Annotated[int, Field(ge=1)] | Auto = setting(
        "auto",
        "Top K",
        "How many of the modules (or layers) that respond most are named in an estimate and trained from it. "
        "Auto: in an estimate, as many as hold half of the whole response; in training, what the estimate says.",
        why="Fewer for a small adapter that changes little else, more for capacity.",
        section="Estimate",
    )


class AdapterSettings(Settings):
    """What is trained: the adapter family, its size and the layers it sits on."""

    adapter_type: AdapterType = setting(
        "lora",
        "Adapter type",
        "The family of the adapter: LoRA (low-rank matrices), DoRA (LoRA with trained norms), LoKr (Kronecker "
        "products), LoHa (entrywise products) or OFT (rotations).",
        why="LoRA plays in the most tools; LoKr makes far smaller files and learns more slowly; the rest is for those "
        "who know why.",
        section="Adapter",
        tier="basic",
    )
    attention_type: AttentionType = setting(
        "both",
        "Attention type",
        "Which attention layers get adapters: self, cross, or both.",
        why="`self` = audio patterns only, `cross` = text conditioning only.",
        section="Adapter",
        tier="basic",
    )
    target_modules: Words = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        "Target projections",
        "Which projections inside each attention block; also `gate_proj up_proj down_proj` and full module names.",
        why="Narrow it to the layers that matter, or add the MLP for more capacity.",
        section="Adapter",
        tier="basic",
    )
    targets_from: OptionalPath = setting(
        None,
        "Targets from",
        "A file written by `woodshed estimate`: exactly the modules that it ranks highest get adapters.",
        why="Spend the adapter's capacity where this dataset pulls; `top_k` says how many modules.",
        section="Estimate",
        default_text="*(empty)*",
    )
    rank: int = setting(
        64,
        "Rank",
        "Number of low-rank dimensions. Higher = more capacity, more VRAM.",
        why="Lower for quick tests (16), higher for max quality (128).",
        section="LoRA",
        tier="basic",
        at_least=1,
    )
    alpha: float = setting(
        128.0,
        "Alpha",
        "Scaling factor (usually 2x rank). Controls adapter strength.",
        why="Keep at 2x rank unless experimenting.",
        section="LoRA",
        tier="basic",
        more_than=0,
        default_text="2 x rank: `128`",
    )
    dropout: float = setting(
        0.1,
        "Dropout",
        "Dropout on LoRA layers. Prevents overfitting.",
        why="Increase (0.2-0.3) for very small datasets, decrease (0.05) for large ones.",
        section="LoRA",
        tier="basic",
        at_least=0,
        less_than=1,
    )
    rank_pattern: RankPattern = setting(
        (),
        "Rank pattern",
        "Other ranks for some modules, as NAME=RANK or NAME=RANK:ALPHA: `cross_attn=32 layers.0.=8`. NAME is any part "
        "of a module's name, the last one that fits wins, and without ALPHA the strength stays that of the others.",
        why="Capacity where the style sits, less elsewhere.",
        section="LoRA",
        default_text="*(none)*",
    )
    oft_block_size: int = setting(
        32,
        "OFT block size",
        "Sides of the blocks that an OFT rotates; divides the inputs of every adapted layer.",
        why="Larger blocks turn more together and train more numbers.",
        section="OFT",
        at_least=2,
        at_most=1024,
        source="PEFT's OFTConfig.",
    )
    lokr_linear_dim: int = setting(
        64,
        "Linear dimension",
        "Analogous to LoRA rank.",
        why="Same guidance as LoRA rank.",
        section="LoKr",
        tier="basic",
        at_least=1,
    )
    lokr_linear_alpha: float = setting(
        128.0,
        "Linear alpha",
        "Scaling factor.",
        why="Keep at 2x linear dim.",
        section="LoKr",
        tier="basic",
        more_than=0,
        default_text="2 x linear dim: `128`",
    )
    lokr_factor: int = setting(
        -1,
        "Factor",
        "Kronecker factorization factor (-1 = auto).",
        why="Leave at auto unless you understand Kronecker factorization; 4 to 8 gives clearly more capacity.",
        section="LoKr",
        tier="basic",
        at_least=-1,
    )
    lokr_decompose_both: bool = setting(
        False,
        "Decompose both",
        "Decompose both Kronecker factors.",
        why="May improve compression at the cost of capacity.",
        section="LoKr",
        tier="basic",
    )
    lokr_use_tucker: bool = setting(
        False,
        "Tucker decomposition",
        "Use Tucker decomposition.",
        why="Alternative factorization -- experimental; it only exists for convolutions, so no layer here changes.",
        section="LoKr",
        tier="basic",
    )
    lokr_use_scalar: bool = setting(
        False,
        "Scalar scaling",
        "Use scalar scaling.",
        why="Experimental.",
        section="LoKr",
        tier="basic",
    )
    lokr_weight_decompose: bool = setting(
        False,
        "DoRA weight decompose",
        "DoRA-style weight decomposition.",
        why="Can improve quality in some cases.",
        section="LoKr",
        tier="basic",
    )


class OptimisationSettings(Settings):
    """How the adapter is trained."""

    mode: Mode = setting(
        "corrected",
        "Mode",
        "`corrected` draws timesteps as the model's own training does; `vanilla` uses the eight turbo steps and no "
        "CFG dropout.",
        why="Only to repeat an old run of a trainer that worked the vanilla way.",
        section="Training",
        tier="basic",
        source="ACE-Step 1.5 training forward: the larger of two logit-normal draws.",
    )
    learning_rate: float = setting(
        1e-4,
        "Learning rate",
        "How fast the optimizer moves. For Prodigy, set to 1.0.",
        why="Lower (5e-5) for stability, higher (2e-4) for faster convergence.",
        section="Training",
        tier="basic",
        more_than=0,
        at_most=10,
        flags=("--lr",),
    )
    batch_size: int = setting(
        1,
        "Batch size",
        "Samples per step.",
        why="Increase only if you have VRAM to spare.",
        section="Training",
        tier="basic",
        at_least=1,
    )
    gradient_accumulation: int = setting(
        4,
        "Gradient accumulation",
        "Steps before weight update. Effective batch = batch_size x this.",
        why="Higher for smoother gradients, lower for faster updates.",
        section="Training",
        tier="basic",
        at_least=1,
    )
    epochs: int = setting(
        100,
        "Max epochs",
        "Full passes through the dataset.",
        why="More for small datasets (200-500), fewer for large (50-100).",
        section="Training",
        tier="basic",
        at_least=1,
    )
    warmup_steps: int = setting(
        100,
        "Warmup steps",
        "LR ramps from 10% to 100% over this many steps.",
        why="Longer warmup (200+) for stability with large LR.",
        section="Training",
        tier="basic",
        at_least=0,
        unit="optimizer steps",
    )
    seed: int = setting(
        42,
        "Seed",
        "Random seed for reproducibility.",
        why="Change to get different training runs.",
        section="Training",
        tier="basic",
        at_least=0,
        at_most=2**32 - 1,
    )
    cfg_ratio: float = setting(
        0.15,
        "CFG dropout ratio",
        "Probability of replacing conditions with null embeddings.",
        why="The base model was trained with 0.15 -- match it. Lower values reduce CFG effectiveness.",
        section="CFG",
        tier="basic",
        at_least=0,
        at_most=1,
        source="ACE-Step 1.5 training forward: cfg_ratio=0.15.",
    )


class CheckpointingSettings(Settings):
    """What a run writes down, how often, and where it continues."""

    save_every: int = setting(
        10,
        "Save every N epochs",
        "Full checkpoint (adapter + optimizer + scheduler); 0 = off: only the final adapter is written.",
        why="Lower for safety on long runs, higher to save disk space.",
        section="Logging & Checkpoints",
        tier="basic",
        at_least=0,
        unit="epochs",
    )
    log_every: int = setting(
        10,
        "Log every N steps",
        "TensorBoard loss/LR logging; 0 = off.",
        why="Lower for more granular curves, higher to reduce overhead.",
        section="Logging & Checkpoints",
        tier="basic",
        at_least=0,
        unit="optimizer steps",
    )
    resume_from: OptionalPath = setting(
        None,
        "Resume from",
        "Path to a checkpoint to resume from, or `latest` or `best` for that one in the output directory.",
        why="Use after interrupted training. Points to a `checkpoint-epoch-N` folder.",
        section="Logging & Checkpoints",
        tier="basic",
        default_text="*(empty)*",
    )
    max_time: float = setting(
        0,
        "Maximum time",
        "The run saves and stops after so many minutes, as if interrupted; --resume-from latest goes on. 0 = off.",
        why="A machine that is only lent for some hours, or a night.",
        section="Logging & Checkpoints",
        at_least=0,
        unit="minutes",
    )
    init_from: OptionalPath = setting(
        None,
        "Start from",
        "An adapter whose weights a new run starts with: a folder or file, made here or by another trainer.",
        why="Train an adapter further on other songs; unlike a resume, everything else begins anew.",
        section="Logging & Checkpoints",
        default_text="*(empty)*",
    )
    keep_last: int = setting(
        0,
        "Keep last N checkpoints",
        "Older checkpoints are deleted once a newer one is safe on disk; 0 = keep all.",
        why="Limit the disk space of long runs.",
        section="Logging & Checkpoints",
        at_least=0,
    )
    keep_best: bool = setting(
        False,
        "Keep best checkpoint",
        "Keep the checkpoint with the lowest held-out loss in the folder `best`, however old it is.",
        why="The last epoch of a long run is seldom the best one.",
        section="Logging & Checkpoints",
    )
    validation_share: float = setting(
        0.0,
        "Validation share",
        "Part of the songs that is held out of training to measure what carries over to songs never trained on: at "
        "most 32 songs, and of fewer than 4 songs such a part of each. 0 = off: everything trains.",
        why="See when a run begins to learn its songs by heart; 0.1 costs these songs and about a twelfth more time.",
        section="Validation",
        at_least=0,
        at_most=0.5,
    )
    validate_every_n_epochs: int = setting(
        5,
        "Validate every N epochs",
        "How often the held-out loss is measured, and that of as many training songs beside it.",
        why="Lower to find the best epoch more exactly, higher to save time.",
        section="Validation",
        at_least=1,
        unit="epochs",
    )
    average_best: int = setting(
        0,
        "Average best epochs",
        "At the end, average the adapters of the N epochs with the lowest held-out loss, measure that, and keep it in "
        "the folder `average` if its held-out loss is lower still; 0 = off.",
        why="Epochs of one run err in different directions; their mean often errs less. 3 to 5 are usual.",
        section="Validation",
        at_least=0,
        at_most=20,
        unit="epochs",
    )
    early_stop: int = setting(
        0,
        "Early stop",
        "End the run after so many validations in a row without a new lowest held-out loss; 0 = off.",
        why="Do not wait for epochs that only learn by heart.",
        section="Validation",
        at_least=0,
        unit="validations",
    )


class AdvancedSettings(Settings):
    """The advanced pages of the reference."""

    optimizer_type: OptimizerType = setting(
        "adamw",
        "Optimizer",
        "Weight update algorithm.",
        why="`adamw8bit` saves VRAM. `prodigy` auto-tunes LR (set LR to 1.0). `adafactor` for minimal state.",
        section="Optimizer & Scheduler",
    )
    scheduler_type: SchedulerType = setting(
        "cosine",
        "Scheduler",
        "LR decay curve after warmup.",
        why="`constant` for Prodigy. `linear` for steady decay. `constant_with_warmup` for flat after ramp.",
        section="Optimizer & Scheduler",
    )
    gradient_checkpointing: bool = setting(
        True,
        "Gradient checkpointing",
        "Recompute activations to save VRAM (~40-60% less, ~10-30% slower).",
        why="Disable only if you have abundant VRAM and want max speed.",
        section="VRAM Savings",
    )
    recompute: Literal["auto", "none", "quarter", "half", "all"] = setting(
        "auto",
        "Recompute",
        "Which blocks are computed again in the backward pass instead of kept. Auto with gradient checkpointing: on "
        "CUDA as few as the free VRAM asks for, else all; without: none.",
        why="`all` for the least VRAM; `none`, `quarter` or `half` use spare VRAM for speed.",
        section="VRAM Savings",
    )
    base_precision: Literal["auto", "bf16", "int8", "fp8", "nf4"] = setting(
        "auto",
        "Base precision",
        "How the frozen layers are held; they compute in the precision above. Auto holds them as they compute, and in "
        "fewer bits only where a card is too small. int8 and fp8 halve them; nf4 (4 bits) needs bitsandbytes.",
        why="`int8` saves 1.4 GB of 2B and 4 GB of XL at hardly any loss, `nf4` 2 and 6 GB at some.",
        section="VRAM Savings",
    )
    offload_encoder: bool = setting(
        False,
        "Offload encoder",
        "Move encoder/VAE to CPU after setup (~2-4 GB saved).",
        why="Enable on tight VRAM budgets (10-16 GB GPUs).",
        section="VRAM Savings",
    )
    weight_decay: float = setting(
        0.01,
        "Weight decay",
        "Decoupled weight decay of the adapter's weights. Prevents overfitting.",
        why="Increase (0.05) for very small datasets, decrease (0.001) for large.",
        section="Advanced Training",
        at_least=0,
        at_most=1,
    )
    max_grad_norm: float = setting(
        1.0,
        "Max grad norm",
        "Gradient clipping threshold; 0 = no clipping.",
        why='Increase if you see "gradient clipping" warnings everywhere; decrease for stability.',
        section="Advanced Training",
        at_least=0,
    )
    bias: BiasMode = setting(
        "none",
        "Bias mode",
        "Train bias parameters: `none`, `all`, `lora_only`.",
        why="`lora_only` may marginally improve quality; `all` trains all biases.",
        section="Advanced Training",
    )
    crop_seconds: float = setting(
        0.0,
        "Crop",
        "Train on a random window of this length of every longer song, another one each epoch; 0 = whole songs.",
        why="Long songs need less VRAM and time; the windows of many epochs cover them all.",
        section="Advanced Training",
        at_least=0,
        at_most=600,
        unit="seconds",
    )
    compile: Literal["auto", "yes", "no"] = setting(
        "auto",
        "Compile",
        "Let torch.compile make kernels for the blocks; auto does so on CUDA where triton is installed and the run is "
        "long enough.",
        why="`no` when the compiler fails or half a minute of waiting is too long.",
        section="Speed",
    )
    cuda_graphs: Literal["auto", "yes", "no"] = setting(
        "auto",
        "CUDA graphs",
        "Capture a step once for each length of song and replay it, so that the GPU never waits for the processor.",
        why="`no` when memory is very tight: each length takes some 15 MB.",
        section="Speed",
    )
    attention: Literal["auto", "compiled", "flash", "blocks"] = setting(
        "auto",
        "Attention",
        "Which kernels attend: made by the compiler, flash attention, or those that every device has. Auto takes the "
        "first that works.",
        why="To compare them; all compute the same.",
        section="Speed",
    )
    num_workers: int = setting(
        4,
        "Workers",
        "Parallel data loading processes.",
        why="More workers = faster loading. Windows forces 0 (multiprocessing limitation).",
        section="Data Loading",
        at_least=0,
        default_text="`4` (Linux), `0` (Windows)",
    )
    pin_memory: bool = setting(
        True,
        "Pin memory",
        "Pin loaded tensors in CPU for faster GPU transfer.",
        why="Disable if low on system RAM.",
        section="Data Loading",
    )
    prefetch_factor: int = setting(
        2,
        "Prefetch factor",
        "Batches each worker prefetches ahead.",
        why="Higher for faster GPUs that consume data quickly.",
        section="Data Loading",
        at_least=1,
    )
    persistent_workers: bool = setting(
        True,
        "Persistent workers",
        "Keep workers alive between epochs.",
        why="Disable if you see memory leaks from data loading.",
        section="Data Loading",
    )
    keep_in_memory: Literal["auto", "card", "yes", "no"] = setting(
        "auto",
        "Keep in memory",
        "Read each song from disk once and hold it: `card` on the graphics card, `yes` in RAM. Auto takes the card "
        "where there is room beside the training, else RAM while the dataset is small. No workers then.",
        why="`yes` when the card is short of memory, `no` when RAM is too; `card` when you know that it fits.",
        section="Data Loading",
    )
    log_dir: OptionalPath = setting(
        None,
        "TensorBoard dir",
        "Where TensorBoard logs go.",
        why="Custom path if you want all runs in one place.",
        section="Advanced Logging",
        default_text="`{output}/runs`",
    )
    log_heavy_every: int = setting(
        50,
        "Heavy log every N steps",
        "Per-layer gradient norm logging; 0 = off.",
        why="Lower for debugging training dynamics, higher to reduce overhead.",
        section="Advanced Logging",
        at_least=0,
        unit="optimizer steps",
    )
    sample_every_n_epochs: int = setting(
        0,
        "Sample every N epochs",
        "Generate audio samples during training; 0 = off.",
        why="Hear the progress of a long run.",
        section="Advanced Logging",
        at_least=0,
        unit="epochs",
        default_text="`0` (disabled)",
    )
    sample_count: int = setting(
        2,
        "Sample count",
        "How many samples are made each time: one for each of the first songs of the dataset, or of the first prompts.",
        why="More to hear more sides of the style, fewer to save time.",
        section="Advanced Logging",
        at_least=1,
        at_most=64,
    )
    sample_seconds: float = setting(
        30.0,
        "Sample length",
        "How long the samples are; a shorter song's sample is as long as the song.",
        why="Longer to hear how a song develops, shorter to save time and memory.",
        section="Advanced Logging",
        more_than=0,
        at_most=600,
        unit="seconds",
    )
    sample_format: SoundFormat = setting(
        "wav",
        "Sample format",
        "The kind of sound file that samples are; both keep 24 bits.",
        why="`flac` takes about half the space of a long run's samples.",
        section="Advanced Logging",
    )
    sample_prompts: OptionalPath = setting(
        None,
        "Sample prompts",
        "A text file with one prompt a line, to be played in place of the dataset's own songs.",
        why="Hear what the adapter makes of words that it was not trained on.",
        section="Advanced Logging",
        default_text="*(the first songs of the dataset)*",
    )
    shift: float | Literal["auto"] = setting(
        "auto",
        "Shift",
        "Timestep shift that players should sample with; saved with the adapter. Auto: 3.0 for turbo, 1.0 otherwise.",
        why="Only if you know that your listeners use another value.",
        section="Playback",
        source="ACE-Step 1.5 inference presets.",
    )
    num_inference_steps: int | Literal["auto"] = setting(
        "auto",
        "Inference steps",
        "Sampling steps that players should use; saved with the adapter. Auto: 8 for turbo, 50 otherwise.",
        why="Only if you know that your listeners use another value.",
        section="Playback",
        source="ACE-Step 1.5 inference presets.",
    )


class TrainSettings(
    AdvancedSettings,
    DeviceSettings,
    CheckpointingSettings,
    OptimisationSettings,
    RankingSettings,
    AdapterSettings,
    RunFolderSettings,
    ModelSettings,
):
    """Every setting of `woodshed train`."""


class BaseSettings(CheckpointSettings):
    """Which model an adapter sits on, where that can be known from the adapter."""

    model: str = setting(
        "",
        "Model",
        "The base model that the adapter was trained on.",
        why="Where its weights are needed and the adapter's recipe does not name it, or names one that you have not.",
        section="Base model",
        tier="basic",
        default_text="what the adapter's recipe says, if it is there",
    )


class ExportSettings(BaseSettings):
    """Every setting of `woodshed export`."""

    to: ExportFormat = setting(
        REQUIRED,
        "Format",
        "By the player: `comfyui`, one file with alpha. `peft`, a folder for ACE-Step and most others. "
        "`peft-faithful`, the same with scale and ranks as trained. `diffusers`, one file in its names, a LoRA; "
        "`diffusers-lokr`, a LoKr for its decoder. `lycoris`, one file, for LoKr in ACE-Step. `lora`, a plain LoRA "
        "folder made of any family.",
        why="Always required -- it depends on the player.",
        section="Required",
        tier="basic",
    )
    output: Path = setting(
        REQUIRED,
        "Output",
        "A folder to be written, or for single files a name ending in .safetensors.",
        why="Always required. Each format wants a folder of its own.",
        section="Required",
        tier="basic",
    )
    dora: DoraNorms = setting(
        "today",
        "DoRA norms",
        "How `comfyui` gets the norms of a DoRA: for `today`'s ComfyUI, which divides by the wrong norms; as they are "
        "`true`; or the whole weight `diff`erence, which is right in every version and large.",
        why="`true` once ComfyUI has its fix, `diff` when you cannot know which version plays it.",
        section="Format",
        tier="basic",
        source="ComfyUI issue 12938.",
    )
    max_rank: Annotated[int, Field(ge=1)] | Auto = setting(
        "auto",
        "Largest rank",
        "The largest rank of a LoRA that is made of another family. Auto: as exact as can be, 128 where only an "
        "approximation exists; what is lost is printed.",
        why="Smaller files, or less loss.",
        section="Format",
        tier="basic",
    )
    dtype: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32",
        "Number format",
        "Of the factors in the file; scales and norms are always fp32.",
        why="`bf16` halves the file and rounds it to three digits, as most players do anyway.",
        section="Format",
        tier="basic",
    )


class MergeSettings(ModelSettings):
    """Every setting of `woodshed merge`."""

    model: str = setting(
        REQUIRED,
        "Model",
        "The base model that the adapters were trained on.",
        why="Always required.",
        section="Required",
        tier="basic",
    )
    strength: Numbers = setting(
        (1.0,),
        "Strength",
        "What each adapter's effect is multiplied by, in the order of the adapters; one number counts for all.",
        why="Styles that are put together are often too strong at 1 each.",
        section="Merge",
        tier="basic",
        default_text="`1`",
    )
    output: Path = setting(
        REQUIRED,
        "Output",
        "The model folder to be written, beside the others so that it is found there.",
        why="Always required.",
        section="Required",
        tier="basic",
    )


class SourceSettings(Settings):
    """What is said about songs: shared by every command that reads audio with its metadata."""

    dataset_json: OptionalPath = setting(
        None,
        "Dataset JSON",
        "An ACE-Step dataset file with captions, lyrics and metadata.",
        why="Captions decide what the adapter answers to; without them the file names are used.",
        section="Songs",
        tier="basic",
        default_text="`dataset.json` in the audio directory, if there is one",
    )
    metadata_csv: OptionalPath = setting(
        None,
        "Metadata CSV",
        "A table of captions, lyrics and metadata, one row a song.",
        why="Handy when the descriptions come from a spreadsheet.",
        section="Songs",
        default_text="`metadata.csv` in the audio directory, if there is one",
    )
    max_duration: float = setting(
        240.0,
        "Max duration",
        "Longer songs are cut here; 0 = never.",
        why="Shorter songs need less VRAM in training.",
        section="Songs",
        tier="basic",
        at_least=0,
        unit="seconds",
        source="ACE-Step's own preprocessing default.",
    )
    custom_tag: str = setting(
        "",
        "Trigger tag",
        "A word put into every caption, so that you can call the style by it.",
        why="Pick a rare word that is not in the captions.",
        section="Captions",
        tier="basic",
        default_text="the dataset JSON's, else none",
    )
    tag_position: Literal["prepend", "append", "replace"] = setting(
        "prepend",
        "Tag position",
        "Where the trigger tag goes: before the caption, after it, or instead of it.",
        why="`replace` ties everything the songs share to the tag alone.",
        section="Captions",
        default_text="the dataset JSON's, else `prepend`",
    )
    genre_ratio: int = setting(
        0,
        "Genre ratio",
        "Share of songs whose genre stands in for the caption.",
        why="Some genre-only prompts make the adapter answer to short prompts too.",
        section="Captions",
        at_least=0,
        at_most=100,
        unit="percent",
        default_text="the dataset JSON's, else `0`",
    )
    language: str = setting(
        "unknown",
        "Language",
        "Language of the lyrics where the metadata names none, as a code such as en or ja.",
        why="The model reads it in front of the lyrics.",
        section="Captions",
        source="ACE-Step 1.5 inference default.",
    )
    conditioning: Conditioning = setting(
        "inference",
        "Conditioning",
        "What stands for the words in a song's file: exactly what the model reads at inference, or what older trainers "
        "wrote (`legacy`: no lyric header, 512 lyric tokens, no reference, padded to 769).",
        why="`legacy` only for files that an older trainer is to read, or to repeat a run of one.",
        section="Captions",
        source="ACE-Step 1.5 inference, and its trainer.",
    )
    seed: int = setting(
        42,
        "Seed",
        "Random seed of the VAE samples and of the genre choice.",
        why="Change to draw other latents from the same songs.",
        section="Songs",
        at_least=0,
        at_most=2**32 - 1,
    )


class DatasetSettings(SourceSettings, CheckpointSettings):
    """Every setting of `woodshed dataset`."""


class PreprocessSettings(SourceSettings, DeviceSettings, ModelSettings):
    """Every setting of `woodshed preprocess`."""

    audio_dir: OptionalPath = setting(
        None,
        "Audio directory",
        "Folder with songs (wav, mp3, flac, ogg, opus, m4a), searched with all its subfolders.",
        why="Required unless the dataset JSON names every file.",
        section="Songs",
        tier="basic",
        default_text="*(none)*",
    )
    tensor_output: Path = setting(
        REQUIRED,
        "Tensor output",
        "Folder that receives one `.pt` file per song and a manifest.",
        why="Always required -- `woodshed train --dataset-dir` reads it.",
        section="Required",
        tier="basic",
    )
    normalize: Literal["none", "peak", "loudness"] = setting(
        "none",
        "Normalize",
        "Bring songs to one level: none, the highest sample at -1 dBFS, or -14 LUFS with no sample above -1 dBFS.",
        why="`loudness` when the songs come from records of very different loudness.",
        section="Songs",
        source="ITU-R BS.1770-4.",
    )
    latents: Literal["sample", "mean"] = setting(
        "sample",
        "Latents",
        "What is stored of the VAE's distribution for each song: one draw from it, or its mean.",
        why="`mean` for latents without noise that no seed changes; the models were trained on draws.",
        section="Songs",
        source="ACE-Step 1.5 preprocessing draws.",
    )
    shard: Part = setting(
        "",
        "Shard",
        "Encode only part I of N, as I/N from 1/N to N/N; `woodshed dataset merge` puts the parts together.",
        why="Share the work among several GPUs or machines.",
        section="Songs",
        default_text="`RANK` and `WORLD_SIZE` of the environment, else all songs",
    )
    offload_encoder: bool = setting(
        False,
        "Offload encoder",
        "Keep encoders and VAE in CPU memory except while they run.",
        why="Enable on tight VRAM budgets.",
        section="Device & Precision",
    )
    compile: Literal["auto", "yes", "no"] = setting(
        "auto",
        "Compile",
        "Let torch.compile make kernels for the VAE; auto does so on CUDA where triton is installed and there is music "
        "enough.",
        why="`no` when the compiler fails.",
        section="Device & Precision",
    )


class EstimateSettings(RankingSettings, DeviceSettings, TensorSettings, ModelSettings):
    """Every setting of `woodshed estimate`."""

    output: Path = setting(
        REQUIRED,
        "Output",
        "The JSON file to write.",
        why="Always required -- `woodshed train --targets-from` reads it.",
        section="Required",
        tier="basic",
    )
    estimate_batches: int = setting(
        32,
        "Estimate batches",
        "How many songs, each at one noise level, the gradients are averaged over.",
        why="More when the two halves rank the modules differently; fewer for a quick look.",
        section="Estimate",
        tier="basic",
        at_least=2,
    )
    granularity: Granularity = setting(
        "module",
        "Granularity",
        "What is ranked: single projections, or whole layers.",
        why="`layer` when you want to train all projections of a few layers.",
        section="Estimate",
        tier="basic",
    )
    seed: int = setting(
        42,
        "Seed",
        "Random seed of the order of songs, the noise and the noise levels.",
        why="Change to see how much of a ranking is chance.",
        section="Estimate",
        at_least=0,
        at_most=2**32 - 1,
    )
    gradient_checkpointing: bool = setting(
        True,
        "Gradient checkpointing",
        "Recompute activations to save VRAM.",
        why="Disable only if you have abundant VRAM and want max speed.",
        section="Device & Precision",
    )


class SongSettings(Settings):
    """What a song to be made is about."""

    prompt: str = setting(
        REQUIRED,
        "Prompt",
        "What the music should sound like, as a caption.",
        why="Always required -- write it as the captions of the training songs are written.",
        section="Song",
        tier="basic",
    )
    lyrics: str = setting(
        "",
        "Lyrics",
        "The words to sing, or @FILE to read them from a text file. None: instrumental.",
        why="Section marks such as [verse] and [chorus] shape the song.",
        section="Song",
        tier="basic",
        default_text="*(none)*",
    )
    language: str = setting(
        "unknown",
        "Language",
        "Language of the lyrics, as a code such as en or ja.",
        why="The model reads it in front of the lyrics.",
        section="Song",
        tier="basic",
        source="ACE-Step 1.5 inference default.",
    )
    instrumental: bool = setting(
        False,
        "Instrumental",
        "Leave the lyrics out, if any are given.",
        why="To hear the same song without a voice.",
        section="Song",
        tier="basic",
    )
    bpm: int = setting(
        0,
        "Tempo",
        "Beats per minute that the prompt states; 0 = not stated.",
        why="The model holds a stated tempo better than one it has to guess.",
        section="Song",
        at_least=0,
        at_most=1000,
        unit="bpm",
    )
    keyscale: str = setting(
        "",
        "Key",
        "Key and scale that the prompt states, such as `C major`.",
        why="To fit other recordings.",
        section="Song",
        default_text="*(not stated)*",
    )
    timesignature: str = setting(
        "",
        "Time signature",
        "Time signature that the prompt states, such as `4`.",
        why="To ask for a waltz.",
        section="Song",
        default_text="*(not stated)*",
    )
    duration: float = setting(
        REQUIRED,
        "Duration",
        "Length of the music.",
        why="Always required -- time and memory grow with it.",
        section="Song",
        tier="basic",
        more_than=0,
        at_most=600,
        unit="seconds",
        source="ACE-Step 1.5 makes songs of up to ten minutes.",
    )


class GenerateSettings(SongSettings, DeviceSettings, ModelSettings):
    """Every setting of `woodshed generate`."""

    model: str = setting(
        REQUIRED,
        "Model",
        "Which model variant makes the music.",
        why="The one that the adapter was trained on, or a relative of the same size.",
        section="Required",
        tier="basic",
    )
    output: Path = setting(
        REQUIRED,
        "Output",
        "The file to write, ending in .wav or .flac; with several versions each gets its name before the ending.",
        why="Always required.",
        section="Required",
        tier="basic",
    )
    adapter: Paths = setting(
        (),
        "Adapter",
        "An adapter to play: a folder or file. Several: one version of the song with each.",
        why="Several checkpoints of a run side by side show which epoch sounds best.",
        section="Adapter",
        tier="basic",
        default_text="*(none)*",
    )
    strength: float = setting(
        1.0,
        "Strength",
        "What the adapter's effect is multiplied by: 0 is the base model, 1 the adapter as trained.",
        why="Lower when the style is overdone, higher when it is faint.",
        section="Adapter",
        tier="basic",
        at_least=-10,
        at_most=10,
    )
    compare: bool = setting(
        False,
        "Compare",
        "Make one more version without any adapter, from the same words and noise.",
        why="To hear what the adapter changes.",
        section="Adapter",
        tier="basic",
    )
    tag: bool = setting(
        True,
        "Trigger tag",
        "Put the trigger tag that an adapter was trained with into the prompt, unless it is there already.",
        why="`--no-tag` to hear how much of the style is tied to the tag.",
        section="Adapter",
        tier="basic",
    )
    steps: Annotated[int, Field(ge=1, le=1000)] | Auto = setting(
        "auto",
        "Steps",
        "Sampling steps. Auto: what the adapter's recipe says, else 8 for turbo and 50 otherwise.",
        why="Fewer for a quick draft. Turbo was made for 8.",
        section="Sampling",
        tier="basic",
        source="ACE-Step 1.5 inference presets.",
    )
    shift: Annotated[float, Field(gt=0, le=100)] | Auto = setting(
        "auto",
        "Shift",
        "Timestep shift: above 1 spends more steps on the noisy part. Auto: what the adapter's recipe says, else 3 for "
        "turbo and 1 otherwise.",
        why="Turbo in 8 steps knows 1, 2 and 3 only and takes the nearest.",
        section="Sampling",
        tier="basic",
        source="ACE-Step 1.5 inference presets.",
    )
    guidance: Annotated[float, Field(ge=1, le=100)] | Auto = setting(
        "auto",
        "Guidance",
        "How strongly the music follows the words (adaptive projected guidance); 1 = off. Auto: 7, and off for turbo, "
        "which is made to work without.",
        why="Lower for freer, higher for more literal results. It doubles the time.",
        section="Sampling",
        tier="basic",
        source="ACE-Step 1.5 inference presets.",
    )
    guidance_interval: Interval = setting(
        (0.0, 1.0),
        "Guidance interval",
        "The noise levels at which guidance acts: two numbers, where 1 is pure noise.",
        why="Without guidance at the lowest and highest noise the result is less overdone, and made sooner.",
        section="Sampling",
        default_text="`0 1`",
    )
    seed: int = setting(
        42,
        "Seed",
        "Random seed of the noise that the song is made from; the same on every device.",
        why="Change to hear another song for the same words.",
        section="Sampling",
        tier="basic",
        at_least=0,
        at_most=2**32 - 1,
    )
    offload_encoder: bool = setting(
        False,
        "Offload encoder",
        "Hold only the part of the model that is at work, and load each anew when its turn comes.",
        why="Enable on tight VRAM budgets.",
        section="Device & Precision",
    )


class InspectSettings(DeviceSettings, CheckpointSettings):
    """Every setting of `woodshed inspect`."""

    model: str = setting(
        "",
        "Model",
        "A model to try an adapter on: does it change what the model computes, and how much?",
        why="A file can hold numbers that no player applies to this model.",
        section="Model",
        tier="basic",
        default_text="*(none)*",
    )


class DoctorSettings(DeviceSettings, CheckpointSettings):
    """Every setting of `woodshed doctor`; a training that is planned may be named beside them."""

    model: str = setting(
        "",
        "Model",
        "The model that a training is planned on: with a dataset, the whole training is checked as its start would.",
        why="Without it only what lies in the checkpoint directory is looked at.",
        section="Planned training",
        tier="basic",
        default_text="*(none)*",
    )
    dataset_dir: OptionalPath = setting(
        None,
        "Dataset directory",
        "A folder with preprocessed `.pt` files to look at.",
        why="To know whether it fits the model, and the training the memory.",
        section="Planned training",
        tier="basic",
        default_text="*(none)*",
    )
    output_dir: OptionalPath = setting(
        None,
        "Output directory",
        "Where the training will write: is there room, and does it hold another run?",
        why="When runs are kept on another disk.",
        section="Planned training",
        tier="basic",
        default_text="the current folder",
    )
    digests: bool = setting(
        False,
        "Compare digests",
        "Read every byte of what `woodshed models get` fetched, and compare it with what was published.",
        why="When a disk is suspected; it takes a minute for each 10 GB or so.",
        section="Checks",
    )


class ModelsSettings(CheckpointSettings):
    """Every setting of `woodshed models`."""

    repo: str = setting(
        "",
        "Repository",
        "With `get`: OWNER/NAME on huggingface.co of a model that ACE-Step does not publish itself.",
        why="To fetch a community fine-tune.",
        section="Fetching",
        tier="basic",
        default_text="ACE-Step's own, by the model's name",
    )
    subfolder: str = setting(
        "",
        "Subfolder",
        "With `get --repo`: the folder in the repository that holds the model.",
        why="Where a repository holds more than one model.",
        section="Fetching",
        default_text="*(none)*",
    )
    revision: str = setting(
        "",
        "Revision",
        "With `get`: a branch, tag or commit of the repository.",
        why="To have exactly the files that somebody else has.",
        section="Fetching",
        default_text="the newest",
    )
    replace: bool = setting(
        False,
        "Replace",
        "With `get`: fetch files again that are there with other bytes than are published.",
        why="A download by other means was cut short, or a disk has lost bytes.",
        section="Fetching",
    )
