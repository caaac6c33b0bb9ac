"""Six AdamW steps of LoRA training give the losses, norms and weights that the original code gave."""

import json

import pytest
import torch

from woodshed.adapters.lora import attach_lora
from woodshed.adapters.targets import linear_shapes, resolve_targets
from woodshed.models.checkpoints import choose_model, find_checkpoints
from woodshed.models.load import load_decoder
from woodshed.training.flow import flow_matching_loss, mix_with_noise
from woodshed.training.optimizers import build_optimizer

PREFIX = "base_model.model."


def starting_with(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def test_lora_training_follows_the_original_trajectory(golden, read_golden, checkpoint_root):
    facts = json.loads((golden / "adapters_base.json").read_text())["training_trajectory"]
    stored = read_golden("adapters_base")
    batch = starting_with(read_golden("dit_base"), "train/b2_T40/")
    checkpoint = choose_model(find_checkpoints(checkpoint_root), "acestep-v15-base")
    decoder = load_decoder(checkpoint, dtype=torch.float32, device="cpu")
    targets = resolve_targets(
        linear_shapes(decoder), attention_type="both", target_modules="q_proj k_proj v_proj o_proj"
    )
    adapter = attach_lora(decoder, targets, rank=4, alpha=8, dropout=0.0, bias="none")
    adapter.load_parameters(starting_with(stored, f"traj/init/{PREFIX}"))
    parameters = list(adapter.trainable_parameters().values())
    optimizer = build_optimizer("adamw", parameters, learning_rate=1e-3, weight_decay=0.01, warmup_steps=0)
    losses, norms = [], []
    for _ in range(6):
        velocity = decoder(
            mix_with_noise(batch["x0"], batch["noise"], batch["t"]),
            timestep=batch["t"],
            timestep_r=batch["t"],
            encoder_hidden_states=batch["encoder_hidden_states"],
            context_latents=batch["context_latents"],
        ).sample
        loss = flow_matching_loss(velocity, batch["x0"], batch["noise"], None).mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx(facts["loss_before_each_step"], rel=1e-5)
    assert norms == pytest.approx(facts["grad_norm_before_clip"], rel=1e-5)
    now = adapter.trainable_parameters()
    for name, value in starting_with(stored, f"traj/final/{PREFIX}").items():
        # As a whole: Adam divides by the gradient's size, so an entry with hardly any gradient is all rounding.
        assert (now[name] - value).norm() <= 1e-5 * value.norm(), name
