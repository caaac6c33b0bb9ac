"""The memory estimate: exact where weights are counted, near what torch keeps and what was measured elsewhere."""

import pytest
import torch
from torch.optim import Optimizer

from woodshed.adapters.lokr import LokrSettings, attach_lokr
from woodshed.adapters.lora import attach_lora
from woodshed.adapters.targets import decoder_linear_shapes, resolve_targets
from woodshed.models import memory
from woodshed.models.config import read_model_config
from woodshed.models.decoder import build_decoder
from woodshed.models.memory import Trained, activation_bytes, estimate_memory, optimizer_bytes
from woodshed.training.optimizers import build_optimizer

REAL_2B = {
    **{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "head_dim": 128},
    **{"num_attention_heads": 16, "num_key_value_heads": 8, "in_channels": 192, "audio_acoustic_hidden_dim": 64},
    "layer_types": ("sliding_attention", "full_attention") * 12,
}
SMALL = {
    **{"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4},
    **{"head_dim": 32, "in_channels": 192, "audio_acoustic_hidden_dim": 64},
}


@pytest.fixture
def config_of(checkpoint_root):
    """The toy base model with other sizes."""
    return lambda sizes: read_model_config(checkpoint_root / "acestep-v15-base").model_copy(update=sizes)


def lora_on(config, rank=64):
    shapes = decoder_linear_shapes(config)
    targets = resolve_targets(shapes, attention_type="both", target_modules="q_proj k_proj v_proj o_proj")
    pairs = [shape for name in targets for shape in ((rank, shapes[name][1]), (shapes[name][0], rank))]
    return Trained(pairs, [shapes[name][1] for name in targets], keeps_mask=True)


def test_the_real_decoder_is_counted_exactly(config_of):
    assert memory.count_decoder(config_of(REAL_2B)) == 1_575_458_880


@pytest.mark.parametrize(
    ("seconds", "checkpointing", "measured"),
    [(60, False, 6.3), (240, False, 14.6), (600, False, 31.1), (60, True, 3.4), (240, True, 4.1), (600, True, 5.4)],
)
def test_the_estimate_is_near_what_was_measured_on_an_h200(config_of, seconds, checkpointing, measured):
    config = config_of(REAL_2B)
    found = estimate_memory(
        config,
        lora_on(config),
        dtype=torch.bfloat16,
        optimizer_type="adamw",
        frames=25 * seconds,
        batch_size=1,
        recomputed=float(checkpointing),
        is_compiled=False,
        is_cuda=False,
    )
    # The measured rows hold no optimizer state.
    assert (found.total - found.optimizer) / memory.GIB == pytest.approx(measured, rel=0.08)


@pytest.mark.parametrize(
    ("family", "seconds", "recomputed", "measured"),
    [
        *(("lora", *row) for row in ((60, 0, 5.54), (63, 0, 5.5), (131, 0, 7.6), (240, 0, 10.86), (600, 0, 21.83))),
        *(("lora", *row) for row in ((60, 1, 3.75), (240, 1, 4.33), (600, 1, 5.72))),
        *(("lokr", *row) for row in ((60, 0, 4.94), (240, 0, 9.91))),
    ],
)
def test_the_estimate_is_near_what_captured_steps_took_on_an_h200(config_of, family, seconds, recomputed, measured):
    config = config_of(REAL_2B)
    lora = lora_on(config)
    found = estimate_memory(
        config,
        lora if family == "lora" else Trained([(786_432,)], lora.inputs),
        dtype=torch.bfloat16,
        optimizer_type="adamw",
        frames=25 * seconds,
        batch_size=1,
        recomputed=float(recomputed),
        is_compiled=True,
        is_cuda=False,
    )
    # The measured rows hold no optimizer state.
    assert (found.total - found.optimizer) / memory.GIB == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("kind", "saved"), [("int8", 1.33), ("nf4", 1.99)])
def test_fewer_bits_save_what_was_measured_on_an_h200(config_of, kind, saved):
    config = config_of(REAL_2B)
    whole, packed = (memory.frozen_bytes(config, torch.bfloat16, packed) for packed in (None, kind))
    assert (whole - packed) / memory.GIB == pytest.approx(saved, rel=0.05)


def kept_bytes(decoder, *, frames, dtype):
    """Return what torch keeps of one forward pass for the backward pass, each storage once, parameters aside."""
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    inputs = [torch.randn(1, frames, 64, dtype=dtype), torch.rand(1), torch.rand(1)]
    width = decoder.config.encoder_hidden_size
    conditions, context = torch.randn(1, 64, width, dtype=dtype), torch.randn(1, frames, 128, dtype=dtype)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
    ):
        decoder(*inputs, conditions, context)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["lora", "lokr", "dora"])
def test_activations_are_near_what_torch_keeps(config_of, family, dtype):
    config = config_of(SMALL)
    decoder = build_decoder(config).to(dtype)
    shapes = decoder_linear_shapes(config)
    targets = resolve_targets(shapes, attention_type="both", target_modules="q_proj k_proj v_proj o_proj")
    if family == "lora":
        attach_lora(decoder, targets, rank=8, alpha=16, dropout=0.1, bias="none")
    else:
        attach_lokr(decoder, targets, LokrSettings(8, 16, weight_decompose=family == "dora"), bias="none")
    dense = sum(shapes[name][0] * shapes[name][1] for name in targets) if family == "dora" else 0
    trained = Trained([], [shapes[name][1] for name in targets], keeps_mask=family == "lora", dense=dense)
    found = activation_bytes(config, trained, tokens=400, itemsize=dtype.itemsize, recomputed=0)
    assert found == pytest.approx(kept_bytes(decoder.train(), frames=800, dtype=dtype), rel=0.25)


def state_bytes(optimizer: Optimizer) -> int:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor) and value.numel() > 1)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "prodigy"])
def test_the_optimizers_state_is_counted(kind):
    shapes = [(8, 300), (500, 8), (7,)]
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = build_optimizer(kind, parameters, learning_rate=1e-3, weight_decay=0.01, warmup_steps=0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer_bytes(kind, shapes) == pytest.approx(state_bytes(optimizer), rel=0.01)


def test_eight_bit_moments_weigh_a_quarter_of_those_of_large_tensors_only():
    assert optimizer_bytes("adamw8bit", [(64, 2048)]) * 4 == optimizer_bytes("adamw", [(64, 2048)])
    assert optimizer_bytes("adamw8bit", [(8,)]) == optimizer_bytes("adamw", [(8,)])


def test_every_part_follows_what_it_depends_on(config_of):
    config = config_of(REAL_2B)

    def parts(rank=64, **changes):
        given = {
            **{"dtype": torch.bfloat16, "optimizer_type": "adamw", "frames": 6000, "batch_size": 1},
            **{"recomputed": 1.0, "is_compiled": False, "is_cuda": True},
        }
        return estimate_memory(config, lora_on(config, rank), **given | changes)

    usual = parts()
    assert usual.total == sum(usual.parts().values())
    assert parts(dtype=torch.float32).frozen == 2 * usual.frozen
    assert parts(rank=128).adapter == 2 * usual.adapter
    assert parts(batch_size=2).activations == parts(frames=12000).activations == 2 * usual.activations
    kept, half = parts(recomputed=0.0).activations, parts(recomputed=0.5).activations
    assert kept > 10 * usual.activations
    assert half == pytest.approx((kept + usual.activations) / 2, rel=0.08)
    assert parts(recomputed=0.0, is_compiled=True).activations < 0.7 * kept
    assert parts(optimizer_type="adamw8bit").optimizer < usual.optimizer / 3
    assert parts(is_cuda=False).reserve == 0 < usual.reserve


def test_the_hosts_memory_is_known_here():
    found = memory.device_memory(torch.device("cpu"))
    assert found is None or found > 2**28
