"""Names: how the original ACE-Step code calls a tensor or module, and how diffusers does.

The names are those inside one part, without the part's own prefix: `layers.0.self_attn.q_proj.weight`, not
`decoder.layers.0...`. Decoder and condition encoder share one table. No tensor changes its shape or layout.
"""

import re

ORIGINAL_TO_DIFFUSERS = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    "proj_in.1": "proj_in_conv",  # 1: the place in the original's Sequential; the other two only transpose
    "proj_out.1": "proj_out_conv",
}
DIFFUSERS_TO_ORIGINAL = {diffusers: original for original, diffusers in ORIGINAL_TO_DIFFUSERS.items()}


def _between_dots(table: dict[str, str]) -> re.Pattern[str]:
    return re.compile(r"(?<![^.])(?:" + "|".join(map(re.escape, table)) + r")(?![^.])")


_ORIGINAL = _between_dots(ORIGINAL_TO_DIFFUSERS)
_DIFFUSERS = _between_dots(DIFFUSERS_TO_ORIGINAL)


def original_to_diffusers(name: str) -> str:
    """Translate the name of a tensor, a module or an adapter key; other names pass unchanged.

    >>> original_to_diffusers("layers.0.self_attn.o_proj.lora_A.weight")
    'layers.0.self_attn.to_out.0.lora_A.weight'
    """
    return _ORIGINAL.sub(lambda match: ORIGINAL_TO_DIFFUSERS[match[0]], name)


def diffusers_to_original(name: str) -> str:
    """Translate back: the inverse of `original_to_diffusers`.

    >>> diffusers_to_original("proj_in_conv.bias")
    'proj_in.1.bias'
    """
    return _DIFFUSERS.sub(lambda match: DIFFUSERS_TO_ORIGINAL[match[0]], name)
