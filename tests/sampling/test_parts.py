"""What lies in memory while a song is made."""

import weakref

import pytest
import torch

from woodshed.sampling import generate as engine
from woodshed.sampling import parts
from woodshed.sampling.generate import generate


@pytest.fixture(autouse=True)
def no_sound(monkeypatch):
    """Ask for the VAE, but leave out the long work of decoding."""
    monkeypatch.setattr(engine, "decode_latents", lambda *_, **__: torch.zeros(2, 10))


LOADERS = {
    "load_text_encoder": "text encoder",
    "load_condition_encoder": "condition encoder",
    "load_decoder": "decoder",
    "load_vae": "vae",
}


@pytest.fixture
def loads(monkeypatch):
    """For each load, in order: what is loaded, and what is still in memory then."""
    alive: list[tuple[str, weakref.ref]] = []
    seen: list[tuple[str, list[str]]] = []

    def watch(name, what):
        load = getattr(parts, name)

        def loading(*given, **more):
            seen.append((what, [other for other, reference in alive if reference() is not None]))
            loaded = load(*given, **more)
            alive.append((what, weakref.ref(loaded)))
            return loaded

        monkeypatch.setattr(parts, name, loading)

    for name, what in LOADERS.items():
        watch(name, what)
    return seen


def test_with_offload_no_two_parts_are_ever_in_memory(settings_for, adapter_of, loads):
    list(generate(settings_for(offload_encoder=True, adapter=adapter_of(), compare=True, model="acestep-v15-base")))
    order = ["text encoder", "condition encoder", "decoder", "vae", "decoder", "vae"]
    assert loads == [(what, []) for what in order]


def test_without_it_every_part_is_loaded_once_but_for_the_decoder_of_each_version(settings_for, adapter_of, loads):
    list(generate(settings_for(adapter=adapter_of(), compare=True)))
    assert loads == [
        ("text encoder", []),
        ("condition encoder", ["text encoder"]),
        ("decoder", ["text encoder", "condition encoder"]),
        ("vae", ["text encoder", "condition encoder", "decoder"]),
        ("decoder", ["text encoder", "condition encoder", "vae"]),
    ]


def test_the_larger_models_encoder_is_freed_too_although_its_hook_holds_on_to_it(settings_for, loads):
    list(generate(settings_for(offload_encoder=True, model="acestep-v15-xl-turbo")))
    assert all(not there for _, there in loads)
