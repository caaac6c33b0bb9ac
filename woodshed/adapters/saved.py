"""Reading adapters: PEFT folders, and single files of LyCORIS, ComfyUI, ai-toolkit, diffusers and SimpleTuner.

Nothing in a file is executed, and a name in it never becomes a path.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from woodshed.adapters.adapter import quote_some, shown
from woodshed.adapters.assembly import UnfitPartsError, assemble
from woodshed.adapters.changes import Change
from woodshed.adapters.content import Content
from woodshed.adapters.naming import read_key
from woodshed.adapters.peft_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    PeftConfig,
    parse_config,
    parse_diffusers_header,
)
from woodshed.adapters.tensor_files import (
    CONVENTION,
    DIFFUSERS_KEY,
    LOKR_KEY,
    TensorFile,
    read_config,
    read_tensor_file,
)
from woodshed.errors import AdapterError

_USUAL_NAMES = ("lokr_weights.safetensors", "pytorch_lora_weights.safetensors")  # of LoKr here, and of diffusers
LARGEST_LAYER = 1 << 28
"""Entries of a weight; the largest of the XL models has a tenth of it."""
_CONVOLUTIONS = ("proj_in.1", "proj_out.1")  # of the decoder
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class SavedAdapter(Content):
    """What a file says, checked for sense but not yet for a model."""

    path: Path = field(kw_only=True)  # of the tensors
    tensors: int = field(kw_only=True)

    def misfits(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Return what a model lacks or has in another shape, as sentences.

        Args:
            shapes: of its weights by module name, and of its biases by full name.
        """
        biases = {name: tuple(value.shape) for name, value in {**self.biases, **self.bias_differences}.items()}
        wanted: dict[str, tuple[int, ...]] = {module: change.shape for module, change in self.changes.items()} | biases
        unknown = [name for name in wanted if name not in shapes]
        bent = [
            f"{name} {shape} for {shapes[name]}"
            for name, shape in wanted.items()
            if name in shapes
            and not (shape == shapes[name] if name in biases else self.changes[name].fits(shapes[name]))
        ]
        said = [f"{self.path} is for another model: this one has no {quote_some(unknown)}."] if unknown else []
        return said + ([f"{self.path} is for another model: the shapes differ in {quote_some(bent)}."] if bent else [])


def read_adapter(path: Path) -> SavedAdapter:
    """Read a PEFT folder, or a safetensors file of an adapter or the folder it lies in.

    Raises:
        AdapterError: when there is no such adapter, or its files are damaged or of a kind that is not supported.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / CONFIG_NAME).is_file() and (path == folder or path.name in (CONFIG_NAME, WEIGHTS_NAME)):
        config = parse_config(read_config(folder / CONFIG_NAME), folder / CONFIG_NAME)
        if not (folder / WEIGHTS_NAME).exists():
            _refuse_pickle(folder / "adapter_model.bin")
        return _read(read_tensor_file(folder / WEIGHTS_NAME), config)
    return read_file(_find_file(path))


def read_file(path: Path) -> SavedAdapter:
    """Read one safetensors file, whatever it is called.

    Raises:
        AdapterError: as `read_adapter`.
    """
    file = read_tensor_file(path)
    from_header = parse_diffusers_header(file.entry(DIFFUSERS_KEY), file.path)
    return _read(file, from_header)


def _find_file(path: Path) -> Path:
    """Return the one safetensors file that is meant.

    Raises:
        AdapterError: when there is none, or more than one.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.suffix in _PICKLES:
        _refuse_pickle(path)
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    for name in _USUAL_NAMES:
        if path / name in found:
            return path / name
    if len(found) == 1:
        return found[0]
    if found:
        raise AdapterError(f"{path} holds several files: {quote_some([file.name for file in found])}. Name one.")
    seen = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    inner = f" This is a whole run: its adapter is {path / 'final'}." if (path / "final").is_dir() else ""
    raise AdapterError(
        f"There is no adapter at {path}"
        + (f", only {quote_some(seen)}" if seen else "")
        + f". Give a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or an adapter's .safetensors file.{inner}"
    )


def _refuse_pickle(path: Path) -> None:
    if path.is_file():
        raise AdapterError(f"{path} is a pickle, which could run code, so it is not read. Ask for a .safetensors file.")


def _read(file: TensorFile, config: PeftConfig | None) -> SavedAdapter:
    parts, unknown = _group(file)
    over_base = file.recipe.get(CONVENTION) is True
    changes: dict[str, Change] = {}
    biases: dict[str, Tensor] = {}
    differences: dict[str, Tensor] = {}
    bad = []
    for module, own in parts.items():
        if "bias" in own:
            biases[f"{module}.bias"] = own.pop("bias")
        if "diff_b" in own:
            differences[f"{module}.bias"] = own.pop("diff_b")
        try:
            if own:
                changes[module] = assemble(module, own, config, norms_over_base=over_base)
        except UnfitPartsError:
            bad.append(module)
    bad += [name for name, value in (biases | differences).items() if value.dim() != 1]
    convolutions = [
        name for name in _CONVOLUTIONS if name in bad and any(one.dim() > 2 for one in parts[name].values())
    ]
    if convolutions:
        raise AdapterError(
            f"{file.path} adapts the convolution {' and '.join(convolutions)}; only linear layers can be read."
        )
    _refuse_giants(file.path, changes)
    _refuse_damage(file.path, unknown, bad, is_empty=not changes and not bad and not unknown)
    lokr_config = file.entry(LOKR_KEY)
    recipe = {name: value for name, value in file.recipe.items() if name != CONVENTION}
    return SavedAdapter(changes, recipe, biases, differences, lokr_config, path=file.path, tensors=len(file.tensors))


def _group(file: TensorFile) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return the tensors by module and part, and the names that are none of an adapter's."""
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in file.tensors.items():
        found = read_key(key)
        if found is None or found[1] in parts.get(found[0], {}):
            unknown.append(key)
        else:
            parts.setdefault(found[0], {})[found[1]] = tensor
    return parts, unknown


def _refuse_giants(path: Path, changes: Mapping[str, Change]) -> None:
    """Stop before a small file of thin factors makes somebody multiply out terabytes."""
    shapes = {module: change.shape for module, change in changes.items()}
    giants = [
        f"{shown(module)} {rows}x{columns}"
        for module, (rows, columns) in shapes.items()
        if (rows or columns) * columns > LARGEST_LAYER
    ]
    if giants:
        raise AdapterError(f"{path} is for no ACE-Step model: it has layers of {quote_some(giants)}.")


def _refuse_damage(path: Path, unknown: list[str], bad: list[str], *, is_empty: bool) -> None:
    problems = []
    if unknown:
        problems.append(f"{path} holds tensors that are no part of such an adapter: {quote_some(unknown)}.")
    if bad:
        problems.append(f"{path} is damaged: tensors of {quote_some(bad)} are missing or do not fit together.")
    if is_empty:
        problems.append(f"{path} adapts no layer.")
    if problems:
        raise AdapterError(*problems)
