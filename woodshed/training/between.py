"""What happens between two epochs: the adapter is measured on held-out songs, and made to be heard.

Neither changes the training: every random draw of a run depends on seed, epoch and song alone.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch

from woodshed.errors import UserError
from woodshed.sampling.preview import Made, Preview, Words, encode_lines, song_words
from woodshed.sampling.recipes import Playback, playback_of
from woodshed.training.averaging import Averaging
from woodshed.training.bypass import listening, without_adapter
from woodshed.training.checkpoint import BEST
from woodshed.training.events import Event, Notice, SampleMade
from woodshed.training.preflight import Preflight
from woodshed.training.run import Run
from woodshed.training.validation import Memory, Validation

Failure = RuntimeError | UserError | OSError
FAILURES = (RuntimeError, UserError, OSError)
"""What costs a run its samples, but never its training. On Apple's devices and in the libraries of CUDA, PyTorch has no
other word for memory that ran out than RuntimeError."""


def words_for(preflight: Preflight) -> tuple[list[Words], list[str]]:
    """Return what samples are made from, if any are wanted, and what went wrong with it."""
    plan = preflight.preview
    try:
        if plan is None:
            return [], []
        if not plan.lines:
            return song_words(preflight.dataset, plan), []
        words = encode_lines(
            plan,
            preflight.checkpoint,
            tag=preflight.dataset.custom_tag,
            position=preflight.dataset.tag_position,
            dtype=preflight.dtype,
            device=preflight.device,
        )
    except FAILURES as error:
        return [], [_given_up(error)]
    return words, []


def _given_up(error: Failure) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        reason = "the device ran out of memory; --offload-encoder and shorter samples (--sample-seconds) take less"
    else:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"No more samples are made, and training goes on: {reason}."


class Between:
    """Validation and samples of a run.

    Args:
        run: at its start, new or resumed.
        words: what samples are made from; none are made without.
    """

    def __init__(self, run: Run, words: list[Words]) -> None:
        self._run, self._words = run, words
        self._preview: Preview | None = None
        self._validation: Validation | None = None
        self._averaging: Averaging | None = None
        if run.preflight.held_out is not None:
            self._validation = Validation(run, dict(run.validated))
            if run.settings.keep_best and not (run.settings.output_dir / BEST).is_dir():
                known = self._validation.memory
                self._validation.memory = Memory(last_epoch=known.last_epoch, kept=known.kept)
            if run.settings.average_best:
                self._averaging = Averaging(run, self._validation)

    def begin(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Play the base model, and make up for what the run that is continued left out when it was stopped."""
        if self._averaging is not None:
            yield from self._averaging.begin()
        if self._words:
            yield from self._open(should_stop)
        if self._run.epochs_done and not self._run.position.steps_in_epoch:
            yield from self.measure()
            if self._preview is not None and not self._preview.has_made(self._run.epochs_done):
                yield from self.listen(should_stop)

    def measure(self) -> Iterator[Event]:
        """Measure the adapter if it is time, keep it if it is the best, and end the run if it no longer improves."""
        run, validation = self._run, self._validation
        if validation is None or not validation.is_due(run.epochs_done):
            return
        found, said = validation.measure(run.epochs_done)
        kept = [] if self._averaging is None else list(self._averaging.take(run.epochs_done, found.loss))
        run.validated = validation.state()
        yield found
        yield from kept
        yield from map(Notice, said)
        if found.is_best and run.settings.keep_best:
            run.begin_saving("best")
        if validation.should_end and run.epochs_done < run.settings.epochs:
            run.has_ended_early = True
            yield Notice(
                f"The run ends after epoch {run.epochs_done}: the held-out loss has not fallen below that of epoch "
                f"{validation.memory.best_epoch} in {validation.memory.since_best} validations (--early-stop "
                f"{run.settings.early_stop})."
            )

    def finish(self) -> Iterator[Event]:
        """Average the best epochs of a run that took its last step, if that is wanted."""
        if self._averaging is not None:
            yield from self._averaging.finish()

    def listen(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Make samples if it is time."""
        epoch = self._run.epochs_done
        if epoch and epoch % max(self._run.settings.sample_every_n_epochs, 1) == 0:
            yield from self._play(epoch, should_stop)

    def _open(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Load the VAE, and let the base model be heard once."""
        run, plan = self._run, self._run.preflight.preview
        assert plan is not None, "there are words to be played"
        recipe, checkpoint = run.recipe(), run.preflight.checkpoint
        steps, guidance = int(recipe["num_inference_steps"]), playback_of(checkpoint).guidance
        try:
            self._preview = Preview(
                plan,
                self._words,
                Playback(recipe["shift"], steps, guidance),
                checkpoint=checkpoint,
                seed=run.settings.seed,
                folder=run.settings.output_dir / "samples",
                dtype=run.preflight.dtype,
                device=run.device,
                offload=run.settings.offload_encoder,
            )
            superseded = self._preview.set_aside_later(run.epochs_done) if run.preflight.resume else []
        except FAILURES as error:
            yield Notice(_given_up(error))
            return
        yield from (Notice(f"Set aside {path}: it was made after where this run continues.") for path in superseded)
        if not self._preview.has_made(0):
            yield from self._play(0, should_stop)

    def _play(self, epoch: int, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Make the samples of an epoch, or give samples up."""
        preview = self._preview
        if preview is None:
            return
        made, failure = self._made(preview, epoch, should_stop)
        if failure:
            self._preview = None
            if self._run.device.type == "cuda":
                torch.cuda.empty_cache()
            yield Notice(failure)
        step, rate = self._run.position.step if epoch else 0, preview.plan.sample_rate
        for one in made:
            yield SampleMade(one.path, epoch, step, one.number, one.title, rate, one.seconds)

    def _made(self, preview: Preview, epoch: int, should_stop: Callable[[], bool]) -> tuple[list[Made], str]:
        """Return the samples of an epoch, or none and what went wrong."""
        run = self._run
        base = nullcontext() if epoch else without_adapter(run.decoder, run.adapter)
        try:
            with listening(run.decoder), base:
                return preview.make(run.decoder, run.null_condition, epoch, should_stop), ""
        except FAILURES as error:
            return [], _given_up(error)
