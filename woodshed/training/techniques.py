"""Which of the techniques that make a step fast or small are used, as the settings ask and the machine allows."""

from dataclasses import dataclass, replace

import torch

from woodshed.errors import UserError, collecting
from woodshed.models.config import ModelConfig
from woodshed.models.devices import DTYPES
from woodshed.models.devices import why_not_compile as _why_not_compile
from woodshed.models.frozen import require_base_precision
from woodshed.settings.schema import TrainSettings

MIN_FLASH_CAPABILITY = (8, 0)
NARROWEST_HEAD = 16  # numbers, below which FlexAttention makes no kernel
WORTH_COMPILING = 200  # micro-steps; the compiler takes half a minute


@dataclass(frozen=True)
class Techniques:
    """How a micro-step is computed; never what."""

    compile: bool
    cuda_graphs: bool
    attention: str  # a key of `engine.SIGHTS`
    recompute: str  # a key of `blocks.RECOMPUTED`
    packed: str | None = None  # how the frozen base is held in fewer bits, a key of `frozen.BITS`

    def lesser(self, device: torch.device, dtype: torch.dtype) -> tuple["Techniques | None", str]:
        """Return techniques without the one that fails most often, None where none is left, and its name."""
        if self.compile:
            attention = self.attention if self.attention != "compiled" else _best_attention(device, dtype, False)
            return replace(self, compile=False, attention=attention), "compile"
        if self.cuda_graphs:
            return replace(self, cuda_graphs=False), "cuda_graphs"
        if self.attention == "flash":
            return replace(self, attention="blocks"), "flash attention"
        return None, ""


def choose_techniques(
    settings: TrainSettings, device: torch.device, dtype: torch.dtype, micro_steps: int, config: ModelConfig
) -> tuple[Techniques, list[str]]:
    """Decide what `auto` means here.

    Args:
        settings: of the run.
        device: where it computes.
        dtype: in which precision.
        micro_steps: how many the run takes.
        config: of the model.

    Returns:
        The techniques, and on CUDA, where there is something to choose, a line for each `auto`.

    Raises:
        UserError: for a technique that was asked for and cannot work here.
    """
    problems: list[str] = []
    said: list[str] = []

    def decide(name: str, asked: str, hindrance: str | None, doubt: str | None = None) -> bool:
        if asked == "yes" and hindrance:
            problems.append(f"--{name.replace('_', '-')} yes cannot work here: {hindrance}. Leave it at auto.")
        reason = hindrance or doubt
        if asked == "auto":
            said.append(f"{name}: auto -> no ({reason})" if reason else f"{name}: auto -> yes")
        return asked == "yes" or (asked == "auto" and not reason)

    doubt = None if device.type == "cuda" else f"it is for CUDA, this is {device.type}"
    if doubt is None and micro_steps < WORTH_COMPILING:
        doubt = f"{micro_steps} passes are too few to be worth half a minute of compiling"
    is_compiled = decide("compile", settings.compile, _why_not_compile(device), doubt)
    has_graphs = decide("cuda_graphs", settings.cuda_graphs, _why_not_graphs(settings, device))
    attention: str = settings.attention
    is_possible = is_compiled and config.head_dim >= NARROWEST_HEAD
    possible = _possible_attention(device, dtype, is_possible)
    if attention == "auto":
        attention = _best_attention(device, dtype, is_possible)
        said.append(f"attention: auto -> {attention}")
    elif possible[attention]:
        problems.append(f"--attention {attention} cannot work here: {possible[attention]}. Leave it at auto.")
    with collecting(problems):
        require_base_precision(settings.base_precision)
    if problems:
        raise UserError(*problems)
    is_packed = settings.base_precision != "auto" and DTYPES.get(settings.base_precision) != dtype
    packed = settings.base_precision if is_packed else None
    recompute = settings.recompute
    if recompute == "auto":
        recompute = "all" if settings.gradient_checkpointing else "none"
    found = Techniques(is_compiled, has_graphs, attention, recompute, packed)
    return found, said if device.type == "cuda" else []


def _why_not_graphs(settings: TrainSettings, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"they are CUDA's, this is {device.type}"
    if settings.adapter_type == "oft":
        return "OFT solves equations that cannot be captured"
    return None


def _best_attention(device: torch.device, dtype: torch.dtype, is_compiled: bool) -> str:
    possible = _possible_attention(device, dtype, is_compiled)
    return next(name for name, hindrance in possible.items() if hindrance is None)


def _possible_attention(device: torch.device, dtype: torch.dtype, is_compiled: bool) -> dict[str, str | None]:
    """Return why each kind of attention cannot work, the best first."""
    return {
        "compiled": None
        if is_compiled and device.type == "cuda"
        else "it needs --compile on CUDA, and heads not narrower than 16",
        "flash": _why_not_flash(device, dtype),
        "blocks": None,
    }


def _why_not_flash(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it needs CUDA, this is {device.type}"
    if dtype == torch.float32:
        return "it computes in 16 bits, and the precision is fp32"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < MIN_FLASH_CAPABILITY:
        return "it needs a card of the Ampere generation (RTX 30) or newer"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch comes without it"
    return None
