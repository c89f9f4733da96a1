"""Give obstore what the users of s3fs, gcsfs and adlfs write in their options, environment variables and profiles.

Only the options named here are translated. If there is another one, the answer is None, and fsspec's own client does the work.
That is slower, with the same result.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import fsspec

from emotion_batch.storage.retry import CLIENTS

# botocore renews keys in time if it is asked this often.
_KEYS_LAST = timedelta(minutes=5)
_REGION_TIMEOUT_S = 3
# The names of one client are together, in fsspec's own order.
_S3, _GCS, _AZURE = _PROTOCOLS = ("s3", "s3a"), ("gs", "gcs"), ("abfs", "az", "abfss")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_OPTIONS, _S3_OPTIONS = CLIENTS["options"], CLIENTS["s3"]
_ENDPOINT = "aws_endpoint_url_s3"
_GCS_SCOPES = ["https://www.googleapis.com/auth/devstorage.read_write"]


@dataclass(frozen=True)
class Config:
    """How obstore is to open a bucket.

    `config` is its store's configuration, which is never shown, and `client` its client's options. `credentials` gives the keys
    of the moment; None if the configuration needs none. `looked_in` names the places where credentials were looked for.
    """

    config: Mapping[str, Any] = field(repr=False)
    client: Mapping[str, Any]
    credentials: Callable[[], Any] | None = field(repr=False)
    looked_in: str


def configure(protocol: str, bucket: str, options: Mapping[str, Any]) -> Config | None:
    """Return how obstore opens a bucket as fsspec's client would; None if only that client can do what the options ask for.

    `protocol` is ``s3``, ``gs``, ``az`` or another name of theirs.
    """
    names = next((names for names in _PROTOCOLS if protocol in names), ())
    # fsspec's own configuration and FSSPEC_S3_... count too, under any of a client's names:
    # https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration
    both = {name: value for one in names for name, value in fsspec.config.conf.get(one, {}).items()} | dict(options)
    left = dict(_flat(both))
    try:
        if names == _S3:
            return _s3(bucket, left)
        if names == _GCS:
            return _gcs(left)
        return _azure(bucket, left) if names == _AZURE else None
    except ImportError:
        return None


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options that are not tuning, those within others as ``client_kwargs.verify``."""
    for name, value in options.items():
        name = f"{above}{name}"
        if name in _OPTIONS["nested"] and isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif value is not None and name not in _OPTIONS["tuning"]:
            yield name, value


def _s3(bucket: str, left: dict[str, Any]) -> Config | None:
    # https://s3fs.readthedocs.io/en/latest/api.html#s3fs.core.S3FileSystem
    left = {name: value for name, value in left.items() if [name, value] not in _S3_OPTIONS["usual"]}
    # botocore knows what an access point's ARN is.
    if not _BUCKET.fullmatch(bucket) or not left.keys() <= {*_S3_OPTIONS["names"], *_S3_OPTIONS["others"]}:
        return None
    import botocore.session

    config: dict[str, Any] = {
        # Some servers refuse to delete many objects at once, or report the failure in an answer with the code 200.
        "disable_bulk_delete": True,
        # These are always set, because obstore would read them from variables that s3fs does not know.
        "skip_signature": False,
        "virtual_hosted_style_request": False,
        "conditional_put": "etag",
        **{theirs: left[name] for name, theirs in _S3_OPTIONS["names"].items() if name in left},
    }
    session = botocore.session.Session(profile=left.get("profile"))
    looked_in = "the key and secret of --storage-options"
    if left.get("key") and left.get("secret"):
        # Without this, obstore would add a token from the environment that belongs to other keys.
        session.set_credentials(left["key"], left["secret"], left.get("token"))
    else:
        profile = session.get_config_variable("profile") or "default"
        looked_in = f"--storage-options, AWS_ACCESS_KEY_ID and similar variables, profile {profile!r} of ~/.aws, and the machine's role"
    region = config.get("region") or session.get_config_variable("region") or os.environ.get("AWS_REGION")
    endpoint = config.get(_ENDPOINT) or _boto_endpoint(session)
    if endpoint is None:
        place = f"s3.amazonaws.com/{bucket}" if "." in bucket else f"{bucket}.s3.amazonaws.com"
        region = find_region(f"https://{place}") or region or "us-east-1"
        scheme, end = "https" if left.get("use_ssl", True) else "http", ".cn" if region.startswith("cn-") else ""
        endpoint = f"{scheme}://s3.{region}.amazonaws.com{end}"
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"the endpoint must begin with http:// or https://: {endpoint!r}")
    # For the plain `endpoint` obstore would prefer the environment.
    config |= {_ENDPOINT: endpoint.rstrip("/"), "region": region or "us-east-1"}
    client: dict[str, Any] = {"allow_http": endpoint.startswith("http://")}
    authorities = left.get("client_kwargs.verify", True)
    if authorities is True:
        authorities = session.get_config_variable("ca_bundle")
    if authorities is False:
        client["allow_invalid_certificates"] = True
    elif authorities and not client["allow_http"]:
        with open(authorities, "rb") as stream:
            client["root_certificate"] = stream.read()
    credentials = None if config["skip_signature"] else partial(_find_boto_keys, session)
    return Config(config, client, credentials, looked_in)


def find_region(url: str) -> str | None:
    """Return the region of a bucket of Amazon's, which needs no credentials; None if it does not answer.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html
    """
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 https, or a test's
    try:
        with urllib.request.urlopen(request, timeout=_REGION_TIMEOUT_S) as answer:  # noqa: S310 as above
            headers = answer.headers
    except urllib.error.HTTPError as error:
        # The answer is 403 without rights and 301 from another region, and both name the region.
        headers = error.headers
    except (OSError, ValueError, http.client.HTTPException):
        return None
    region: str | None = headers.get("x-amz-bucket-region")
    return region


def _find_boto_keys(session: Any) -> dict[str, Any]:
    """Return the keys that botocore finds: of options, the environment, profiles, single sign-on, roles.

    obstore's own provider needs boto3, whose versions exclude those of the botocore that s3fs needs.
    """
    # The session keeps the keys.
    found = session.get_credentials()
    if found is None:
        raise ValueError("no credentials were found")
    key, secret, token = found.get_frozen_credentials()[:3]
    expires_at = datetime.now(UTC) + _KEYS_LAST
    return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": expires_at}


def _boto_endpoint(session: Any) -> str | None:
    """Return the address that AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile names."""
    from botocore.configprovider import ConfiguredEndpointProvider

    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    configs = {"full_config": session.full_config, "scoped_config": session.get_scoped_config()}
    endpoint: str | None = ConfiguredEndpointProvider(**configs, client_name="s3").provide()
    return endpoint


def _gcs(left: dict[str, Any]) -> Config | None:
    # https://gcsfs.readthedocs.io/en/latest/api.html#gcsfs.core.GCSFileSystem
    token = left.pop("token", "google_default")
    left.pop("project", None)
    # Emulators only know Google's JSON interface, and obstore writes with the XML interface.
    if left or os.environ.get("STORAGE_EMULATOR_HOST"):
        return None
    if token == "anon":  # noqa: S105 the word for none
        # obstore would still read the file of that variable, and refuse kinds that it does not know.
        is_left = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        return None if is_left else Config({"skip_signature": True}, {}, None, "--storage-options")
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from obstore.auth.google import GoogleCredentialProvider

    looked_in = "--storage-options"
    if token in ("google_default", "cloud"):
        looked_in += ", GOOGLE_APPLICATION_CREDENTIALS, gcloud's credentials, and the machine's service account"
        try:
            found, _ = google.auth.default(scopes=_GCS_SCOPES)
        except DefaultCredentialsError:
            # gcsfs also sends requests without credentials if it finds none.
            return Config({"skip_signature": True}, {}, None, looked_in)
    elif isinstance(token, dict) and token.get("type") == "service_account":
        found, _ = google.auth.load_credentials_from_dict(token, scopes=_GCS_SCOPES)  # type: ignore[no-untyped-call]
    elif isinstance(token, str) and os.path.isfile(os.path.expanduser(token)):
        found, _ = google.auth.load_credentials_from_file(os.path.expanduser(token), _GCS_SCOPES)  # type: ignore[no-untyped-call]
    else:
        return None
    return Config({}, {}, GoogleCredentialProvider(found), looked_in)


def _azure(container: str, left: dict[str, Any]) -> Config | None:
    # https://fsspec.github.io/adlfs/api/
    def take(*names: str) -> list[Any]:
        return [left.pop(name, os.environ.get(f"AZURE_STORAGE_{name.upper()}")) for name in names]

    host_of_url = container.partition("@")[2]
    [connection] = take("connection_string")
    pairs = (part.partition("=") for part in (connection or "").split(";"))
    parts = {key.strip().lower(): value for key, _, value in pairs}
    account, key, sas, anon = take("account_name", "account_key", "sas_token", "anon")
    service = take(*(names := ("client_id", "client_secret", "tenant_id")))
    if connection:
        # Only the string counts, as in adlfs, because the environment may have another account's key.
        account, key, sas = (parts.get(name) for name in ("accountname", "accountkey", "sharedaccesssignature"))
        account = account or urlsplit(parts.get("blobendpoint", "")).netloc.partition(".")[0]
    account = account or host_of_url.partition(".")[0]
    if isinstance(credential := left.get("credential"), str):
        del left["credential"]
        key, sas = (key, sas or credential) if "sig=" in credential else (key or credential, sas)
    if left or not account:
        return None
    config: dict[str, Any] = {"account_name": account}
    client: dict[str, Any] = {}
    if connection:
        suffix = parts.get("endpointsuffix", "core.windows.net")
        usual = f"{parts.get('defaultendpointsprotocol', 'https')}://{account}.blob.{suffix}"
        config["endpoint"] = parts.get("blobendpoint", usual).rstrip("/")
        client["allow_http"] = config["endpoint"].startswith("http://")
    credentials: Callable[[], Any] | None = None
    looked_in = "--storage-options, AZURE_STORAGE_CONNECTION_STRING and similar variables"
    # The key is not in the configuration, because obstore would prefer another account's from the environment.
    if key:
        try:
            base64.b64decode(key, validate=True)
        except ValueError:
            raise ValueError("the account key is not base64") from None
        credentials = partial(dict, access_key=key, expires_at=None)
    elif sas:
        credentials = partial(dict, sas_token=sas.removeprefix("?"), expires_at=None)
    elif all(service):
        config |= dict(zip(names, service, strict=True))
    elif anon not in (None, False, "", "false", "False", "0", "f"):
        config["skip_signature"] = True
    else:
        from obstore.auth.azure import AzureCredentialProvider

        credentials = AzureCredentialProvider()
        looked_in += ", and what azure-identity finds"
    return Config(config, client, credentials, looked_in)
