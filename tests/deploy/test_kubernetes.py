"""The files of `deploy/kubernetes/`: by the operator's and Kubernetes' own schemas, and by what their commands do."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import referencing.jsonschema
import yaml
from support import servers
from support.commands import ROOT, call_command

import emotion_batch

MANIFEST = ROOT / "deploy" / "kubernetes" / "label.yaml"
# Of tests/jobs.txt.
JUDGES = Path(sys.prefix) / "jobs"
OPERATOR = JUDGES / "dask_kubernetes" / "operator" / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
KUBERNETES = JUDGES / "kubernetes_validate" / "kubernetes-json-schema"
# Old enough to be found, and the newest that the package has.
RELEASES = ("v1.29.0", "v1.37.0")


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def document(kind: str) -> dict[str, Any]:
    (found,) = [one for one in documents() if one["kind"] == kind]
    return found


def strict(schema: Any) -> Any:
    """Return a schema that refuses what it does not name: Kubernetes drops that without a word."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(value) for name, value in schema.items()}
    if "properties" in closed and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


@functools.cache
def operator_schema(kind: str) -> dict[str, Any]:
    """Return what Dask's operator takes for a kind."""
    if not OPERATOR.exists():
        servers.missing("tests/jobs.txt")
    # By libyaml where it is there: they are long.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load((OPERATOR / f"{kind.lower()}.yaml").read_text(), loader)  # noqa: S506 a safe one
    (version,) = definition["spec"]["versions"]
    assert (definition["spec"]["names"]["kind"], version["served"], version["storage"]) == (kind, True, True)
    schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
    # These every resource has, and no definition names them.
    schema["properties"] |= {
        "apiVersion": {"const": f"{definition['spec']['group']}/{version['name']}"},
        "kind": {"const": kind},
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return strict(schema)


def validate(resource: dict[str, Any]) -> None:
    """Validate a resource of the operator's."""
    jsonschema.Draft202012Validator(operator_schema(resource["kind"])).validate(resource)


def validate_core(resource: dict[str, Any], release: str) -> None:
    """Validate a resource of Kubernetes' own, in which nothing may be that it does not know."""
    folder = KUBERNETES / f"{release}-local-strict"
    if not folder.exists():
        servers.missing("tests/jobs.txt")
    group, _, version = resource["apiVersion"].rpartition("/")
    name = "-".join(filter(None, [resource["kind"].lower(), group.split(".")[0], version]))

    def retrieve(uri: str) -> referencing.Resource:
        # A path's, for they are relative to an address that there is no more.
        contents = json.loads((folder / Path(uri).name).read_text())
        return referencing.Resource(contents, referencing.jsonschema.DRAFT202012)

    registry = referencing.Registry(retrieve=retrieve)
    jsonschema.Draft202012Validator({"$ref": f"{name}.json"}, registry=registry).validate(resource)


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the specifications of a job's pods."""
    cluster = job["spec"]["cluster"]["spec"]
    return {
        "job": job["spec"]["job"]["spec"],
        "worker": cluster["worker"]["spec"],
        "scheduler": cluster["scheduler"]["spec"],
    }


def test_the_manifest_is_what_the_operator_takes() -> None:
    """DaskJob and DaskAutoscaler validate against the operator's schemas, closed to what these do not name."""
    job, autoscaler = document("DaskJob"), document("DaskAutoscaler")
    validate(job)
    validate(autoscaler)
    # Without default, the operator's handlers read these.
    assert job["spec"]["cluster"]["spec"]["worker"]["replicas"] >= autoscaler["spec"]["minimum"]
    assert autoscaler["spec"]["cluster"] == job["metadata"]["name"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param("spec/job/spec/containers/0/imagePulPolicy", "Always", id="misspelt"),
        pytest.param("spec/cluster/spec/worker/spec/containers/0/securityContext/runAsNonRoot", "yes", id="type"),
        pytest.param("spec/cluster/spec/worker/replicas", "many", id="number"),
        pytest.param("spec/cluster/spec/scheduler/services", {}, id="unknown"),
        pytest.param("spec/jobs", {}, id="unknown above"),
        pytest.param("spec/cluster", None, id="absent"),
    ],
)
def test_a_slip_is_refused(path: str, value: object) -> None:
    """What is misspelt, of another type or left out does not validate: the schemas do judge."""
    job = document("DaskJob")
    *way, name = path.split("/")
    place: Any = job
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    if value is None:
        del place[name]
    else:
        place[name] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(job)


@pytest.mark.parametrize("release", RELEASES)
def test_the_rest_is_what_kubernetes_takes(release: str) -> None:
    """Pods, service, configuration and network policy validate against Kubernetes' own strict schemas."""
    job = document("DaskJob")
    for name, spec in pods(job).items():
        validate_core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}, release)
    service = job["spec"]["cluster"]["spec"]["scheduler"]["service"]
    validate_core({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": service}, release)
    for kind in ("ConfigMap", "NetworkPolicy"):
        validate_core(document(kind), release)
    wrong = document("NetworkPolicy")
    wrong["spec"]["ingresses"] = wrong["spec"].pop("ingress")
    with pytest.raises(jsonschema.ValidationError):
        validate_core(wrong, release)


def test_every_container_is_confined() -> None:
    """No container is root's, writes to its image, gains rights or is without a limit of memory; all use one image."""
    images = set()
    for spec in pods(document("DaskJob")).values():
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            images.add(container["image"])
    assert images == {f"emotion-batch:{emotion_batch.__version__}"}


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a container's command; end it with the block."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_commands_label_a_bucket(s3: servers.Bucket, speech: Path, tmp_path: Path) -> None:
    """The containers' commands and variables, as processes on loopback, label a bucket over TLS; the operator hears its answers."""
    authority, certificate, key = servers.write_authority(tmp_path / "authority")
    tls = tmp_path / "tls"
    tls.mkdir()
    for name, path in (("ca.crt", authority), ("tls.crt", certificate), ("tls.key", key)):
        shutil.copy(path, tls / name)
    s3.upload(speech, "2026")
    port = servers.free_ports(2)
    http = f"127.0.0.1:{port + 1}"
    places = {"/tls/": f"{tls}/", "label-archive-scheduler:8786": f"127.0.0.1:{port}", "8786": str(port)}
    places |= {"label-archive-scheduler:8787": http, ":8787": http}

    def here(text: str) -> str:
        for place, instead in places.items():
            text = text.replace(place, instead)
        return text

    def start(container: dict[str, Any], *more: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        variables = {one["name"]: here(one["value"]) for one in container.get("env", [])}
        variables["DASK_WORKER_NAME"] = "label-archive-default-worker-1"
        words = [*container.get("command", []), *container.get("args", []), *more]
        command = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], here(word)) for word in words]
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.fspath(ROOT),
            **{name: here(value) for name, value in document("ConfigMap")["data"].items()},
            "AWS_ACCESS_KEY_ID": s3.options["key"],
            "AWS_SECRET_ACCESS_KEY": s3.options["secret"],
            "AWS_ENDPOINT_URL": s3.endpoint,
            **variables,
        }
        return started(command, environment, tmp_path / f"{container['name']}.log")

    def ask(path: str, **body: int) -> dict[str, Any]:
        data = json.dumps(body).encode() if body else None
        with urllib.request.urlopen(f"http://{http}/api/v1/{path}", data=data, timeout=10) as answer:
            return json.load(answer)

    specs = pods(document("DaskJob"))
    loopback = ("--host", "127.0.0.1")
    with (
        start(specs["scheduler"]["containers"][0], *loopback),
        start(specs["worker"]["containers"][0], *loopback, "--dashboard-address", "127.0.0.1:0"),
    ):
        for container in (*specs["job"]["initContainers"], *specs["job"]["containers"]):
            with start(container) as process:
                assert process.wait(120) == 0, (tmp_path / f"{container['name']}.log").read_text()
        assert urllib.request.urlopen(f"http://{http}/health", timeout=10).status == 200
        # What the operator asks: how many are wanted, and to let one go, whose name is that of its deployment.
        assert isinstance(ask("adaptive_target")["workers"], int)
        assert [one["name"] for one in ask("retire_workers", n=1).values()] == ["label-archive-default-worker-1"]
    assert "89 recordings, 89 rows: 85 ok, 4 failed" in (tmp_path / "command.log").read_text()
    options = ("--storage-options", json.dumps(s3.options))
    assert call_command("verify", "s3://calls/labels/", "--deep", *options).code == 0
