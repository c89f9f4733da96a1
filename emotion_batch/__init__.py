"""Labels the emotions in a whole archive of recordings: MFCC features, an LSTM, Parquet tables, on Dask.

Each command of ``emotion-batch`` is a function here with the same name and words, for example
``emotion_batch.label("calls/", "labels/", model="bundle/")``; that of ``import`` is ``import_h5``. They work from an unguarded script.
"""

from emotion_batch import environment
from emotion_batch._version import __version__ as __version__

environment.silence()


def _attach() -> None:
    """Offer the public names, which `__init__.pyi` lists, and import each on first use.

    This waits for the first use, because a library that is imported before the command has begun could come from the current
    directory.
    """
    import lazy_loader

    names = globals()
    names["__getattr__"], names["__dir__"], names["__all__"] = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    _attach()
    return globals()["__all__"] if name == "__all__" else globals()["__getattr__"](name)


def __dir__() -> object:
    _attach()
    return globals()["__dir__"]()
