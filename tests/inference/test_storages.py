"""`classify` and `embed` from and to storages, Parquet files and tars: the same rows, whatever interrupts."""

import contextlib
import importlib.util
import io
import json
import os
import re
import socket
import tarfile
import threading
import time
import urllib.request

import pytest
from conftest import write_pictures

from hgnetv2_hf.cli import main
from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.files import parts, storage
from hgnetv2_hf.inference import classify as classification
from hgnetv2_hf.inference.classify import classify
from hgnetv2_hf.inference.embed import embed


pyarrow = pytest.importorskip("pyarrow", reason="comes with the extra [parquet]")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def images(tmp_path):
    """Eleven pictures, one of them broken."""
    write_pictures(tmp_path / "images", 11, broken=4)
    return tmp_path / "images"


@pytest.fixture
def client(replaced_client, images):
    """Of `gs://`, with the pictures in `gs://bucket/images`."""
    client = replaced_client("gs")
    for path in images.iterdir():
        client.pipe_file(f"/bucket/images/{path.name}", path.read_bytes())
    return client


def rows(folder, client=None):
    """Of all parts in their order, without the names."""
    listed = client.ls(folder, detail=False) if client else map(str, folder.iterdir())
    names = sorted(name for name in listed if name.rpartition("/")[2].startswith("part-"))
    opened = [io.BytesIO(client.cat_file(name)) if client else name for name in names]
    made = [row for each in opened for row in parquet.read_table(each).to_pylist()]
    return [{**row, "image": None, "error": bool(row["error"])} for row in made]


@contextlib.contextmanager
def stopped_at(module, name):
    """Ends the run inside where the module writes this file."""
    put = module.put

    def stops(folder, each, content):
        if each == name:
            raise KeyboardInterrupt
        put(folder, each, content)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "put", stops)
        yield


def names(client, folder):
    return sorted(path.removeprefix(f"{folder}/") for path in client.find(folder))


def test_every_source_gives_the_rows_of_plain_files(digits_folder, images, client, tmp_path):
    contents = [path.read_bytes() for path in sorted(images.iterdir())]
    parquet.write_table(pyarrow.table({"image": pyarrow.array(contents, pyarrow.binary())}), tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted(images.iterdir()):
            archive.add(path, path.name)
    sources = [images, images.as_uri(), "gs://bucket/images", tmp_path / "a.parquet", tmp_path / "a.tar"]
    labels, vectors = [], []
    for index, source in enumerate(map(str, sources)):
        summary = classify([source], digits_folder, tmp_path / f"labels-{index}", show=str)
        assert (summary["images"], summary["unreadable"]) == (11, 1)
        labels.append(rows(tmp_path / f"labels-{index}"))
        embed([source], digits_folder, tmp_path / f"vectors-{index}", show=str)
        vectors.append(rows(tmp_path / f"vectors-{index}"))
    assert all(each == labels[0] for each in labels) and all(each == vectors[0] for each in vectors)
    classify([str(images)], digits_folder, tmp_path / "table.parquet", show=str)
    assert parquet.read_table(tmp_path / "table.parquet").equals(parquet.read_table(tmp_path / "labels-0"))
    about = json.loads((tmp_path / "labels-0" / "_labels.json").read_text())
    assert (about["images"], about["unreadable"], about["top_k"]) == (11, 1, 5)


@pytest.mark.parametrize("place", ["here", "gs"])
def test_an_interrupted_run_continues_after_its_last_part(digits_folder, images, client, tmp_path, monkeypatch, place):
    output = tmp_path / "out" if place == "here" else "gs://bucket/out"
    monkeypatch.setattr(parts, "ROWS_PER_PART", 3)
    with stopped_at(parts, "part-00002.parquet"):
        classify([str(images)], digits_folder, output, show=str)
    if place == "here":
        assert not output.exists()
    else:
        unfinished = [re.sub("-[0-9a-f]{12}/", "-KEY/", name) for name in names(client, "/bucket/out")]
        assert unfinished == ["_unfinished-KEY/part-00000.parquet", "_unfinished-KEY/part-00001.parquet"]
    assert classify([str(images)], digits_folder, output, show=str)["resumed"] == 6
    classify([str(images)], digits_folder, tmp_path / "whole", show=str)
    found = rows(output) if place == "here" else rows("/bucket/out", client)
    assert found == rows(tmp_path / "whole") and len(found) == 11
    with pytest.raises(InferenceError, match="exists already"):
        classify([str(images)], digits_folder, output, show=str)
    assert classify([str(images)], digits_folder, output, top_k=1, overwrite=True, show=str)["resumed"] == 0
    if place == "gs":
        assert names(client, "/bucket/out") == ["_labels.json", *(f"part-{number:05}.parquet" for number in range(4))]
        classify([str(images / "00.png")], digits_folder, output, top_k=1, overwrite=True, show=str)
        assert names(client, "/bucket/out") == ["_labels.json", "part-00000.parquet"]


def test_a_publication_that_was_interrupted_is_repeated(digits_folder, images, client, monkeypatch):
    copy = type(client).copy

    def dies(self, sources, targets, **options):
        copy(self, sources[:1], targets[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(type(client), "copy", dies)
    with pytest.raises(KeyboardInterrupt):
        classify([str(images)], digits_folder, "gs://bucket/out", show=str)
    monkeypatch.setattr(type(client), "copy", copy)
    assert classify([str(images)], digits_folder, "gs://bucket/out", show=str)["resumed"] == 11
    assert names(client, "/bucket/out") == ["_labels.json", "part-00000.parquet"]


def test_a_damaged_part_is_made_again(digits_folder, images, client, monkeypatch):
    monkeypatch.setattr(parts, "ROWS_PER_PART", 3)
    publish = parts._publish
    monkeypatch.setattr(parts, "_publish", lambda *_: 1 / 0)
    with pytest.raises(InferenceError, match="division by zero"):
        classify([str(images)], digits_folder, "gs://bucket/out", show=str)
    (second,) = (name for name in client.find("/bucket/out") if name.endswith("part-00001.parquet"))
    client.pipe_file(second, client.cat_file(second)[:-9])
    monkeypatch.setattr(parts, "_publish", publish)
    assert classify([str(images)], digits_folder, "gs://bucket/out", show=str)["resumed"] == 3
    assert len(rows("/bucket/out", client)) == 11


@pytest.mark.parametrize("output", ["out", "out.csv"])
def test_a_run_for_another_column_starts_anew(digits_folder, images, tmp_path, monkeypatch, output):
    contents = pyarrow.array([path.read_bytes() for path in sorted(images.iterdir())], pyarrow.binary())
    table = {"image": contents, "mask": contents.take(list(reversed(range(11))))}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    monkeypatch.setattr(parts, "ROWS_PER_PART", 3)
    source, output = [str(tmp_path / "a.parquet")], tmp_path / output
    unpatched = classification.tqdm

    class Dies(unpatched):
        def update(self, count=1):
            super().update(count)
            if self.n == 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(classification, "tqdm", Dies)
    with pytest.raises(KeyboardInterrupt):
        classify(source, digits_folder, output, image_column="mask", show=str)
    monkeypatch.setattr(classification, "tqdm", unpatched)
    assert classify(source, digits_folder, output, image_column="image", show=str)["resumed"] == 0


def test_one_writer(digits_folder, images, client, monkeypatch):
    monkeypatch.setattr(parts, "_LEASE_ENDS", 1)

    def lease(**fields):
        about = {"id": "x", "host": "elsewhere", "process": 1, "count": 1, **fields}
        client.pipe_file("/bucket/out/_writer.json", json.dumps(about).encode())

    def run():
        return classify([str(images)], digits_folder, "gs://bucket/out", overwrite=True, show=str)

    def renew():
        for count in range(5):
            time.sleep(0.2)
            lease(count=count + 2)

    lease()
    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(InferenceError, match="is being written by process 1 of elsewhere; wait"):
        run()
    renewing.join()
    lease(host=parts._host(), process=os.getppid())
    with pytest.raises(InferenceError, match="is being written by process"):
        run()
    for ended in ({}, {"host": parts._host(), "process": 2**22 + 1}, {"host": parts._host(), "process": os.getpid()}):
        lease(**ended)
        run()
        assert names(client, "/bucket/out") == ["_labels.json", "part-00000.parquet"]
    by_this_process = pytest.raises(InferenceError, match="is being written by process")
    with parts.claimed_output("gs://bucket/out", [], True, "_labels.json"), by_this_process:
        run()
    client.pipe_file("/bucket/out/_writer.json", b"a novel")
    with pytest.raises(InferenceError, match="holds _writer.json, which is not written here"):
        run()
    assert client.cat_file("/bucket/out/_writer.json") == b"a novel"


@pytest.mark.parametrize("moment", ["_check_folder", "_publish"])
def test_what_another_run_has_finished_meanwhile_stays(digits_folder, images, client, monkeypatch, moment):
    original = getattr(parts, moment)

    def another_run_comes(*arguments):
        if moment == "_check_folder":
            original(*arguments)
        monkeypatch.setattr(parts, moment, original)
        client.rm_file("/bucket/out/_writer.json") if moment == "_publish" else None
        classify([str(images / "00.png")], digits_folder, "gs://bucket/out", top_k=1, show=str)
        if moment == "_publish":
            original(*arguments)

    monkeypatch.setattr(parts, moment, another_run_comes)
    with pytest.raises(InferenceError, match="exists already|took over from this one"):
        classify([str(images)], digits_folder, "gs://bucket/out", show=str)
    assert len(rows("/bucket/out", client)) == 1


def test_inputs_are_not_replaced(digits_folder, images, tmp_path):
    contents = [path.read_bytes() for path in sorted(images.iterdir())]
    parquet.write_table(pyarrow.table({"image": pyarrow.array(contents, pyarrow.binary())}), tmp_path / "a.parquet")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "a.parquet")
    out = images / "out"
    (out / "in").mkdir(parents=True)
    (out / "_labels.json").write_text("{}")
    (images / "00.png").rename(out / "in" / "00.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for sources, output in [
        ([tmp_path / "a.parquet"], tmp_path / "a.parquet"),
        ([tmp_path / "a.parquet"], tmp_path / "link.parquet"),
        ([images], out),
        ([images / "o*" / "i*" / "*.png"], out),
        ([images / "01.png"], images),
    ]:
        with pytest.raises(InferenceError, match="would replace the image|contains the source|refuses"):
            classify(list(map(str, sources)), digits_folder, output, overwrite=True, show=str)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_others_wrote_beside_the_parts_stays(digits_folder, images, client, monkeypatch):
    for name in ("part-00000-spark.parquet", "_unfinished-zzz/x"):
        client.pipe_file(f"/bucket/full/{name}", b"x")
        with pytest.raises(InferenceError, match=f"holds {name.partition('/')[0]}, which is not written here"):
            classify([str(images)], digits_folder, "gs://bucket/full", overwrite=True, show=str)
        client.rm_file(f"/bucket/full/{name}")
    for output in ("gs://bucket/a[1]/out", "gs://bucket/a?/out"):
        classify([str(images)], digits_folder, output, show=str)
        assert names(client, output.removeprefix("gs:/")) == ["_labels.json", "part-00000.parquet"]


def test_a_file_uri_as_output(digits_folder, images, tmp_path, capsys):
    command = ["classify", str(images), "--model", str(digits_folder), "--output"]
    assert main([*command, (tmp_path / "out.csv").as_uri()]) == 0
    assert main([*command, (tmp_path / "out").as_uri()]) == 0
    assert f"11 images -> {tmp_path}/out, 1 of them unreadable (the first: Cannot read" in capsys.readouterr().out
    assert (tmp_path / "out" / "_labels.json").is_file() and (tmp_path / "out.csv").is_file()


def test_a_damaged_part_here_is_made_again(digits_folder, images, tmp_path):
    with stopped_at(classification, "_labels.json"):
        classify([str(images)], digits_folder, tmp_path / "out", show=str)
    (part,) = tmp_path.glob(".out.*.unfinished/part-00000.parquet")
    content = part.read_bytes()
    part.write_bytes(content[:-200] + b"x" * 100 + content[-100:])
    assert classify([str(images)], digits_folder, tmp_path / "out", show=str)["resumed"] == 0


@pytest.mark.parametrize(
    "output, words",
    [
        ("gs://bucket/images", "contains the source gs://bucket/images"),
        ("gs://bucket", "contains the source gs://bucket/images"),
        ("gs://bucket/full", "holds notes.txt, which is not written here"),
        ("gs://bucket//out", "has a folder without a name"),
        ("GS://bucket/images", "contains the source gs://bucket/images"),
        ("gs://bucket/out.csv", "is a table in a storage, where folders are written"),
        ("hf://datasets/a/b", "every part would be a commit"),
        ("zz://bucket/out", "There is no storage zz://"),
        ("out.cvs", "expected a name that ends with .csv, .jsonl, .parquet, or a folder"),
    ],
)
def test_outputs_that_are_none_get_one_sentence(digits_folder, images, client, tmp_path, monkeypatch, output, words):
    monkeypatch.chdir(tmp_path)
    client.pipe_file("/bucket/full/notes.txt", b"")
    before = client.find("/")
    with pytest.raises(InferenceError, match=words):
        classify(["gs://bucket/images"], digits_folder, output, overwrite=True, show=str)
    assert client.find("/") == before and [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.fixture
def s3(monkeypatch):
    """moto's server on this machine, and a client."""
    if not all(map(importlib.util.find_spec, ("moto", "s3fs"))):
        pytest.skip("needs moto[server] and the extra [s3]")
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(f"{address}/moto-api/reset", data=b"")  # what a server before it held in this process
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    for bucket in ("photos", "out"):
        client.mkdir(bucket)
    client.address, client.server = address, server
    yield client
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_s3_is_read_and_written(digits_folder, images, s3, tmp_path, capsys):
    for path in images.iterdir():
        s3.pipe_file(f"photos/a/{path.name}", path.read_bytes())
    command = ["classify", "s3://photos/a/", "--model", str(digits_folder), "--output", "s3://out/labels/"]
    assert main(command) == 0
    assert "11 images -> s3://out/labels/, 1 of them unreadable" in capsys.readouterr().out
    assert main(command) == 1 and "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--top-k", "1"]) == 0
    assert main([*command, "--overwrite"]) == 0
    assert main(["embed", str(images), "--model", str(digits_folder), "--output", "s3://out/vectors"]) == 0
    classify([str(images)], digits_folder, tmp_path / "labels", show=str)
    embed([str(images)], digits_folder, tmp_path / "vectors", show=str)
    assert rows("out/labels", s3) == rows(tmp_path / "labels")
    assert rows("out/vectors", s3) == rows(tmp_path / "vectors")
    assert names(s3, "out/labels") == ["_labels.json", "part-00000.parquet"]


@pytest.mark.slow
def test_a_storage_that_refuses_or_does_not_answer_is_one_line(
    digits_folder, images, s3, tmp_path, monkeypatch, capsys
):
    s3.pipe_file("photos/a/0.png", (images / "00.png").read_bytes())
    here = ["--model", str(digits_folder), "--output", str(tmp_path / "out.csv")]

    def line(*command):
        assert main([*command]) == 1
        (only,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hgnetv2-hf:")]
        return only

    def both():
        return line("classify", "s3://photos/a", *here), line("classify", str(images), *here[:3], "s3://out/labels")

    assert "no image s3://nowhere/a (The specified bucket does not exist)" in line("classify", "s3://nowhere/a", *here)
    there = line("classify", str(images), *here[:3], "s3://nowhere/labels")
    assert "There is no s3://nowhere/labels (The specified bucket does not exist)" in there
    check_access = {
        "url": f"{s3.address}/moto-api/reset-auth",
        "data": b"0",
        "headers": {"Content-Type": "text/plain"},
    }
    urllib.request.urlopen(urllib.request.Request(**check_access))
    assert all("access is refused" in each for each in both())
    s3.server.stop()
    assert all("Could not connect to the endpoint" in each for each in both())
    monkeypatch.setattr(storage, "_SECONDS", 0.3)
    type(s3).clear_instance_cache()
    port = int(s3.address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):  # which takes connections and says nothing
        assert all("Read timeout" in each for each in both())
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
