"""The words: a tokenizer that knows the words of captions, and a text encoder whose random features stay as they are.

Letters: Lt prompt tokens, Ll lyric tokens, L all of them and the timbre token, Dt width of the text encoder.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from miniature.sizes import SEED, TEXT, VOCABULARY
from woodshed.data.conditioning import lyric_text, prompt_text
from woodshed.models.encoders import END_OF_TEXT, TextEncoder, build_text_model
from woodshed.toy.composer import FORMS, SECONDS, Piece, compose
from woodshed.toy.listener import piece_lyrics, piece_prompt


def incomplete_prompt(piece: Piece, random: np.random.Generator) -> str:
    """Return the prompt of a piece with some of the metadata missing, as users leave it out."""

    def said(fact: str) -> str:
        return "" if random.random() < 0.1 else fact

    return prompt_text(
        piece.caption,
        bpm=said(str(piece.bpm)),
        timesignature=said(piece.timesignature),
        keyscale=said(piece.keyscale),
        seconds=SECONDS,
    )


def train_tokenizer() -> Tokenizer:
    """Learn the words of a thousand prompts; what is in none of them is spelled out in bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    pieces = [compose(seed) for seed in range(1000)]
    texts = [text for piece in pieces for text in (piece_prompt(piece), piece_lyrics(piece))]
    tokenizer.train_from_iterator([text.replace(END_OF_TEXT, "") for text in texts], trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    return tokenizer


def write_text_encoder(folder: Path) -> None:
    """Write tokenizer and random weights. Embeddings outweigh what the layers add, so that words stay apart."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    full = {**TEXT, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(full, indent=1), encoding="utf-8")
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, meta in build_text_model(full).state_dict().items():
        size = 1.0 if "embed_tokens" in name else 0.5 * max(meta.shape[-1], 1) ** -0.5
        drawn = size * torch.randn(meta.shape, generator=generator)
        weights[name] = torch.ones(meta.shape).bfloat16() if "norm" in name else drawn.bfloat16()
    save_file(weights, folder / "model.safetensors")


@dataclass
class Words:
    """Prompts and lyrics as numbers, for many songs at once."""

    text: Tensor  # (prompts, longest Lt, Dt), zero beyond each prompt's end
    text_lengths: Tensor  # (prompts,)
    lyrics: Tensor  # (kinds of lyrics, longest Ll, Dt)
    lyric_lengths: Tensor
    lyrics_of: Tensor  # (prompts,) which kind

    def to(self, device: torch.device) -> "Words":
        """Copy to a device."""
        return Words(*(tensor.to(device) for tensor in vars(self).values()))


@torch.no_grad()
def encode_words(texts: TextEncoder, prompts: Sequence[str], lyrics: Sequence[str]) -> Words:
    """Encode every prompt as preprocessing would, many at a time: the model is causal, so padding changes nothing."""
    device = texts.model.device
    tokens = [encoding.ids for encoding in texts.tokenizer.encode_batch(list(prompts))]
    longest = max(map(len, tokens))
    states = []
    for start in range(0, len(tokens), 1024):
        ids = [line + [0] * (longest - len(line)) for line in tokens[start : start + 1024]]
        found = texts.model(torch.tensor(ids, device=device), use_cache=False).last_hidden_state
        lengths = torch.tensor([len(line) for line in tokens[start : start + 1024]], device=device)
        states.append(found * (torch.arange(longest, device=device) < lengths[:, None])[..., None])
    kinds = [lyric_text(words, "unknown") for words in FORMS.values()]
    embedded = [texts.embed_lyrics(kind)[0] for kind in kinds]
    return Words(
        text=torch.cat(states),
        text_lengths=torch.tensor([len(line) for line in tokens], device=device),
        lyrics=torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True),
        lyric_lengths=torch.tensor([len(rows) for rows in embedded], device=device),
        lyrics_of=torch.tensor([kinds.index(words) for words in lyrics], device=device),
    )
