"""Adapters of other trainers, read, converted and trained on; and files that mean harm, refused in one clear line."""

import itertools
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from woodshed.adapters.changes import LowRank, Norms
from woodshed.adapters.comfyui_format import write_comfyui
from woodshed.adapters.content import Content
from woodshed.adapters.diffusers_format import write_diffusers
from woodshed.adapters.dora import attach_dora
from woodshed.adapters.kronecker import Kronecker
from woodshed.adapters.loha import attach_loha
from woodshed.adapters.lokr import attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.lycoris_format import write_lycoris
from woodshed.adapters.naming import lycoris_module, read_key, read_module
from woodshed.adapters.oft import attach_oft
from woodshed.adapters.peft_format import write_peft
from woodshed.adapters.saved import read_adapter
from woodshed.adapters.start import check_start, start_from
from woodshed.adapters.targets import linear_shapes
from woodshed.errors import AdapterError
from woodshed.models.keys import original_to_diffusers
from woodshed.settings.schema import TrainSettings

Q = "layers.0.self_attn.q_proj"
O = "layers.1.cross_attn.o_proj"  # noqa: E741 - as the model calls it
A, B = torch.randn(4, 32), torch.randn(32, 4)


@pytest.fixture
def one_file(tmp_path):
    def write(tensors, header=None, name="style.safetensors"):
        save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / name, header)
        return tmp_path / name

    return write


def pair(prefix, up, down, rename=str, **more):
    """A LoRA on two modules in somebody's spelling."""
    return {
        f"{prefix}{rename(module)}.{part}": value
        for module in (Q, O)
        for part, value in ((down, A), (up, B), *more.items())
    }


SPELLINGS = {
    "ai-toolkit": (pair("diffusion_model.decoder.", "lora_B.weight", "lora_A.weight"), 1.0),
    "ComfyUI": (
        pair("diffusion_model.decoder.", "lora_up.weight", "lora_down.weight", alpha=torch.tensor(6.0)),
        1.5,
    ),
    "Side-Step": (pair("base_model.model.", "lora_up.weight", "lora_down.weight", alpha=torch.tensor(2.0)), 0.5),
    "diffusers": (pair("transformer.", "lora_B.weight", "lora_A.weight", original_to_diffusers), 1.0),
    "older diffusers": (pair("transformer.", "lora.up.weight", "lora.down.weight", original_to_diffusers), 1.0),
    "LyCORIS": (
        {
            f"{lycoris_module(module)}.{part}": value
            for module in (Q, O)
            for part, value in (("lora_down.weight", A), ("lora_up.weight", B), ("alpha", torch.tensor(8.0)))
        },
        2.0,
    ),
    "flattened diffusers": (
        {
            f"lycoris_{original_to_diffusers(module).replace('.', '_')}.{part}": value
            for module in (Q, O)
            for part, value in (("lora_down.weight", A), ("lora_up.weight", B))
        },
        1.0,
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_files_of_other_trainers_are_read_at_their_own_strength(one_file, spelling):
    tensors, scale = SPELLINGS[spelling]
    saved = read_adapter(one_file(tensors))
    assert sorted(saved.modules) == [Q, O]
    for module in saved.modules:
        torch.testing.assert_close(saved.delta(module, torch.zeros(32, 32)), scale * B @ A)


def test_a_diffusers_file_is_as_strong_as_its_header_says(one_file):
    said = {
        "transformer.r": 4,
        "transformer.lora_alpha": 12,
        "transformer.alpha_pattern": {"layers.0.self_attn.to_q": 2},
    }
    tensors = SPELLINGS["diffusers"][0]
    saved = read_adapter(one_file(tensors, {"lora_adapter_metadata": json.dumps(said)}))
    torch.testing.assert_close(saved.delta(O, torch.zeros(32, 32)), 3 * B @ A)
    torch.testing.assert_close(saved.delta(Q, torch.zeros(32, 32)), 0.5 * B @ A)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "anything.safetensors"])
def test_a_folder_with_one_file_means_the_file(one_file, tmp_path, name):
    path = one_file(SPELLINGS["ai-toolkit"][0], name=name)
    assert read_adapter(tmp_path).path == path


def test_a_folder_with_several_files_asks_which(one_file, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        one_file(SPELLINGS["ai-toolkit"][0], name=name)
    with pytest.raises(AdapterError, match=r"holds several files: a\.safetensors, b\.safetensors\. Name one\."):
        read_adapter(tmp_path)


def test_every_name_of_the_model_survives_flattening(make_decoder):
    for module in linear_shapes(make_decoder()):
        assert read_module(lycoris_module(module)) == module
        assert read_module("lora_unet_decoder_" + module.replace(".", "_")) == module
        assert read_key(f"transformer.{original_to_diffusers(module)}.lora_A.weight") == (module, "lora_A")


def contents(kind, make_decoder, targets, train_a_little):
    decoder = make_decoder()
    attach = {
        "lora": lambda: attach_lora(decoder, targets, rank=3, alpha=5.0, dropout=0.0, bias="none"),
        "dora": lambda: attach_dora(decoder, targets, rank=3, alpha=5.0, dropout=0.0, bias="none"),
        "lokr": lambda: attach_lokr(decoder, targets, LokrSettings(2, 3.0, factor=2), bias="none"),
        "lokr dora": lambda: attach_lokr(
            decoder, targets, LokrSettings(2, 3.0, factor=2, weight_decompose=True), bias="none"
        ),
        "lokr whole": lambda: attach_lokr(decoder, targets, LokrSettings(64, 64.0), bias="none"),
        "loha": lambda: attach_loha(decoder, targets, rank=2, alpha=3.0),
        "oft": lambda: attach_oft(decoder, targets, block_size=8),
    }[kind]
    adapter = attach()
    train_a_little(adapter)
    return Content({module: adapter.change(module) for module in targets}, {"shift": 3.0})


ROUND_TRIPS = {
    "comfyui": (write_comfyui, ("lora", "dora", "lokr", "lokr dora", "lokr whole", "loha")),
    "lycoris": (write_lycoris, ("lora", "dora", "lokr", "lokr dora", "lokr whole", "loha")),
    "peft-faithful": (lambda path, content: write_peft(path, content, is_faithful=True), ("lora", "dora")),
    "peft": (write_peft, ("oft",)),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (_, kinds) in ROUND_TRIPS.items() for kind in kinds])
def test_what_was_written_comes_back_to_the_last_bit(name, kind, make_decoder, targets, train_a_little, tmp_path):
    content = contents(kind, make_decoder, targets, train_a_little)
    path = tmp_path if "peft" in name else tmp_path / "x.safetensors"
    ROUND_TRIPS[name][0](path, content)
    saved = read_adapter(path)
    assert saved.recipe == {"shift": 3.0}
    assert set(saved.modules) == set(targets)
    for module in targets:
        weight = torch.randn(saved.shape(module)[0] or 32, saved.shape(module)[1], dtype=torch.float64)
        one, other = content.changes[module], saved.changes[module]
        assert torch.equal(one.delta(weight), other.delta(weight))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_scale_that_is_multiplied_in_twice_is_still_one(kind, make_decoder, targets, train_a_little, tmp_path):
    """Once multiplied in, a round trip through the baked formats changes no bit."""
    content = contents(kind, make_decoder, targets, train_a_little)
    write_peft(tmp_path, content)
    baked = read_adapter(tmp_path)
    for number, write in enumerate((write_comfyui, write_diffusers)):
        write(tmp_path / f"{number}.safetensors", baked)
        again = read_adapter(tmp_path / f"{number}.safetensors")
        for module in targets:
            assert torch.equal(baked.changes[module].a, again.changes[module].a)
            assert torch.equal(baked.changes[module].b, again.changes[module].b)
            if kind == "dora":
                assert torch.equal(baked.changes[module].norms.values, again.changes[module].norms.values)


RUN = {"model": "x", "dataset_dir": "x", "output_dir": "x"}
STARTS = {
    "lora": ("lora", {"rank": 3, "alpha": 1.0}),
    "lora, larger": ("lora", {"rank": 5, "alpha": 20.0}),
    "lora to dora": ("lora", {"adapter_type": "dora", "rank": 3, "alpha": 2.0}),
    "dora": ("dora", {"adapter_type": "dora", "rank": 4, "alpha": 2.0}),
    "lokr": ("lokr", {"adapter_type": "lokr", "lokr_linear_dim": 2, "lokr_linear_alpha": 8.0, "lokr_factor": 2}),
    "lokr whole": ("lokr whole", {"adapter_type": "lokr", "lokr_use_scalar": True}),
    "lokr dora": (
        "lokr dora",
        {"adapter_type": "lokr", "lokr_linear_dim": 2, "lokr_factor": 2, "lokr_weight_decompose": True},
    ),
    "loha": ("loha", {"adapter_type": "loha", "rank": 2, "alpha": 9.0}),
    "oft": ("oft", {"adapter_type": "oft", "oft_block_size": 8}),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_run_starts_with_exactly_the_effect_of_an_adapter(case, make_decoder, targets, train_a_little, tmp_path):
    from woodshed.adapters.families import attach_adapter

    kind, changed = STARTS[case]
    content = contents(kind, make_decoder, targets, train_a_little)
    path = tmp_path if kind == "oft" else tmp_path / "x.safetensors"
    (write_peft if kind == "oft" else write_comfyui)(path, content)
    saved, settings = read_adapter(path), TrainSettings(**RUN, **changed)
    decoder = make_decoder()
    shapes = linear_shapes(decoder)
    assert "start" in check_start(saved, {name: shapes[name] for name in targets}, settings)[0]
    adapter = attach_adapter(decoder, targets, settings)
    start_from(adapter, saved)
    for module in targets:
        wanted = saved.delta(module, adapter.base_weight(module).double())
        error = (adapter.effective_delta(module) - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-5
    if case == "lora, larger":
        free = adapter.trainable_parameters()[f"{targets[0]}.lora_A.weight"][3:]
        assert free.any(dim=1).all()  # ranks that could not learn if both factors were zero


def test_a_start_that_does_not_fit_is_refused_with_both_shapes(make_decoder, targets, train_a_little, tmp_path):
    from woodshed.adapters.families import attach_adapter

    content = contents("lokr", make_decoder, targets, train_a_little)
    write_comfyui(tmp_path / "x.safetensors", content)
    saved = read_adapter(tmp_path / "x.safetensors")
    adapter = attach_adapter(make_decoder(), targets, TrainSettings(**RUN, adapter_type="lokr"))
    before = {name: value.detach().clone() for name, value in adapter.trainable_parameters().items()}
    with pytest.raises(AdapterError, match=r"q_proj holds lokr_w1 2x2, .* where these settings come to lokr_w1 4x4"):
        start_from(adapter, saved)
    assert all(torch.equal(value, before[name]) for name, value in adapter.trainable_parameters().items())


HOSTILE = {
    "a path": {f"../../etc/{Q}.lora_A.weight": A, f"../../etc/{Q}.lora_B.weight": B},
    "an absolute path": {"/etc/passwd.lora_A.weight": A, "/etc/passwd.lora_B.weight": B},
    "an empty name": {".lora_A.weight": A, ".lora_B.weight": B},
    "a name with a line break": {"a\nb.lora_A.weight": A, "a\nb.lora_B.weight": B},
    "one module in two spellings": {
        **{f"base_model.model.{Q}.lora_{part}.weight": value for part, value in (("A", A), ("B", B))},
        **{f"diffusion_model.decoder.{Q}.lora_{part}.weight": value for part, value in (("A", A), ("B", B))},
    },
    "two families on one module": {
        f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.lokr_w1": A[:, :4], f"{Q}.lokr_w2": B[:8]
    },
    "unequal halves of a LoHa": {
        f"{Q}.hada_w1_a": B, f"{Q}.hada_w1_b": A, f"{Q}.hada_w2_a": B[:8], f"{Q}.hada_w2_b": A
    },
    "rotations without a config": {f"{Q}.oft_R.weight": torch.zeros(4, 28)},
    "an optimizer's state": {"exp_avg": A},
    "a difference with three sides": {f"{Q}.diff": torch.zeros(2, 2, 2)},
    "a bias alone": {"proj_in.1.diff_b": A[0]},
    "nothing": {},
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_mean_harm_or_nothing_are_one_clear_line(one_file, tmp_path, case):
    path = one_file(HOSTILE[case])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AdapterError) as caught:
        read_adapter(path)
    (problem,) = caught.value.problems
    assert problem.startswith(str(path))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["lokr_config", "lora_adapter_metadata", "woodshed"])
@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": "' + "x" * (1 << 20) + '"}'], ids=["cut", "deep", "huge"])
def test_a_header_that_makes_no_sense_is_one_clear_line(one_file, name, text):
    with pytest.raises(AdapterError, match=r"cannot be read"):
        read_adapter(one_file(SPELLINGS["ai-toolkit"][0], {name: text}))


def test_headers_of_other_tools_may_hold_what_they_like(one_file):
    header = {"ss_network_args": "{not json", "modelspec.title": "x" * 100_000}
    assert read_adapter(one_file(SPELLINGS["ai-toolkit"][0], header)).recipe == {}


def test_a_recipe_that_is_no_object_counts_as_none(one_file):
    assert read_adapter(one_file(SPELLINGS["ai-toolkit"][0], {"woodshed": "[1]"})).recipe == {}


def test_a_header_of_terabytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 44) + b"{}" * 100)
    with pytest.raises(AdapterError, match="cannot be read"):
        read_adapter(path)


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt", ".pth"])
def test_pickles_are_never_opened(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(AdapterError, match="is a pickle, which could run code, so it is not read"):
        read_adapter(path)


def test_every_combination_of_whole_and_split_lokr_factors_becomes_an_exact_lora():
    torch.manual_seed(1)
    whole, split = (torch.randn(4, 2),), (torch.randn(4, 3), torch.randn(3, 2))
    big, thin = (torch.randn(8, 16),), (torch.randn(8, 5), torch.randn(5, 16))
    for w1, w2 in itertools.product((whole, split), (big, thin)):
        change = Kronecker(w1, w2, 1.5)
        a, b = change.low_rank()
        torch.testing.assert_close(b @ a, change.product(torch.zeros(32, 32)), rtol=1e-4, atol=1e-4)
        assert len(a) == (2 if w1 is whole else 3) * (8 if w2 is big else 5)


def test_norms_of_rows_that_are_zero_do_no_harm():
    change = LowRank(torch.zeros(1, 4), torch.zeros(3, 1), norms=Norms(torch.ones(3)))
    assert change.delta(torch.zeros(3, 4)).isfinite().all()


def test_a_file_keeps_its_tensors_apart_from_those_in_memory(one_file):
    """Safetensors refuses shared memory; padding and folding must not create any."""
    saved = read_adapter(one_file(SPELLINGS["ai-toolkit"][0]))
    assert len(load_file(saved.path)) == saved.tensors == 4
