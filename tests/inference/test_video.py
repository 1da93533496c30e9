"""`detect` of a video: a row per object and frame, an annotated video with the frames' own times, whatever breaks."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
import transformers

from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.inference.detect import detect


av = pytest.importorskip("av", reason="comes with the extra [video]")
SIDES = ["xmin", "ymin", "xmax", "ymax"]


def write_video(path, count=13, size=(90, 64), codec="mpeg4"):
    """A coarse pattern that moves; its frames have no even distance in time."""
    random = np.random.RandomState(0)
    pattern = np.asarray(PIL.Image.fromarray(random.randint(0, 256, (6, 9, 3), dtype="uint8")).resize(size))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(pattern, 5 * index, axis=1), format="rgb24")
            frame.pts = 2 * index + (index > 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path):
    with av.open(str(path)) as container:
        return [(round(float(frame.time), 3), frame.to_image()) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "moving.mp4")


def test_rows_and_frames_are_those_of_the_video(detector, video, tmp_path):
    counts = detect([str(video)], detector, tmp_path / "out", threshold=0.3, batch_size=3, show=str)
    frames = frames_of(video)
    with open(tmp_path / "out" / "detections.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert (counts["frames"], counts["objects"], counts["unreadable"]) == (13, len(table), 0)
    pipe = transformers.pipeline("object-detection", model=str(detector), device="cpu")
    for number, (time, image) in enumerate(frames):
        found = [row for row in table if int(row["frame"]) == number]
        expected = pipe(image, threshold=0.3)
        assert [row["label"] for row in found] == [each["label"] for each in expected] and found
        assert all(float(row["seconds"]) == pytest.approx(time, abs=1e-3) for row in found)
        for row, each in zip(found, expected):
            assert float(row["score"]) == pytest.approx(each["score"], abs=1e-4)
            assert [int(float(row[side])) for side in SIDES] == pytest.approx(list(each["box"].values()), abs=1)
    annotated = frames_of(tmp_path / "out" / "annotated.mp4")
    assert [time for time, _ in annotated] == pytest.approx([time for time, _ in frames], abs=2e-3)
    assert {image.size for _, image in annotated} == {(90, 64)}
    drawn = np.abs(np.asarray(annotated[0][1], dtype="int64") - np.asarray(frames[0][1])).max(-1)
    assert (drawn > 60).mean() > 0.02  # boxes, which the video has none of
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"annotated.mp4", "detections.csv"}


def test_the_table_alone(detector, video, tmp_path):
    detect([str(video)], detector, tmp_path / "out", 0.3, "jsonl", top_k=1, pictures=False, show=str)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["detections.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(13))


def test_odd_sides_are_filled_up(detector, tmp_path):
    video = write_video(tmp_path / "odd.avi", count=2, size=(75, 51), codec="ffv1")
    detect([str(video)], detector, tmp_path / "out", 0.3, show=str)
    assert [image.size for _, image in frames_of(tmp_path / "out" / "annotated.mp4")] == [(76, 52)] * 2


def test_a_video_that_breaks_off_keeps_what_was_read(detector, tmp_path):
    video = write_video(tmp_path / "broken.avi", count=40, codec="ffv1")
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 2] + bytes(5000))
    said = []
    counts = detect([str(video)], detector, tmp_path / "out", 0.3, pictures=False, show=said.append)
    assert 1 <= counts["frames"] < 40 and counts["unreadable"] == 1
    (line,) = said
    assert "not the whole video" in line
    with open(tmp_path / "out" / "detections.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file))[-1]["error"]


def test_a_video_that_ends_before_its_length_is_not_whole(detector, tmp_path):
    video = write_video(tmp_path / "long.mkv", count=60, codec="ffv1")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    said = []
    counts = detect([str(video)], detector, tmp_path / "out", 0.3, pictures=False, show=said.append)
    assert counts["frames"] < 40 and counts["unreadable"] == 1 and "it ends after" in said[0]


def test_what_no_codec_can_write_is_said(detector, tmp_path):
    video = tmp_path / "gaps.mkv"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype="uint8"), format="rgb24")
            frame.pts = index * 25_000_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InferenceError, match="--no-pictures writes the table alone"):
        detect([str(video)], detector, tmp_path / "out", 0.3, show=str)
    assert not (tmp_path / "out").exists()
    assert detect([str(video)], detector, tmp_path / "out", 0.3, pictures=False, show=str)["frames"] == 4


def test_what_is_no_video_is_said_in_one_sentence(detector, video, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mkv").write_bytes(b"")
    for name in ("text.mp4", "empty.mkv", "missing.mov"):
        with pytest.raises(InferenceError, match="is no video that can be opened"):
            detect([str(tmp_path / name)], detector, tmp_path / "out", show=str)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "float32"), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InferenceError, match="there are no pictures in it"):
        detect([str(tmp_path / "sound.mp4")], detector, tmp_path / "out", show=str)
    with pytest.raises(InferenceError, match="One video at a time"):
        detect([str(tmp_path / "*.mp4")], detector, tmp_path / "out", show=str)
    with pytest.raises(InferenceError, match="One video at a time"):
        detect([str(video), str(tmp_path)], detector, tmp_path / "out", show=str)
    with pytest.raises(InferenceError, match="csv or jsonl, not coco"):
        detect([str(video)], detector, tmp_path / "out", format="coco", show=str)
    assert not (tmp_path / "out").exists()
