"""What follows from settings, known before anything is loaded: modules, parameters, steps, warm-up, memory, time."""

from collections.abc import Sequence
from dataclasses import dataclass

from woodshed.adapters.targets import Shapes
from woodshed.data.dataset import Sample
from woodshed.data.encode import prepare
from woodshed.errors import UserError
from woodshed.models import memory
from woodshed.models.blocks import recomputed_share
from woodshed.models.memory import MemoryEstimate, device_memory
from woodshed.settings.declare import Settings
from woodshed.settings.schema import PreprocessSettings, TrainSettings
from woodshed.training.choices import describe_device
from woodshed.training.memory_plan import longest_song, plan_memory, trained_by
from woodshed.training.preflight import Preflight, check
from woodshed.wizard.pace import about, matrix_speed, song_seconds, step_work

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Consequences:
    """What the review says beyond the settings themselves."""

    rows: tuple[Row, ...] = ()  # name, value, remark
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()  # why it cannot start
    basis: str = ""  # what the estimates among the rows rest on


def follow(settings: Settings) -> Consequences:
    """Find out what follows; quick, though it reads the dataset's files."""
    try:
        if isinstance(settings, TrainSettings):
            return _training(check(settings))
        if isinstance(settings, PreprocessSettings):
            work = prepare(settings)
            songs = len(work.songs.songs)
            rows = (("Songs", f"{songs:,}", ""), ("Device", describe_device(work.device), ""))
            return Consequences(rows, tuple(work.songs.notices))
    except UserError as error:
        return Consequences(problems=error.problems)
    return Consequences()


def _training(found: Preflight) -> Consequences:
    settings, plan = found.settings, found.plan
    config = found.checkpoint.config
    trained = trained_by(settings, config, found.targets, found.adapter_parameters)
    longest, mean_share = longest_song(found.dataset, settings)
    estimate = plan_memory(
        settings,
        config,
        trained,
        found.techniques,
        dtype=found.dtype,
        frames=len(longest.latents),
        is_cuda=found.device.type == "cuda",
        songs=found.songs_on_card,
    )
    songs = settings.batch_size * settings.gradient_accumulation
    size = trained.count * 4 / 2**20
    rows = (
        ("Modules", f"{len(found.targets):,}", f"{settings.attention_type}: {_kinds(found.targets)}"),
        ("Trainable parameters", f"{trained.count:,}", f"a file of {size:.3g} MiB"),
        (
            "Optimizer steps",
            f"{plan.total_steps:,}",
            f"{settings.epochs} x {plan.steps_per_epoch:,} an epoch; {_songs(plan.songs)}, {songs} a step",
        ),
        ("Effective warm-up", *_warm_up(settings, plan.total_steps)),
        ("Memory", *_memory(found, estimate)),
        ("of that", _parts(estimate), ""),
        ("Time", *_time(found, longest, mean_share)),
    )
    return Consequences(rows, (*_fit(found, estimate), *found.notices), basis=memory.BASIS)


def _songs(count: int) -> str:
    return f"{count:,} song{'' if count == 1 else 's'}"


def _kinds(targets: Shapes) -> str:
    return " ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in targets))


def _warm_up(settings: TrainSettings, total: int) -> tuple[str, str]:
    if settings.scheduler_type == "constant" or not settings.warmup_steps:
        return "none", "the rate is at its peak from the first step"
    if settings.warmup_steps >= total:
        return f"{total:,} steps", "the whole run: the rate never reaches its peak"
    share = settings.warmup_steps / total
    return f"{settings.warmup_steps:,} steps", f"{share:.0%} of the run, then {settings.scheduler_type}"


def _memory(found: Preflight, estimate: MemoryEstimate) -> tuple[str, str]:
    there = device_memory(found.device)
    where = describe_device(found.device) if found.device.type in ("cuda", "xpu") else "this machine"
    known = f"of {_gib(there)} on {where}" if there else f"on {where}, whose memory is unknown"
    return f"about {_gib(estimate.total)}", known


def _parts(estimate: MemoryEstimate) -> str:
    return ", ".join(f"{name} {_gib(size)}" for name, size in estimate.parts().items() if size)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.1f} MiB"


def _fit(found: Preflight, estimate: MemoryEstimate) -> Sequence[str]:
    there = device_memory(found.device)
    if there is None or estimate.total < 0.95 * there:
        return ()
    ways = []
    if found.techniques.recompute != "all":
        ways.append("gradient checkpointing")
    if found.settings.batch_size > 1:
        ways.append("batch size 1")
    ways += ["a smaller rank" if found.settings.adapter_type == "lora" else "a larger factor", "shorter songs"]
    return (f"This may not fit into {_gib(there)}. What helps: {', '.join(ways)}.",)


def _time(found: Preflight, longest: Sample, mean_share: float) -> tuple[str, str]:
    """Estimate the run's time from the work of a step and the matrix speed of this device."""
    config, plan = found.checkpoint.config, found.plan
    work = step_work(
        config,
        frames=len(longest.latents) * mean_share,
        conditions=len(longest.conditions) * mean_share,
        recomputed=recomputed_share(found.techniques.recompute),
    )
    speed = matrix_speed(str(found.device), found.dtype)
    done = found.resume.position.epoch - 1 if found.resume else 0
    songs = plan.songs * (found.settings.epochs - done)
    seconds = songs * song_seconds(
        config, found.device, work, speed, is_captured=found.techniques.compile and found.techniques.cuda_graphs
    )
    basis = f"from {speed / 1e12:.3g} TFLOP/s measured here; the first steps will tell better"
    return about(seconds), basis
