"""The released weights, from wherever they can be had: for ``--weights auto``."""

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

_HUB_TIMEOUT = 5.0  # seconds for the first answer
_TIMEOUT = 10.0  # seconds without an answer
_LOCK_TIMEOUT = 900.0  # seconds that another process may take to fetch the same file
_TRIES = 5
_CHUNK = 1 << 18

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where the weights of one variant are published.

    Attributes:
        repo: on the Hugging Face hub, in timm's layout; `HUB_FILE` in it.
        file: PaddleClas's, below `OFFICIAL`; also its name in our cache.
        sha256: of that file. PaddleClas publishes none, so none is known.
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
    """Where downloads are kept: ``$PPLCNET_CACHE``, else ``pplcnet`` in the user's cache."""
    if own := os.environ.get("PPLCNET_CACHE"):
        return Path(own)
    # As torch and huggingface_hub do on every system, rather than each system's own custom.
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(user_cache) / "pplcnet"


def fetch_weights(name: str, *, progress: bool = True) -> Path:
    """Find or download the released weights of a variant.

    In this order: our cache, the Hugging Face cache, the hub, PaddleClas's server. With
    ``HF_HUB_OFFLINE`` set, nothing is downloaded. ``PPLCNET_MIRROR`` names another server (a URL
    of a folder) in PaddleClas's place, which is then asked even so.

    Args:
        name: a key of `SOURCES`.
        progress: show a bar on stderr.

    Returns:
        The file: `.safetensors` from the hub, `.pdparams` otherwise.

    Raises:
        WeightsError: it cannot be had; the message says what was tried, which file to fetch and
            where to put it.
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
        f"No weights for {name} on this machine, nor from {' or '.join(reasons)}.\n"
        f"Fetch {url} and put it at {cached}, or name the file with --weights FILE."
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def _hub_progress(shown: bool) -> Iterator[None]:
    """Whether the hub's client draws its bars, which it offers only as a global switch."""
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
    """The file in the Hugging Face cache, downloaded unless it is there."""
    import huggingface_hub as hub  # takes a quarter of a second, which only this needs

    try:
        cached = hub.try_to_load_from_cache(repo, HUB_FILE)
        if isinstance(cached, str):
            return Path(cached)
        if _offline():
            raise WeightsError("not in its cache, and HF_HUB_OFFLINE is set")
        # Asked first and once: hf_hub_download retries for half a minute when there is no network.
        metadata = hub.get_hf_file_metadata(hub.hf_hub_url(repo, HUB_FILE), timeout=_HUB_TIMEOUT)
        with _hub_progress(progress):
            path = Path(hub.hf_hub_download(repo, HUB_FILE))
    except WeightsError:
        raise
    # The hub's client, and with it what it raises, was another in each of its major versions
    # (requests, httpx, httpx2), and hf_xet adds its own. Whatever it is, there is one more source.
    except Exception as error:
        raise WeightsError(one_line(error)) from error
    if metadata.etag and re.fullmatch("[0-9a-f]{64}", metadata.etag):  # the file's SHA-256
        _check_sha256(path, metadata.etag)
    return path


def download(url: str, target: Path, *, sha256: str | None = None, progress: bool = True) -> Path:
    """Download weights over HTTP; a download that broke off is continued.

    `target` appears only when complete. Until then the bytes are in ``<target>.part``, with the
    server's ETag beside them, so that two versions of a file are never glued together. Several
    processes may ask for the same file: one fetches it, the others wait.

    Returns:
        `target`.

    Raises:
        WeightsError: no connection, an HTTP error, a broken download, or something that is not
            weights. The message is a clause, without `url`.
    """
    if not url.startswith(("http://", "https://")):
        raise WeightsError("not an http or https address")
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock", timeout=_LOCK_TIMEOUT):
            if target.is_file():  # another process has fetched it meanwhile
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
    """What the server offers does not continue what was received before."""


def _receive_all(url: str, part: Path, progress: bool) -> None:
    """Receive until complete, as long as each try wins some bytes."""
    for tries_left in reversed(range(_TRIES)):
        had = _size(part)
        try:
            _receive(url, part, progress)
            return
        except _OtherFile:
            _etag_file(part).unlink(missing_ok=True)  # without it, nothing is continued
            if tries_left == 0:
                raise
        except (OSError, http.client.HTTPException):
            if tries_left == 0 or _size(part) <= had:
                raise


def _receive(url: str, part: Path, progress: bool) -> None:
    """Receive once, from where `part` ends if the server has the same file still."""
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
                raise _OtherFile("the server sent a part of some other file")
            total = int(continued[1])
        else:
            offset = 0
        first = response.read(_CHUNK)
        if offset == 0:
            if (first or not total) and (kind := kind_of(first)) not in READERS:
                raise WeightsError(f"the server sent a {kind}, not weights")
            etag_file.unlink(missing_ok=True)  # before the bytes that it vouched for go
            part.write_bytes(b"")
            if new_etag.startswith('"'):  # not a weak one, which vouches for no bytes
                etag_file.write_text(new_etag, encoding="latin-1")
        _append(part, first, response, total, progress)
    if total is not None and _size(part) != total:
        raise ConnectionError(f"broke off at {_size(part):,} of {total:,} bytes; try again")


def _request(url: str, offset: int, etag: str) -> http.client.HTTPResponse:
    # `download` has made sure that it is http or https.
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
            raise _OtherFile("the server's file is no longer than what was received") from error
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
    """Remove the file unless it is the one that was published."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.resolve().unlink()  # the hub's cache holds links
        path.unlink(missing_ok=True)
        raise WeightsError(f"damaged on the way: sha256 {found[:16]}... is not {expected[:16]}...")
