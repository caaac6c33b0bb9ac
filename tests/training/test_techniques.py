"""What auto means on which machine, and what cannot work is refused."""

from types import SimpleNamespace

import pytest
import torch

from woodshed.errors import UserError
from woodshed.models import devices
from woodshed.training.techniques import Techniques, choose_techniques

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def a_card(monkeypatch):
    """Pretend to have a modern card with everything installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda _name: object())
    return monkeypatch


def chosen(settings, device=CUDA, dtype=torch.bfloat16, passes=1000, head_width=128):
    return choose_techniques(settings, device, dtype, passes, SimpleNamespace(head_dim=head_width))


@pytest.mark.usefixtures("a_card")
def test_a_modern_card_gets_everything(settings_for):
    found, said = chosen(settings_for())
    assert found == Techniques(compile=True, cuda_graphs=True, attention="compiled", recompute="all")
    assert said == ["compile: auto -> yes", "cuda_graphs: auto -> yes", "attention: auto -> compiled"]


@pytest.mark.usefixtures("a_card")
def test_heads_too_narrow_for_the_compiler_attend_by_flash(settings_for):
    assert chosen(settings_for(), head_width=8)[0].attention == "flash"
    with pytest.raises(UserError, match="heads not narrower than 16"):
        chosen(settings_for(attention="compiled"), head_width=8)


@pytest.mark.usefixtures("a_card")
@pytest.mark.parametrize(
    ("asked", "dtype", "packed"),
    [
        ("auto", torch.bfloat16, None),
        ("bf16", torch.bfloat16, None),
        ("bf16", torch.float32, "bf16"),
        ("int8", torch.bfloat16, "int8"),
        ("nf4", torch.float16, "nf4"),
    ],
)
def test_the_base_is_packed_when_asked_to_be_narrower_than_it_computes(settings_for, asked, dtype, packed):
    assert chosen(settings_for(base_precision=asked), dtype=dtype)[0].packed == packed


@pytest.mark.usefixtures("a_card")
def test_four_bits_without_their_package_are_named_with_every_other_wrong_wish(settings_for, monkeypatch):
    monkeypatch.setattr("woodshed.models.frozen.has_nf4", lambda: False)
    with pytest.raises(UserError) as caught:
        chosen(settings_for(base_precision="nf4", attention="compiled", compile="no"))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(("checkpointing", "asked", "meant"), [(True, "auto", "all"), (False, "auto", "none")])
def test_recompute_follows_gradient_checkpointing(settings_for, checkpointing, asked, meant):
    found, _ = chosen(settings_for(gradient_checkpointing=checkpointing, recompute=asked), CPU, torch.float32)
    assert found.recompute == meant


@pytest.mark.parametrize("dial", ["none", "quarter", "half", "all"])
def test_a_dial_beats_gradient_checkpointing(settings_for, dial):
    for checkpointing in (True, False):
        found, _ = chosen(settings_for(gradient_checkpointing=checkpointing, recompute=dial), CPU, torch.float32)
        assert found.recompute == dial


def test_without_triton_flash_attention_and_graphs_remain(settings_for, a_card):
    a_card.setattr(devices.importlib.util, "find_spec", lambda _name: None)
    found, said = chosen(settings_for())
    assert (found.compile, found.cuda_graphs, found.attention) == (False, True, "flash")
    assert "triton is not installed" in said[0]


@pytest.mark.usefixtures("a_card")
def test_a_short_run_is_not_compiled_unless_asked(settings_for):
    found, said = chosen(settings_for(), passes=10)
    assert not found.compile
    assert "10 passes are too few" in said[0]
    assert chosen(settings_for(compile="yes"), passes=10)[0].compile


@pytest.mark.parametrize(
    ("dtype", "capability", "available"),
    [(torch.float32, (9, 0), True), (torch.float16, (7, 5), True), (torch.bfloat16, (8, 6), False)],
)
def test_where_flash_attention_cannot_work_blocks_do(settings_for, a_card, dtype, capability, available):
    a_card.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    a_card.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: available)
    found, _ = chosen(settings_for(compile="no"), dtype=dtype)
    assert found.attention == "blocks"
    with pytest.raises(UserError, match="--attention flash cannot work here"):
        chosen(settings_for(compile="no", attention="flash"), dtype=dtype)


def test_a_processor_gets_nothing_by_itself_and_every_wrong_wish_is_named(settings_for):
    found, _ = chosen(settings_for(), CPU, torch.float32)
    assert found == Techniques(compile=False, cuda_graphs=False, attention="blocks", recompute="all")
    with pytest.raises(UserError) as refused:
        chosen(settings_for(cuda_graphs="yes", attention="compiled"), CPU, torch.float32)
    assert len(refused.value.problems) == 2
    with pytest.raises(UserError, match="nothing is known of compiling for mps"):
        chosen(settings_for(compile="yes"), torch.device("mps"), torch.float16)


@pytest.mark.usefixtures("a_card")
def test_oft_is_not_captured(settings_for):
    found, said = chosen(settings_for(adapter_type="oft"))
    assert not found.cuda_graphs
    assert "OFT" in said[1]


@pytest.mark.usefixtures("a_card")
def test_techniques_are_given_up_one_after_the_other(settings_for):
    found, _ = chosen(settings_for())
    given_up = []
    while found is not None:
        found, name = found.lesser(CUDA, torch.bfloat16)
        given_up.append((name, found.attention if found else None))
    assert given_up == [
        ("compile", "flash"),
        ("cuda_graphs", "flash"),
        ("flash attention", "blocks"),
        ("", None),
    ]
