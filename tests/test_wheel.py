"""What users install: the wheel holds everything the program needs besides its dependencies."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_wheel_installs_into_an_empty_environment_and_its_command_runs(tmp_path: Path):
    project = Path(__file__).parents[1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, project], check=True)
    (wheel,) = tmp_path.glob("woodshed-*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    programs = environment / ("Scripts" if sys.platform == "win32" else "bin")
    python = programs / Path(sys.executable).name
    (site,) = environment.glob("[Ll]ib/**/site-packages")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    # The dependencies come from this environment; the program itself must not.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    assert (site / "woodshed" / "sampling" / "page.html").is_file()

    # A tree that PYTHONPATH names would be found before what was installed.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def output_of(*words: str) -> str:
        command = [programs / "woodshed", *words]
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
        return done.stdout

    where = [python, "-c", "import woodshed; print(woodshed.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
    assert str(site) in found.stdout
    assert output_of("--version").startswith("woodshed ")
    assert "lokr_strong" in output_of("presets", "list")
    assert "--rank" in output_of("train", "--help")
