"""The parts of a model in memory: each loaded when its turn comes, and freed when that saves memory."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderOobleck
from torch import nn

from woodshed.adapters.files import load_adapter
from woodshed.models.decoder import Decoder
from woodshed.models.encoders import ConditionEncoder, TextEncoder
from woodshed.models.load import load_condition_encoder, load_decoder, load_text_encoder, load_vae
from woodshed.sampling.plan import Plan, Version


class Parts:
    """Hands out the parts of a plan's model, on its device.

    With `offload_encoder`, asking for a part frees the one before it, so that memory never holds two; a caller must
    not keep it. Otherwise what is loaded stays, but for the decoder: every version has its own.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._place: dict[str, Any] = {"dtype": plan.dtype, "device": plan.device}
        self._held: dict[str, nn.Module] = {}

    def text_encoder(self) -> TextEncoder:
        """Return tokenizer and text model."""
        folder = self._plan.found.require_text_encoder()
        texts: TextEncoder = self._get("text encoder", partial(load_text_encoder, folder, **self._place))
        return texts

    def condition_encoder(self) -> ConditionEncoder:
        """Return what packs words and timbre into conditions."""
        load = partial(load_condition_encoder, self._plan.checkpoint, **self._place)
        encoder: ConditionEncoder = self._get("condition encoder", load)
        return encoder

    def vae(self) -> AutoencoderOobleck:
        """Return what turns latents into sound."""
        folder = self._plan.found.require_vae()
        return self._get("vae", partial(load_vae, folder, **self._place))

    def decoder(self, version: Version) -> Decoder:
        """Return a decoder of a version's own, with its adapter.

        Raises:
            AdapterError: when the adapter does not fit.
        """
        self._free("decoder")
        decoder: Decoder = self._get("decoder", partial(load_decoder, self._plan.checkpoint, **self._place))
        if version.path is not None:
            load_adapter(decoder, version.path, self._plan.settings.strength)
        return decoder

    def _get(self, name: str, load: Callable[[], Any]) -> Any:
        if self._plan.settings.offload_encoder:
            self._free(*(other for other in self._held if other != name))
        if name not in self._held:
            self._held[name] = load()
        return self._held[name]

    def _free(self, *names: str) -> None:
        for name in names:
            self._held.pop(name, None)
        if names:
            gc.collect()  # modules with hooks hold on to themselves
            if self._plan.device.type == "cuda":
                torch.cuda.empty_cache()
