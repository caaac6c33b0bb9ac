"""What each player makes of an adapter: the real libraries where they can be installed, their rules retold where not.

A player gets a tree of linear layers with the original names and a path, and returns the weights it would compute with.
Sources of the rules are named at each. Nothing here is shared with the code under test.
"""

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.loaders.lora_pipeline import AceStepLoraLoaderMixin
from lycoris import create_lycoris, create_lycoris_from_weights
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from woodshed.models.keys import diffusers_to_original


@dataclass
class Played:
    """The weights a player ends with, by original name, and what it left aside."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    refusal: str = ""  # not empty: it does not load the file at all


@torch.no_grad()
def effective_weights(root: nn.Module) -> dict[str, Tensor]:
    """W of every linear layer, read off from what the layer does to the unit vectors."""
    weights = {}
    for name, module in root.named_modules():
        if any(part in name for part in ("lora_", "base_layer", "lycoris", "hada_", "lokr_", "oft_")):
            continue
        if hasattr(module, "in_features"):
            zero = module(torch.zeros(1, module.in_features))
            plain = name.removeprefix("base_model.model.")
            weights[diffusers_to_original(plain)] = (module(torch.eye(module.in_features)) - zero).T
    return weights


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _tensor_file(path: Path) -> Path:
    """The only, or first, safetensors file of a folder."""
    return path if path.is_file() else sorted(path.glob("*.safetensors"))[0]


def play_peft(root: nn.Module, path: Path) -> Played:
    """PEFT itself."""
    if not (path / "adapter_config.json").is_file():
        return Played(refusal="reads PEFT folders only")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(root, str(path))
    lost = [str(item.message) for item in said if "missing adapter keys" in str(item.message)]
    return Played(effective_weights(model), lost)


def _its_words(error: Exception) -> str:
    """The first sentence of an error, without names of files and tensors."""
    return re.split(r"[:.]\s|\.$|\n", str(error).strip("'\""))[0]


def play_diffusers(root: nn.Module, path: Path) -> Played:
    """diffusers' own pipeline loader; `root` is a decoder with its names."""

    class Pipeline(AceStepLoraLoaderMixin):
        transformer = root
        components = {"transformer": root}  # noqa: RUF012 - as diffusers reads it
        hf_device_map = None

    try:
        Pipeline().load_lora_weights(str(path))
    except (ValueError, RuntimeError, KeyError) as error:
        return Played(refusal=_its_words(error))
    return Played(effective_weights(root))


def play_diffusers_decoder(root: nn.Module, path: Path) -> Played:
    """diffusers' decoder without the pipeline: `transformer.load_lora_adapter`."""
    try:
        root.load_lora_adapter(str(_tensor_file(path)))
    except (ValueError, RuntimeError, KeyError) as error:
        return Played(refusal=_its_words(error))
    return Played(effective_weights(root))


def play_lycoris(root: nn.Module, path: Path) -> Played:
    """LyCORIS itself; it knows only names that begin with its own prefix."""
    file = _tensor_file(path)
    names = {key.split(".")[0] for key in load_file(file) if not key.endswith("diff_b")}
    if not all(name.startswith("lycoris_") for name in names):
        return Played(refusal="reads names that begin with lycoris_ only")
    network, _ = create_lycoris_from_weights(1.0, str(file), root)
    network.apply_to()
    return Played(effective_weights(root), sorted(names - {layer.lora_name for layer in network.loras}))


def play_ace_step(root: nn.Module, path: Path) -> Played:
    """ACE-Step 1.5 since February 2026: LoKr by the header wins over PEFT; single files must be LoKr.

    A LoKr is built with the header's settings on every linear layer, then loaded without complaint about missing keys.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    lokr = [file for file in files if json.loads(_header(file).get("lokr_config", "{}"))]
    if not lokr:
        is_peft = (path / "adapter_config.json").is_file()
        return play_peft(root, path) if is_peft else Played(refusal="reads PEFT folders, and LoKr with a header")
    config = json.loads(_header(lokr[0])["lokr_config"])
    dim, alpha = config.pop("linear_dim"), config.pop("linear_alpha")
    del config["target_modules"]
    config["dora_wd"] = config.pop("weight_decompose")
    torch.manual_seed(1)
    network = create_lycoris(root, 1.0, linear_dim=dim, linear_alpha=alpha, algo="lokr", **config)
    network.apply_to()
    network.load_state_dict(load_file(lokr[0]), strict=False)
    names = {key.split(".")[0] for key in load_file(lokr[0]) if not key.endswith("diff_b")}
    return Played(effective_weights(root), sorted(names - {layer.lora_name for layer in network.loras}))


# ComfyUI: key prefixes of comfy/lora.py, suffixes and maths of comfy/weight_adapter, retold.

_COMFY_PARTS = {
    ".lora_up.weight": "up", ".lora_B.weight": "up", ".lora_B.default.weight": "up", ".lora.up.weight": "up",
    ".lora_down.weight": "down", ".lora_A.weight": "down", ".lora_A.default.weight": "down",
    ".lora.down.weight": "down",
    **{f".{name}": name for name in (
        "alpha", "dora_scale", "diff", "diff_b",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    )},
}  # fmt: skip


def _comfy_name(name: str, there: dict[str, Tensor]) -> str | None:
    """The module that a prefix and a name mean; None when ComfyUI does not know it."""
    for module in there:
        flat = module.replace(".", "_")
        known = (f"diffusion_model.decoder.{module}", f"base_model.model.{module}")
        if name in (*known, f"lycoris_{flat}", f"lora_unet_decoder_{flat}"):
            return module
    return None


def _comfy_groups(tensors: dict[str, Tensor], there: dict[str, Tensor]):
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    skipped = []
    for key, value in tensors.items():
        ending = next((end for end in sorted(_COMFY_PARTS, key=len, reverse=True) if key.endswith(end)), None)
        module = None if ending is None else _comfy_name(key.removesuffix(ending), there)
        if module is None:
            skipped.append(key)
        else:
            groups[module][_COMFY_PARTS[ending]] = value.float()
    return groups, skipped


def _matrix(parts: dict[str, Tensor], name: str) -> tuple[Tensor, int | None]:
    if name in parts:
        return parts[name], None
    return parts[f"{name}_a"] @ parts[f"{name}_b"], parts[f"{name}_b"].shape[0]


def _comfy_delta(parts: dict[str, Tensor]) -> Tensor:
    alpha = parts["alpha"].item() if "alpha" in parts else None
    if "up" in parts:
        return parts["up"] @ parts["down"] * (1.0 if alpha is None else alpha / parts["down"].shape[0])
    if "hada_w1_a" in parts:
        product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        return product * (1.0 if alpha is None else alpha / parts["hada_w1_b"].shape[0])
    (w1, dim1), (w2, dim2) = _matrix(parts, "lokr_w1"), _matrix(parts, "lokr_w2")
    dim = dim2 if dim2 is not None else dim1
    return torch.kron(w1, w2) * (1.0 if alpha is None or dim is None else alpha / dim)


def _comfy_weight(weight: Tensor, parts: dict[str, Tensor], *, is_fixed: bool) -> Tensor:
    if "diff" in parts:
        return weight + parts["diff"]
    changed = weight + _comfy_delta(parts)
    scale = parts.get("dora_scale")
    if scale is None:
        return changed
    if scale.shape[0] == weight.shape[0]:  # a vector is broadcast along the wrong axis, as there
        return changed * scale / (changed if is_fixed else weight).norm(dim=1, keepdim=True)
    return changed * scale / changed.norm(dim=0, keepdim=True)


def play_comfyui(root: nn.Module, path: Path, *, is_fixed: bool = False) -> Played:
    """ComfyUI as of autumn 2026, or with its open fix of the DoRA norms (issue 12938)."""
    weights = {name: module.weight.detach() for name, module in root.named_modules() if isinstance(module, nn.Linear)}
    groups, skipped = _comfy_groups(load_file(_tensor_file(path)), dict(weights))
    for module, parts in groups.items():
        if set(parts) != {"diff_b"}:
            weights[module] = _comfy_weight(weights[module], parts, is_fixed=is_fixed)
    return Played(weights, skipped)


def play_comfyui_fixed(root: nn.Module, path: Path) -> Played:
    return play_comfyui(root, path, is_fixed=True)


# The C++ engines: src/adapter-merge.h of acestep.cpp and HOT-Step-CPP, retold.


def _cpp_config(path: Path) -> dict:
    folder = path if path.is_dir() else path.parent
    with suppress(OSError):
        return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return {}


_CPP_KEY = re.compile(r"(.+?)\.(lora_.+|alpha|lokr_w.+|dora_scale)")


def _cpp_name(name: str, flat: dict[str, str], *, is_lokr: bool) -> str:
    """A LoKr has LyCORIS's names and no others, a LoRA the dotted ones; `transformer.` is not known to them."""
    if is_lokr:
        return flat.get(name, "")
    return name.removeprefix("base_model.model.").removeprefix("diffusion_model.").removeprefix("decoder.")


def _atoi(value) -> int:
    match = re.match(r"\s*[+-]?\d+", str(value))
    return int(match[0]) if match else 0


def play_cpp(root: nn.Module, path: Path, *, is_hot_step: bool = False) -> Played:
    file, config = _tensor_file(path), _cpp_config(path)
    tensors, header = load_file(file), _header(file)
    weights = {name: module.weight.detach() for name, module in root.named_modules() if isinstance(module, nn.Linear)}
    linear_dim = json.loads(header.get("lokr_config", "{}")).get("linear_dim", 0)
    flat = {f"lycoris_{name.replace('.', '_')}": name for name in weights}
    lokr = {key.split(".lokr_")[0] for key in tensors if ".lokr_" in key}
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    skipped = []
    for key, value in tensors.items():
        match = _CPP_KEY.fullmatch(key)
        name = "" if match is None else _cpp_name(match[1], flat, is_lokr=match[1] in lokr)
        if match is not None and name in weights:
            groups[name][match[2]] = value
        else:
            skipped.append(key)
    for module, parts in groups.items():
        changed = _cpp_weight(module, weights[module], parts, config, linear_dim, is_hot_step=is_hot_step)
        if changed is None:
            skipped.append(module)
        else:
            weights[module] = changed
    if len(set(skipped) & set(groups)) == len(groups):
        return Played(refusal="merges LoRA in dotted names and LoKr in names that begin with lycoris_")
    return Played(weights, skipped)


def _cpp_alpha(module: str, parts: dict[str, Tensor], config: dict, *, is_hot_step: bool) -> float:
    """Per-tensor alpha if it is float32 without dimensions, else the config's as a whole number, else none."""
    own = parts.get("alpha")
    if own is not None and own.dtype == torch.float32 and own.dim() == 0:
        return own.item()
    pattern = config.get("alpha_pattern", {}) if is_hot_step else {}
    return float(pattern.get(module, _atoi(config.get("lora_alpha", 0))))


def _cpp_weight(module, weight, parts, config, linear_dim, *, is_hot_step):
    if any(name.startswith("lokr_") for name in parts):
        return _cpp_lokr(weight, parts, linear_dim)
    down = parts.get("lora_A.weight", parts.get("lora_down.weight"))
    up = parts.get("lora_B.weight", parts.get("lora_up.weight"))
    if down is None or up is None:
        return None
    alpha, rank = _cpp_alpha(module, parts, config, is_hot_step=is_hot_step), down.shape[0]
    changed = weight + up.float() @ down.float() * ((alpha / rank) if alpha else 1.0)
    norms = parts.get("lora_magnitude_vector")
    if norms is not None and is_hot_step:
        changed = changed * norms.reshape(-1, 1) / changed.norm(dim=1, keepdim=True)
    return changed


def _cpp_lokr(weight, parts, linear_dim):
    alpha = parts.get("alpha")
    if "lokr_w1" not in parts or alpha is None or alpha.dtype != torch.float32:
        return None
    if "lokr_w2" in parts:
        if not linear_dim:
            return None
        w2, dim = parts["lokr_w2"], linear_dim
    else:
        w2, dim = parts["lokr_w2_a"] @ parts["lokr_w2_b"], parts["lokr_w2_b"].shape[0]
    changed = weight + torch.kron(parts["lokr_w1"].float(), w2.float()) * (alpha.item() / dim)
    norms = parts.get("dora_scale")
    if norms is not None and norms.shape[0] == weight.shape[0]:
        changed = changed * norms.reshape(-1, 1) / changed.norm(dim=1, keepdim=True)
    return changed


def play_hot_step(root: nn.Module, path: Path) -> Played:
    return play_cpp(root, path, is_hot_step=True)


PLAYERS: dict[str, Callable[[nn.Module, Path], Played]] = {
    "ACE-Step": play_ace_step,
    "ComfyUI": play_comfyui,
    "ComfyUI, fixed": play_comfyui_fixed,
    "diffusers": play_diffusers,
    "diffusers' decoder": play_diffusers_decoder,
    "PEFT": play_peft,
    "LyCORIS": play_lycoris,
    "acestep.cpp": play_cpp,
    "HOT-Step": play_hot_step,
}
ON_DIFFUSERS_NAMES = ("diffusers", "diffusers' decoder")
