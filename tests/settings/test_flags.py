"""Flags come out of the schema: every setting has one, help shows the basic tier, unknown ones are answered."""

import re

import pytest

from woodshed.errors import UsageError
from woodshed.settings.declare import declarations
from woodshed.settings.flags import Parser, add_flags, default_text, flag_layer, flags_of, refuse_unknown
from woodshed.settings.schema import PreprocessSettings, TrainSettings

PROMISED = """
--checkpoint-dir --model --dataset-dir --output-dir --adapter-type --rank --alpha --dropout --attention-type
--target-modules --lokr-linear-dim --lokr-linear-alpha --lokr-factor --lokr-decompose-both --lokr-use-tucker
--lokr-use-scalar --lokr-weight-decompose --learning-rate --lr --batch-size --gradient-accumulation --epochs
--warmup-steps --seed --cfg-ratio --save-every --log-every --resume-from --device --precision --optimizer-type
--scheduler-type --gradient-checkpointing --offload-encoder --weight-decay --max-grad-norm --bias --num-workers
--pin-memory --prefetch-factor --persistent-workers --log-dir --log-heavy-every --sample-every-n-epochs --shift
--num-inference-steps --mode""".split()  # noqa: SIM905 - reads like the promise it is


def parser_of(kind, *, show_all=False) -> Parser:
    parser = Parser(prog="woodshed x", add_help=False, allow_abbrev=False)
    add_flags(parser, kind, show_all=show_all)
    return parser


def parsed(kind, *words):
    return flag_layer(parser_of(kind).parse_args(words), kind).values


def test_every_promised_flag_exists():
    known = {flag for name, field in TrainSettings.model_fields.items() for flag in flags_of(name, field)}
    assert set(PROMISED) <= known


@pytest.mark.parametrize("kind", [TrainSettings, PreprocessSettings])
def test_every_setting_has_a_flag_even_when_help_hides_it(kind):
    parser = parser_of(kind)
    known = {flag for action in parser._actions for flag in action.option_strings}
    for name, field in kind.model_fields.items():
        assert set(flags_of(name, field)) <= known
        if field.annotation is bool:
            assert f"--no-{name.replace('_', '-')}" in known


def test_help_shows_the_basic_tier_and_help_all_everything():
    basic, everything = parser_of(TrainSettings).format_help(), parser_of(TrainSettings, show_all=True).format_help()
    for name, said in declarations(TrainSettings).items():
        flag = flags_of(name, TrainSettings.model_fields[name])[0]
        as_a_word = re.compile(rf"{flag}(?![\w-])")
        assert as_a_word.search(everything)
        assert bool(as_a_word.search(basic)) == (said.tier == "basic"), flag


def test_help_shows_what_a_setting_does_and_its_default():
    text = " ".join(parser_of(TrainSettings, show_all=True).format_help().split())
    assert "Number of low-rank dimensions. Higher = more capacity, more VRAM. (default: 64)" in text
    assert "(default: q_proj k_proj v_proj o_proj)" in text
    assert "~40-60% less" in text


def test_only_what_was_typed_is_in_the_layer():
    assert parsed(TrainSettings, "--rank", "8", "--no-pin-memory") == {"rank": "8", "pin_memory": False}


def test_both_spellings_of_the_learning_rate_mean_the_same():
    assert parsed(TrainSettings, "--lr", "1e-3") == parsed(TrainSettings, "--learning-rate", "1e-3")


def test_target_modules_take_several_words():
    assert parsed(TrainSettings, "--target-modules", "q_proj", "k_proj") == {"target_modules": ["q_proj", "k_proj"]}


def test_an_abbreviated_flag_is_not_guessed():
    parser = parser_of(TrainSettings)
    _, unknown = parser.parse_known_args(["--grad", "3"])
    assert unknown == ["--grad", "3"]


def test_unknown_flags_are_all_named_each_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        refuse_unknown(parser_of(TrainSettings), ["--lerning-rate", "3", "--dropuot=2"])
    assert caught.value.problems[0] == "There is no flag --lerning-rate. Did you mean --learning-rate?"
    assert caught.value.problems[1] == "Nobody expected the word 3 here."
    assert caught.value.problems[2] == "There is no flag --dropuot. Did you mean --dropout?"
    assert caught.value.exit_code == 2


def test_a_flag_without_its_value_is_wrong_usage():
    with pytest.raises(UsageError, match="expected one argument"):
        parsed(TrainSettings, "--rank")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("learning_rate", "`1e-4`"),
        ("dropout", "`0.1`"),
        ("gradient_checkpointing", "`yes`"),
        ("max_grad_norm", "`1`"),
        ("dataset_dir", "*(none)*"),
        ("log_dir", "`{output}/runs`"),
        ("num_workers", "`4` (Linux), `0` (Windows)"),
        ("target_modules", "`q_proj k_proj v_proj o_proj`"),
    ],
)
def test_defaults_are_written_as_people_write_them(name, text):
    assert default_text(TrainSettings.model_fields[name]) == text
