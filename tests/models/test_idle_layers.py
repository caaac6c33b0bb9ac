"""Layers of a VAE that do nothing are left out when it is loaded, and no others."""

import json
import warnings

import pytest
import torch
from diffusers import AutoencoderOobleck
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckResidualUnit, Snake1d
from safetensors.torch import load_file, save_file

from woodshed.models.load import load_vae
from woodshed.toy.checkpoint import TOY_VAE, build_vae

PLACE = {"dtype": torch.float32, "device": "cpu"}
IDLE_UNIT, IDLE_SNAKE = "decoder.block.1.res_unit2", "encoder.block.2.snake1"
SOUND = 0.1 * torch.randn(1, 2, 3840, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    build_vae(tmp_path, TOY_VAE)
    return tmp_path


def change(folder, **values):
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name, value in values.items():
        tensors[name.replace("__", ".")].fill_(value)
    save_file(tensors, path)
    return tensors


def counts(vae):
    return [sum(isinstance(module, kind) for module in vae.modules()) for kind in (OobleckResidualUnit, Snake1d)]


def test_a_vae_at_work_keeps_every_layer(folder):
    vae = load_vae(folder, **PLACE)
    assert counts(vae) == [30, 2 * 30 + 12]


def test_what_does_nothing_is_left_out_and_the_result_is_the_same(folder):
    unit = IDLE_UNIT.replace(".", "__")
    idle = {f"{unit}__conv2__weight_g": 0.0, f"{unit}__conv2__bias": 0.0}
    tensors = change(folder, **idle, **{f"{IDLE_SNAKE.replace('.', '__')}__alpha": -20.0})
    loaded = load_vae(folder, **PLACE)
    assert counts(loaded) == [29, 2 * 29 + 11]
    assert isinstance(loaded.get_submodule(IDLE_UNIT), torch.nn.Identity)
    assert isinstance(loaded.get_submodule(IDLE_SNAKE), torch.nn.Identity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        whole = AutoencoderOobleck(**{name: config[name] for name in TOY_VAE}).eval()
    whole.load_state_dict({name: value.float() for name, value in tensors.items()})
    with torch.no_grad():
        expected = whole.encode(SOUND).latent_dist.mean
        torch.testing.assert_close(loaded.encode(SOUND).latent_dist.mean, expected)
        torch.testing.assert_close(loaded.decode(expected).sample, whole.decode(expected).sample)


def test_a_unit_that_adds_only_a_constant_stays(folder):
    change(folder, **{f"{IDLE_UNIT.replace('.', '__')}__conv2__weight_g": 0.0})
    assert counts(load_vae(folder, **PLACE))[0] == 30
