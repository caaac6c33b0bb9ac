import pytest
import torch

from woodshed.errors import UserError
from woodshed.models import devices
from woodshed.models.devices import available_devices, repeatable, resolve_device, resolve_precision


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Pretend that the machine has certain cards."""

    def pretend(*, cuda: int = 0, mps: bool = False, xpu: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu > 0)
        monkeypatch.setattr(torch.xpu, "device_count", lambda: xpu)

    return pretend


@pytest.mark.parametrize(
    ("cards", "taken"),
    [
        ({"cuda": 2, "mps": True, "xpu": 1}, "cuda:0"),
        ({"mps": True, "xpu": 1}, "mps"),
        ({"xpu": 1}, "xpu:0"),
        ({}, "cpu"),
    ],
)
def test_auto_prefers_cuda_then_mps_then_xpu_then_cpu(machine, cards, taken):
    machine(**cards)
    assert resolve_device("auto") == torch.device(taken)


def test_any_card_that_exists_can_be_asked_for(machine):
    machine(cuda=3, xpu=1)
    assert resolve_device("cuda") == torch.device("cuda:0")
    assert resolve_device("cuda:2") == torch.device("cuda:2")
    assert resolve_device("xpu") == torch.device("xpu:0")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "mps", "xpu", "tpu", "", "gpu"])
def test_a_device_that_is_not_there_is_answered_with_those_that_are(machine, name):
    machine(cuda=2)
    with pytest.raises(UserError, match="This machine has cuda:0, cuda:1, cpu"):
        resolve_device(name)


def test_every_machine_has_a_processor():
    assert available_devices()[-1] == "cpu"


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("mps", torch.float16), ("xpu", torch.bfloat16)])
def test_auto_precision_suits_the_device(device, dtype):
    assert resolve_precision("auto", torch.device(device)) == dtype


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_precision_on_cuda_is_bf16_where_the_card_has_it(monkeypatch, has_bf16, dtype):
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.inference_mode())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert resolve_precision("auto", torch.device("cuda:0")) == dtype


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "mps"])
@pytest.mark.parametrize("name", list(devices.DTYPES))
def test_a_forced_precision_is_honoured_everywhere(device, name):
    assert resolve_precision(name, torch.device(device)) == devices.DTYPES[name]


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="no precision fp8"):
        resolve_precision("fp8", torch.device("cpu"))


def test_kernels_are_repeatable_inside_the_context_and_as_before_outside(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert not torch.are_deterministic_algorithms_enabled()
    with repeatable():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_the_context_leaves_a_machine_without_cuda_alone():
    with repeatable():
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_attention_gradients_repeat_to_the_last_bit_on_cuda():
    query, key, value = (torch.randn(1, 4, 4096, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    query.requires_grad_()
    bias = torch.randn(1, 1, 4096, 4096, device="cuda", dtype=torch.bfloat16)
    gradients = []
    for _ in range(5):
        with repeatable():
            mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias)
            gradients += torch.autograd.grad(mixed.float().square().sum(), query)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients)
