"""Everything that can be known to be wrong with a song is said at once, before a model is loaded."""

from pathlib import Path

import pytest

from woodshed.errors import UserError
from woodshed.sampling import parts
from woodshed.sampling.plan import prepare, version_names
from woodshed.sampling.recipes import Playback


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    for name in ("load_decoder", "load_text_encoder", "load_condition_encoder", "load_vae"):
        monkeypatch.setattr(parts, name, lambda *_, **__: pytest.fail("a model was loaded"))


def problems_of(settings):
    with pytest.raises(UserError) as caught:
        prepare(settings)
    return caught.value.problems


def test_all_problems_come_in_one_message(settings_for, tmp_path, golden):
    found = problems_of(
        settings_for(
            device="cuda:99",
            model="xl-base",
            adapter=[tmp_path / "nowhere", golden / "adapters" / "lora_r4"],
            lyrics=f"@{tmp_path / 'words.txt'}",
            output=tmp_path / "song.mp3",
        )
    )
    assert len(found) == 5
    for problem, part in zip(found, ("cuda:99", "nowhere", "another model", "words.txt", ".mp3"), strict=True):
        assert part in problem


def test_an_adapter_of_another_model_is_refused_by_its_shapes(settings_for, golden):
    (problem,) = problems_of(settings_for(model="xl-turbo", adapter=golden / "adapters" / "lora_r4"))
    assert "lora_r4 is for another model than acestep-v15-xl-turbo: 32 of its 32 layers" in problem


def test_an_adapter_that_fits_any_number_of_rows_is_compared_by_its_columns(settings_for, adapter_of):
    assert prepare(settings_for(adapter=adapter_of("oft"))).versions[0].name == "style"
    assert "is for another model" in problems_of(settings_for(model="xl-turbo", adapter=adapter_of("oft")))[0]


@pytest.mark.parametrize(("name", "part"), [("song", "no ending"), ("song.ogg", "got .ogg")])
def test_only_wav_and_flac_can_be_written(settings_for, tmp_path, name, part):
    (problem,) = problems_of(settings_for(output=tmp_path / name))
    assert problem.endswith(f"{part}.")


def test_an_output_that_is_a_folder_or_lies_below_a_file_is_refused(settings_for, tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    assert "is a folder" in problems_of(settings_for(output=tmp_path / "folder.wav"))[0]
    assert "cannot be written" in problems_of(settings_for(output=tmp_path / "file" / "deep" / "song.wav"))[0]


def test_a_missing_vae_and_text_encoder_are_named(settings_for, tmp_path, checkpoint_root):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "acestep-v15-base").symlink_to(checkpoint_root / "acestep-v15-base")
    found = problems_of(settings_for(checkpoint_dir=tmp_path / "root"))
    assert len(found) == 2
    assert "vae" in found[0]
    assert "Qwen3-Embedding-0.6B" in found[1]


def test_nothing_is_written_by_looking(settings_for, tmp_path):
    prepare(settings_for(output=tmp_path / "new" / "song.wav"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "frames", "samples"),
    [(0.01, 128, 480), (5.12, 128, 245_760), (5.121, 129, 245_808), (60, 1500, 2_880_000)],
)
def test_short_songs_are_sampled_at_the_smallest_length_and_cut(settings_for, seconds, frames, samples):
    plan = prepare(settings_for(duration=seconds))
    assert (plan.frames, plan.samples) == (frames, samples)


def test_the_trigger_tag_of_a_recipe_is_put_before_the_prompt_unless_told_not_to(settings_for, adapter_of):
    adapter = adapter_of(custom_tag="zyx")
    plan = prepare(settings_for(adapter=adapter))
    assert plan.versions[0].caption == "zyx, warm funk"
    assert "# Caption\nzyx, warm funk\n" in plan.versions[0].prompt
    assert plan.notices == ("style: its trigger tag zyx is put before the prompt; --no-tag leaves it out.",)
    plan = prepare(settings_for(adapter=adapter, tag=False))
    assert (plan.versions[0].caption, plan.notices) == ("warm funk", ())
    assert prepare(settings_for(adapter=adapter, prompt="a zyx song")).notices == ()


def test_the_recipe_gives_the_defaults_and_what_the_user_says_wins(settings_for, adapter_of):
    adapter = adapter_of(base_model="acestep-v15-base", shift=2.5, num_inference_steps=30)
    plan = prepare(settings_for(adapter=adapter, steps="auto"))
    assert plan.versions[0].playback == Playback(2.5, 30, 7.0)
    assert plan.notices == ("style: 30 steps and shift 2.5, from its recipe.",)
    assert prepare(settings_for(adapter=adapter, steps=4)).notices == ("style: shift 2.5, from its recipe.",)
    plan = prepare(settings_for(adapter=adapter, steps=4, shift=1.5, guidance=3))
    assert (plan.versions[0].playback, plan.notices) == (Playback(1.5, 4, 3.0), ())


def test_the_base_models_version_differs_in_nothing_but_the_weights(settings_for, adapter_of):
    adapter = adapter_of(custom_tag="zyx", base_model="acestep-v15-base", shift=2.5, num_inference_steps=30)
    base, adapted = prepare(settings_for(adapter=adapter, compare=True, steps="auto")).versions
    assert (base.adapter, base.prompt, base.playback) == (None, adapted.prompt, adapted.playback)


def test_settings_without_effect_are_named_with_the_reason(settings_for):
    said = prepare(settings_for(model="turbo", guidance=5, strength=0.5, instrumental=True, lyrics="la")).notices
    assert [line.split(":")[0] for line in said] == [
        "guidance has no effect",
        "strength has no effect",
        "The song is to be instrumental, so its lyrics are left out.",
    ]
    assert prepare(settings_for(model="turbo", guidance=5)).versions[0].playback.guidance == 1


def test_lyrics_come_from_a_file_of_any_editor(settings_for, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("[verse]\nlé lé\n", encoding="utf-8-sig")
    assert prepare(settings_for(lyrics=f"@{path}")).lyrics.endswith("# Lyric\n[verse]\nlé lé<|endoftext|>")


def test_versions_are_named_so_that_people_can_tell_them_apart(tmp_path):
    for name in ("drums/final", "bass/checkpoint-epoch-10", "x/style", "y/style"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x/style/adapter_model.safetensors").write_text("")
    paths = ["drums/final", "bass/checkpoint-epoch-10", "x/style/adapter_model.safetensors", "y/style", "k.safetensors"]
    assert version_names([tmp_path / path for path in paths]) == [
        "drums-final",
        "bass-checkpoint-epoch-10",
        "style",
        "style-2",
        "k",
    ]
    assert version_names([Path("base")]) == ["base-2"]
