"""How the formats of the field call a module and its tensors, and how such a name is read back.

The original model's name is `layers.0.self_attn.q_proj`. Files put a part's name before it and the tensor's after:

    base_model.model.layers.0.self_attn.q_proj.lora_A.weight            PEFT
    diffusion_model.decoder.layers.0.self_attn.q_proj.lora_down.weight  ComfyUI, ai-toolkit
    transformer.layers.0.self_attn.to_q.lora_A.weight                   diffusers, SimpleTuner
    lycoris_layers_0_self_attn_q_proj.lokr_w1                           LyCORIS, Side-Step
"""

import re

from woodshed.models.keys import diffusers_to_original, original_to_diffusers

PEFT_PREFIX = "base_model.model."
COMFYUI_PREFIX = "diffusion_model.decoder."
DIFFUSERS_PREFIX = "transformer."
LYCORIS_PREFIX = "lycoris_"

_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "module.", "decoder.")
_FLAT_PREFIX = re.compile(r"(?:lycoris|lora_unet|lora_transformer)_(?:decoder_)?(\w+)")
_FLAT_BLOCK = re.compile(r"layers_(\d+)_(self_attn|cross_attn|mlp)_")
_FLAT_EMBED = re.compile(r"(time_embed(?:_r)?)_(linear_[12]|time_proj)")
_FLAT_ENDS = {"_to_out_0": "_to_out.0", ".to_out_0": ".to_out.0", "proj_in_1": "proj_in.1", "proj_out_1": "proj_out.1"}
_NAME = re.compile(r"\w+(?:\.\w+)*", re.ASCII)
_PARTS = {
    r"lora_(?:A|down)(?:\.default)?\.weight|lora\.down\.weight": "lora_A",
    r"lora_(?:B|up)(?:\.default)?\.weight|lora\.up\.weight": "lora_B",
    r"lora_magnitude_vector(?:\.default)?(?:\.weight)?": "magnitude",
    r"lokr_w[12](?:_[ab])?": "",
    r"hada_w[12]_[ab]": "",
    r"oft_R(?:\.default)?\.weight": "oft_R",
    r"alpha|dora_scale|diff|diff_b": "",
    r"(?:base_layer\.)?bias": "bias",
}
_KEY = re.compile(r"(?P<module>.+?)\.(?:" + "|".join(f"({pattern})" for pattern in _PARTS) + ")")


def read_key(key: str) -> tuple[str, str] | None:
    """Return a tensor's module by its original name, and its part in one spelling; None for what is neither.

    >>> read_key("transformer.layers.0.self_attn.to_out.0.lora_A.weight")
    ('layers.0.self_attn.o_proj', 'lora_A')
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    number = next(number for number in range(2, len(_PARTS) + 2) if match[number] is not None)
    part = list(_PARTS.values())[number - 2] or match[number]
    module = read_module(match["module"])
    return None if module is None else (module, part)


def read_module(name: str) -> str | None:
    """Return the original name of a module, whatever way a file spells it; None for what is no name at all."""
    flat = _FLAT_PREFIX.fullmatch(name)
    if flat is not None:
        name = unflatten(flat[1])
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return diffusers_to_original(name) if _NAME.fullmatch(name) else None


def unflatten(name: str) -> str:
    """Put the dots back into a name that was flattened with underscores; unknown names pass unchanged.

    >>> unflatten("layers_3_cross_attn_to_out_0")
    'layers.3.cross_attn.to_out.0'
    """
    name = _FLAT_BLOCK.sub(r"layers.\1.\2.", name)
    if (match := _FLAT_EMBED.fullmatch(name)) is not None:
        return f"{match[1]}.{match[2]}"
    for flat, dotted in _FLAT_ENDS.items():
        if name.endswith(flat):
            return name.removesuffix(flat) + dotted
    return name


def peft_module(module: str) -> str:
    """Return a module's name in a PEFT folder."""
    return PEFT_PREFIX + module


def comfyui_module(module: str) -> str:
    """Return a module's name as ComfyUI's generic rule reads it, in every version."""
    return COMFYUI_PREFIX + module


def diffusers_module(module: str) -> str:
    """Return a module's name in a diffusers pipeline."""
    return DIFFUSERS_PREFIX + original_to_diffusers(module)


def lycoris_module(module: str) -> str:
    """Return a module's name in a LyCORIS file."""
    return LYCORIS_PREFIX + module.replace(".", "_")
