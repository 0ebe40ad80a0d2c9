"""The Registry's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from neuroweaver.mesh.wire.environment import absolute_path, switch, variable, whole
from neuroweaver.mesh.wire.settings import Settings


def artifacts_place(value: str) -> str:
    wrong = _wrong_with(value)
    if wrong:
        raise ValueError(
            f"file:///folder, s3://bucket/prefix or such: it {wrong}; leave it empty for a folder"
        )
    return value


def _wrong_with(url: str) -> str:
    """What prevents its use; empty if nothing does."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is not a URL"
    if not parts.scheme or "://" not in url:
        return "is not a URL"
    if "@" in parts.netloc or parts.query or parts.fragment or "::" in url:
        return "holds more than a place (credentials come from the store's own environment variables)"
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        is_folder = not parts.netloc and folder.is_absolute() and not folder.is_file()
        return "" if is_folder else "names no absolute path of a folder"
    return "" if parts.netloc else "names no bucket"


@dataclass(frozen=True, kw_only=True)
class RegistrySettings(Settings):
    service: str = "registry"
    artifacts_url: str = variable(
        "NEUROWEAVER_ARTIFACTS_URL",
        artifacts_place,
        "",
        shown_default="a folder under NEUROWEAVER_HOME",
        is_secret=True,
        help="Where the files of versions lie: file:///folder, s3://bucket/prefix, gs://…",
    )
    audit_key_file: Path | None = variable(
        "NEUROWEAVER_AUDIT_KEY_FILE",
        absolute_path,
        None,
        shown_default="registry-audit-key.pem under NEUROWEAVER_HOME",
        help="The private key that signs heads of the audit chain; replicas share one.",
    )
    webhook_key_file: Path | None = variable(
        "NEUROWEAVER_WEBHOOK_KEY_FILE",
        absolute_path,
        None,
        shown_default="registry-webhook-key under NEUROWEAVER_HOME",
        help="The key that seals webhooks' secrets in the database; replicas share one.",
    )
    downloads: int = variable(
        "NEUROWEAVER_DOWNLOADS",
        whole(1, "a number of downloads"),
        64,
        help="How many downloads run at once, a quarter on one connection; each takes up to 2 MiB of memory.",
    )
    webhook_private: bool = variable(
        "NEUROWEAVER_WEBHOOK_PRIVATE",
        switch,
        default=False,
        help="Webhooks may lead to this machine, also by http, and into private networks.",
    )
