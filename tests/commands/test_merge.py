"""`woodshed merge`, as its users type it: the merged folder computes what base and adapters together compute."""

import json

import pytest
import torch
from safetensors.torch import load_file

from woodshed import cli
from woodshed.adapters.files import load_adapter
from woodshed.adapters.saved import read_adapter
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.load import load_decoder


@pytest.fixture
def merge(capsys, tmp_path, monkeypatch, golden, checkpoint_root):
    """Run `woodshed merge` on golden adapters; return exit code, standard output and standard error."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def call(names, *words, model="base"):
        paths = [str(golden / "adapters" / name) for name in names]
        words = [*words, "--checkpoint-dir", checkpoint_root, "--model", model, "--plain"]
        code = cli.main(["merge", *paths, *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def weights_of(folder):
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def expected(base, parts):
    """The base's tensors with every difference taken from it, added up, and rounded once."""
    merged = dict(base)
    for saved, _ in parts:
        for module in saved.modules:
            name = f"decoder.{module}.weight"
            weight = base[name].double()
            change = sum(strength * one.delta(module, weight) for one, strength in parts if module in one.changes)
            merged[name] = (weight + change).to(base[name].dtype)
    return merged


@pytest.mark.parametrize(("strengths", "each"), [((), (1, 1)), ((0.5,), (0.5, 0.5)), ((0.8, -0.3), (0.8, -0.3))])
def test_base_and_adapters_become_one_model(merge, tmp_path, checkpoint_root, golden, strengths, each):
    names = ("dora_r4", "lora_r2_mlp")
    words = ("--strength", *strengths) if strengths else ()
    code, out, err = merge(names, "--output", "out/mix", *words)
    assert (code, err) == (0, "")
    assert "Wrote out/mix" in out
    source = checkpoint_root / "acestep-v15-base"
    base, found = weights_of(source), weights_of(tmp_path / "out" / "mix")
    parts = [(read_adapter(golden / "adapters" / name), one) for name, one in zip(names, each, strict=True)]
    wanted = expected(base, parts)
    assert set(found) == set(base)
    assert all(torch.equal(found[name], wanted[name]) for name in base)
    changed = sum(not torch.equal(found[name], base[name]) for name in base)
    assert f"Verified: {changed} tensors changed" in out
    others = {path.name for path in source.iterdir()} - {"model.safetensors"}
    assert {path.name for path in (tmp_path / "out" / "mix").iterdir()} == {
        *others, "model.safetensors", "woodshed_merge.json",
    }  # fmt: skip
    assert all((source / name).read_bytes() == (tmp_path / "out" / "mix" / name).read_bytes() for name in others)
    record = json.loads((tmp_path / "out" / "mix" / "woodshed_merge.json").read_text())
    assert [part["strength"] for part in record["adapters"]] == list(each)


def test_shards_stay_shards_and_float32_loses_nothing(merge, tmp_path, checkpoint_root, make_xl_adapter):
    adapter, saved = make_xl_adapter
    code, out, _ = merge([adapter], "--output", "xl", "--json", model="xl-turbo")
    report = json.loads(out)
    assert (code, report["kept"]) == (0, pytest.approx(1, abs=1e-6))
    source, target = checkpoint_root / "acestep-v15-xl-turbo", tmp_path / "xl"
    assert sorted(path.name for path in source.glob("*.safetensors")) == sorted(
        path.name for path in target.glob("*.safetensors")
    )
    base, found = weights_of(source), weights_of(target)
    wanted = expected(base, [(saved, 1)])
    assert all(torch.equal(found[name], wanted[name]) for name in base)
    model = choose_model(find_checkpoints(tmp_path), "xl")
    merged = load_decoder(model, dtype=torch.float32, device="cpu")
    played = load_decoder(
        choose_model(find_checkpoints(checkpoint_root), "xl-turbo"), dtype=torch.float32, device="cpu"
    )
    load_adapter(played, saved.path.parent)
    config, t = model.config, torch.tensor([0.4])
    given = {
        "hidden_states": torch.randn(1, 8, config.latent_channels),
        "timestep": t,
        "timestep_r": t,
        "encoder_hidden_states": torch.randn(1, 3, config.condition_width),
        "context_latents": torch.randn(1, 8, 2 * config.latent_channels),
    }
    torch.testing.assert_close(merged(**given).sample, played(**given).sample, rtol=1e-4, atol=1e-4)


@pytest.fixture
def make_xl_adapter(checkpoint_root, tmp_path):
    """A LoKr with biases for the model whose weights lie in several files."""
    from woodshed.adapters.files import save_adapter
    from woodshed.adapters.lokr import attach_lokr
    from woodshed.adapters.lokr_shape import LokrSettings
    from woodshed.adapters.targets import linear_shapes, resolve_targets

    model = choose_model(find_checkpoints(checkpoint_root), "xl-turbo")
    decoder = load_decoder(model, dtype=torch.float32, device="cpu")
    targets = resolve_targets(linear_shapes(decoder), attention_type="both", target_modules="q_proj down_proj")
    torch.manual_seed(0)
    adapter = attach_lokr(decoder, targets, LokrSettings(2, 3.0, factor=2), bias="none")
    for parameter in adapter.trainable_parameters().values():
        parameter.data += 0.1
    save_adapter(adapter, tmp_path / "made", {})
    return tmp_path / "made", read_adapter(tmp_path / "made")


@pytest.mark.parametrize(
    ("names", "words", "model", "sentence"),
    [
        (("lora_r4",), ("--output", "taken"), "base", "taken exists already"),
        (("lora_r4",), ("--output", "x"), "xl-base", "is for another model"),
        (("lora_r4",), ("--output", "x", "--strength", "1", "2"), "base", "1 adapters and 2 strengths"),
        (("lora_r4",), ("--output", "x", "--strength", "nan"), "base", "strength must be"),
        (("lora_r4",), ("--output", "x", "--strength", "much"), "base", "strength must be numbers; got much"),
        (("lora_r4", "nowhere"), ("--output", "x"), "base", "There is no adapter at"),
        (("lora_r4",), ("--output", "x"), "bass", "There is no model bass"),
    ],
)
def test_what_cannot_be_merged_is_one_clear_line(merge, tmp_path, names, words, model, sentence):
    (tmp_path / "taken").mkdir()
    code, out, err = merge(names, *words, model=model)
    assert (code, out) == (1, "")
    assert sentence in err
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_seen_before_anything_is_copied(merge, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    code, _, err = merge(("lora_r4",), "--output", "x")
    assert code == 1
    assert "GB left, and the model needs" in err
    assert not (tmp_path / "x").exists()
