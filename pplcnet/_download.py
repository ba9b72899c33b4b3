"""Find or download the released weights, for ``--weights auto``."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from pplcnet._checkpoint import READERS, kind_of
from pplcnet._errors import WeightsError, one_line

OFFICIAL = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models"
HUB_FILE = "model.safetensors"

_HUB_TIMEOUT = 5.0  # seconds for the hub's first response
_TIMEOUT = 10.0  # seconds without a response
_LOCK_TIMEOUT = 900.0  # seconds that another process may take to download the same file
_TRIES = 5
_CHUNK = 1 << 18

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where the weights of one variant are published.

    Attributes:
        repo: a repository on the Hugging Face hub; its `HUB_FILE` is in timm's layout.
        file: PaddleClas's file name, under `OFFICIAL` and in our cache.
        sha256: of that file; None if unknown, since PaddleClas publishes no hashes.
    """

    repo: str
    file: str
    sha256: str | None = None


SOURCES: dict[str, Source] = {
    "small": Source("timm/lcnetv2_small.paddle_in1k", "PPLCNetV2_small_pretrained.pdparams"),
    "base": Source("timm/lcnetv2_base.paddle_in1k", "PPLCNetV2_base_pretrained.pdparams"),
    "base_ssld": Source("timm/lcnetv2_base.ssld_in1k", "PPLCNetV2_base_ssld_pretrained.pdparams"),
    "large": Source("timm/lcnetv2_large.paddle_in1k", "PPLCNetV2_large_pretrained.pdparams"),
}


def cache_dir() -> Path:
    """The cache for downloads: ``$PPLCNET_CACHE``, else ``pplcnet`` in the user's cache folder."""
    if own := os.environ.get("PPLCNET_CACHE"):
        return Path(own)
    # The same rule on every system, as in torch and huggingface_hub.
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(user_cache) / "pplcnet"


def fetch_weights(name: str, *, progress: bool = True) -> Path:
    """Find or download the released weights of a variant.

    Tried in this order: our cache, the Hugging Face cache, the hub, PaddleClas's server. If
    ``HF_HUB_OFFLINE`` is set, nothing is downloaded. ``PPLCNET_MIRROR`` (the URL of a folder)
    replaces PaddleClas's server and is used even when ``HF_HUB_OFFLINE`` is set.

    Args:
        name: a key of `SOURCES`.
        progress: show a progress bar on stderr.

    Returns:
        Path of the file: `.safetensors` from the hub, `.pdparams` otherwise.

    Raises:
        WeightsError: no weights were found; the message says what was tried, which file to
            download and where to put it.
    """
    if name not in SOURCES:
        raise WeightsError(f"No weights are published for {name!r}, only for {', '.join(SOURCES)}.")
    source = SOURCES[name]
    cached = cache_dir() / source.file
    if cached.is_file():
        return cached
    mirror = os.environ.get("PPLCNET_MIRROR")
    url = f"{(mirror or OFFICIAL).rstrip('/')}/{source.file}"

    reasons = []
    try:
        return _from_hub(source.repo, progress)
    except WeightsError as error:
        reasons.append(f"{source.repo} on the Hugging Face hub ({error})")
        _log.info("%s: trying %s", reasons[-1], url)
    try:
        if _offline() and not mirror:
            raise WeightsError("HF_HUB_OFFLINE is set")
        return download(url, cached, sha256=source.sha256, progress=progress)
    except WeightsError as error:
        reasons.append(f"{url} ({error})")
    raise WeightsError(
        f"No weights for {name}: none on this machine, and none from {' or '.join(reasons)}.\n"
        f"Download {url} to {cached}, or give a file with --weights FILE."
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def _hub_progress(shown: bool) -> Iterator[None]:
    """Show or hide the hub client's progress bars, for which it only has a global switch."""
    from huggingface_hub import utils

    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _from_hub(repo: str, progress: bool) -> Path:
    """The file in the Hugging Face cache; downloaded if it is not there yet."""
    import huggingface_hub as hub  # here, because importing it takes a quarter of a second

    try:
        cached = hub.try_to_load_from_cache(repo, HUB_FILE)
        if isinstance(cached, str):
            return Path(cached)
        if _offline():
            raise WeightsError("not in its cache, and HF_HUB_OFFLINE is set")
        # One request first: without a network, hf_hub_download retries for half a minute.
        metadata = hub.get_hf_file_metadata(hub.hf_hub_url(repo, HUB_FILE), timeout=_HUB_TIMEOUT)
        with _hub_progress(progress):
            path = Path(hub.hf_hub_download(repo, HUB_FILE))
    except WeightsError:
        raise
    # Each major version of huggingface_hub raises the errors of another HTTP client (requests,
    # httpx, httpx2), and hf_xet adds its own. Whatever went wrong, there is one more source to try.
    except Exception as error:
        raise WeightsError(one_line(error)) from error
    if metadata.etag and re.fullmatch("[0-9a-f]{64}", metadata.etag):  # the file's SHA-256
        _check_sha256(path, metadata.etag)
    return path


def download(url: str, target: Path, *, sha256: str | None = None, progress: bool = True) -> Path:
    """Download a checkpoint over HTTP, resuming an interrupted download.

    `target` appears only when it is complete. Until then the bytes are in ``<target>.part``, with
    the server's ETag beside them, so that parts of two versions are never joined. If several
    processes need the same file, one downloads it and the others wait.

    Args:
        url: an http or https address.
        target: where to put the file.
        sha256: expected hash of the file, hexadecimal; None to skip the check.
        progress: show a progress bar on stderr.

    Returns:
        `target`.

    Raises:
        WeightsError: no connection, an HTTP error, an incomplete or damaged download, or a file
            that is not a checkpoint. The message does not contain `url`; the caller adds it.
    """
    if not url.startswith(("http://", "https://")):
        raise WeightsError("not an http or https address")
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock", timeout=_LOCK_TIMEOUT):
            if target.is_file():  # another process has downloaded it in the meantime
                return target
            _receive_all(url, part, progress)
            if sha256 is not None:
                _check_sha256(part, sha256)
            part.replace(target)
            _etag_file(part).unlink(missing_ok=True)
            return target
    except Timeout as error:
        raise WeightsError(f"another process holds {target}.lock") from error
    except urllib.error.HTTPError as error:
        error.close()
        raise WeightsError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise WeightsError(str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WeightsError(one_line(error)) from error


class _OtherFile(ConnectionError):
    """The server's file is not the one that was partly received before."""


def _receive_all(url: str, part: Path, progress: bool) -> None:
    """Retry until the file is complete, as long as each attempt receives some bytes."""
    for tries_left in reversed(range(_TRIES)):
        had = _size(part)
        try:
            _receive(url, part, progress)
            return
        except _OtherFile:
            _etag_file(part).unlink(missing_ok=True)  # without an ETag, the next try starts over
            if tries_left == 0:
                raise
        except (OSError, http.client.HTTPException):
            if tries_left == 0 or _size(part) <= had:
                raise


def _receive(url: str, part: Path, progress: bool) -> None:
    """Receive once, resuming at the end of `part` if the server still has the same file."""
    etag_file = _etag_file(part)
    etag = etag_file.read_text(encoding="latin-1") if etag_file.is_file() else ""
    offset = _size(part) if etag else 0
    with _request(url, offset, etag) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        new_etag = response.headers.get("ETag", "")
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            sent = response.headers.get("Content-Range", "")
            continued = re.fullmatch(rf"bytes {offset}-\d+/(\d+)", sent)
            if continued is None or new_etag != etag:
                raise _OtherFile("the server sent part of a different file")
            total = int(continued[1])
        else:
            offset = 0
        first = response.read(_CHUNK)
        if offset == 0:
            if (first or not total) and (kind := kind_of(first)) not in READERS:
                raise WeightsError(f"the server sent a {kind}, not weights")
            etag_file.unlink(missing_ok=True)  # before the bytes that it identifies are deleted
            part.write_bytes(b"")
            if new_etag.startswith('"'):  # a weak ETag does not identify the exact bytes
                etag_file.write_text(new_etag, encoding="latin-1")
        _append(part, first, response, total, progress)
    if total is not None and _size(part) != total:
        raise ConnectionError(f"interrupted at {_size(part):,} of {total:,} bytes; try again")


def _request(url: str, offset: int, etag: str) -> http.client.HTTPResponse:
    # `download` has checked that this is an http or https URL.
    request = urllib.request.Request(url, headers={"User-Agent": "pplcnet"})  # noqa: S310
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", etag)
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(  # noqa: S310
            request, timeout=_TIMEOUT
        )
        return response
    except urllib.error.HTTPError as error:
        if offset and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            raise _OtherFile("the server's file is not longer than the part received") from error
        raise


def _append(
    part: Path,
    first: bytes,
    response: http.client.HTTPResponse,
    total: int | None,
    progress: bool,
) -> None:
    with (
        part.open("ab") as file,
        tqdm(
            desc=part.stem,
            initial=file.tell(),
            total=total,
            unit="B",
            unit_scale=True,
            disable=not progress,
        ) as bar,
    ):
        chunk = first
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = response.read(_CHUNK)
        file.flush()
        os.fsync(file.fileno())


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_sha256(path: Path, expected: str) -> None:
    """Delete the file and raise `WeightsError` unless it has the published hash."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.resolve().unlink()  # in the hub's cache, it is a symbolic link
        path.unlink(missing_ok=True)
        raise WeightsError(f"damaged download: sha256 {found[:16]}..., not {expected[:16]}...")
