"""Start ``emotion-batch`` as a process: the console script, ``python -P -m emotion_batch`` and the scripts of ``jobs/``."""

from __future__ import annotations

import sys

from emotion_batch.environment import forget_current_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from emotion_batch.cli.script import Script


def main(arguments: list[str] | None = None) -> int:
    """Run one command as `cli.app.run_command` does, and import nothing from the current directory."""
    forget_current_folder()
    # Only now, because also the modules that it imports could lie in the current directory.
    from emotion_batch.cli import app

    return app.run_command(arguments)


def job(command: str) -> Script:
    """Return the block of a script in ``jobs/``; nothing is imported from the current directory from then on."""
    forget_current_folder()
    from emotion_batch.cli.script import Script

    return Script(command)


if __name__ == "__main__":
    sys.exit(main())
