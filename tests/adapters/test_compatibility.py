"""Every family in every format, loaded by every player: the table in docs/adapters.md is what this finds.

`WOODSHED_WRITE_TABLE=1 pytest tests/adapters/test_compatibility.py` writes the table anew.
"""

import copy
import os
from pathlib import Path

import pytest
import torch

from tests.adapters import oracles
from tests.adapters.outcomes import judge
from woodshed.adapters.dora import attach_dora
from woodshed.adapters.export import export_adapter
from woodshed.adapters.files import save_adapter
from woodshed.adapters.loha import attach_loha
from woodshed.adapters.lokr import attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.oft import attach_oft
from woodshed.errors import AdapterError
from woodshed.models.keys import diffusers_to_original
from woodshed.settings.schema import ExportSettings

DOCS = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN, END = "<!-- table: {} -->", "<!-- end of table -->"
REASONS = "why no"
LORA = {"rank": 4, "alpha": 6.0, "dropout": 0.1, "bias": "none"}
PATTERN = ["cross_attn=2", "mlp=6:9"]


def lokr(**settings):
    return lambda decoder, targets: attach_lokr(
        decoder, targets, LokrSettings(linear_alpha=3.0, **settings), bias="none"
    )


FAMILIES = {
    "LoRA": lambda decoder, targets: attach_lora(decoder, targets, **LORA),
    "LoRA, several ranks": lambda decoder, targets: attach_lora(decoder, targets, **LORA, rank_pattern=PATTERN),
    "DoRA": lambda decoder, targets: attach_dora(decoder, targets, **LORA),
    "DoRA, several ranks": lambda decoder, targets: attach_dora(decoder, targets, **LORA, rank_pattern=PATTERN),
    "LoKr, both factors whole": lokr(linear_dim=64),
    "LoKr, low-rank": lokr(linear_dim=2, factor=2, use_scalar=True),
    "LoKr, both decomposed": lokr(linear_dim=1, decompose_both=True),
    "LoKr with DoRA": lokr(linear_dim=2, factor=2, weight_decompose=True),
    "LoHa": lambda decoder, targets: attach_loha(decoder, targets, rank=2, alpha=3.0),
    "LoHa, several ranks": lambda decoder, targets: attach_loha(
        decoder, targets, rank=3, alpha=2.0, rank_pattern=PATTERN
    ),
    "OFT": lambda decoder, targets: attach_oft(decoder, targets, block_size=8),
}
FORMATS = {
    "final/": None,
    "peft": {"to": "peft"},
    "peft-faithful": {"to": "peft-faithful"},
    "comfyui": {"to": "comfyui"},
    "comfyui --dora true": {"to": "comfyui", "dora": "true"},
    "comfyui --dora diff": {"to": "comfyui", "dora": "diff"},
    "diffusers": {"to": "diffusers"},
    "diffusers --max-rank 8": {"to": "diffusers", "max_rank": 8},
    "diffusers-lokr": {"to": "diffusers-lokr"},
    "lycoris": {"to": "lycoris"},
    "lora --max-rank 8": {"to": "lora", "max_rank": 8},
}
ONLY_FOR_NORMS = ("comfyui --dora true", "comfyui --dora diff")
# At toy size any matrix is a LoRA of rank 128; cut to 8 the table says what becomes of real ones.
NATIVE, CONVERTED = "diffusers", "diffusers --max-rank 8"


@pytest.fixture
def base(checkpoint_root):
    return {"checkpoint_dir": checkpoint_root, "model": "acestep-v15-base"}


@pytest.fixture(scope="module")
def real_decoder(checkpoint_root):
    """The toy checkpoint's decoder, so that exports can read its weights."""
    from woodshed.models.checkpoints import choose_model, find_checkpoints
    from woodshed.models.load import load_decoder

    checkpoint = choose_model(find_checkpoints(checkpoint_root), "acestep-v15-base")
    return load_decoder(checkpoint, dtype=torch.float32, device="cpu")


def linears_of(decoder):
    """The linear layers alone, under the original names: what a player needs of ACE-Step's own decoder."""
    root = torch.nn.Module()
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            *path, leaf = diffusers_to_original(name).split(".")
            parent = root
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, torch.nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, module)
    return root


def rows_of(family, real_decoder, targets, train_a_little, base, folder):
    """Yield a row of the table for each format: its name, and a cell for each player or the reason why it is not."""
    decoder = copy.deepcopy(real_decoder)
    torch.manual_seed(5)
    adapter = FAMILIES[family](decoder, targets)
    train_a_little(adapter)
    final = folder / "final"
    save_adapter(
        adapter, final, {"settings": {"rank": 4, "alpha": 6.0, "rank_pattern": PATTERN if "several" in family else []}}
    )
    trained = {module: adapter.effective_delta(module) for module in adapter.modules}
    weights = oracles.effective_weights(linears_of(real_decoder))
    for name, options in FORMATS.items():
        is_native = family.startswith(("LoRA", "DoRA"))
        if (name in ONLY_FOR_NORMS and "DoRA" not in family) or name == (CONVERTED if is_native else NATIVE):
            continue
        path = final
        if options is not None:
            path = folder / name.replace(" ", "_")
            try:
                export_adapter(final, ExportSettings(**base, **options, output=path))
            except AdapterError as error:
                yield name, str(error)
                continue
        cells = {}
        for player, play in oracles.PLAYERS.items():
            copied = copy.deepcopy(real_decoder)
            root = copied if player in oracles.ON_DIFFUSERS_NAMES else linears_of(copied)
            cells[player] = judge(play(root, path), weights, trained)
        yield name, cells


def reasons(rows):
    """Say why a player does not load some of the formats."""
    outcomes = ((player, one) for _, cells in rows if isinstance(cells, dict) for player, one in cells.items())
    return sorted({f"- {player}: {one.refusal}." for player, one in outcomes if one.refusal})


def as_markdown(rows):
    lines = [f"| format | {' | '.join(oracles.PLAYERS)} |", f"|---|{'---|' * len(oracles.PLAYERS)}"]
    for name, cells in rows:
        if isinstance(cells, str):
            lines.append(f"| `{name}` | not possible: {cells} |" + " |" * (len(oracles.PLAYERS) - 1))
        else:
            lines.append(f"| `{name}` | {' | '.join(map(str, cells.values()))} |")
    return "\n".join(lines)


NO_LOKR_DORA = "diffusers has no LoKr with DoRA; use --to diffusers, which makes a LoRA of it."
MUST_BE_EXACT = {
    "final/": {
        "LoRA": ("ACE-Step", "ComfyUI", "diffusers", "PEFT", "acestep.cpp", "HOT-Step"),
        "DoRA": ("ACE-Step", "diffusers", "PEFT", "HOT-Step"),
        "LoKr": ("ACE-Step", "ComfyUI, fixed", "LyCORIS", "acestep.cpp", "HOT-Step"),
        "LoHa": ("ACE-Step", "PEFT"),
        "OFT": ("ACE-Step", "PEFT"),
    },
    "comfyui": dict.fromkeys(("LoRA", "DoRA", "LoKr", "LoHa", "OFT"), ("ComfyUI",)),
    "diffusers": dict.fromkeys(("LoRA", "DoRA"), ("diffusers", "diffusers' decoder")),
    "diffusers-lokr": {"LoKr": ("diffusers' decoder",)},
    "peft-faithful": dict.fromkeys(("LoRA", "DoRA"), ("PEFT", "ACE-Step", "diffusers")),
    "lora --max-rank 8": {"LoRA": ("ACE-Step", "ComfyUI", "diffusers", "PEFT", "acestep.cpp", "HOT-Step")},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_the_players_do(family, real_decoder, targets, train_a_little, base, tmp_path):
    rows = list(rows_of(family, real_decoder, targets, train_a_little, base, tmp_path))
    for name, cells in rows:
        for player in MUST_BE_EXACT.get(name, {}).get(family.split()[0].strip(","), ()):
            assert cells == NO_LOKR_DORA or str(cells[player]) == "exact", (name, player, cells)
    check_page(family, as_markdown(rows))
    told = between(REASONS)[1].strip().splitlines()
    check_page(REASONS, "\n".join(sorted({*told, *reasons(rows)})))


def between(name):
    """Return the page before, inside and after a block."""
    text, begin = DOCS.read_text(encoding="utf-8"), BEGIN.format(name)
    assert begin in text, f"docs/adapters.md has no place for {name}"
    head, rest = text.split(begin, 1)
    return head + begin, *rest.split(END, 1)


def check_page(name, content):
    """Compare a block of the page with what was found, or write it."""
    head, found, tail = between(name)
    if os.environ.get("WOODSHED_WRITE_TABLE"):
        DOCS.write_text(f"{head}\n\n{content}\n\n{END}{tail}", encoding="utf-8")
    else:
        assert found.strip() == content
