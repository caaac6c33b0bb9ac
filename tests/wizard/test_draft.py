"""Answers follow the rules of the settings, and nothing that was answered gets lost."""

from woodshed.settings.files import save_preset
from woodshed.settings.schema import TrainSettings
from woodshed.wizard.draft import Draft


def values(draft):
    return dict(draft.look().settings)


def test_choosing_prodigy_moves_rate_and_schedule_and_leaving_it_brings_them_back(draft):
    draft.try_answer("optimizer_type", "prodigy")
    assert (values(draft)["learning_rate"], values(draft)["scheduler_type"]) == (1.0, "constant")
    draft.try_answer("optimizer_type", "adamw")
    assert (values(draft)["learning_rate"], values(draft)["scheduler_type"]) == (1e-4, "cosine")


def test_a_chosen_rate_stays_with_prodigy_and_is_remarked_on(draft):
    draft.try_answer("learning_rate", "2e-4")
    draft.try_answer("optimizer_type", "prodigy")
    assert values(draft)["learning_rate"] == 2e-4
    assert "expects learning_rate 1.0" in draft.remarks()[0]


def test_alpha_follows_the_rank_until_it_is_chosen(draft):
    draft.try_answer("rank", "16")
    assert values(draft)["alpha"] == 32
    draft.try_answer("alpha", "100")
    draft.try_answer("rank", "8")
    assert values(draft)["alpha"] == 100


def test_a_wrong_answer_is_refused_and_changes_nothing(draft):
    assert draft.try_answer("rank", "0") == ["rank must be at least 1; got 0 (your answer)."]
    assert draft.try_answer("lokr_factor", "0") == ["lokr_factor must be -1 (automatic) or at least 1; got 0."]
    assert draft.answers == {"adapter_type": "lora"}


def test_answers_win_over_a_preset_which_wins_over_defaults(draft):
    assert draft.try_preset("quick_test") == ()
    draft.try_answer("epochs", "3")
    assert (values(draft)["rank"], values(draft)["epochs"]) == (16, 3)
    assert draft.try_preset(None) == ()
    assert (values(draft)["rank"], values(draft)["epochs"]) == (64, 3)


def test_a_broken_preset_is_refused_and_the_earlier_one_stays(draft):
    draft.try_preset("quick_test")
    path = save_preset("broken", {"rank": 0, "rnak": 3})
    problems = draft.try_preset("broken")
    assert any("rank must be at least 1" in problem for problem in problems)
    assert any("no setting called rnak" in problem for problem in problems)
    assert draft.preset == "quick_test"
    assert path.is_file()


def test_sections_in_which_nothing_has_an_effect_are_closed(draft):
    assert "LoKr" not in draft.open_sections()
    assert "CFG" in draft.open_sections()
    draft.try_answer("mode", "vanilla")
    assert "CFG" not in draft.open_sections()
    other = Draft(TrainSettings, {"adapter_type": "lokr"})
    assert "LoRA" not in other.open_sections()
    assert "lokr_use_tucker" in other.open_sections()["LoKr"]


def test_a_fine_tune_of_turbo_gets_turbos_playback_unless_chosen_otherwise(draft):
    draft.is_base_unknown, draft.base = True, "turbo"
    assert (values(draft)["shift"], values(draft)["num_inference_steps"]) == (3.0, 8)
    draft.try_answer("shift", "2")
    assert values(draft)["shift"] == 2.0
    draft.base = "sft"
    assert values(draft)["num_inference_steps"] == "auto"


def test_a_required_setting_is_missing_until_it_is_answered(draft):
    assert draft.is_missing("model")
    draft.try_answer("model", "base")
    assert not draft.is_missing("model")
    assert not draft.is_missing("checkpoint_dir")


def test_what_belonged_to_one_run_is_forgotten_and_the_rest_kept(draft):
    for name, value in (("output_dir", "a"), ("resume_from", "latest"), ("rank", "8")):
        draft.try_answer(name, value)
    draft.forget_run()
    assert draft.answers == {"adapter_type": "lora", "rank": "8"}
