"""Tests of options: what users of s3fs, gcsfs and adlfs write means the same here, or is left to those."""

from __future__ import annotations

import http.server
import threading
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from emotion_batch.errors import StorageError
from emotion_batch.storage.bucket import open_bucket
from emotion_batch.storage.bucket_options import configure, find_region

ENDPOINT = "http://127.0.0.1:9000"
KEYS = {"key": "name", "secret": "hidden"}
NO_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "STORAGE_EMULATOR_HOST",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def keys_of(protocol: str, options: dict[str, Any], bucket: str = "calls") -> dict[str, Any]:
    config = configure(protocol, bucket, options)
    assert config is not None
    assert config.credentials is not None
    assert "hidden" not in repr(config)
    return config.credentials()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"endpoint_url": ENDPOINT}, {"aws_endpoint_url_s3": ENDPOINT, "region": "us-east-1"}),
        (
            {"client_kwargs": {"endpoint_url": ENDPOINT, "region_name": "eu-west-1"}},
            {"aws_endpoint_url_s3": ENDPOINT, "region": "eu-west-1"},
        ),
        ({"endpoint_url": ENDPOINT, "requester_pays": True}, {"request_payer": True}),
        (
            {"endpoint_url": ENDPOINT, "s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k"}},
            {"server_side_encryption": "aws:kms", "sse_kms_key_id": "k"},
        ),
        (
            {"endpoint_url": ENDPOINT, "default_block_size": 1, "use_listings_cache": False},
            {"aws_endpoint_url_s3": ENDPOINT},
        ),
        (
            {
                "endpoint_url": ENDPOINT,
                "use_ssl": False,
                "config_kwargs": {"signature_version": "s3v4", "s3": {"addressing_style": "path"}},
            },
            {"aws_endpoint_url_s3": ENDPOINT, "virtual_hosted_style_request": False},
        ),
    ],
    ids=["endpoint", "client_kwargs", "requester pays", "encryption", "tuning", "usual"],
)
def test_options_of_s3fs_are_obstores(options: dict[str, Any], expected: dict[str, Any]) -> None:
    """What s3fs takes is translated."""
    config = configure("s3", "calls", {**KEYS, **options})
    assert config is not None
    assert {name: config.config[name] for name in expected} == expected
    assert config.client.get("allow_http") is True
    assert keys_of("s3", {**KEYS, **options, "token": "t"})["token"] == "t"  # noqa: S105 no secret


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": ENDPOINT, "something_new": 1},
        {"endpoint_url": ENDPOINT, "config_kwargs": {"signature_version": "s3"}},
        {"endpoint_url": ENDPOINT, "config_kwargs": {"s3": {"addressing_style": "virtual"}}},
        {"endpoint_url": ENDPOINT, "client_kwargs": {"aws_account_id": "1"}},
    ],
    ids=["unknown", "signature", "virtual", "client"],
)
def test_what_has_no_counterpart_is_left_to_s3fs(options: dict[str, Any]) -> None:
    """An option that is not understood is not passed over: fsspec's own client takes it."""
    assert configure("s3", "calls", {**KEYS, **options}) is None


def test_the_environment_counts_as_for_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and endpoints of AWS's variables and of fsspec's own configuration; explicit keys are not mixed with them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", ENDPOINT)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "environment")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert {name: keys_of("s3", {})[name] for name in ("access_key_id", "token")} == {
        "access_key_id": "from",
        "token": "token",
    }
    assert keys_of("s3", KEYS)["token"] is None
    for options in ({}, KEYS, {"anon": True}):
        config = configure("s3", "calls", options)
        assert config is not None
        assert config.config["aws_endpoint_url_s3"] == ENDPOINT
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:1", **KEYS})
    config = configure("s3", "calls", {})
    assert config is not None
    assert config.config["aws_endpoint_url_s3"] == "http://127.0.0.1:1"
    monkeypatch.setitem(fsspec.config.conf, "abfs", {"account_name": "mine", "account_key": "aGlkZGVu"})
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "other")
    config = configure("az", "calls", {})
    assert config is not None
    assert config.config["account_name"] == "mine"
    assert keys_of("s3", {})["access_key_id"] == "name"


def test_a_key_that_is_none_is_said_without_it() -> None:
    """An account key of Azure's with a slip in it is found before any work, and not shown."""
    options = {"account_name": "a", "account_key": "hidden but not base64!"}
    with pytest.raises(
        StorageError, match=r"^az://calls: the credentials cannot be read \(the account key is not base64\)"
    ) as caught:
        open_bucket("az://calls/x", options)
    assert "hidden" not in str(caught.value)


def test_nobody_is_a_right_too() -> None:
    """Public buckets are read without keys."""
    for protocol, options in (
        ("s3", {"anon": True, "endpoint_url": ENDPOINT}),
        ("gs", {"token": "anon"}),
        ("az", {"anon": True, "account_name": "a"}),
    ):
        config = configure(protocol, "calls", options)
        assert config is not None
        assert config.config["skip_signature"] is True
        assert config.credentials is None


def test_another_endpoint_of_googles_is_left_to_gcsfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulators know the interface that gcsfs writes by."""
    assert configure("gs", "calls", {"token": "anon", "endpoint_url": ENDPOINT}) is None
    assert configure("gs", "calls", {"token": "anon"}) is not None
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", ENDPOINT)
    assert configure("gs", "calls", {"token": "anon"}) is None


def test_a_connection_string_is_all_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another account's key in the environment is not mixed with it."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "other")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "b3RoZXJz")
    mine = {
        "connection_string": "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=aGlkZGVu;EndpointSuffix=core.windows.net"
    }
    config = configure("az", "calls", mine)
    assert config is not None
    assert config.config["account_name"] == "mine"
    assert config.config["endpoint"] == "https://mine.blob.core.windows.net"
    assert keys_of("az", mine)["access_key"] == "aGlkZGVu"
    assert keys_of("az", {})["access_key"] == "b3RoZXJz"


def test_a_signature_is_known_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adlfs takes it as `sas_token`, as `credential`, or in a connection string."""
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    signature = "sv=2024-01-01&sig=hidden"
    for options in (
        {"account_name": "a", "sas_token": f"?{signature}"},
        {"account_name": "a", "credential": signature},
        {"connection_string": f"BlobEndpoint=https://a.blob.core.windows.net;SharedAccessSignature={signature}"},
    ):
        assert keys_of("az", options)["sas_token"] == signature
        config = configure("az", "calls", options)
        assert config is not None
        assert config.config["account_name"] == "a"


def test_the_packages_of_the_clouds_find_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys in options, google-auth and azure-identity are asked each time that a token is needed."""
    google_auth, azure_identity = pytest.importorskip("google.auth"), pytest.importorskip("azure.identity")
    for name in ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    n_asked = 0

    class Credentials:
        token, expiry = "hidden", datetime(2030, 1, 1)

        def refresh(self, request: object) -> None:
            nonlocal n_asked
            n_asked += 1

        def get_token(self, *scopes: str, **_: object) -> SimpleNamespace:
            assert scopes == ("https://storage.azure.com/.default",)
            return SimpleNamespace(token=self.token, expires_on=1_893_456_000)

    monkeypatch.setattr(google_auth, "default", lambda scopes: (Credentials(), scopes))
    monkeypatch.setattr(azure_identity, "DefaultAzureCredential", Credentials)
    for protocol, options in (("gs", {}), ("az", {"account_name": "a"})):
        assert keys_of(protocol, options) == {"token": "hidden", "expires_at": datetime(2030, 1, 1, tzinfo=UTC)}
    assert n_asked == 1


@pytest.mark.parametrize(
    ("code", "region"), [(200, "eu-central-1"), (301, "ap-south-1"), (403, "us-west-2"), (404, None)]
)
def test_a_bucket_tells_its_region(code: int, region: str | None) -> None:
    """Amazon's answer has it in a header, whatever the answer is."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(code)
            if region:
                self.send_header("x-amz-bucket-region", region)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert find_region(f"http://127.0.0.1:{server.server_port}/calls") == region
        server.shutdown()
        thread.join()
    assert find_region(f"http://127.0.0.1:{server.server_port}/calls") is None
