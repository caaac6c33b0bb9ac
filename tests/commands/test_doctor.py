"""`woodshed doctor` as it is typed: findings, remedies, exit codes; each kind of trouble is found and named."""

import io
import json
import os
import shutil

import pytest
from rich.console import Console

from woodshed import cli
from woodshed.commands.doctor import _say
from woodshed.console import Terminal
from woodshed.doctor.finding import Finding
from woodshed.models.fetched import FetchedFile, FetchRecord, write_record

MODEL, VAE, TEXT = "acestep-v15-base", "vae", "Qwen3-Embedding-0.6B"


@pytest.fixture
def place(tmp_path, monkeypatch, golden):
    """Checkpoints and a dataset that may be spoiled."""
    monkeypatch.setenv("WOODSHED_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("woodshed.doctor.examine.look_at_packages", lambda: ())  # depends on who runs the tests
    for name in (MODEL, VAE, TEXT):
        shutil.copytree(golden / "checkpoints" / name, tmp_path / "checkpoints" / name)
    shutil.copytree(golden / "preprocessed_fp32", tmp_path / "tensors")
    return tmp_path


@pytest.fixture
def doctor(capsys):
    """Run the doctor; return its exit code and findings by state."""

    def run(*words):
        code = cli.main(["doctor", "--json", "--device", "cpu", *words])
        report = json.loads(capsys.readouterr().out)
        assert report["ready"] == (code == 0)
        found = {"ok": [], "note": [], "problem": []}
        for item in report["findings"]:
            found[item["state"]].append(item)
        return code, found

    return run


def said(findings):
    return "\n".join(f"{item['topic']}: {item['text']} {item['remedy']}" for item in findings)


PLANNED = ("--model", "base", "--dataset-dir", "tensors", "--output-dir", "out")


@pytest.mark.usefixtures("place")
def test_a_sound_machine_is_ready_and_says_what_it_found(doctor):
    code, found = doctor(*PLANNED)
    assert (code, found["problem"]) == (0, [])
    text = said(found["ok"])
    for part in (
        "machine: Python",
        "PyTorch",
        f"{MODEL}: base, 2B",
        "The VAE",
        "dataset: tensors: 2 songs",
        "run: lora",
    ):
        assert part in text, part
    assert "A step takes about" in text
    assert "A checkpoint takes about" in text


SPOILT = {
    "no checkpoints": (lambda root: shutil.rmtree(root / "checkpoints"), "no checkpoint folder"),
    "weights cut short": (
        lambda root: os.truncate(root / "checkpoints" / MODEL / "model.safetensors", 5000),
        "model.safetensors cannot be read",
    ),
    "no silence": (lambda root: (root / "checkpoints" / MODEL / "silence_latent.pt").unlink(), "silence_latent.pt"),
    "a VAE without weights": (
        lambda root: (root / "checkpoints" / VAE / "diffusion_pytorch_model.safetensors").unlink(),
        f"woodshed models get {VAE}",
    ),
    "a text encoder without its tokenizer": (
        lambda root: (root / "checkpoints" / TEXT / "tokenizer.json").unlink(),
        f"woodshed models get {TEXT}",
    ),
    "an empty dataset": (lambda root: [path.unlink() for path in (root / "tensors").iterdir()], "dataset: "),
    "an old run": (
        lambda root: ((root / "out").mkdir(), (root / "out" / "run.toml").write_text("", encoding="utf-8")),
        "out already holds a run",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_each_trouble_is_a_problem_and_exits_with_one(case, place, doctor):
    spoil, part = SPOILT[case]
    spoil(place)
    before = sorted(place.rglob("*"))
    code, found = doctor(*PLANNED)
    assert code == 1
    assert part in said(found["problem"])
    assert sorted(place.rglob("*")) == before


def test_a_missing_vae_is_a_note_because_training_works_without_it(place, doctor):
    shutil.rmtree(place / "checkpoints" / VAE)
    code, found = doctor(*PLANNED)
    assert code == 0
    assert f"woodshed models get {VAE} --checkpoint-dir checkpoints" in said(found["note"])


def test_a_model_beside_a_broken_one_is_still_looked_at(place, doctor):
    shutil.copytree(place / "checkpoints" / MODEL, place / "checkpoints" / "my-tune")
    (place / "checkpoints" / "my-tune" / "config.json").write_text("{", encoding="utf-8")
    code, found = doctor()
    assert code == 1
    assert "my-tune cannot be used" in said(found["problem"])
    assert MODEL in said(found["ok"])


@pytest.mark.usefixtures("place")
def test_an_unknown_model_is_a_problem_with_a_suggestion(doctor):
    assert "Did you mean" in said(doctor("--model", "bsae")[1]["problem"])


def test_bytes_that_differ_from_the_download_are_found_when_asked_for(place, doctor):
    folder = place / "checkpoints" / MODEL
    size = (folder / "config.json").stat().st_size
    record = FetchRecord(
        repository="ACE-Step/x", revision="0", files={"config.json": FetchedFile(size=size, sha256="0" * 64)}
    )
    write_record(folder, record)
    assert doctor()[0] == 0
    code, found = doctor("--digests")
    assert code == 1
    assert "config.json has other bytes" in said(found["problem"])
    os.truncate(folder / "config.json", size - 1)  # sizes are compared always
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"  ")
    assert doctor()[0] == 1


def test_a_run_file_is_the_plan_and_all_that_is_wrong_with_it_is_said(place, doctor):
    (place / "run.toml").write_text(
        "model = 'base'\ndataset_dir = 'tensors'\noutput_dir = 'out'\nrank = 0\ntarget_modules = ['zz_proj']\n",
        encoding="utf-8",
    )
    code, found = doctor("--config", "run.toml")
    assert code == 1
    assert "rank must be at least 1" in said(found["problem"])
    assert "zz_proj" in said(found["problem"])


@pytest.mark.usefixtures("place")
def test_a_step_that_does_not_fit_is_a_problem_with_the_ways_that_help(doctor, monkeypatch):
    monkeypatch.setattr("woodshed.doctor.run.available_memory", lambda _: 2**20)
    code, found = doctor(*PLANNED)
    assert code == 1
    (problem,) = found["problem"]
    assert "A step takes about" in problem["text"]
    assert "--recompute all" in problem["remedy"] or "--rank" in problem["remedy"]


@pytest.mark.usefixtures("place")
def test_people_read_lines_under_topics_with_remedies_below(capsys):
    shutil.rmtree("checkpoints/vae")
    assert cli.main(["doctor", "--device", "cpu", "--plain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")][:2] == ["Machine", "Checkpoints"]
    place = next(number for number, line in enumerate(lines) if "The VAE" in line)
    assert lines[place].startswith("  note     ")
    assert lines[place + 1].strip() == "-> woodshed models get vae --checkpoint-dir checkpoints"
    assert lines[-1].startswith("Everything that was looked at is ready; ")


@pytest.mark.usefixtures("place")
def test_a_problem_for_people_goes_to_standard_error_and_is_counted(capsys):
    assert cli.main(["doctor", "--device", "cuda:99", "--plain"]) == 1
    captured = capsys.readouterr()
    assert "problem  There is no device cuda:99" in captured.err
    assert "1 problem to mend" in captured.err


def test_a_finding_breaks_between_words_in_a_narrow_terminal_and_not_in_a_file():
    finding = Finding("machine", "ok", "There is --optimizer-type prodigy, " * 4)
    shown = {}
    for is_terminal in (True, False):
        terminal = Terminal(plain=True)
        terminal.out = Console(file=io.StringIO(), width=40, force_terminal=is_terminal, color_system=None)
        _say(finding, terminal, is_first=False)
        shown[is_terminal] = terminal.out.file.getvalue().rstrip("\n").split("\n")
    assert len(shown[False]) == 1 < len(shown[True])
    assert max(map(len, shown[True])) <= 40
    assert all(line.startswith(" " * 11) for line in shown[True][1:])
    assert " ".join(" ".join(shown[True]).split()) == " ".join(shown[False][0].split())
