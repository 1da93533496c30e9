"""Published names: the table, and downloads that show progress, resume, check sizes, cache, and explain themselves."""

import hashlib
import inspect
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hub_server import HubServer, Repository

from hgnetv2_hf import ConversionError, convert_checkpoint
from hgnetv2_hf.cli import main
from hgnetv2_hf.hub import download, published
from hgnetv2_hf.hub.published import ASSETS, PUBLISHED


DIGITS = ASSETS / PUBLISHED["digits"].file_name
CONTENT = DIGITS.read_bytes()
NAME = "PPHGNetV2_B4_ssld_stage2"


class FileServer:
    """Serves one file with ETag and ranges. ``cuts`` ends connections after so many bytes, one number per request."""

    def __init__(self, content=CONTENT):
        self.content, self.cuts, self.ranges, self.statuses = content, [], [], []
        self.headers, self.has_ranges = {}, True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/weights.pdparams"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request):
        self.ranges.append(request.headers.get("Range"))
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            request.send_error(status)
            return
        etag = f'"{hashlib.md5(self.content).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        start = int(asked[1]) if asked and self.has_ranges and request.headers.get("If-Range") == etag else 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        for name, value in {"ETag": etag, "Content-Length": len(self.content) - start, **self.headers}.items():
            request.send_header(name, str(value))
        request.end_headers()
        body = self.content[start:]
        if self.cuts:
            body = body[: self.cuts.pop(0)]
            request.close_connection = True
        request.wfile.write(body)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The published file comes from a local server and goes into an empty cache; waiting takes no time."""
    server = FileServer()
    monkeypatch.setitem(PUBLISHED, NAME, PUBLISHED[NAME]._replace(url=server.url, labels="digits"))
    monkeypatch.setenv("HGNETV2_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    yield server
    server.close()


def cached(tmp_path):
    return tmp_path / "cache" / PUBLISHED[NAME].file_name


def only_the_file_is_left(tmp_path):
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    return names == {PUBLISHED[NAME].file_name, f".{PUBLISHED[NAME].file_name}.lock"}


def options():
    return {"resize_short": 32, "crop_size": 32}


def test_the_table_holds_what_the_authors_publish():
    layouts = [row.layout for row in PUBLISHED.values() if row.url and row.task != "detection"]
    counts = {"paddleclas": 30, "timm": 19, "dfine": 7, "rtdetrv2": 3, "paddledetection": 5}
    assert {layout: layouts.count(layout) for layout in set(layouts)} == counts
    assert len({row.file_name for row in PUBLISHED.values()}) == len(PUBLISHED)
    base = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models/"
    assert PUBLISHED["PPHGNetV2_B3_ssld_stage2"].url == base + "PPHGNetV2_B3_ssld_pretrained.pdparams"
    assert PUBLISHED["PPHGNet_tiny_ssld"].url == base + "PPHGNet_tiny_ssld_pretrained.pdparams"
    assert PUBLISHED["PPHGNetV2_B3_ssld_stage1"].url == base + "PPHGNetV2_B3_ssld_stage1_pretrained.pdparams"


def test_a_search_for_a_checkpoints_name_or_file_finds_its_row():
    source = inspect.getsource(published)
    for name, row in PUBLISHED.items():
        assert f'"{name}": ' in source, name
        if row.layout != "timm":
            assert f'"{row.file_name}"' in source, row.file_name


def test_a_published_name_is_downloaded_with_progress_cached_and_converted(server, tmp_path, capsys):
    report = convert_checkpoint(NAME, tmp_path / "out", **options())
    assert report.published == NAME and report.address == server.url
    assert report.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert cached(tmp_path).read_bytes() == CONTENT and only_the_file_is_left(tmp_path)
    assert "100%" in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert server.url in card and report.sha256 in card and "83.57" in card
    convert_checkpoint(NAME, tmp_path / "again", **options())
    assert len(server.ranges) == 1


def test_a_broken_download_continues_where_it_stopped(server, tmp_path):
    server.cuts = [100_000, 50_000]
    convert_checkpoint(NAME, tmp_path / "out", **options())
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert cached(tmp_path).read_bytes() == CONTENT and only_the_file_is_left(tmp_path)


def test_a_download_given_up_continues_in_the_next_run(server, tmp_path):
    server.cuts = [100_000] + [0] * download.ATTEMPTS
    with pytest.raises(ConversionError, match=r"ended after 100000 of \d+ bytes.*put it at"):
        convert_checkpoint(NAME, tmp_path / "out", **options())
    assert not cached(tmp_path).exists() and not (tmp_path / "out").exists()
    server.cuts.clear()
    server.ranges.clear()
    convert_checkpoint(NAME, tmp_path / "out", **options())
    assert server.ranges == ["bytes=100000-"] and cached(tmp_path).read_bytes() == CONTENT


def test_a_file_that_changed_in_between_starts_anew(server, tmp_path):
    server.content = b"x" * len(CONTENT)
    server.cuts = [100_000] + [0] * download.ATTEMPTS
    with pytest.raises(ConversionError):
        convert_checkpoint(NAME, tmp_path / "out", **options())
    server.cuts.clear()
    server.content = CONTENT
    convert_checkpoint(NAME, tmp_path / "out", **options())
    assert cached(tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.has_ranges = False
    server.cuts = [100_000]
    convert_checkpoint(NAME, tmp_path / "out", **options())
    assert cached(tmp_path).read_bytes() == CONTENT


def test_a_server_that_fails_for_a_moment_is_asked_again_and_one_that_refuses_is_not(server, tmp_path):
    server.statuses = [500, 503]
    convert_checkpoint(NAME, tmp_path / "out", **options())
    cached(tmp_path).unlink()
    server.ranges.clear()
    server.statuses = [404]
    with pytest.raises(ConversionError, match="404.*put it at"):
        convert_checkpoint(NAME, tmp_path / "other", **options())
    assert len(server.ranges) == 1


def test_a_web_page_in_the_place_of_the_file_is_not_kept(server, tmp_path):
    server.headers = {"Content-Type": "text/html"}
    with pytest.raises(ConversionError, match="web page"):
        convert_checkpoint(NAME, tmp_path / "out")
    assert not cached(tmp_path).exists()


def test_without_a_network_one_sentence_says_which_file_to_put_where(server, tmp_path, monkeypatch, capsys):
    server.close()
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        assert main(["convert", NAME, str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1 and not (tmp_path / "out").exists()
        assert f"download {server.url} yourself and put it at {cached(tmp_path)}" in error
    cached(tmp_path).parent.mkdir(exist_ok=True)
    cached(tmp_path).write_bytes(CONTENT)
    assert main(["convert", NAME, str(tmp_path / "out"), "--resize-short", "32", "--crop-size", "32"]) == 0


def test_two_programs_may_download_the_same_file_at_once(server, tmp_path):
    results = []
    row = PUBLISHED[NAME]
    threads = [threading.Thread(target=lambda: results.append(download.fetch(row))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [str(cached(tmp_path))] * 4 and len(server.ranges) == 1


def test_a_full_disk_is_one_sentence(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_receive", full)
    with pytest.raises(ConversionError, match="No space left"):
        convert_checkpoint(NAME, tmp_path / "out")


def test_timms_checkpoints_come_from_the_hub(tmp_path):
    """Through the real client, from a local server; in a new process, because the client reads its address once."""
    from safetensors.torch import save_file

    from hgnetv2_hf.conversion.layouts import LAYOUTS, rename, rename_back
    from hgnetv2_hf.conversion.paddle_file import read_paddle_file

    tensors = rename_back(rename(read_paddle_file(DIGITS), LAYOUTS["paddleclas"]), LAYOUTS["timm"])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    name = "timm/hgnetv2_b0.ssld_stage2_ft_in1k"
    code = """
import sys
from hgnetv2_hf.cli import main
out = sys.argv[1]
for target in ("one", "two"):
    assert main(["convert", "%s", f"{out}/{target}"]) == 0
assert main(["convert", "timm/hgnetv2_b1.ssld_stage2_ft_in1k", f"{out}/three"]) == 1
"""
    with HubServer() as hub:
        hub.repositories[name] = Repository()
        hub.repositories[name].commits.append({"model.safetensors": (tmp_path / "w.safetensors").read_bytes()})
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        run = subprocess.run(
            [sys.executable, "-c", code % name, tmp_path], env=environment, capture_output=True, text=True, timeout=300
        )
        downloads = [path for method, path in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert run.returncode == 0, run.stderr
    assert len(downloads) == 1 and "layout timm" in run.stdout
    assert "hgnetv2_b1.ssld_stage2_ft_in1k.safetensors" in run.stderr.splitlines()[-1]
    assert not (tmp_path / "three").exists()
