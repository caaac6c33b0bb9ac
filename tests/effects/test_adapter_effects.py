"""What is trained, and where it comes from and goes to."""

import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from woodshed.errors import UserError
from woodshed.training.events import Saved
from woodshed.training.preflight import check as preflight

Q_PROJ = "layers.0.self_attn.q_proj"


def test_checkpoint_dir_is_where_the_model_is_read_from(bench):
    other = bench.root / "elsewhere"
    shutil.copytree(bench.checkpoints / "acestep-v15-base", other / "acestep-v15-base")
    assert preflight(bench.settings(checkpoint_dir=other)).checkpoint.folder == other / "acestep-v15-base"
    assert preflight(bench.settings()).checkpoint.folder == bench.checkpoints / "acestep-v15-base"


def test_model_decides_which_weights_compute(bench):
    base, turbo = (bench.step(model=f"acestep-v15-{kind}") for kind in ("base", "turbo"))
    assert base[1].losses != turbo[1].losses
    assert bench.recipe(model="acestep-v15-turbo")["base_model"] == "acestep-v15-turbo"


def test_dataset_dir_is_where_the_songs_come_from(bench):
    other = bench.root / "others"
    other.mkdir()
    shutil.copy(bench.songs / "a.pt", other / "only.pt")
    names = [batch.names for batch in bench.load(dataset_dir=other).loader.epoch(1)]
    assert names == [("only",)]


def test_output_dir_is_where_everything_is_written(bench):
    folder = bench.root / "here"
    bench.events(Saved, output_dir=folder, epochs=1)
    assert {path.name for path in folder.iterdir()} == {"run.toml", "final"}


def test_adapter_type_decides_which_files_are_written(bench):
    saved = {kind: bench.events(Saved, adapter_type=kind, epochs=1)[-1].path for kind in ("lora", "lokr")}
    assert (saved["lora"] / "adapter_model.safetensors").is_file()
    assert [path.name for path in saved["lokr"].iterdir()] == ["lokr_weights.safetensors"]


def test_attention_type_decides_which_attention_is_adapted(bench):
    both, own, cross = (bench.modules(attention_type=kind) for kind in ("both", "self", "cross"))
    assert own == {f"layers.{i}.self_attn.q_proj" for i in range(4)}
    assert cross == {f"layers.{i}.cross_attn.q_proj" for i in range(4)}
    assert both == own | cross


def test_target_modules_name_exactly_the_adapted_layers(bench):
    words = "v_proj,down_proj time_embed.linear_1"
    expected = {f"layers.{i}.{part}" for i in range(4) for part in ("self_attn.v_proj", "mlp.down_proj")}
    assert bench.modules(attention_type="self", target_modules=words) == expected | {"time_embed.linear_1"}
    with pytest.raises(UserError, match="no layer called 'zz_proj'"):
        bench.modules(target_modules="zz_proj")


def test_rank_is_the_inner_size_of_both_factors(bench):
    for rank in (3, 6):
        assert bench.parameters(rank=rank)[f"{Q_PROJ}.lora_A.weight"].shape == (rank, 32)
        assert bench.parameters(rank=rank)[f"{Q_PROJ}.lora_B.weight"].shape == (32, rank)


def test_alpha_scales_what_the_adapter_adds(bench):
    deltas = []
    for alpha in (None, 16.0):  # unless set, alpha is twice the rank
        adapter = bench.load(rank=4, **({} if alpha is None else {"alpha": alpha})).adapter
        adapter.trainable_parameters()[f"{Q_PROJ}.lora_B.weight"].data.fill_(0.1)
        deltas.append(adapter.effective_delta(Q_PROJ))
    torch.testing.assert_close(deltas[1], 2 * deltas[0])


def test_dropout_zeroes_its_share_of_the_adapters_input(bench):
    for share in (0.0, 0.4):
        run = bench.load(dropout=share)
        dropped = run.decoder.layers[0].self_attn.to_q.lora_dropout["default"](torch.ones(20_000))
        assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=0.02)


def test_lokr_linear_dim_sizes_the_second_factor(bench):
    sizes = [
        bench.load(adapter_type="lokr", lokr_factor=2, lokr_linear_dim=dim).adapter.num_parameters for dim in (1, 3)
    ]
    assert sizes == [8 * (2 * 2 + dim * (16 + 16)) for dim in (1, 3)]


def test_lokr_linear_alpha_scales_what_the_adapter_adds_unless_named_inert(bench):
    deltas = []
    for alpha in (4.0, 8.0):
        adapter = bench.lokr(lokr_linear_alpha=alpha)
        for name in ("lokr_w1", "lokr_w2_a", "lokr_w2_b"):
            adapter.trainable_parameters()[f"{Q_PROJ}.{name}"].data.fill_(0.3)
        deltas.append(adapter.effective_delta(Q_PROJ))
    torch.testing.assert_close(deltas[1], 2 * deltas[0])
    whole = preflight(bench.settings(adapter_type="lokr", lokr_linear_dim=64))
    assert "scale is always 1" in whole.inert["lokr_linear_alpha"]


def test_lokr_factor_splits_the_weights_sides(bench):
    for factor, w1, w2 in ((-1, (4, 4), (8, 8)), (2, (2, 2), (16, 16))):
        parts = bench.parameters(adapter_type="lokr", lokr_factor=factor)
        assert (parts[f"{Q_PROJ}.lokr_w1"].shape, parts[f"{Q_PROJ}.lokr_w2"].shape) == (w1, w2)


def test_lokr_decompose_both_splits_the_first_factor_too(bench):
    names = {
        both: {
            name.rsplit(".", 1)[1]
            for name in bench.parameters(adapter_type="lokr", lokr_linear_dim=1, lokr_decompose_both=both)
        }
        for both in (False, True)
    }
    assert names == {
        False: {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
        True: {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
    }


def test_lokr_use_tucker_is_named_inert(bench):
    found = preflight(bench.settings(adapter_type="lokr", lokr_use_tucker=True))
    assert "exists for convolutions only" in found.inert["lokr_use_tucker"]
    assert any(line.startswith("lokr_use_tucker has no effect") for line in found.notices)


def test_lokr_use_scalar_adds_one_number_to_each_layer(bench):
    scalars = [name for name in bench.lokr(lokr_use_scalar=True).trainable_parameters() if name.endswith(".scalar")]
    assert len(scalars) == 8
    assert not any(name.endswith(".scalar") for name in bench.lokr().trainable_parameters())


def test_lokr_weight_decompose_trains_the_norms(bench):
    adapter = bench.lokr(lokr_weight_decompose=True)
    norms = adapter.trainable_parameters()[f"{Q_PROJ}.dora_scale"]
    torch.testing.assert_close(norms.detach(), adapter.base_weight(Q_PROJ).norm(dim=1, keepdim=True))
    norms.data.mul_(2)
    torch.testing.assert_close(adapter.effective_delta(Q_PROJ), adapter.base_weight(Q_PROJ), rtol=1e-4, atol=1e-5)


def test_bias_decides_how_many_biases_train_and_are_saved(bench):
    words = "q_proj time_embed.linear_1"
    for mode, count in (("none", 0), ("lora_only", 1), ("all", 9)):
        folder = bench.events(Saved, bias=mode, target_modules=words, epochs=1)[-1].path
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            assert sum(name.endswith(".bias") for name in file.keys()) == count  # noqa: SIM118 - not a mapping


def test_rank_pattern_gives_some_modules_other_ranks_and_alphas(bench):
    adapter = bench.load(rank=4, rank_pattern="cross_attn=2 layers.0.=6:3").adapter
    sizes = {module: (adapter.change(module).rank, adapter.scales[module]) for module in adapter.modules}
    assert sizes["layers.1.self_attn.q_proj"] == (4, 2.0)
    assert sizes["layers.1.cross_attn.q_proj"] == (2, 2.0)  # as strong as the others
    assert sizes["layers.0.cross_attn.q_proj"] == (6, 0.5)  # the last word counts
    with pytest.raises(UserError, match="rank_pattern names mlp, and no adapted layer"):
        preflight(bench.settings(rank_pattern="mlp=8"))
    with pytest.raises(UserError, match=r"rank_pattern must be NAME=RANK or .*, not cross_attn"):
        bench.settings(rank_pattern="cross_attn:8")
    with pytest.raises(UserError, match="rank_pattern must be empty: a LoKr is rebuilt by ACE-Step"):
        bench.settings(rank_pattern="cross_attn=8", adapter_type="lokr")


def test_oft_block_size_is_how_many_inputs_turn_together(bench):
    for size, shape in ((16, (2, 120)), (8, (4, 28))):
        assert bench.parameters(adapter_type="oft", oft_block_size=size)[f"{Q_PROJ}.oft_R.weight"].shape == shape
    with pytest.raises(UserError, match=r"oft_block_size 12 does not divide the inputs of layers\.0"):
        preflight(bench.settings(adapter_type="oft", oft_block_size=12))


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha", "oft"])
def test_adapter_type_trains_what_it_counted_and_saves_what_it_trained(bench, kind):
    found = preflight(bench.settings(adapter_type=kind, oft_block_size=16))
    run, _ = bench.step(adapter_type=kind, oft_block_size=16, learning_rate=0.1)
    assert run.adapter.family == kind
    assert run.adapter.num_parameters == found.adapter_parameters
    assert max(run.adapter.effective_delta(module).abs().max() for module in run.adapter.modules) > 1e-3


def test_init_from_is_where_the_weights_begin(bench):
    first = bench.events(Saved, epochs=1, learning_rate=0.1, seed=1)[-1].path
    trained = bench.load(init_from=first, rank=6, alpha=3).adapter
    fresh = bench.load(rank=6, alpha=3).adapter
    assert not fresh.effective_delta(Q_PROJ).any()
    b, a = (
        load_file(first / "adapter_model.safetensors")[f"base_model.model.{Q_PROJ}.lora_{part}.weight"] for part in "BA"
    )
    torch.testing.assert_close(trained.effective_delta(Q_PROJ), b @ a, rtol=1e-4, atol=1e-6)
    assert any("are where this run starts" in line for line in preflight(bench.settings(init_from=first)).notices)
    for wrong, said in (
        ({"adapter_type": "lokr"}, "is no LoKr"),
        ({"attention_type": "self"}, "which are no targets of this run"),
    ):
        with pytest.raises(UserError, match=said):
            preflight(bench.settings(init_from=first, **wrong))
    with pytest.raises(UserError, match=r"has rank 4 in .*, more than this run; raise --rank to 4"):
        preflight(bench.settings(init_from=first, rank=2))
