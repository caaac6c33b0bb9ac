"""How the adapter is trained."""

from itertools import combinations

import pytest
import torch
from diffusers import AutoencoderOobleck

from woodshed.errors import UserError
from woodshed.models import blocks
from woodshed.models.frozen import FrozenLinear
from woodshed.sampling import preview
from woodshed.training import techniques
from woodshed.training.events import EpochDone, SampleMade, StepDone
from woodshed.training.loop import take_step
from woodshed.training.preflight import check as preflight
from woodshed.training.randomness import DrawRules, draw_for_songs
from woodshed.training.techniques import choose_techniques
from woodshed.training.timesteps import TURBO_TIMESTEPS

Q_PROJ = "layers.0.self_attn.q_proj"


def draws_of(run, epochs=40):
    (batch, *_) = run.loader.epoch(1)
    return [draw_for_songs(run.draw_rules, run.settings.seed, epoch, batch) for epoch in range(epochs)]


def test_mode_decides_how_timesteps_are_drawn(bench):
    assert all(draw.t.item() in torch.tensor(TURBO_TIMESTEPS) for draw in draws_of(bench.load(mode="vanilla")))
    corrected = [draw.t.item() for draw in draws_of(bench.load())]
    assert len(set(corrected)) == 40
    run = bench.load(mode="vanilla", cfg_ratio=1.0)
    assert not any(draw.dropped.any() for draw in draws_of(run))
    assert "vanilla" in run.preflight.inert["cfg_ratio"]


def test_learning_rate_scales_the_step(bench):
    weights = []
    for rate in (1e-3, 2e-3):
        run, result = bench.step(learning_rate=rate, weight_decay=0)
        assert result.learning_rate == rate
        weights.append(run.adapter.trainable_parameters()[f"{Q_PROJ}.lora_B.weight"].detach())
    torch.testing.assert_close(weights[1], 2 * weights[0])  # Adam's first step is the rate itself


def test_batch_size_is_the_number_of_songs_in_a_batch(bench):
    for size, counts in ((1, [1, 1, 1, 1]), (3, [3, 1])):
        assert [len(batch.names) for batch in bench.load(batch_size=size).loader.epoch(1)] == counts


def test_gradient_accumulation_is_the_number_of_batches_in_a_step(bench):
    for count, songs in ((1, [1, 1, 1, 1]), (3, [3, 1])):
        assert [event.songs for event in bench.events(StepDone, gradient_accumulation=count, epochs=1)] == songs


def test_epochs_are_passes_over_all_songs(bench):
    for count in (1, 3):
        assert [event.epoch for event in bench.events(EpochDone, epochs=count)] == list(range(1, count + 1))


def test_warmup_steps_are_the_ramp_from_a_tenth_to_the_whole_rate(bench):
    rates = bench.rates(warmup_steps=3, scheduler_type="constant_with_warmup")
    assert rates == pytest.approx([0.1, 0.4, 0.7, 1.0])
    assert bench.rates(warmup_steps=0, scheduler_type="constant_with_warmup") == [1.0] * 4
    assert "no warm-up" in preflight(bench.settings(warmup_steps=3, scheduler_type="constant")).inert["warmup_steps"]


def test_seed_decides_every_draw(bench):
    one, other = bench.load(seed=1), bench.load(seed=2)
    first, second = (run.adapter.trainable_parameters()[f"{Q_PROJ}.lora_A.weight"] for run in (one, other))
    assert not torch.equal(first, second)
    orders = [[batch.names for epoch in range(4) for batch in run.loader.epoch(epoch)] for run in (one, other)]
    assert orders[0] != orders[1]
    rules = DrawRules("corrected", 0.5, -0.4, 1.0)
    (batch, *_) = one.loader.epoch(1)
    drawn = [[draw_for_songs(rules, seed, epoch, batch) for epoch in range(20)] for seed in (1, 2)]
    for part in ("noise", "t", "dropped"):
        values = [torch.stack([getattr(draw, part) for draw in draws]) for draws in drawn]
        assert not torch.equal(*values), part
    assert bench.step(seed=1)[1].losses == bench.step(seed=1)[1].losses != bench.step(seed=2)[1].losses


def test_cfg_ratio_is_the_share_of_songs_without_conditions(bench):
    for ratio in (0.0, 1.0):
        run = bench.load(cfg_ratio=ratio)
        seen = []
        run.decoder.condition_embedder.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        take_step(run, [*run.prepare(run.loader.epoch(1))])
        null = run.null_condition
        assert [torch.equal(states, null.expand_as(states)) for states in seen] == [ratio == 1.0] * 4


def test_device_is_where_the_model_computes(bench):
    assert {value.device.type for value in bench.load(device="cpu").parameters} == {"cpu"}
    with pytest.raises(UserError, match=r"There is no device cuda:99 here\. This machine has "):
        preflight(bench.settings(device="cuda:99"))
    bench.patch.setattr(torch.cuda, "is_available", lambda: True)
    bench.patch.setattr(torch.cuda, "device_count", lambda: 2)
    bench.patch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    bench.patch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * 2**30, 8 * 2**30))
    assert preflight(bench.settings(device="cuda:1", precision="bf16")).device == torch.device("cuda:1")
    assert preflight(bench.settings(device="auto", precision="bf16")).device == torch.device("cuda:0")


def test_precision_is_the_format_of_the_compute_and_not_of_the_adapter(bench):
    for word, dtype in (("auto", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        run = bench.load(precision=word)
        seen = set()
        run.decoder.layers[0].mlp.register_forward_hook(lambda *call, seen=seen: seen.add(call[-1].dtype))
        take_step(run, [*run.prepare(run.loader.epoch(1))])
        assert seen == {dtype}
        assert {parameter.dtype for parameter in run.parameters} == {torch.float32}
        assert run.scaler.is_enabled() == (word == "fp16")


def test_optimizer_type_decides_state_and_update(bench):
    moments = {
        "adamw": {"step", "exp_avg", "exp_avg_sq"},
        "adamw8bit": {"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"},
        "adafactor": {"step", "RMS", "exp_avg_sq_row", "exp_avg_sq_col"},
        "prodigy": {"step", "s", "p0", "exp_avg", "exp_avg_sq"},
    }
    weights = []
    for name, expected in moments.items():
        run, _ = bench.step(optimizer_type=name, rank=128, learning_rate=1)
        assert set(run.optimizer.state[run.parameters[0]]) == expected
        weights.append(run.parameters[1].detach())
    assert not any(torch.equal(one, other) for one, other in combinations(weights, 2))


def test_scheduler_type_decides_the_curve(bench):
    curves = {
        name: bench.rates(scheduler_type=name, warmup_steps=2, epochs=5)
        for name in ("cosine", "cosine_restarts", "linear", "constant", "constant_with_warmup")
    }
    assert len({tuple(curve) for curve in curves.values()}) == 5
    assert curves["linear"][2:] == pytest.approx([1 - step / 8 for step in range(8)])
    assert curves["cosine_restarts"][2::2] == [1.0] * 4


def test_gradient_checkpointing_computes_each_block_once_more(bench):
    for is_on in (False, True):
        run = bench.load(gradient_checkpointing=is_on)
        calls = []
        run.decoder.layers[1].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        take_step(run, [*run.prepare(run.loader.epoch(1))][:1])
        assert len(calls) == 1 + is_on  # the block is computed once more on the way back


def test_offload_encoder_is_named_inert_without_an_encoder(bench):
    assert "training loads the decoder only" in preflight(bench.settings(offload_encoder=True)).inert["offload_encoder"]


def test_offload_encoder_keeps_the_vae_on_the_cpu_except_while_it_sounds(bench):
    """The CPU twice: by its number it plays the device, by its bare name the waiting room."""
    device, places = torch.device("cpu:0"), []
    bench.patch.setattr("woodshed.training.preflight.resolve_device", lambda _: device)
    load, move = preview.load_vae, torch.nn.Module.to
    bench.patch.setattr(preview, "load_vae", lambda *a, **how: places.append(how["device"]) or load(*a, **how))

    def moved(part, *place, **how):
        if isinstance(part, AutoencoderOobleck):
            places.append(place[0])
        return move(part, *place, **how)

    bench.patch.setattr(torch.nn.Module, "to", moved)
    common = {"sample_every_n_epochs": 1, "sample_count": 1, "num_inference_steps": 1, "epochs": 1}
    bench.events(SampleMade, offload_encoder=False, **common)
    assert set(places) == {device}
    places.clear()
    made = bench.events(SampleMade, offload_encoder=True, **common)
    assert [str(place) for place in places] == ["cpu", *["cpu:0", "cpu"] * len(made)]
    assert "offload_encoder" not in preflight(bench.settings(**common)).inert


def test_weight_decay_shrinks_the_adapters_weights(bench):
    start = bench.parameters()[f"{Q_PROJ}.lora_A.weight"].detach()
    kept, shrunk = (bench.step(weight_decay=decay, learning_rate=0.01)[0] for decay in (0.0, 0.5))
    difference = kept.parameters[0].detach() - shrunk.parameters[0].detach()
    torch.testing.assert_close(difference, 0.5 * 0.01 * start, rtol=1e-3, atol=1e-6)
    assert shrunk.optimizer.param_groups[0]["params"] == shrunk.parameters


def test_max_grad_norm_limits_the_gradient_that_the_optimizer_sees(bench):
    for limit in (0.0, 1e-3):
        run = bench.load(max_grad_norm=limit)
        norms = []
        run.optimizer.register_step_pre_hook(
            lambda *_, run=run, norms=norms: norms.append(torch.stack([p.grad.norm() for p in run.parameters]).norm())
        )
        result = take_step(run, [*run.prepare(run.loader.epoch(1))])
        assert result.grad_norm > 1e-2
        assert norms[0].item() == pytest.approx(limit or result.grad_norm, rel=1e-2)


@pytest.mark.parametrize(("dial", "again"), [("none", 0), ("quarter", 1), ("half", 2), ("all", 4)])
def test_recompute_decides_how_many_blocks_are_computed_again(bench, dial, again):
    run = bench.load(recompute=dial)
    calls = []
    for layer in run.decoder.layers:
        layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    take_step(run, [*run.prepare(run.loader.epoch(1))][:1])
    assert len(calls) == len(run.decoder.layers) + again == 4 + again


@pytest.mark.parametrize(("kind", "codes"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn), ("nf4", torch.uint8)])
def test_base_precision_holds_the_frozen_layers_in_fewer_bits(bench, kind, codes):
    _, exact = bench.step()
    run = bench.load(base_precision=kind)
    packed = [module for module in run.decoder.modules() if isinstance(module, FrozenLinear)]
    assert len(packed) == 11 * len(run.decoder.layers)
    assert {layer.codes.dtype for layer in packed} == {codes}
    near = take_step(run, [*run.prepare(run.loader.epoch(1))][:1])
    assert 0 < abs(near.losses[0] - exact.losses[0]) < 0.2 * exact.losses[0]


def test_compile_hands_the_blocks_to_the_compiler(bench):
    compiled = []
    bench.patch.setattr(blocks, "_compiled", lambda run: compiled.append(run) or run)
    bench.patch.setattr(techniques, "_why_not_compile", lambda _: None)
    bench.step(compile="no")
    assert not compiled
    bench.step(compile="yes")
    assert compiled


def test_cuda_graphs_capture_the_step_where_the_device_is_cuda(bench):
    machine = (torch.device("cuda"), torch.bfloat16, 1, bench.load().preflight.checkpoint.config)
    found = [
        choose_techniques(bench.settings(cuda_graphs=wish), *machine)[0].cuda_graphs for wish in ("auto", "yes", "no")
    ]
    assert found == [True, True, False]
    with pytest.raises(UserError, match="--cuda-graphs yes cannot work here"):
        preflight(bench.settings(cuda_graphs="yes"))


def test_attention_is_refused_where_it_cannot_work(bench):
    assert preflight(bench.settings(attention="auto")).techniques.attention == "blocks"
    for kind in ("flash", "compiled"):
        with pytest.raises(UserError, match=f"--attention {kind} cannot work here"):
            preflight(bench.settings(attention=kind))


def test_crop_seconds_trains_on_windows_of_longer_songs(bench):
    frames = {"a": 12, "b": 10, "c": 8, "d": 10}
    for seconds, longest in ((0, 12), (0.36, 9), (0.4, 10), (100, 12)):
        run = bench.load(crop_seconds=seconds)
        seen = {
            name: count for batch in run.loader.epoch(1) for name, count in zip(batch.names, batch.frames, strict=True)
        }
        assert seen == {name: min(count, longest) for name, count in frames.items()}
        run.loader.close()
    losses = [[event.loss for event in bench.events(StepDone, crop_seconds=seconds)] for seconds in (0, 0.32, 0.32)]
    assert losses[0] != losses[1] == losses[2]
