"""Folding and fusing change how the VAE is computed, not what comes out."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderOobleck
from diffusers.models.autoencoders.autoencoder_oobleck import Snake1d
from torch import nn

from woodshed.models import devices, vae
from woodshed.models.load import load_vae
from woodshed.models.vae import FusedEncoder, fold_weight_norm, fuse_encoder
from woodshed.toy.checkpoint import TOY_VAE

HOP = 1920


@pytest.fixture(autouse=True)
def functions_as_they_are(monkeypatch, request):
    """Leave the compiler out, which takes its time; a slow test has it."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(vae, "_compiled", lambda function: function)


@pytest.fixture(scope="module")
def by_the_library():
    """A VAE of the library whose widths grow and whose activations differ."""
    torch.manual_seed(1)
    with pytest.warns(FutureWarning, match="weight_norm"):
        made = AutoencoderOobleck(**TOY_VAE | {"channel_multiples": [1, 1, 2, 2, 2]}).eval()
    for module in made.modules():
        if isinstance(module, Snake1d):
            module.alpha.data.normal_(0, 0.3)
            module.beta.data.normal_(0, 0.3)
        elif hasattr(module, "weight_g") and module.bias is not None:
            module.bias.data.normal_(0, 0.05)
    return made.requires_grad_(requires_grad=False)


@pytest.fixture
def folded(by_the_library):
    with pytest.warns(FutureWarning, match="weight_norm"):
        copy = AutoencoderOobleck(**by_the_library.config).eval()
    copy.load_state_dict(by_the_library.state_dict())
    fold_weight_norm(copy)
    return copy


@pytest.fixture
def sound():
    return 0.3 * torch.randn(2, 2, 9 * HOP, generator=torch.Generator().manual_seed(2))


def assert_near(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folded_weight_gives_the_same_to_the_last_bit(by_the_library, folded, sound, dtype):
    with pytest.warns(FutureWarning, match="weight_norm"):
        narrow = AutoencoderOobleck(**by_the_library.config).to(dtype).eval()
    narrow.load_state_dict(by_the_library.state_dict())
    before = narrow.encode(sound.to(dtype)).latent_dist.mean
    fold_weight_norm(narrow)
    assert torch.equal(narrow.encode(sound.to(dtype)).latent_dist.mean, before)
    assert not any("weight_g" in name for name in narrow.state_dict())
    assert torch.equal(folded.decode(before.float()).sample, by_the_library.decode(before.float()).sample)


def test_what_is_loaded_is_folded(checkpoint_root):
    loaded = load_vae(checkpoint_root / "vae", dtype=torch.float32, device="cpu")
    assert not any("weight_v" in name for name in loaded.state_dict())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@torch.no_grad()
def test_the_fused_encoder_gives_what_the_librarys_gives(by_the_library, folded, sound):
    assert_near(FusedEncoder(folded.encoder)(sound), by_the_library.encoder(sound))


@torch.no_grad()
@pytest.mark.parametrize("length", [6 * HOP, 6 * HOP + 777, 9 * HOP - 1, HOP])
def test_what_follows_a_tiles_end_in_its_room_is_not_heard(by_the_library, folded, sound, length):
    room = sound.clone()
    room[1, :, length:] = 0
    found = FusedEncoder(folded.encoder)(room, [sound.shape[-1], length])
    alone = by_the_library.encoder(sound[1:, :, :length])
    assert_near(found[0], by_the_library.encoder(sound[:1])[0])
    assert_near(found[1, :, : alone.shape[-1]], alone[0])
    without = FusedEncoder(folded.encoder)(room)[1, :, : alone.shape[-1]]
    assert (without - alone[0]).abs().max() > 1e-3  # else this would prove nothing


@torch.no_grad()
def test_in_16_bits_the_fused_encoder_is_no_farther_from_the_truth_than_the_librarys(by_the_library, folded, sound):
    truth = by_the_library.encoder(sound)
    narrow = folded.bfloat16()
    eager = (narrow.encoder(sound.bfloat16()).float() - truth).square().mean()
    fused = FusedEncoder(narrow.encoder)(sound.bfloat16())
    assert fused.dtype == torch.bfloat16
    assert (fused.float() - truth).square().mean() <= 1.05 * eager


def test_a_vae_encodes_through_it_and_keeps_its_decoder(folded, sound):
    expected = folded.encode(sound).latent_dist.mean
    decoder = folded.decoder
    assert fuse_encoder(folded) is None
    assert isinstance(folded.encoder, FusedEncoder)
    assert folded.decoder is decoder
    assert_near(folded.encode(sound).latent_dist.mean, expected)


def test_an_encoder_of_other_layers_stays_as_it_is(folded):
    usual = folded.encoder
    usual.block[0].snake1 = nn.Identity()
    assert fuse_encoder(folded) == "it is made of other layers"
    assert folded.encoder is usual


def test_a_compiler_that_fails_leaves_the_vae_as_it_was(folded, sound, monkeypatch):
    def fail(_function):
        raise RuntimeError("no such target\nmore of it")

    usual, expected = folded.encoder, folded.encode(sound).latent_dist.mean
    monkeypatch.setattr(vae, "_compiled", fail)
    assert fuse_encoder(folded) == "no such target"
    assert folded.encoder is usual
    assert torch.equal(folded.encode(sound).latent_dist.mean, expected)


@pytest.mark.slow
def test_the_compilers_kernels_give_the_same_for_every_length(folded, sound):
    if devices.why_not_compile(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    expected = [folded.encode(sound[:, :, : length * HOP]).latent_dist.mean for length in (9, 4)]
    assert fuse_encoder(folded) is None
    for length, mean in zip((9, 4), expected, strict=True):
        assert_near(folded.encode(sound[:, :, : length * HOP]).latent_dist.mean, mean)


@pytest.mark.parametrize(
    ("device", "there", "said"),
    [("cuda", False, "triton"), ("cuda", True, None), ("cpu", False, "C++"), ("cpu", True, None), ("mps", True, "mps")],
)
def test_what_keeps_the_compiler_from_working_is_said(device, there, said, monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda _name: SimpleNamespace() if there else None)
    monkeypatch.setattr(devices.shutil, "which", lambda _name: "/usr/bin/g++" if there else None)
    found = devices.why_not_compile(torch.device(device))
    assert found is None if said is None else said in found
