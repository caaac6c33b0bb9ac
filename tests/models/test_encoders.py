"""Condition encoder and text encoder against the original's numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from woodshed.errors import CheckpointError
from woodshed.models.checkpoints import Checkpoint
from woodshed.models.encoders import TextEncoder, encode_conditions, read_tokenizer
from woodshed.models.load import load_condition_encoder, load_silence, load_text_encoder

CASES = ("batch2_refs3", "silence_ref750", "trainer_style_zero_ref")


@pytest.fixture
def read_case(
    checkpoint: Checkpoint, variant: str, read_golden: Callable[[str], dict[str, Tensor]]
) -> Callable[[str], dict[str, Tensor]]:
    """Read one case of the condition encoder, of the variant at hand."""

    def read(case: str) -> dict[str, Tensor]:
        start = f"cond/{case}/"
        tensors = {name.removeprefix(start): t for name, t in read_golden(f"dit_{variant}").items() if start in name}
        return {"refer": load_silence(checkpoint)[None, :750]} | tensors

    return read


@pytest.fixture(scope="module")
def text_encoder(checkpoint_root: Path) -> TextEncoder:
    return load_text_encoder(checkpoint_root / "Qwen3-Embedding-0.6B", dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def texts(golden: Path) -> dict[str, dict[str, str]]:
    return json.loads((golden / "text_encoder.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_packed_conditions_equal_those_of_the_original(checkpoint, read_case, assert_equal, name):
    encoder, case = load_condition_encoder(checkpoint, dtype=torch.float32, device="cpu"), read_case(name)
    conditions, mask = encoder(
        case["text"],
        case["text_mask"].bool(),
        case["lyric"],
        case["lyric_mask"].bool(),
        case["refer"],
        case["refer_order"],
    )
    assert torch.equal(mask, case["out_mask"])
    assert_equal(conditions, case["out"])


@pytest.mark.parametrize("name", ["silence_ref750", "trainer_style_zero_ref"])
def test_one_unpadded_song_gives_the_valid_part_of_the_originals_padded_one(checkpoint, read_case, assert_equal, name):
    encoder, case = load_condition_encoder(checkpoint, dtype=torch.float32, device="cpu"), read_case(name)
    text, lyrics = (case[part][case[f"{part}_mask"].bool()][None] for part in ("text", "lyric"))
    conditions = encode_conditions(encoder, text, lyrics, case["refer"])
    assert conditions.shape[1] == lyrics.shape[1] + 1 + text.shape[1]
    assert_equal(conditions, case["out"][case["out_mask"]][None])


def test_the_timbre_token_of_xl_alone_begins_with_the_learned_token(checkpoint, read_case):
    encoder, case = load_condition_encoder(checkpoint, dtype=torch.float32, device="cpu"), read_case("silence_ref750")
    arguments = (encoder, case["text"], case["lyric"], case["refer"])
    before = encode_conditions(*arguments)
    encoder.timbre_encoder.special_token.add_(1)
    changed = (encode_conditions(*arguments) != before).any(-1)[0]
    timbre_place = case["lyric"].shape[1]
    assert changed.nonzero().flatten().tolist() == ([timbre_place] if checkpoint.is_xl else [])


def test_conditions_are_computed_in_the_encoders_precision(base: Checkpoint):
    encoder = load_condition_encoder(base, dtype=torch.bfloat16, device="cpu")
    inputs = torch.randn(1, 5, 24), torch.randn(1, 6, 24), load_silence(base)[None, :30]
    full = load_condition_encoder(base, dtype=torch.float32, device="cpu")
    half = encode_conditions(encoder, *inputs)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), encode_conditions(full, *inputs), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("case", ["a", "b"])
def test_prompts_become_the_originals_tokens_and_states(text_encoder, texts, read_golden, assert_equal, case):
    expected, prompt = read_golden("text_encoder"), texts["text_cases"][case]
    states = text_encoder.encode_text(prompt)
    assert text_encoder._token_ids(prompt, 256).tolist() == expected[f"text_{case}_longest_ids"].tolist()
    assert text_encoder.count_tokens(prompt) == states.shape[1] == expected[f"text_{case}_longest_ids"].shape[1]
    assert_equal(states, expected[f"text_{case}_longest_hidden"])
    assert_equal(states, expected[f"text_{case}_max_length_hidden"][:, : states.shape[1]])


@pytest.mark.parametrize("case", ["raw_instrumental", "raw_song", "infer_song"])
def test_lyrics_become_the_originals_embeddings(text_encoder, texts, read_golden, assert_equal, case):
    expected, lyrics = read_golden("text_encoder"), texts["lyric_cases"][case]
    length = int(expected[f"lyric_{case}_mask"].sum())
    embeddings = text_encoder.embed_lyrics(lyrics)
    assert embeddings.shape[1] == length
    assert text_encoder._token_ids(lyrics, 2048)[0].tolist() == expected[f"lyric_{case}_ids"][0, :length].tolist()
    assert_equal(embeddings, expected[f"lyric_{case}_embed"][:, :length])


def test_a_long_text_is_cut_and_still_ends(text_encoder):
    text = "la " * 3000
    end = text_encoder.tokenizer.token_to_id("<|endoftext|>")
    assert text_encoder.count_tokens(text) > 3000
    for limit in (1, 2, 10):
        ids = text_encoder._token_ids(text, limit)[0].tolist()
        assert len(ids) == limit
        assert ids[-1] == end
        assert ids[:-1] == text_encoder.tokenizer.encode(text).ids[: limit - 1]
    assert text_encoder.encode_text(text).shape[1] == 256
    assert text_encoder.encode_text(text, max_tokens=7).shape[1] == 7
    assert text_encoder.embed_lyrics(text).shape[1] == 2048
    assert text_encoder.embed_lyrics(text, max_tokens=512).shape[1] == 512


def test_an_empty_text_is_the_token_that_ends_it(text_encoder):
    assert text_encoder.count_tokens("") == 1
    assert text_encoder.encode_text("").shape[1] == text_encoder.embed_lyrics("").shape[1] == 1


def test_nothing_that_encodes_keeps_a_graph(text_encoder):
    assert not text_encoder.encode_text("a song").requires_grad
    assert not text_encoder.embed_lyrics("a song").requires_grad


def test_a_tokenizer_that_does_not_end_a_text_is_refused(checkpoint_root: Path, tmp_path: Path):
    fields = json.loads((checkpoint_root / "Qwen3-Embedding-0.6B" / "tokenizer.json").read_text())
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(fields | {"post_processor": None}))
    with pytest.raises(CheckpointError, match=r"does not append <\|endoftext\|>"):
        read_tokenizer(path)


@pytest.mark.parametrize("text", [None, "", "{}", "[1, 2]"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, text):
    path = tmp_path / "tokenizer.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer"):
        read_tokenizer(path)


def test_padding_and_cutting_that_a_tokenizer_file_asks_for_are_ignored(checkpoint_root: Path, tmp_path: Path):
    tokenizer = Tokenizer.from_file(str(checkpoint_root / "Qwen3-Embedding-0.6B" / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(tmp_path / "tokenizer.json")
    assert len(read.encode("one two three four five six").ids) > 6
    assert len(read.encode("").ids) == 1
