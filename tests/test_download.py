"""`--weights auto`: caches, the hub, and a server that does all that servers do."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from filelock import FileLock
from huggingface_hub import constants

from pplcnet import _download
from pplcnet._checkpoint import read_checkpoint
from pplcnet._download import HUB_FILE, SOURCES, Source, cache_dir, download, fetch_weights
from pplcnet._errors import WeightsError


def weights(seed: int = 0, size: int = 700_000) -> bytes:
    """A `.pdparams` file a little larger than `size`."""
    return pickle.dumps({"w": np.random.default_rng(seed).bytes(size)}, 4)


class Server:
    """An HTTP server of one body at every path; its attributes are its misbehavior."""

    def __init__(self) -> None:
        self.body = weights()
        self.etag: str | None = '"first"'
        self.content_type = "application/octet-stream"
        self.status = HTTPStatus.OK
        self.break_after: list[int] = []  # of the next answers: close after so many bytes
        self.extra_length = 0  # added to Content-Length
        self.ranges = True  # honour Range
        self.if_range = True  # honour If-Range
        self.shift = 0  # added to the start that Range asks for
        self.always_partial = False  # answer 206 with the end of the file, whatever is asked
        self.speaks = threading.Event()  # no answer before it is set
        self.speaks.set()
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []  # method, Range
        self.path = ""  # of the latest request

        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                """Clients that hang up are part of the tests."""

        self.httpd = Quiet(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.httpd.server_port}"

    @property
    def asked(self) -> list[str | None]:
        """The Range of each GET."""
        return [wanted for method, wanted in self.requests if method == "GET"]

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/api/"):  # what the hub's client asks on its own account
            handler.send_error(HTTPStatus.NOT_FOUND)
            return
        self.path = handler.path
        wanted = handler.headers.get("Range")
        self.requests.append((handler.command, wanted))
        self.speaks.wait()
        if self.status != HTTPStatus.OK:
            handler.send_error(self.status)
            return
        start = 0
        same = handler.headers.get("If-Range") == self.etag or not self.if_range
        if self.always_partial:
            wanted, same = wanted or "bytes=5-", True
        if wanted and self.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + self.shift
            if start >= len(self.body):
                handler.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                return
            handler.send_response(HTTPStatus.PARTIAL_CONTENT)
            end = len(self.body) - 1
            handler.send_header("Content-Range", f"bytes {start}-{end}/{len(self.body)}")
        else:
            handler.send_response(HTTPStatus.OK)
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.send_header("Content-Length", str(len(self.body) - start + self.extra_length))
        handler.send_header("Content-Type", self.content_type)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            length = self.break_after.pop(0) if self.break_after else len(self.body)
            handler.wfile.write(self.body[start : start + length])

    def close(self) -> None:
        self.speaks.set()
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "w.pdparams"


def failure(server: Server, target: Path, sha256: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        download(server.url, target, sha256=sha256, progress=False)
    assert not target.exists()
    return str(caught.value)


def left_over(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} - {f"{target.name}.lock"}


# --- download


def test_download(server: Server, target: Path) -> None:
    digest = hashlib.sha256(server.body).hexdigest()
    assert download(server.url, target, sha256=digest, progress=False) == target
    assert target.read_bytes() == server.body
    assert left_over(target) == {target.name}
    assert server.asked == [None]


def test_download_that_is_there_is_not_repeated(server: Server, target: Path) -> None:
    download(server.url, target, progress=False)
    download(server.url, target, progress=False)
    assert len(server.asked) == 1


def test_broken_download_is_continued_at_once(server: Server, target: Path) -> None:
    server.break_after = [300_000, 100_000]
    download(server.url, target, progress=False)
    assert target.read_bytes() == server.body
    assert server.asked == [None, "bytes=300000-", "bytes=400000-"]


def test_broken_download_is_continued_by_the_next_run(server: Server, target: Path) -> None:
    server.break_after = [300_000, 0]
    message = failure(server, target)
    assert f"interrupted at 300,000 of {len(server.body):,} bytes" in message
    download(server.url, target, progress=False)
    assert target.read_bytes() == server.body
    assert server.asked[-1] == "bytes=300000-"


def test_server_that_breaks_off_each_time_is_given_up(server: Server, target: Path) -> None:
    server.break_after = [1_000] * 100
    assert "interrupted at 5,000" in failure(server, target)


def test_server_without_ranges(server: Server, target: Path) -> None:
    server.ranges = False
    server.break_after = [300_000]
    download(server.url, target, progress=False)
    assert target.read_bytes() == server.body
    assert server.asked == [None, "bytes=300000-"]


@pytest.mark.parametrize("if_range", [True, False])
def test_changed_file_is_not_glued_to_the_old_one(
    server: Server, target: Path, if_range: bool
) -> None:
    server.break_after = [300_000, 0]
    failure(server, target)
    server.body, server.etag, server.if_range = weights(seed=1), '"second"', if_range
    download(server.url, target, progress=False)
    assert target.read_bytes() == server.body


def test_etag_of_a_version_does_not_vouch_for_the_next(server: Server, target: Path) -> None:
    body = server.body
    server.break_after = [300_000, 0]
    failure(server, target)
    server.body, server.etag, server.break_after = weights(seed=1), None, [200_000]
    failure(server, target)
    server.body, server.etag = body, '"first"'
    download(server.url, target, progress=False)
    assert target.read_bytes() == body


def test_server_that_sends_another_part(server: Server, target: Path) -> None:
    server.break_after = [300_000]
    server.shift = 10
    download(server.url, target, progress=False)
    assert target.read_bytes() == server.body
    assert server.asked == [None, "bytes=300000-", None]


def test_server_that_sends_only_parts(server: Server, target: Path) -> None:
    server.always_partial = True
    assert failure(server, target) == "the server sent part of a different file"


@pytest.mark.parametrize("excess", [0, 1, 50])
def test_part_that_is_as_long_as_the_file(server: Server, target: Path, excess: int) -> None:
    """As after a crash between the last byte and the renaming; the server answers 416."""
    target.parent.mkdir()
    target.with_name("w.pdparams.part").write_bytes(server.body + bytes(excess))
    target.with_name("w.pdparams.part.etag").write_text('"first"')
    download(server.url, target, progress=False)
    assert target.read_bytes() == server.body
    assert server.asked == [f"bytes={len(server.body) + excess}-", None]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_nothing_is_continued_without_a_strong_etag(
    server: Server, target: Path, etag: str | None
) -> None:
    server.etag = etag
    server.break_after = [300_000]
    download(server.url, target, progress=False)
    assert target.read_bytes() == server.body
    assert server.asked == [None, None]


def test_wrong_length(server: Server, target: Path) -> None:
    server.extra_length = 7
    assert "interrupted" in failure(server, target)


def test_wrong_sha256(server: Server, target: Path) -> None:
    assert "damaged download: sha256" in failure(server, target, sha256="0" * 64)
    download(server.url, target, progress=False)
    assert server.asked == [None, None]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "web page"),
        (b'{"error": "no such key"}', "unknown file"),
        (b"", "empty file"),
    ],
)
def test_something_else_is_refused(server: Server, target: Path, body: bytes, kind: str) -> None:
    server.body = body
    assert failure(server, target) == f"the server sent a {kind}, not weights"
    assert not left_over(target)


def test_log_in_page_does_not_cost_what_was_received(server: Server, target: Path) -> None:
    server.break_after = [300_000, 0]
    failure(server, target)
    body, server.body, server.etag = server.body, b"<html>Log in</html>", None
    failure(server, target)
    server.body, server.etag = body, '"first"'
    download(server.url, target, progress=False)
    assert server.asked[-1] == "bytes=300000-"


@pytest.mark.parametrize("status", [403, 404, 503])
def test_http_error(server: Server, target: Path, status: int) -> None:
    server.status = HTTPStatus(status)
    assert failure(server, target) == f"HTTP {status} {HTTPStatus(status).phrase}"


def test_no_connection(target: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(WeightsError, match="Connection refused"):
            download(url, target, progress=False)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/w", "w.pdparams"])
def test_only_http(target: Path, url: str) -> None:
    with pytest.raises(WeightsError, match="not an http or https address"):
        download(url, target)


@pytest.mark.parametrize(
    "url",
    ["http://", "http://127.0.0.1:port/", "http://127.0.0.1:9/w w", "http://127.0.0.1:9/\u00e4"],
)
def test_bad_address(target: Path, url: str) -> None:
    with pytest.raises(WeightsError):
        download(url, target)


def test_silent_server_is_not_waited_for(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "_TIMEOUT", 0.1)
    server.speaks.clear()
    assert "timed out" in failure(server, target)


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path / "file"))):
        download(server.url, tmp_path / "file" / "cache" / "w.pdparams", progress=False)


def test_several_at_once_fetch_it_once(server: Server, target: Path) -> None:
    server.speaks.clear()
    threads = [
        threading.Thread(target=download, args=(server.url, target), kwargs={"progress": False})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while not server.requests:  # one of them has the lock, and asks
        time.sleep(0.01)
    server.speaks.set()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == server.body
    assert len(server.asked) == 1


def test_another_process_that_never_ends(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "_LOCK_TIMEOUT", 0.1)
    target.parent.mkdir()
    with FileLock(f"{target}.lock"):
        assert failure(server, target) == f"another process holds {target}.lock"


@pytest.mark.parametrize("progress", [True, False])
def test_progress_goes_to_stderr(
    server: Server, target: Path, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    download(server.url, target, progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("w.pdparams: 100%" in captured.err) is progress


# --- fetch_weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The Hugging Face hub, as far as a download needs it, with an empty cache."""
    server = Server()
    server.body = safetensors.torch.save({"w": torch.ones(1000)})
    server.etag = f'"{hashlib.sha256(server.body).hexdigest()}"'
    server.headers = {"X-Repo-Commit": "c" * 40}
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("PPLCNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PPLCNET_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(_download, "OFFICIAL", "http://127.0.0.1:9/legendary_models")
    yield server
    huggingface_hub.close_session()
    server.close()


@pytest.fixture
def offline(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def put_into_hub_cache(tmp_path: Path, data: bytes) -> None:
    repo = tmp_path / "hub" / "models--timm--lcnetv2_base.ssld_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    (repo / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (repo / "snapshots" / ("a" * 40) / HUB_FILE).write_bytes(data)


def test_sources() -> None:
    assert {name: source.repo for name, source in SOURCES.items()} == {
        "small": "timm/lcnetv2_small.paddle_in1k",
        "base": "timm/lcnetv2_base.paddle_in1k",
        "base_ssld": "timm/lcnetv2_base.ssld_in1k",
        "large": "timm/lcnetv2_large.paddle_in1k",
    }
    for name, source in SOURCES.items():
        assert source.file == f"PPLCNetV2_{name}_pretrained.pdparams"


def test_own_cache_comes_first(hub: Server, tmp_path: Path) -> None:
    put_into_hub_cache(tmp_path, hub.body)
    cached = tmp_path / "cache" / SOURCES["base_ssld"].file
    cached.parent.mkdir()
    cached.write_bytes(weights())
    assert fetch_weights("base_ssld") == cached
    assert not hub.requests


def test_hub_cache_comes_second(hub: Server, tmp_path: Path) -> None:
    put_into_hub_cache(tmp_path, hub.body)
    path = fetch_weights("base_ssld")
    assert path.name == HUB_FILE
    assert list(read_checkpoint(path).tensors) == ["w"]
    assert not hub.requests


@pytest.mark.usefixtures("offline")
def test_hub_cache_serves_offline(hub: Server, tmp_path: Path) -> None:
    put_into_hub_cache(tmp_path, hub.body)
    assert fetch_weights("base_ssld").read_bytes() == hub.body


@pytest.mark.parametrize("progress", [True, False])
def test_hub_download(
    hub: Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    progress: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # else the hub draws no bar
    path = fetch_weights("base_ssld", progress=progress)
    assert path.read_bytes() == hub.body
    assert len(hub.asked) == 1
    assert fetch_weights("base_ssld", progress=progress) == path
    assert len(hub.asked) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (HUB_FILE in captured.err) is progress


def test_damaged_hub_download_is_not_kept(hub: Server, tmp_path: Path) -> None:
    good = hub.body
    hub.body = good[:-1] + b"\x01"  # of the length that was announced, as a bad proxy may send
    with pytest.raises(WeightsError, match="damaged download"):
        fetch_weights("base_ssld", progress=False)
    hub.body = good
    assert fetch_weights("base_ssld", progress=False).read_bytes() == good


def test_official_server_comes_last(
    hub: Server, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = HTTPStatus.NOT_FOUND
    monkeypatch.setattr(_download, "OFFICIAL", server.url)
    path = fetch_weights("base_ssld", progress=False)
    assert path == tmp_path / "cache" / "PPLCNetV2_base_ssld_pretrained.pdparams"
    assert path.read_bytes() == server.body
    assert fetch_weights("base_ssld", progress=False) == path
    assert len(server.asked) == 1


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("slash", ["", "/"])
def test_mirror(hub: Server, server: Server, monkeypatch: pytest.MonkeyPatch, slash: str) -> None:
    """It is asked even with HF_HUB_OFFLINE, which is about the hub."""
    monkeypatch.setenv("PPLCNET_MIRROR", f"{server.url}/mirror{slash}")
    assert fetch_weights("small", progress=False).read_bytes() == server.body
    assert server.path == "/mirror/PPLCNetV2_small_pretrained.pdparams"
    assert not hub.requests


def test_published_sha256_is_checked(
    hub: Server, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = HTTPStatus.NOT_FOUND
    monkeypatch.setenv("PPLCNET_MIRROR", server.url)
    monkeypatch.setitem(SOURCES, "small", Source("timm/x", "w.pdparams", sha256="0" * 64))
    with pytest.raises(WeightsError, match="damaged download"):
        fetch_weights("small", progress=False)


def give_up(name: str) -> str:
    """The message; nothing is tried again after a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits for {seconds} s"))
        with pytest.raises(WeightsError) as caught:
            fetch_weights(name, progress=False)
    return str(caught.value)


@pytest.mark.usefixtures("offline")
def test_offline_message(hub: Server, tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "PPLCNetV2_large_pretrained.pdparams"
    url = "http://127.0.0.1:9/legendary_models/PPLCNetV2_large_pretrained.pdparams"
    assert give_up("large") == (
        "No weights for large: none on this machine, and none from "
        "timm/lcnetv2_large.paddle_in1k on the Hugging Face hub (not in its cache, and "
        f"HF_HUB_OFFLINE is set) or {url} (HF_HUB_OFFLINE is set).\n"
        f"Download {url} to {cached}, or give a file with --weights FILE."
    )
    assert not hub.requests


def test_message_without_a_network(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both servers refuse; it must not take the hub's half minute of retries."""
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        value = getattr(constants, name)
        unreachable = value.replace(hub.url, "http://127.0.0.1:9")
        monkeypatch.setattr(constants, name, unreachable)
    message = give_up("base")
    assert message.count("Connection refused") == 2
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_message_when_the_hub_fails(hub: Server, status: int) -> None:
    hub.status = HTTPStatus(status)
    message = give_up("base")
    assert str(status) in message.partition(" or http")[0]
    assert len(message.splitlines()) == 2


def test_unknown_name() -> None:
    with pytest.raises(WeightsError, match="'medium', only for small, base, base_ssld, large"):
        fetch_weights("medium")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLCNET_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/own")
    monkeypatch.delenv("PPLCNET_CACHE")
    assert cache_dir() == Path("/xdg/pplcnet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/home/someone/.cache/pplcnet")
