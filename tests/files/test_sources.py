"""Images in folders, storages, Parquet files and tars: each found once, in order, and read as it lies there."""

import io
import os
import tarfile

import fsspec
import numpy as np
import PIL.Image
import pytest

from hgnetv2_hf.errors import DataError
from hgnetv2_hf.files.sources import Sources, open_image, read_image


def encoded(seed):
    pixels = np.random.RandomState(seed).randint(0, 256, (8, 9, 3), dtype="uint8")
    PIL.Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


IMAGES = {f"{index}.png": encoded(index) for index in range(5)}


def read(paths, **options):
    """Names and bytes; the error where there are none."""
    found = []
    for each in Sources(paths, **options):
        try:
            found.append((each.name, read_image(each)[1]))
        except ValueError as error:
            found.append((each.name, str(error).removeprefix(f"Cannot read the image {each.name}: ")))
    return found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, content in IMAGES.items():
        (tmp_path / "images" / name).write_bytes(content)
    return tmp_path / "images"


@pytest.fixture(params=["gs", "hf", "s3"])
def storage(request, replaced_client):
    client = replaced_client(request.param)
    for name, content in IMAGES.items():
        client.pipe_file(f"/bucket/images/{name}", content)
    client.pipe_file("/bucket/images/inside/.hidden.png", b"")
    client.pipe_file("/bucket/images/inside/a#b %20.png", IMAGES["0.png"])
    client.pipe_file("/bucket/images/notes.txt", b"")
    return request.param, client


def test_a_storages_files_folders_and_globs(storage):
    scheme, _ = storage
    root = f"{scheme}://bucket/images"
    expected = [(f"{root}/{name}", content) for name, content in IMAGES.items()]
    inside = (f"{root}/inside/a#b %20.png", IMAGES["0.png"])
    assert read([root]) == [*expected, inside] == read([f"{root}/"])
    assert read([f"{root}/[12].png", f"{root}/4.png", f"{root}/inside/a#b %20.png"]) == [
        *expected[1:3], expected[4], inside,
    ]  # fmt: skip
    assert Sources([root]).remote
    assert read([root.replace(scheme, scheme.upper())]) == [*expected, inside]


def test_a_storage_without_the_images_or_that_fails(storage, tmp_path, monkeypatch):
    scheme, client = storage
    for missing in ("bucket/nowhere", "bucket/images/9*.png", "nowhere/images/"):
        with pytest.raises(DataError, match=f"There is no image {scheme}://") as caught:
            Sources([f"{scheme}://{missing}"])
        assert caught.value.args[0].count("://") == 1
    client.pipe_file("/bucket/cut.tar", tar(tmp_path / "a.tar", [("0.png", IMAGES["0.png"])]).read_bytes()[:512])
    assert "ends inside it" in read([f"{scheme}://bucket/cut.tar"])[0][1]
    (first, *_) = Sources([f"{scheme}://bucket/images"])
    monkeypatch.setattr(type(client), "cat_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("Forbidden")))
    with pytest.raises(DataError, match=r"0.png: access is refused \(Forbidden\)"):
        open_image(first)
    monkeypatch.setattr(type(client), "cat_file", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match=r"0.png: the storage cannot be used \(division by zero\)"):
        open_image(first)


def test_a_file_uri_names_a_file_of_this_machine(folder, tmp_path):
    (tmp_path / "a b#?.png").write_bytes(IMAGES["0.png"])
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/z\xff.png")
    with open(odd, "wb") as file:
        file.write(IMAGES["1.png"])
    uris = [
        folder.as_uri(),
        (tmp_path / "a b#?.png").as_uri(),
        f"file://{tmp_path}/z%FF.png",
        f"file://{tmp_path}/a b#?.png",
    ]
    found = read(uris)
    assert [name for name, _ in found[-3:]] == [str(tmp_path / "a b#?.png"), odd, str(tmp_path / "a b#?.png")]
    assert [content for _, content in found] == [
        *IMAGES.values(),
        *[IMAGES[each] for each in ("0.png", "1.png", "0.png")],
    ]
    assert read([f"LOCAL://localhost{folder}"]) == found[: len(IMAGES)]
    with pytest.raises(DataError, match="lies on the machine .bad"):
        Sources(["file://[bad/a.png"])
    with pytest.raises(DataError, match="lies on the machine elsewhere"):
        Sources(["file://elsewhere/a.png"])


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_tar_is_its_images(tmp_path, storage):
    scheme, client = storage
    members = [("a/0.png", IMAGES["0.png"]), ("a/0.cls", b"3"), ("a/.1.png", b""), ("1.jpg", IMAGES["1.png"])]
    path = tar(tmp_path / "shard-000.tar", members)
    expected = [IMAGES["0.png"], IMAGES["1.png"]]
    assert read([str(path)]) == [(f"{path}#{name}", each) for name, each in zip(("a/0.png", "1.jpg"), expected)]
    client.pipe_file("/bucket/shards/shard-000.tar", path.read_bytes())
    assert [content for _, content in read([f"{scheme}://bucket/shards/*.tar"])] == expected
    content = path.read_bytes()
    path.write_bytes(content[:1024] + b"damage" * 86 + content[1540:])
    (first, other) = read([str(path)])
    assert first[1] == expected[0] and other == (str(path), "the tar file is damaged after 1 image")
    path.write_bytes(content[:700])
    assert "ends inside it" in read([str(path)])[0][1]
    path.write_bytes(b"no tar")
    assert "no tar file that can be read" in read([str(path)])[0][1]
    client.pipe_file("/bucket/shards/shard-000.tar", b"no tar")
    assert "no tar file that can be read" in read([f"{scheme}://bucket/shards/*.tar"])[0][1]
    with pytest.raises(DataError, match=r"holds 0.png twice"):
        Sources([str(tar(path, [("0.png", b""), ("0.png", b"")]))])
    with pytest.raises(DataError, match="There is no image in"):
        Sources([str(tar(path, [("0.cls", b"1")]))])
    path.rename(tmp_path / "shard.tar.gz")
    with pytest.raises(DataError, match="is compressed"):
        Sources([str(tmp_path / "shard.tar.gz")])


def header(name, size, **fields):
    """Of a tar's member, whose size may be any number."""
    member = tarfile.TarInfo(name)
    member.size = 0
    for field, value in fields.items():
        setattr(member, field, value)
    content = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    content[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")
    content[148:156] = b"%06o\0 " % (256 + sum(content[:148]) + sum(content[156:512]))
    return bytes(content)


@pytest.mark.parametrize(
    "content, words",
    [
        (header("0.txt", 0) + header("1.txt", -512), "a size in it is negative"),
        (header("0.txt", 0) + header("1.png", -512), "a size in it is negative"),
        (header("1.png", 2**80), "no tar file that can be read"),
        (header("1.txt", 2**80), "no tar file that can be read"),
        (header("x", 2**45, type=tarfile.GNUTYPE_LONGNAME), "no tar file that can be read"),
        (header("x", 2**80, type=tarfile.GNUTYPE_LONGNAME), "no tar file that can be read"),
        (header("1.png", 2**45), "the file ends inside it"),
        (header("1.png", 0, type=tarfile.LNKTYPE, linkname="2.png") + b"\0" * 1024, "a link to 2.png, not in the tar"),
        (header("1.txt", 0) + b"\0" * 1024 + b"more", "something follows the end of the tar file, after 0 images"),
    ],
)
def test_a_hostile_tar_is_a_row(tmp_path, content, words):
    (tmp_path / "a.tar").write_bytes(content)
    assert any(words in str(each) for _, each in read([str(tmp_path / "a.tar")]))


def test_hard_links_in_a_tar_are_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, target in (("0.png", None), ("1.png", "0.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.LNKTYPE, target) if target else (tarfile.REGTYPE, "")
            member.size = 0 if target else len(IMAGES["0.png"])
            archive.addfile(member, None if target else io.BytesIO(IMAGES["0.png"]))
    assert [content for _, content in read([str(tmp_path / "a.tar")])] == [IMAGES["0.png"]] * 2


def test_a_parquet_file_is_its_rows(tmp_path, storage, folder):
    pyarrow = pytest.importorskip("pyarrow", reason="comes with the extra [parquet]")
    parquet = pytest.importorskip("pyarrow.parquet")
    scheme, client = storage
    values = [*IMAGES.values(), None]
    plain = pyarrow.array(values, pyarrow.binary())
    nested = pyarrow.array([{"bytes": each, "path": each and "x"} for each in values])
    path, labels = tmp_path / "train.parquet", pyarrow.array(range(6))
    expected = [*IMAGES.values(), "the row holds no image"]
    for column in (plain, nested, plain.cast(pyarrow.large_binary())):
        parquet.write_table(pyarrow.table({"label": labels, "image": column}), path, row_group_size=2)
        assert read([str(path)]) == [(f"{path}#{index}", each) for index, each in enumerate(expected)]
        client.pipe_file("/bucket/train.parquet", path.read_bytes())
        assert [content for _, content in read([f"{scheme}://bucket/train.parquet"])] == expected
    parquet.write_table(pyarrow.table({"image.bytes": plain.take([1] * 6), "image": nested}), path)
    assert [content for _, content in read([str(path)], image_column="image")] == expected
    parquet.write_table(pyarrow.table({"image": plain[:5].dictionary_encode()}), path)
    before = list(Sources([str(path)]))
    assert [content for _, content in read([str(path)])] == expected[:5]
    parquet.write_table(pyarrow.table({"image": plain[:2]}), path)
    with pytest.raises(ValueError, match="the file has fewer rows than it had"):
        open_image(before[4]._replace(stamp=[0, 0]))
    parquet.write_table(pyarrow.table({"image": plain[:0]}), path)
    with pytest.raises(DataError, match="There is no image in"):
        Sources([str(path)])
    parquet.write_table(pyarrow.table({"mask": plain, "image": plain}), path)
    with pytest.raises(DataError, match=r"hold bytes \(mask, image\); name the one with the images: --image-column"):
        Sources([str(path)])
    assert len(read([str(path)], image_column="image")) == 6
    with pytest.raises(DataError, match="has no column photo that holds images; those with bytes are mask, image"):
        Sources([str(path)], image_column="photo")
    parquet.write_table(pyarrow.table({"label": labels}), path)
    with pytest.raises(DataError, match="No column of .* holds images .*; it has label"):
        Sources([str(path)])
    with pytest.raises(DataError, match=r"image_column \(image\) is for Parquet files, and none is given"):
        Sources([str(folder)], image_column="image")
    (tmp_path / "beside.png").write_bytes(IMAGES["3.png"])
    places = [{"bytes": None, "path": str(tmp_path / name)} for name in ("beside.png", "nowhere.png")]
    parquet.write_table(pyarrow.table({"image": pyarrow.array([*places, None], nested.type)}), path)
    assert [content for _, content in read([str(path)])] == [
        IMAGES["3.png"],
        f"the row holds no image, and there is no file {tmp_path}/nowhere.png, which it names",
        "the row holds no image",
    ]
    path.write_bytes(b"PAR1 no")
    assert "no Parquet file that can be read" in read([str(path)])[0][1]


def test_a_protocol_without_a_client_is_one_sentence(monkeypatch):
    def lacks(protocol):
        raise ImportError("Install gcsfs")

    with pytest.raises(DataError, match="There is no storage zz://"):
        Sources(["zz://bucket/a.png"])
    monkeypatch.setattr(fsspec, "get_filesystem_class", lacks)
    with pytest.raises(DataError, match=r'gs:// needs its client: pip install "hgnetv2-hf\[gcs\]"'):
        Sources(["gs://bucket/a.png"])
    with pytest.raises(DataError, match=r"abfs:// needs its client: Install gcsfs"):
        Sources(["abfs://bucket/a.png"])


def test_errors_name_the_image_and_not_a_place_in_memory(folder, storage):
    scheme, client = storage
    client.pipe_file("/bucket/bad.png", b"no image")
    (folder / "0.png").write_bytes(b"no image")
    for path in (f"{scheme}://bucket/bad.png", str(folder / "0.png")):
        (found,) = Sources([path])
        with pytest.raises(ValueError, match=f"Cannot read the image {path}: cannot identify image file '{path}'"):
            open_image(found)


def test_the_listing_may_be_larger_than_memory(folder, monkeypatch):
    monkeypatch.setattr("hgnetv2_hf.files.sources._LISTED_IN_MEMORY", 10)
    sources = Sources([str(folder)] * 50)
    one, other = iter(sources), iter(sources)
    assert len(sources) == 250 and next(one) == next(other) and len(list(one)) == len(list(other)) == 249
