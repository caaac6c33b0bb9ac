"""The numbers that a family is built from, as `woodshed inspect` tells them; and what a merged model is made of."""

import json
import shutil

import pytest
import torch

from woodshed.adapters.changes import Hadamard, LowRank, Rotation
from woodshed.adapters.comfyui_format import write_comfyui
from woodshed.adapters.content import Content
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.peft_format import write_peft
from woodshed.analysis.inspect_adapter import inspect_adapter
from woodshed.analysis.inspect_model import inspect_model

Q, K = "layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"


def lora(rank):
    return LowRank(torch.ones(rank, 32), torch.ones(32, rank))


def loha(rank):
    return Hadamard(torch.ones(32, rank), torch.ones(rank, 32), torch.ones(32, rank), torch.ones(rank, 32))


def lokr(dim):
    w2 = (torch.ones(16, 16),) if dim is None else (torch.ones(16, dim), torch.ones(dim, 16))
    return Kronecker((torch.ones(2, 2),), w2)


@pytest.mark.parametrize(
    ("changes", "family", "facts"),
    [
        ([lora(4), lora(4)], "LoRA", {"rank": 4}),
        ([lora(4), lora(2)], "LoRA", {"rank": [2, 4]}),
        ([loha(3), loha(3)], "LoHa", {"rank": 3}),
        ([lokr(2), lokr(2)], "LoKr", {"rank of the second factor": 2}),
        ([lokr(2), lokr(None)], "LoKr", {"rank of the second factor": 2, "whole second factors": 1}),
        ([Rotation(torch.ones(4, 28)), Rotation(torch.ones(4, 28))], "OFT", {"block size": 8}),
    ],
)
def test_every_family_tells_what_it_is_built_from(changes, family, facts, tmp_path):
    write = write_peft if isinstance(changes[0], Rotation) else write_comfyui
    write(
        tmp_path if write is write_peft else tmp_path / "x.safetensors",
        Content(dict(zip((Q, K), changes, strict=True))),
    )
    found = inspect_adapter(tmp_path, None).facts
    assert found["family"] == family
    names = ("rank", "rank of the second factor", "whole second factors", "block size", "trained biases")
    assert {name: found[name] for name in names if name in found} == facts


def test_trained_biases_are_counted(tmp_path):
    write_comfyui(
        tmp_path / "x.safetensors", Content({Q: lora(4)}, bias_differences={"proj_in.1.bias": torch.ones(32)})
    )
    assert inspect_adapter(tmp_path, None).facts["trained biases"] == 1


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (
            {"base_model": "b", "adapters": [{"file": "a/x", "strength": 0.5}, {"file": "c", "strength": 1.0}]},
            "b + a/x at 0.5 + c at 1.0",
        ),
        ({"base_model": 3, "adapters": "none"}, "3"),
        ({"adapters": [7, None]}, "None"),
        ([], None),
        ("{", None),
        (None, None),
    ],
)
def test_a_merged_model_says_what_it_is_made_of(checkpoint_root, tmp_path, record, told):
    folder = tmp_path / "merged"
    shutil.copytree(checkpoint_root / "acestep-v15-base", folder)
    if record is not None:
        text = record if isinstance(record, str) else json.dumps(record)
        (folder / "woodshed_merge.json").write_text(text)
    assert inspect_model(folder).facts.get("merged from") == told
