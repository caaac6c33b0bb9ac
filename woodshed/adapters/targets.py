"""Which linear layers of the decoder get an adapter: from the user's words to exact module names.

Names are those of the original model: `layers.3.cross_attn.v_proj`.
"""

import difflib
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from woodshed.errors import AdapterError
from woodshed.models.config import ModelConfig
from woodshed.models.decoder import build_decoder
from woodshed.models.keys import diffusers_to_original
from woodshed.settings.schema import AttentionType

Shapes = Mapping[str, tuple[int, int]]
"""(out_features, in_features) of linear layers, by original module name."""

_BLOCKS = {
    "both": ("self_attn", "cross_attn", "mlp"),
    "self": ("self_attn", "mlp"),
    "cross": ("cross_attn", "mlp"),
}


def linear_shapes(decoder: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the shape of every linear layer of a decoder without adapters, in the order of the model."""
    return {
        diffusers_to_original(name): (module.out_features, module.in_features)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear)
    }


def decoder_linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shape of every linear layer of the decoder that a checkpoint describes, without its weights."""
    with torch.device("meta"):
        return linear_shapes(build_decoder(config))


def resolve_targets(shapes: Shapes, *, attention_type: AttentionType, target_modules: Sequence[str] | str) -> list[str]:
    """Return the modules that the user's words mean, in the order of the model, each once.

    Args:
        shapes: every linear layer there is.
        attention_type: filters the short names of attention projections, and nothing else.
        target_modules: short names (q_proj, down_proj) or full ones (layers.3.cross_attn.v_proj), as a list or in one
            string with spaces or commas.

    Raises:
        AdapterError: naming every word that matches nothing, with a suggestion, and what there is.
    """
    text = target_modules if isinstance(target_modules, str) else " ".join(target_modules)
    words = [word for word in re.split(r"[\s,]+", text) if word]
    chosen: set[str] = set()
    problems = [] if words else ["No layer to adapt is named."]
    for word in words:
        matches = {name for name in shapes if name == word or _is_short_for(word, name, attention_type)}
        chosen |= matches
        if not matches:
            problems.append(f"There is no layer called {word!r} to adapt.{_suggestion(word, shapes)}")
    if problems:
        raise AdapterError(*problems, _what_exists(shapes))
    return [name for name in shapes if name in chosen]


def _is_short_for(word: str, name: str, attention_type: AttentionType) -> bool:
    """Tell whether a word such as q_proj names this layer inside one of the wanted blocks."""
    return name.split(".")[2:] in [[block, word] for block in _BLOCKS[attention_type]]


def _short_names(shapes: Shapes, *blocks: str) -> list[str]:
    parts = (name.split(".") for name in shapes)
    return list(dict.fromkeys(part[3] for part in parts if part[2:3] and part[2] in blocks))


def _suggestion(word: str, shapes: Shapes) -> str:
    known = [*_short_names(shapes, "self_attn", "cross_attn", "mlp"), *shapes]
    close = difflib.get_close_matches(word.removeprefix("decoder."), known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _what_exists(shapes: Shapes) -> str:
    in_layers = [name for name in shapes if name.startswith("layers.")]
    others = [name for name in shapes if name not in set(in_layers)]
    return (
        f"Targets are {' '.join(_short_names(shapes, 'self_attn', 'cross_attn'))} in the attention, "
        f"{' '.join(_short_names(shapes, 'mlp'))} in the MLP, "
        f"and full names from {in_layers[0]} to {in_layers[-1]}, {', '.join(others)}."
    )
