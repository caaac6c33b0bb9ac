"""Where compiled kernels stay, so that the next run need not make them again."""

import os
from pathlib import Path

import platformdirs

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_kernels() -> None:
    """Let the compiler keep its kernels in the user's cache folder, unless the user chose another.

    Its own choice is a folder for temporary files, which many systems empty when they start.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # slow, and not needed without compiling

    # The compiler writes its default into the variable when it is imported.
    if os.environ.get(VARIABLE) not in (None, os.path.abspath(default_cache_dir())):  # noqa: PTH100 - as it does
        return
    folder = Path(platformdirs.user_cache_dir("woodshed", appauthor=False)) / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        return
    os.environ[VARIABLE] = str(folder)
