"""Translate fsspec's options, environment variables and profiles for a bucket into those of obstore.

A user who knows s3fs, gcsfs or adlfs writes the same options here. If an option has no counterpart, the translation is None, and
fsspec's own client does the work: slower, with the same result.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec

_ENDPOINT_VARIABLES = {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}
# How long keys that somebody else renews are taken to last.
_KEYS_LAST = timedelta(minutes=5)
_REGION_TIMEOUT_S = 3
# Of each of fsspec's clients, in its own order.
_S3, _GCS, _AZURE = _PROTOCOLS = ("s3", "s3a"), ("gs", "gcs"), ("abfs", "az", "abfss")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
# Options that only say how fsspec's clients should go about it.
_TUNING = {
    *(
        "default_block_size",
        "default_fill_cache",
        "default_cache_type",
        "version_aware",
        "cache_regions",
        "asynchronous",
    ),
    *(
        "use_listings_cache",
        "listings_expiry_time",
        "max_paths",
        "skip_instance_cache",
        "block_size",
        "max_concurrency",
    ),
    *(
        "consistency",
        "cache_timeout",
        "check_connection",
        "blocksize",
        "fixed_upload_size",
        "loop",
        "access",
        "location",
    ),
    *("default_location", "batch_size", "retries", "cache_type"),
}


@dataclass(frozen=True)
class Config:
    """How obstore is to open a bucket.

    Attributes
    ----------
    config
        Its store's configuration; never shown.
    client
        Its client's options.
    credentials
        Gives the keys of the moment, where they are not fixed.
    looked_in
        Where credentials were looked for, for whoever must mend them.
    """

    config: Mapping[str, Any] = field(repr=False)
    client: Mapping[str, Any]
    credentials: Callable[[], dict[str, Any]] | None
    looked_in: str


def configure(protocol: str, bucket: str, options: Mapping[str, Any]) -> Config | None:
    """Return how obstore opens a bucket as fsspec's client would.

    Parameters
    ----------
    protocol
        ``s3``, ``gs``, ``az`` or another name of theirs.
    bucket
        Name of the bucket or container.
    options
        What fsspec's filesystem takes.

    Returns
    -------
    The configuration; None if only fsspec's client can do what the options ask for.
    """
    names = next((names for names in _PROTOCOLS if protocol in names), ())
    # What fsspec's own configuration and FSSPEC_S3_... say counts too, under any of a client's names:
    # https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration
    both = {name: value for one in names for name, value in fsspec.config.conf.get(one, {}).items()} | dict(options)
    left = {name: value for name, value in both.items() if value is not None and name not in _TUNING}
    if names == _S3:
        return _s3(bucket, left)
    if names == _GCS:
        return _gcs(left)
    if names == _AZURE:
        return _azure(bucket, left)
    return None


def _s3(bucket: str, left: dict[str, Any]) -> Config | None:
    if not _BUCKET.fullmatch(bucket):
        # An access point by its ARN, or a mistake: botocore knows.
        return None
    # s3fs's: https://s3fs.readthedocs.io/en/latest/api.html#s3fs.core.S3FileSystem
    key = left.pop("key", None) or left.pop("username", None)
    secret = left.pop("secret", None) or left.pop("password", None)
    token = left.pop("token", None)
    is_anonymous = left.pop("anon", False)
    profile = left.pop("profile", None)
    is_tls = left.pop("use_ssl", True)
    endpoint = left.pop("endpoint_url", None)
    kwargs = dict(left.pop("client_kwargs", None) or {})
    endpoint = endpoint or kwargs.pop("endpoint_url", None)
    region = kwargs.pop("region_name", None)
    config: dict[str, Any] = {
        "bucket": bucket,
        # One by one: many at once are refused by an answer that says 200, and by some servers altogether.
        "disable_bulk_delete": True,
        # Said, for what is not said obstore takes from variables that s3fs does not know.
        "skip_signature": bool(is_anonymous),
        "virtual_hosted_style_request": False,
        "conditional_put": "etag",
    }
    client: dict[str, Any] = {}
    if left.pop("requester_pays", False):
        config["request_payer"] = True
    authorities = kwargs.pop("verify", None)
    if authorities in (None, True):
        authorities = os.environ.get("AWS_CA_BUNDLE") or None
    if authorities is False:
        client["allow_invalid_certificates"] = True
    settings = dict(left.pop("config_kwargs", None) or {})
    style = dict(settings.pop("s3", None) or {})
    if style.pop("addressing_style", "path") == "virtual":
        config["virtual_hosted_style_request"] = True
    # Client's pace, which is our own.
    for name in ("connect_timeout", "read_timeout", "retries", "max_pool_connections"):
        settings.pop(name, None)
    is_s3v4 = settings.pop("signature_version", "s3v4") in ("s3v4", "v4")
    extra = dict(left.pop("s3_additional_kwargs", None) or {})
    if "ServerSideEncryption" in extra:
        config["server_side_encryption"] = extra.pop("ServerSideEncryption")
        if "SSEKMSKeyId" in extra:
            config["sse_kms_key_id"] = extra.pop("SSEKMSKeyId")
    if left or kwargs or settings or style or extra or not is_s3v4:
        return None
    session = None
    if endpoint is None or profile or not (is_anonymous or (key and secret)):
        try:
            import botocore.session
        except ImportError:
            return None
        session = botocore.session.Session(profile=profile)
        endpoint = endpoint or _boto_endpoint(session)
        region = region or session.get_config_variable("region")
    credentials: Callable[[], dict[str, Any]] | None = None
    looked_in = "the key and secret of --storage-options"
    if key and secret and not is_anonymous:
        # Not as configuration, which obstore would complete by a token that the environment has for other keys.
        credentials = _fixed({"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None})
    elif session is not None and not is_anonymous:
        credentials = _boto_keys(session)
        name = profile or session.get_config_variable("profile") or "default"
        looked_in = (
            f"--storage-options, AWS_ACCESS_KEY_ID and its like, profile {name!r} of ~/.aws, and the machine's own role"
        )
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint is None:
        region = (
            find_region(
                f"https://{bucket}.s3.amazonaws.com" if "." not in bucket else f"https://s3.amazonaws.com/{bucket}"
            )
            or region
        )
        if region and region.startswith("cn-"):
            endpoint = f"https://s3.{region}.amazonaws.com.cn"
        elif not is_tls:
            endpoint = f"http://s3.{region or 'us-east-1'}.amazonaws.com"
        elif _ENDPOINT_VARIABLES & set(os.environ):
            # Which a profile says are not to count.
            endpoint = f"https://s3.{region or 'us-east-1'}.amazonaws.com"
    if endpoint is not None:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"the endpoint {endpoint!r}, without http:// or https://")
        if config.get("virtual_hosted_style_request"):
            # Its name of the bucket goes before the host's, which botocore does not do with numbers.
            return None
        # Not `endpoint`, before which obstore takes what the environment says of another.
        config["aws_endpoint_url_s3"] = endpoint.rstrip("/")
        client["allow_http"] = endpoint.startswith("http://")
    if isinstance(authorities, str) and not client.get("allow_http"):
        with open(authorities, "rb") as stream:
            client["root_certificate"] = stream.read()
    config["region"] = region or "us-east-1"
    return Config(config, client, credentials, looked_in)


def find_region(url: str) -> str | None:
    """Return the region of a bucket of Amazon's, which tells it to anybody; None if it cannot be asked.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html
    """
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 https, or a test's
    try:
        with urllib.request.urlopen(request, timeout=_REGION_TIMEOUT_S) as answer:  # noqa: S310 as above
            headers = answer.headers
    except urllib.error.HTTPError as error:
        # 403 without rights, 301 from another region: both say it.
        headers = error.headers
    except (OSError, ValueError, http.client.HTTPException):
        return None
    region: str | None = headers.get("x-amz-bucket-region")
    return region


def _fixed(keys: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    return lambda: keys


def _boto_keys(session: Any) -> Callable[[], dict[str, Any]]:
    """Return what asks botocore for keys: of the environment, profiles, single sign-on, roles."""
    lock = threading.Lock()

    def keys() -> dict[str, Any]:
        with lock:
            # The session keeps them.
            found = session.get_credentials()
        if found is None:
            raise ValueError("no credentials were found")
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            # botocore renews them in time, if it is asked.
            "expires_at": datetime.now(UTC) + _KEYS_LAST,
        }

    return keys


def _boto_endpoint(session: Any) -> str | None:
    """Return the address that AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile names."""
    from botocore.configprovider import ConfiguredEndpointProvider

    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    provider = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    endpoint: str | None = provider.provide()
    return endpoint


def _gcs(left: dict[str, Any]) -> Config | None:
    # gcsfs's: https://gcsfs.readthedocs.io/en/latest/api.html#gcsfs.core.GCSFileSystem
    token = left.pop("token", None)
    left.pop("project", None)
    if left or os.environ.get("STORAGE_EMULATOR_HOST"):
        # Among it another endpoint: emulators know Google's JSON interface, and obstore writes by the other one.
        return None
    config: dict[str, Any] = {}
    credentials: Callable[[], dict[str, Any]] | None = None
    looked_in = "--storage-options"
    if token == "anon":  # noqa: S105 the word for none
        if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            # obstore would read it all the same, and refuse kinds that it does not know.
            return None
        config["skip_signature"] = True
    elif isinstance(token, dict) and token.get("type") == "service_account":
        config["service_account_key"] = json.dumps(token)
    elif token in (None, "google_default", "cloud") or isinstance(token, str):
        is_file = token not in (None, "google_default", "cloud")
        if is_file and not os.path.isfile(os.path.expanduser(str(token))):
            return None
        try:
            credentials = _google_keys(os.path.expanduser(str(token)) if is_file else None)
        except ImportError:
            return None
        if credentials is None:
            # As gcsfs: with nothing found it asks as anybody.
            config["skip_signature"] = True
        if not is_file:
            looked_in = (
                "--storage-options, GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, and the machine's service account"
            )
    else:
        return None
    return Config(config, {}, credentials, looked_in)


def _google_keys(file: str | None) -> Callable[[], dict[str, Any]] | None:
    """Return what asks google-auth for a token: by a file of keys, or by what it finds itself, which may be nothing."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.auth.transport.requests import Request

    scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
    if file is not None:
        found, _ = google.auth.load_credentials_from_file(file, scopes=scopes)  # type: ignore[no-untyped-call]
    else:
        try:
            found, _ = google.auth.default(scopes=scopes)
        except DefaultCredentialsError:
            return None

    def keys() -> dict[str, Any]:
        found.refresh(Request())
        expiry = found.expiry
        return {"token": found.token, "expires_at": None if expiry is None else expiry.replace(tzinfo=UTC)}

    return keys


def _azure(container: str, left: dict[str, Any]) -> Config | None:
    # adlfs's: https://fsspec.github.io/adlfs/api/
    container, _, host_of_url = container.partition("@")

    def take(name: str) -> Any:
        value = left.pop(name, None)
        return os.environ.get(f"AZURE_STORAGE_{name.upper()}") if value is None else value

    parts = _connection(take("connection_string"))
    account, key, sas = (take(name) for name in ("account_name", "account_key", "sas_token"))
    if parts:
        # It alone, as with adlfs: another account's key may be in the environment.
        account, key, sas = (parts.get(name) for name in ("accountname", "accountkey", "sharedaccesssignature"))
        account = account or urllib.parse.urlsplit(parts.get("blobendpoint", "")).netloc.partition(".")[0]
    account = account or host_of_url.partition(".")[0]
    client_id, secret, tenant = (take(name) for name in ("client_id", "client_secret", "tenant_id"))
    host = left.pop("account_host", None)
    credential = left.pop("credential", None)
    is_anonymous = take("anon") not in (None, False, "false", "False", "0", "f", "")
    if credential is not None and not isinstance(credential, str):
        return None
    if isinstance(credential, str) and "sig=" in credential:
        sas = sas or credential
    else:
        key = key or credential
    if left or not account:
        return None
    config: dict[str, Any] = {"account_name": account, "container_name": container}
    endpoint = parts.get("blobendpoint") or (f"https://{host}" if host else None)
    if endpoint is None and "accountname" in parts:
        suffix = parts.get("endpointsuffix", "core.windows.net")
        endpoint = f"{parts.get('defaultendpointsprotocol', 'https')}://{account}.blob.{suffix}"
    client: dict[str, Any] = {}
    if endpoint is not None:
        config["endpoint"] = endpoint.rstrip("/")
        client["allow_http"] = endpoint.startswith("http://")
    credentials: Callable[[], dict[str, Any]] | None = None
    looked_in = "--storage-options and AZURE_STORAGE_CONNECTION_STRING and its like"
    # Not as configuration, before which obstore takes what the environment says of other accounts.
    if key:
        try:
            base64.b64decode(key, validate=True)
        except ValueError:
            raise ValueError("an account key that is no base64") from None
        credentials = _fixed({"access_key": key, "expires_at": None})
    elif sas:
        credentials = _fixed({"sas_token": sas.removeprefix("?"), "expires_at": None})
    elif client_id and secret and tenant:
        config |= {"client_id": client_id, "client_secret": secret, "tenant_id": tenant}
    elif is_anonymous:
        config["skip_signature"] = True
    else:
        try:
            credentials = _azure_keys()
        except ImportError:
            return None
        looked_in += ", and what azure-identity finds"
    return Config(config, client, credentials, looked_in)


def _connection(text: str | None) -> dict[str, str]:
    """Return the parts of a connection string by their names in small letters; those of none are none."""
    parts = (part.partition("=") for part in (text or "").split(";") if part)
    return {name.strip().lower(): value for name, _, value in parts}


def _azure_keys() -> Callable[[], dict[str, Any]]:
    """Return what asks azure-identity for a token."""
    import azure.identity

    found = azure.identity.DefaultAzureCredential()

    def keys() -> dict[str, Any]:
        token = found.get_token("https://storage.azure.com/.default")
        return {"token": token.token, "expires_at": datetime.fromtimestamp(token.expires_on, UTC)}

    return keys
