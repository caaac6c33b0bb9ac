"""Adapters as other libraries save them, read by ours: PEFT, diffusers and LyCORIS themselves write the files.

ACE-Step saves with PEFT on its own decoder, SimpleTuner with diffusers, ai-toolkit renames PEFT's tensors, Side-Step
has PEFT folders and LyCORIS files.
"""

import pytest
import torch
from diffusers.loaders.lora_pipeline import AceStepLoraLoaderMixin
from lycoris import create_lycoris
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tests.adapters.oracles import effective_weights
from woodshed.adapters.files import load_adapter
from woodshed.adapters.saved import read_adapter
from woodshed.errors import AdapterError
from woodshed.models.keys import original_to_diffusers

WORDS = ["q_proj", "k_proj", "o_proj", "down_proj"]


@torch.no_grad()
def shake(module):
    """Give every trainable tensor values unlike its first ones."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator) + 0.05)


def assert_read(path, before, after):
    """Compare what we read with what the library that wrote it computes."""
    saved = read_adapter(path)
    changed = {name for name in before if (after[name] - before[name]).abs().max() > 1e-6}
    assert set(saved.modules) == changed
    assert changed
    for module in saved.modules:
        wanted = (after[module] - before[module]).double()
        found = saved.delta(module, before[module].double())
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max(), module
    return saved


CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=6, target_modules=WORDS),
    "rslora": LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=WORDS),
    "lora with patterns": LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=WORDS,
        rank_pattern={"cross_attn.q_proj": 2, "^layers.0.mlp.down_proj": 6},
        alpha_pattern={"k_proj": 1, "layers.1.self_attn.o_proj": 9.5},
    ),
    "dora": LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=WORDS),
    "lokr": LoKrConfig(r=2, alpha=5, decompose_factor=2, target_modules=WORDS),
    "lokr whole": LoKrConfig(r=64, alpha=32, target_modules=WORDS),
    "lokr decomposed": LoKrConfig(r=1, alpha=3, decompose_both=True, target_modules=WORDS),
    "lokr with patterns": LoKrConfig(
        r=2, alpha=5, rank_pattern={"q_proj": 3}, alpha_pattern={"k_proj": 1}, target_modules=WORDS
    ),
    "loha": LoHaConfig(r=3, alpha=5, target_modules=WORDS, rank_pattern={"o_proj": 2}, alpha_pattern={"q_proj": 9}),
    "oft": OFTConfig(r=0, oft_block_size=8, target_modules=WORDS),
    "oft, exact": OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=WORDS),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_a_folder_that_peft_saved_is_read_at_its_own_strength(case, names, make_decoder, original_tree, tmp_path):
    config = CONFIGS[case]
    decoder = make_decoder()
    root = original_tree(decoder) if names == "original" else decoder
    before = {name: value.clone() for name, value in effective_weights(root).items()}
    if names == "diffusers":
        changes = {"target_modules": [original_to_diffusers(word) for word in WORDS]}
        for table in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(config, table, None) or {}
            changes[table] = {
                key.replace("q_proj", "to_q").replace("k_proj", "to_k").replace("o_proj", "to_out.0"): value
                for key, value in pattern.items()
            }
        known = {name: value for name, value in changes.items() if hasattr(config, name)}
        config = type(config)(**{**config.to_dict(), **known})
    model = get_peft_model(root, config)
    shake(model)
    after = effective_weights(model)
    model.save_pretrained(tmp_path)
    assert_read(tmp_path, before, after)
    if names == "original":
        played = load_adapter(make_decoder(), tmp_path)
        for module in played.changes:
            torch.testing.assert_close(
                played.effective_delta(module), after[module] - before[module], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("case", ["lora", "lora with patterns", "dora"])
@pytest.mark.parametrize("has_header", [True, False])
def test_a_file_that_diffusers_saved_is_read_as_diffusers_loads_it(case, has_header, make_decoder, tmp_path):
    """With its header at the strength of the training; without, as SimpleTuner once wrote it, at alpha = rank."""
    decoder = make_decoder()
    source = CONFIGS[case].to_dict() | {"target_modules": ["to_q", "to_k", "to_out.0", "down_proj"]}
    source["rank_pattern"] = {"cross_attn.to_q": 2} if source["rank_pattern"] else {}
    source["alpha_pattern"] = {"to_k": 1} if source["alpha_pattern"] else {}
    config = LoraConfig(**source)
    decoder.add_adapter(config)
    shake(decoder)
    layers = get_peft_model_state_dict(decoder)
    metadata = {"transformer_lora_adapter_metadata": config.to_dict()} if has_header else {}
    AceStepLoraLoaderMixin.save_lora_weights(tmp_path, transformer_lora_layers=layers, **metadata)

    class Pipeline(AceStepLoraLoaderMixin):
        transformer = make_decoder()
        components = {"transformer": transformer}  # noqa: RUF012 - as diffusers reads it
        hf_device_map = None

    before = {name: value.clone() for name, value in effective_weights(Pipeline.transformer).items()}
    Pipeline().load_lora_weights(str(tmp_path))
    after = effective_weights(Pipeline.transformer)
    assert_read(tmp_path, before, after)
    if has_header:
        trained = effective_weights(decoder)
        assert all(torch.allclose(after[name], trained[name], rtol=1e-4, atol=1e-5) for name in after)


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_lycoris_saved_is_read_at_its_own_strength(
    algo, has_norms, dtype, make_decoder, original_tree, tmp_path
):
    """Side-Step saves so; LyCORIS rounds alpha too when it saves in bf16."""
    root = original_tree(make_decoder())
    before = {name: value.clone() for name, value in effective_weights(root).items()}
    del root.proj_in, root.proj_out  # LyCORIS would adapt these convolutions too
    more = {"factor": 2} if algo == "lokr" else {}
    network = create_lycoris(root, 1.0, linear_dim=2, linear_alpha=3.0, algo=algo, dora_wd=has_norms, **more)
    network.apply_to()
    shake(network)
    path = tmp_path / "lokr_weights.safetensors"
    network.save_weights(str(path), dtype, {})
    if dtype == torch.bfloat16:
        network.load_state_dict({name: value.to(dtype).float() for name, value in network.state_dict().items()})
    assert_read(path, before, effective_weights(root))


def test_adapted_convolutions_are_refused_as_such(make_decoder, original_tree, tmp_path):
    network = create_lycoris(original_tree(make_decoder()), 1.0, linear_dim=2, linear_alpha=3.0, algo="lora")
    network.apply_to()
    network.save_weights(str(tmp_path / "x.safetensors"), torch.float32, {})
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path / "x.safetensors")
    (problem,) = caught.value.problems
    assert problem.endswith(" adapts the convolution proj_in.1; only linear layers can be read.")


@pytest.mark.parametrize("case", ["lora", "lora with patterns"])
def test_a_file_of_ai_toolkit_is_pefts_tensors_at_strength_one(case, make_decoder, original_tree, tmp_path):
    root = original_tree(make_decoder())
    before = {name: value.clone() for name, value in effective_weights(root).items()}
    model = get_peft_model(root, CONFIGS[case])
    shake(model)
    for layer in model.modules():
        if hasattr(layer, "scaling"):
            layer.scaling["default"] = 1.0
    tensors = {
        name.replace("base_model.model.", "diffusion_model.decoder."): value.contiguous()
        for name, value in get_peft_model_state_dict(model).items()
    }
    save_file(tensors, tmp_path / "style.safetensors")
    assert_read(tmp_path / "style.safetensors", before, effective_weights(model))


def test_norms_without_a_second_side_are_read_as_side_step_writes_them(make_decoder, original_tree, tmp_path):
    """It renames PEFT's vector to dora_scale and leaves it a vector, which no player but ours reads right."""
    root = original_tree(make_decoder())
    before = {name: value.clone() for name, value in effective_weights(root).items()}
    model = get_peft_model(root, CONFIGS["dora"])
    shake(model)
    model.save_pretrained(tmp_path / "peft")
    tensors = {}
    for name, value in load_file(tmp_path / "peft" / "adapter_model.safetensors").items():
        stem = name.split(".lora_")[0]
        tensors[f"{stem}.alpha"] = torch.tensor(6.0)
        new = name.replace("lora_A", "lora_down").replace("lora_B", "lora_up")
        tensors[f"{stem}.dora_scale" if "magnitude" in name else new] = value
    save_file(tensors, tmp_path / "export.safetensors")
    assert_read(tmp_path / "export.safetensors", before, effective_weights(model))
