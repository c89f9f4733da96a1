"""Files with the names of modules, which nothing may import."""

from __future__ import annotations

import os
from pathlib import Path

_STRANGERS = (
    *("dask", "json", "logging", "numpy", "queue", "random", "socket", "soundfile", "subprocess"),
    *("token", "types", "uuid"),
)


def write_strangers(folder: Path, marks: Path) -> None:
    """Write files with names of modules, which leave a mark in a folder and end the process that imports them."""
    marks.mkdir()
    for name in _STRANGERS:
        code = f"import os\nos.close(os.open({os.fspath(marks / name)!r}, os.O_CREAT))\nos._exit(7)\n"
        (folder / f"{name}.py").write_text(code)
