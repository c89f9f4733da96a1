"""Keep modules of the current directory out of this process, and switch the telemetry of libraries off.

All other modules stand on this one. It imports only what Python has loaded when it starts, because anything else that it
imported could come from the current directory.
"""

import os
import sys

# onnxruntime's wheels for Linux write a device id under ~/.cache and look up a host of Microsoft's as soon as they are
# imported; its function `disable_telemetry_events` does not change that.
# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
_SILENT = {"ORT_DISABLE_TELEMETRY": "1"}
# Python imports from the folder that holds this package anyway, so the folder stays even if it is the current directory.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def silence() -> None:
    """Turn telemetry off in this process and in those that it starts, whatever the environment says.

    It must run before a library with telemetry is imported; the package does it when it is imported itself.
    """
    if "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
        import warnings

        warnings.warn(
            "onnxruntime was imported before emotion_batch, so its telemetry is on: import emotion_batch first, or set "
            "ORT_DISABLE_TELEMETRY=1",
            stacklevel=3,
        )
    os.environ.update(_SILENT)


def forget_current_folder() -> None:
    """Let this process, and those that its libraries start, import nothing more from the current directory."""
    sys.path[:] = safe_path()
    os.environ.update(safe_environment())


def safe_path() -> list[str]:
    """Return `sys.path` without the current directory.

    Three kinds of entries go: relative and empty ones; those that Python has made absolute of such entries in
    ``PYTHONPATH``; and the current directory itself if it stands before the standard library, which is where Python puts
    the folder of a script. An absolute folder in ``PYTHONPATH`` is its user's choice and stays, and so do the folders of
    editable installations, which stand behind the standard library.
    """
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    chosen = {os.path.abspath(entry) for entry in named if os.path.isabs(entry)}
    try:
        here = {os.path.realpath(entry) for entry in named if not os.path.isabs(entry)} | {os.path.realpath(os.curdir)}
    except OSError:
        # The current directory is gone, and nothing can be imported from it.
        here = set()
    standard = os.path.dirname(os.__file__)
    n_before = sys.path.index(standard) if standard in sys.path else len(sys.path)
    return [
        entry
        for number, entry in enumerate(sys.path)
        if os.path.isabs(entry)
        # PYTHONPATH would split it into two entries, and the second may be relative.
        and os.pathsep not in entry
        and (number >= n_before or entry == _ROOT or entry in chosen or os.path.realpath(entry) not in here)
    ]


def safe_environment() -> dict[str, str]:
    """Return the environment for a Python process that this one starts.

    It can import what this process can, because a path may have been added at run time, but nothing from the current
    directory. Start it with ``-P`` as well, because a Python that is told to ignore its environment obeys only that.
    """
    return {**os.environ, **_SILENT, "PYTHONPATH": os.pathsep.join(safe_path()), "PYTHONSAFEPATH": "1"}
