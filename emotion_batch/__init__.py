"""Labels the emotions in a whole archive of recordings: MFCC features, an LSTM, Parquet tables, on Dask.

Each command of ``emotion-batch`` is a function here with the same name and words, for example
``emotion_batch.label("calls/", "labels/", model="bundle/")``; that of ``import`` is ``import_h5``. They work from an unguarded script.
"""

# Nothing else at the top: until the command has begun, an import could be answered by the current directory.
from emotion_batch import surroundings

surroundings.silence()

__version__ = "0.1.0"

__all__ = [
    "EmotionBatchError",
    "FeatureSettings",
    "Report",
    "Scheduler",
    "Segments",
    "Status",
    "Summary",
    "TrainingSettings",
    "cancel",
    "demo",
    "evaluate",
    "export",
    "extract",
    "import_h5",
    "label",
    "label_recording",
    "plan",
    "query",
    "report",
    "retry",
    "review",
    "status",
    "submit",
    "take_review",
    "train",
    "verify",
]

# Type checkers take it for typing's.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from emotion_batch.connection import Scheduler
    from emotion_batch.demonstration import demo
    from emotion_batch.errors import EmotionBatchError, Status
    from emotion_batch.exporting import export
    from emotion_batch.modelling import evaluate, import_h5, train
    from emotion_batch.planning import plan
    from emotion_batch.querying import query
    from emotion_batch.recording import label_recording
    from emotion_batch.reporting import Report, report
    from emotion_batch.reviewing import review, take_review
    from emotion_batch.runs import cancel, extract, label, retry, status, submit, verify
    from emotion_batch.settings import FeatureSettings, Segments
    from emotion_batch.summary import Summary
    from emotion_batch.training import TrainingSettings

# No module has a function's name: importing a module binds its name here.
_HOMES = {
    "EmotionBatchError": "errors",
    "FeatureSettings": "settings",
    "Report": "reporting",
    "Scheduler": "connection",
    "Segments": "settings",
    "Status": "errors",
    "Summary": "summary",
    "TrainingSettings": "training",
    "cancel": "runs",
    "demo": "demonstration",
    "evaluate": "modelling",
    "export": "exporting",
    "extract": "runs",
    "import_h5": "modelling",
    "label": "runs",
    "label_recording": "recording",
    "plan": "planning",
    "query": "querying",
    "report": "reporting",
    "retry": "runs",
    "review": "reviewing",
    "status": "runs",
    "submit": "runs",
    "take_review": "reviewing",
    "train": "modelling",
    "verify": "runs",
}


def __getattr__(name: str) -> "Any":
    # On first use, so that `import emotion_batch` and every worker's start stay light.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"emotion_batch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
