"""Labels the emotions in a whole archive of recordings: MFCC features, an LSTM, Parquet tables, on Dask.

Each command of ``emotion-batch`` is a function here with the same name and words, for example
``emotion_batch.label("calls/", "labels/", model="bundle/")``; that of ``import`` is ``import_h5``. They work from an unguarded script.
"""

# Nothing else at the top: until the command has begun, an import could be answered by the current directory.
from emotion_batch import environment
from emotion_batch._version import __version__

environment.silence()

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

    from emotion_batch.analysis.export import export
    from emotion_batch.analysis.query import query
    from emotion_batch.analysis.report import Report, report
    from emotion_batch.analysis.review import review, take_review
    from emotion_batch.api import cancel, extract, label, retry, status, submit, verify
    from emotion_batch.errors import EmotionBatchError, Status
    from emotion_batch.example.demo import demo
    from emotion_batch.run.planning.plan import plan
    from emotion_batch.run.record import Summary
    from emotion_batch.run.scheduler import Scheduler
    from emotion_batch.settings import FeatureSettings, Segments
    from emotion_batch.training.evaluate import evaluate
    from emotion_batch.training.import_h5 import import_h5
    from emotion_batch.training.train import TrainingSettings, train
    from emotion_batch.worker.single_recording import label_recording

# No module has a function's name: importing a module binds its name here.
_HOMES = {
    "EmotionBatchError": "errors",
    "FeatureSettings": "settings",
    "Report": "analysis.report",
    "Scheduler": "run.scheduler",
    "Segments": "settings",
    "Status": "errors",
    "Summary": "run.summary",
    "TrainingSettings": "training.train",
    "cancel": "api",
    "demo": "example.demo",
    "evaluate": "training.commands",
    "export": "analysis.export",
    "extract": "api",
    "import_h5": "training.commands",
    "label": "api",
    "label_recording": "worker.single_recording",
    "plan": "run.planning.plan",
    "query": "analysis.query",
    "report": "analysis.report",
    "retry": "api",
    "review": "analysis.review",
    "status": "api",
    "submit": "api",
    "take_review": "analysis.review",
    "train": "training.commands",
    "verify": "api",
}


def __getattr__(name: str) -> "Any":
    # On first use, so that `import emotion_batch` and every worker's start stay light.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"emotion_batch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
