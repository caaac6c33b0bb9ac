"""Exports as functions: what is converted, what is refused, what is said, and that nothing false is left behind."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from woodshed.adapters import export as export_module
from woodshed.adapters.changes import Difference, LowRank, Norms
from woodshed.adapters.comfyui_format import write_comfyui
from woodshed.adapters.content import Content
from woodshed.adapters.diffusers_format import write_diffusers
from woodshed.adapters.dora import attach_dora
from woodshed.adapters.export import export_adapter
from woodshed.adapters.files import save_adapter
from woodshed.adapters.loha import attach_loha
from woodshed.adapters.lokr import attach_lokr
from woodshed.adapters.lokr_shape import LokrSettings
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.lycoris_format import write_lycoris
from woodshed.adapters.oft import attach_oft
from woodshed.adapters.peft_format import write_peft
from woodshed.adapters.saved import read_adapter
from woodshed.errors import AdapterError, CheckpointError
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.load import load_decoder
from woodshed.settings.schema import ExportSettings

Q = "layers.0.self_attn.q_proj"
K = "layers.0.self_attn.k_proj"
V = "layers.1.self_attn.v_proj"
LORA = {"rank": 3, "alpha": 5.0, "dropout": 0.0}
FAMILIES = {
    "lora": lambda decoder, targets, bias: attach_lora(decoder, targets, **LORA, bias=bias),
    "dora": lambda decoder, targets, bias: attach_dora(decoder, targets, **LORA, bias=bias),
    "lokr": lambda decoder, targets, bias: attach_lokr(decoder, targets, LokrSettings(2, 3.0, factor=2), bias=bias),
    "loha": lambda decoder, targets, _: attach_loha(decoder, targets, rank=2, alpha=3.0),
    "oft": lambda decoder, targets, _: attach_oft(decoder, targets, block_size=8),
}


@pytest.fixture
def source(checkpoint_root, targets, train_a_little, tmp_path):
    """Train a family on the toy checkpoint and save it: the adapter and its `final/`."""

    def make(family="lora", bias="none", recipe=None, modules=targets):
        model = choose_model(find_checkpoints(checkpoint_root), "acestep-v15-base")
        decoder = load_decoder(model, dtype=torch.float32, device="cpu")
        adapter = FAMILIES[family](decoder, modules, bias)
        train_a_little(adapter)
        save_adapter(adapter, tmp_path / "run" / "final", recipe or {})
        return adapter, tmp_path / "run" / "final"

    return make


@pytest.fixture
def export(checkpoint_root, tmp_path):
    """Export into a place of its own; `base=False` for somebody who has no model."""

    def run(path, to, *, base=True, output=None, **changes):
        model = {"model": "acestep-v15-base"} if base else {}
        place = {"checkpoint_dir": checkpoint_root if base else tmp_path / "no models"}
        settings = {"to": to, "output": output or tmp_path / f"out-{len(list(tmp_path.iterdir()))}"}
        return export_adapter(path, ExportSettings(**place | model | settings | changes))

    return run


def problems_of(call, *words, **more):
    with pytest.raises(AdapterError) as caught:
        call(*words, **more)
    return caught.value.problems


BIASED = [("lora", "peft"), ("lora", "comfyui"), ("lora", "lycoris"), ("lokr", "comfyui"), ("dora", "peft-faithful")]


@pytest.mark.parametrize(("family", "to"), BIASED)
def test_trained_biases_arrive_where_a_format_can_hold_them(source, export, family, to):
    adapter, path = source(family, "all")
    done = export(path, to)
    saved = read_adapter(done.path)
    assert sorted(saved.bias_names) == sorted(adapter.biases.parameters)
    for name, trained in adapter.biases.parameters.items():
        base = adapter.biases.base[name]
        torch.testing.assert_close(saved.bias(name, base), trained.detach(), rtol=1e-6, atol=1e-6)
    assert not [line for line in done.notices if "biases" in line]


@pytest.mark.parametrize(("family", "to"), [("lora", "lora"), ("lora", "diffusers"), ("lokr", "diffusers-lokr")])
def test_trained_biases_are_left_out_of_the_others_with_a_word(source, export, family, to):
    _, path = source(family, "all")
    done = export(path, to)
    assert not read_adapter(done.path).bias_names
    assert done.notices[0] == "The 9 trained biases are left out: this format has no place for them."


def test_whole_biases_become_differences_and_back_through_the_base(source, export):
    _, path = source("lora", "all")
    there = export(path, "comfyui")
    differences = read_adapter(there.path).bias_differences
    back = read_adapter(export(there.path, "peft").path)
    first = read_adapter(path)
    assert set(back.biases) == set(first.biases) == set(differences)
    for name, value in first.biases.items():
        torch.testing.assert_close(back.biases[name], value, rtol=1e-6, atol=1e-7)
        assert differences[name].abs().max() > 0.05
    for to, wrong in (("comfyui", first), ("lycoris", first)):
        write = {"comfyui": write_comfyui, "lycoris": write_lycoris}[to]
        assert (
            "which needs the base"
            in problems_of(write, there.path / "x", Content(wrong.changes, biases=wrong.biases))[0]
        )
    assert (
        "needs the base model's"
        in problems_of(write_peft, there.path, Content(first.changes, bias_differences=differences))[0]
    )


def test_biases_without_a_base_say_what_to_name(source, export):
    _, path = source("lora", "all")
    (problem,) = problems_of(export, path, "comfyui", base=False)
    assert "--checkpoint-dir and --model" in problem


def test_the_recipe_names_the_base_when_the_user_does_not(source, export, checkpoint_root):
    _, path = source("dora", recipe={"base_model": "acestep-v15-base"})
    done = export(path, "comfyui", base=False, checkpoint_dir=checkpoint_root)
    assert done.verification.is_live
    unnamed = "Name the one that the adapter was trained on with --checkpoint-dir"
    for name, said in (
        ("not here", "Name not here, which the adapter was trained on, with --checkpoint-dir"),
        (3, unnamed),
        ("", unnamed),
        ("a\x1b[2Jb", unnamed),
        ("x" * 5000, unnamed),
    ):
        _, path = source("dora", recipe={"base_model": name})
        (problem,) = problems_of(export, path, "comfyui", base=False, checkpoint_dir=checkpoint_root)
        assert said in problem


@pytest.mark.parametrize(
    ("family", "to"),
    [("lora", to) for to in ("peft", "peft-faithful", "comfyui", "diffusers", "lycoris", "lora")]
    + [("lokr", "diffusers-lokr"), ("lokr", "lycoris"), ("dora", "comfyui")],
)
def test_the_recipe_travels_into_every_format_and_back(source, export, family, to):
    recipe = {"base_model": "acestep-v15-base", "custom_tag": "zydeco", "tag_position": "append", "shift": 3.0}
    _, path = source(family, recipe=recipe)
    assert read_adapter(export(path, to).path).recipe == recipe


def test_a_model_that_the_user_names_must_exist(source, export, checkpoint_root):
    _, path = source()
    with pytest.raises(CheckpointError, match="nonsense"):
        export(path, "peft", checkpoint_dir=checkpoint_root, model="nonsense")


def test_an_adapter_that_does_not_fit_the_named_base_is_refused(export, tmp_path):
    save_file(
        {f"layers.99.{Q[9:]}.lora_A.weight": torch.ones(2, 32), f"layers.99.{Q[9:]}.lora_B.weight": torch.ones(32, 2)},
        tmp_path / "x.safetensors",
    )
    assert (
        "is for another model: this one has no layers.99" in problems_of(export, tmp_path / "x.safetensors", "peft")[0]
    )
    assert export(tmp_path / "x.safetensors", "peft", base=False).verification.modules == 1


@pytest.mark.parametrize("to", ["peft", "peft-faithful", "diffusers", "lycoris"])
def test_norms_that_were_made_for_todays_comfyui_are_made_true_again(source, export, to):
    adapter, path = source("dora")
    today = export(path, "comfyui")
    assert all(change.norms.are_over_base for change in read_adapter(today.path).changes.values())
    back = read_adapter(export(today.path, to).path)
    for module, change in back.changes.items():
        assert not change.norms.are_over_base
        trained = adapter.trainable_parameters()[f"{module}.lora_magnitude_vector"]
        torch.testing.assert_close(change.norms.values, trained.detach(), rtol=1e-4, atol=1e-5)
    assert "depends on the weights" in problems_of(export, today.path, to, base=False)[0]


def test_norms_for_todays_comfyui_are_refused_by_formats_that_would_misread_them(tmp_path):
    change = LowRank(torch.ones(1, 4), torch.ones(4, 1), norms=Norms(torch.ones(4), are_over_base=True))
    content = Content({Q: change})
    for write in (write_peft, write_diffusers, write_lycoris):
        place = tmp_path if write is write_peft else tmp_path / "x.safetensors"
        assert "These norms were written for today's ComfyUI" in problems_of(write, place, content)[0]


@pytest.mark.parametrize(("dora", "over_base", "said"), [("today", True, "today"), ("true", False, "true ones")])
def test_a_file_for_comfyui_says_in_its_header_which_norms_it_has(source, export, dora, over_base, said):
    _, path = source("dora")
    done = export(path, "comfyui", dora=dora)
    (file,) = done.path.iterdir()
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["woodshed"]).get("norms_over_base", False) is over_base
    assert said in done.notices[0]
    again = export(file, "comfyui", dora="true" if over_base else "today")
    (other,) = again.path.iterdir()
    name = f"diffusion_model.decoder.{Q}.dora_scale"
    assert not torch.allclose(load_file(file)[name], load_file(other)[name])


def test_whole_differences_play_the_same_in_both_conventions(source, export):
    adapter, path = source("dora")
    done = export(path, "comfyui", dora="diff")
    saved = read_adapter(done.path)
    assert saved.family is Difference
    assert done.notices == ()
    for module in adapter.modules:
        torch.testing.assert_close(saved.changes[module].values, adapter.effective_delta(module), rtol=1e-5, atol=1e-6)


def test_a_file_that_came_out_wrong_is_not_left_behind(source, export, tmp_path, monkeypatch):
    _, path = source()
    name, write = export_module._FILES["comfyui"]

    def at_half_strength(file, content, **more):
        halved = {module: replace(change, scale=change.scale / 2) for module, change in content.changes.items()}
        return write(file, replace(content, changes=halved), **more)

    def without_a_module(file, content, **more):
        rest = dict(list(content.changes.items())[1:])
        return write(file, replace(content, changes=rest), **more)

    for wrong, said in (
        (at_half_strength, "does not hold what was trained"),
        (without_a_module, "does not hold the layers"),
    ):
        monkeypatch.setitem(export_module._FILES, "comfyui", (name, wrong))
        for output in (tmp_path / "folder", tmp_path / "file.safetensors"):
            assert said in problems_of(export, path, "comfyui", output=output)[0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("to", "modules", "is_said"),
    [
        ("peft", [V], True),
        ("lora", [V], True),
        ("peft", [V, K], False),
        ("lora", [Q], False),
        ("diffusers", [V], False),
    ],
)
def test_a_folder_that_diffusers_would_ignore_says_so(source, export, to, modules, is_said):
    _, path = source(modules=modules)
    assert any(line.startswith("diffusers will ignore this folder") for line in export(path, to).notices) is is_said


@pytest.mark.parametrize("to", ["peft-faithful", "diffusers", "peft"])
def test_differences_of_biases_become_whole_ones_in_every_folder(source, export, to):
    adapter, path = source("lora", "all")
    again = read_adapter(export(export(path, "comfyui").path, to).path)
    assert len(again.biases) == (0 if to == "diffusers" else len(adapter.biases.parameters))
    assert not again.bias_differences


@pytest.mark.parametrize(
    ("family", "to", "said"),
    [
        ("lokr", "peft-faithful", "Only a LoRA or DoRA has a form"),
        ("oft", "lycoris", "holds LoKr, LoHa or LoRA"),
        ("loha", "diffusers-lokr", "is for a LoKr"),
    ],
)
def test_a_format_that_is_none_for_the_family_is_said_before_a_base_is_asked_for(source, export, family, to, said):
    _, path = source(family, "all", {"base_model": "not here"})
    (problem,) = problems_of(export, path, to, base=False)
    assert said in problem


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "lokr_weights.safetensors", "pytorch_lora_weights.safetensors"]
)
@pytest.mark.parametrize("output", ["home/x.safetensors", "home/folder"])
def test_nothing_is_written_into_the_folder_of_another_adapter(source, export, tmp_path, name, output):
    _, path = source()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / name).write_text("{}")
    (problem,) = problems_of(export, path, "comfyui", output=tmp_path / output)
    assert problem.startswith(f"{tmp_path / 'home'} holds an adapter ({name}), and a second one there would hide it")
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == [name]


def test_files_of_comfyui_may_lie_side_by_side(source, export, tmp_path):
    _, path = source()
    for name in ("a", "b"):
        export(path, "comfyui", output=tmp_path / "loras" / f"{name}.safetensors")
    assert sorted(entry.name for entry in (tmp_path / "loras").iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_cut_that_loses_nothing_is_not_called_an_approximation(source, export):
    _, path = source("lokr")
    done = export(path, "lora", max_rank=32)
    assert not [line for line in done.notices if "approximation" in line]
    assert str(export(path, "lora", max_rank=2).verification).startswith("Read back: ")


def test_formats_say_which_players_misread_them(source, export):
    _, dora = source("dora")
    assert any("acestep.cpp ignores the norms" in line for line in export(dora, "peft").notices)
    faithful = export(dora, "peft-faithful").notices
    assert any("acestep.cpp ignores the norms" in line for line in faithful)
    assert any("ComfyUI does not read the scale" in line for line in faithful)
    _, lokr = source("lokr")
    assert any("pipe.transformer.load_lora_adapter" in line for line in export(lokr, "diffusers-lokr").notices)


@pytest.mark.parametrize(("to", "is_said"), [("peft", True), ("lora", True), ("comfyui", False), ("diffusers", False)])
def test_several_ranks_are_filled_up_with_a_word_only_where_a_format_has_one(export, tmp_path, to, is_said):
    changes = {Q: LowRank(torch.randn(4, 32), torch.randn(32, 4)), K: LowRank(torch.randn(2, 32), torch.randn(16, 2))}
    write_comfyui(tmp_path / "x.safetensors", Content(changes))
    done = export(tmp_path / "x.safetensors", to, base=False)
    said = [line for line in done.notices if "ranks 2, 4; in a PEFT folder zeros fill them up to 4" in line]
    assert bool(said) is is_said
    assert read_adapter(done.path).changes[K].rank == (4 if is_said else 2)


def test_what_is_lost_by_a_cut_is_told_in_percent(source, export):
    adapter, path = source("dora")
    done = export(path, "lora", max_rank=4)
    lost = saved = 0.0
    for module in adapter.modules:
        wanted = adapter.effective_delta(module)
        lost += (read_adapter(done.path).delta(module, torch.zeros_like(wanted)) - wanted).square().sum().item()
        saved += wanted.square().sum().item()
    percent = float(done.notices[0].split(" % of the change is lost")[0].split(" and ")[-1])
    assert percent == pytest.approx(100 * (lost / saved) ** 0.5, rel=0.06)
    assert done.verification.residual == pytest.approx((lost / saved) ** 0.5, rel=1e-3)
    assert done.notices[0].startswith("This is an approximation: ")
    assert done.notices[0].endswith("A larger --max-rank loses less.")
    assert str(done.verification).startswith("Read back: ")


def test_a_plain_lora_comes_through_lora_uncut_unless_a_rank_is_named(source, export):
    _, path = source()
    assert export(path, "lora").notices == ()
    assert "This is an approximation" in export(path, "lora", max_rank=2).notices[0]
    assert read_adapter(export(path, "lora", max_rank=3).path).changes[Q].rank == 3
