"""Compiled kernels outlive a restart of the machine, where nobody said otherwise."""

import os

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from woodshed.models import blocks, kernel_cache
from woodshed.models.kernel_cache import VARIABLE, keep_kernels


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_cache.platformdirs, "user_cache_dir", lambda name, **_: str(tmp_path / name))
    monkeypatch.setenv(VARIABLE, "")  # put back afterwards, whatever is done to it
    return tmp_path


@pytest.mark.parametrize("before", [None, "default"])
def test_kernels_are_kept_in_the_users_folder(home, monkeypatch, before):
    if before is None:
        monkeypatch.delenv(VARIABLE)
    else:
        monkeypatch.setenv(VARIABLE, default_cache_dir())
    keep_kernels()
    assert cache_dir() == str(home / "woodshed" / "kernels")


def test_a_folder_that_the_user_chose_stays(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(home / "mine"))
    keep_kernels()
    assert os.environ[VARIABLE] == str(home / "mine")


def test_where_that_folder_cannot_be_made_the_compilers_own_is_taken(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, default_cache_dir())
    (home / "woodshed").write_text("a file in the way")
    keep_kernels()
    assert os.environ[VARIABLE] == default_cache_dir()


def test_whoever_compiles_keeps_kernels(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, default_cache_dir())
    blocks._compiled.__wrapped__(lambda: None)
    assert os.environ[VARIABLE] == str(home / "woodshed" / "kernels")
