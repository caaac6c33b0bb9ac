"""What an adapter's recipe says about playing it, and what the model says where the recipe is silent.

A recipe comes out of a file that anybody may have written, so nothing in it is used unchecked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from woodshed.data.conditioning import tagged
from woodshed.data.songs import TagPosition
from woodshed.models.checkpoints import Checkpoint

TURBO_SHIFT, TURBO_STEPS, TURBO_GUIDANCE = 3.0, 8, 1.0
SHIFT, STEPS, GUIDANCE = 1.0, 50, 7.0
"""How turbo and the other models are played. Source: ACE-Step 1.5 inference presets."""


def _is_printable(words: str) -> str:
    if not words.isprintable():
        raise ValueError("letters that cannot be printed")
    return words


Words = Annotated[str, Field(max_length=200), AfterValidator(_is_printable)]
"""Text that can be shown in a terminal as it is, whatever a file says."""


class Recipe(BaseModel):
    """The part of an adapter's recipe that concerns playing it; see `woodshed.training.run.Run.recipe`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    base_model: Words = ""
    shift: Annotated[float, Field(gt=0, le=100)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    custom_tag: Words = ""
    tag_position: TagPosition = "prepend"


@dataclass(frozen=True)
class Playback:
    """How a model samples unless the user says otherwise."""

    shift: float
    steps: int
    guidance: float


def playback_of(checkpoint: Checkpoint) -> Playback:
    """Return how a model is usually played."""
    if checkpoint.config.is_turbo:
        return Playback(TURBO_SHIFT, TURBO_STEPS, TURBO_GUIDANCE)
    return Playback(SHIFT, STEPS, GUIDANCE)


def read_recipe(content: Mapping[str, Any], name: str) -> tuple[Recipe, list[str]]:
    """Check what an adapter's header says; one that makes no sense counts as none.

    Args:
        content: of the header, possibly empty.
        name: of the adapter, for the message.

    Returns:
        The recipe, and what the user should know about it.
    """
    try:
        return Recipe.model_validate(content), []
    except ValidationError as error:
        bad = ", ".join(str(detail["loc"][0]) for detail in error.errors())
        return Recipe(), [f"The recipe in {name} makes no sense ({bad}), so it is left aside."]


def adapted_playback(recipe: Recipe, checkpoint: Checkpoint, name: str) -> tuple[Playback, list[str]]:
    """Return how an adapter is played on a model: as its recipe says, if it was made for this model.

    Returns:
        The playback, and what the user should know about it.
    """
    usual = playback_of(checkpoint)
    if recipe.base_model and recipe.base_model != checkpoint.name:
        return usual, [
            f"{name} was trained on {recipe.base_model}; on {checkpoint.name} it may sound different. "
            f"Steps and shift are those of {checkpoint.name}."
        ]
    shift, steps = recipe.shift or usual.shift, recipe.num_inference_steps or usual.steps
    return Playback(shift, steps, usual.guidance), []


def with_tag(prompt: str, tag: str, position: TagPosition = "prepend") -> str:
    """Put a trigger tag into a prompt that does not hold it yet, where the captions of the training had it.

    Where it stood in place of the captions it is put before the prompt, so that nothing of that is lost.
    """
    if tag.lower() in prompt.lower():
        return prompt
    return tagged(prompt, tag, "prepend" if position == "replace" else position)
