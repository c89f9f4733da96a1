"""Check what the files of a network hold, before anything loads them.

A digest shows damage, but the author of a hostile bundle computes its digests too. So an allow-list, `allowed.toml`, names the layers and
operators that a file may hold, because a block-list can never be complete.
"""

from __future__ import annotations

import io
import json
import math
import posixpath
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from emotion_batch.errors import UsageError

Shape = tuple[int, ...]

# The seed's network has less than 1 MB. The same limit holds for what a file unpacks to.
MAX_NETWORK_BYTES = 2**26
_MAX_CONFIG_BYTES = 2**20
_KERAS_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
# Keras itself writes these, without a module: a layer's input, and a tuple.
_KERAS_VALUES = frozenset({"__keras_tensor__", "__tuple__"})
_ACTIVATIONS = (None, "linear", "relu", "sigmoid", "softmax", "tanh")
# Filters of HDF5 that are built in: deflate, shuffle, Fletcher's checksum, LZF. Others load a library.
_HDF5_FILTERS = frozenset({1, 2, 3, 32_000})


@lru_cache(maxsize=1)
def _read_allowed() -> Any:
    return tomllib.loads(resources.files(__package__).joinpath("allowed.toml").read_text(encoding="utf-8"))


class _RefusedError(Exception):
    """A file holds something that is not allowed; the text says what, as the object of "it holds"."""


def inspect_keras(data: bytes, thing: str, shapes: Sequence[Shape] | None = None) -> None:
    """Check that a ``.keras`` file, a zip of three members, only holds weights and known layers of Keras itself.

    `thing` is what an error calls it; its weights must have the given shapes, in any order. Raises UsageError if it holds
    anything else, is damaged, or is larger than 64 MiB, packed or not.
    """
    _inspect(data, thing, "Keras's own layers and their weights", lambda: _read_keras(data, shapes))


def inspect_h5(data: bytes, thing: str) -> None:
    """Check that an HDF5 file holds groups and numbers itself, without links to elsewhere; else as `inspect_keras`."""
    _inspect(data, thing, "weights in the HDF5 file itself", lambda: _read_shapes(data))


def inspect_onnx(data: bytes, thing: str) -> None:
    """Check that an ONNX file only holds weights and known operators.

    Only a driver checks, because `import onnx` costs 0.1 s and 10 MB. Its workers compare the file's digest.
    Raises UsageError for another domain's operators, functions, graphs within a node, or weights in other files.
    """
    _inspect(data, thing, "known operators and their weights", lambda: _read_onnx(data))


def parse_json(data: bytes | str) -> Any:
    """Return the value of JSON; raise ValueError if it is not JSON, is too deep, or has a number that is not finite."""
    try:
        return json.loads(data, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"each number must be finite: {text}")
    return number


def _inspect(data: bytes, thing: str, rule: str, read: Callable[[], object]) -> None:
    """Read a file, and turn any failure into one sentence."""
    try:
        if len(data) > MAX_NETWORK_BYTES:
            raise _RefusedError(f"more than {MAX_NETWORK_BYTES:,} bytes")
        read()
    except _RefusedError as error:
        raise UsageError(
            f"{thing}: it holds {error}, and only {rule} are allowed; use only files whose maker you trust"
        ) from error
    except Exception as error:
        # The errors of zipfile, json and h5py for a damaged file share no base class.
        raise UsageError(f"{thing}: it cannot be read ({type(error).__name__}); fetch or make it again") from error


def _read_keras(data: bytes, shapes: Sequence[Shape] | None) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if strangers := [member.filename for member in members if member.filename not in _KERAS_MEMBERS]:
            raise _RefusedError(f"{strangers[0]!r} beside {', '.join(_KERAS_MEMBERS)}")
        if len(members) != len(_KERAS_MEMBERS):
            raise _RefusedError(f"{len(members)} members instead of {', '.join(_KERAS_MEMBERS)}")
        for member in members:
            limit = MAX_NETWORK_BYTES if member.filename.endswith(".h5") else _MAX_CONFIG_BYTES
            if member.file_size > limit:
                raise _RefusedError(f"{member.filename!r} of {member.file_size:,} bytes, unpacked")
        # `read` never unpacks more than the size that a member states.
        config, metadata, weights = (archive.read(name) for name in _KERAS_MEMBERS)
    parse_json(metadata)
    _inspect_config(parse_json(config))
    found = {name: shape for name, shape in _read_shapes(weights).items() if not name.startswith("/optimizer/")}
    if shapes is not None and sorted(found.values()) != sorted(shapes):
        shown = ", ".join(str(list(shape)) for shape in sorted(found.values()))
        raise _RefusedError(f"weights of other shapes than its card says: {shown}")


def _inspect_config(config: Any) -> None:
    """Check that all names in a config are known, because Keras imports what a config names."""
    left = [config]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
            if not value.keys().isdisjoint(("class_name", "module", "registered_name")):
                _inspect_class(value)
            for name, activation in value.items():
                # An activation that is a dictionary is checked as a class.
                if name.endswith("activation") and not isinstance(activation, dict) and activation not in _ACTIVATIONS:
                    raise _RefusedError(f"the activation {activation!r}")


def _inspect_class(value: Mapping[str, Any]) -> None:
    module, name, registered = (value.get(key) for key in ("module", "class_name", "registered_name"))
    if not (isinstance(name, str) and isinstance(module, str | None) and registered in (None, name)):
        raise _RefusedError(f"the class {registered or name!r}")
    if name not in (_KERAS_VALUES if module is None else _read_allowed()["keras_classes"].get(module, ())):
        raise _RefusedError(f"the class {name!r} of {module!r}")


def _read_shapes(data: bytes) -> dict[str, Shape]:
    """Return the shapes of an HDF5 file's arrays by their paths, and check that all are in the file itself."""
    import h5py

    shapes: dict[str, Shape] = {}
    n_bytes = 0
    with h5py.File(io.BytesIO(data), "r") as file:
        groups = [file["/"]]
        seen = {h5py.h5o.get_info(file.id).addr}
        while groups:
            group = groups.pop()
            for name in group:
                path = posixpath.join(group.name, name)
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise _RefusedError(f"{path!r}, a link to elsewhere")
                found = group[name]
                address = h5py.h5o.get_info(found.id).addr
                if address in seen:
                    raise _RefusedError(f"{path!r}, which has another name too")
                seen.add(address)
                if isinstance(found, h5py.Group):
                    groups.append(found)
                    continue
                _inspect_array(found, path)
                shapes[path] = found.shape
                n_bytes += found.nbytes
                if n_bytes > MAX_NETWORK_BYTES:
                    raise _RefusedError(f"arrays of more than {MAX_NETWORK_BYTES:,} bytes")
    return shapes


def _inspect_array(found: Any, path: str) -> None:
    """Check that an array holds numbers, and is in the file itself."""
    import h5py

    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu" or found.shape is None:
        raise _RefusedError(f"{path!r}, which is no array of numbers")
    if found.external or found.is_virtual:
        raise _RefusedError(f"{path!r}, whose numbers are in another file")
    properties = found.id.get_create_plist()
    filters = {properties.get_filter(number)[0] for number in range(properties.get_nfilters())}
    if filters - _HDF5_FILTERS:
        raise _RefusedError(f"{path!r}, packed by a filter that is not HDF5's own")


def _read_onnx(data: bytes) -> None:
    import onnx

    # ONNX Runtime recognises its own format by these bytes, which a message could also have.
    if data[4:8] == b"ORTM":
        raise _RefusedError("a graph in ONNX Runtime's own format")
    model = onnx.load_model_from_string(data)
    n_bytes = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != n_bytes:
        raise _RefusedError("fields that this version of ONNX does not know")
    allowed = _read_allowed()
    operators, domains, fields = allowed["onnx"]["operators"], allowed["onnx"]["domains"], allowed["onnx_fields"]
    left = [model]
    while left:
        message = left.pop()
        kind = message.DESCRIPTOR.name
        for field, value in message.ListFields():
            if field.name not in fields[kind]:
                raise _RefusedError(allowed["onnx_refused"].get(field.name, f"{field.name} in a {kind}"))
            if field.name == "op_type" and value not in operators:
                raise _RefusedError(f"the operator {value!r}")
            if field.name == "domain" and kind != "ModelProto" and value not in domains:
                raise _RefusedError(f"the domain {value!r}")
            if field.message_type is not None and field.message_type.name in fields:
                left += [value] if hasattr(value, "ListFields") else value
