"""Objects in a video, as an annotated video and a table, frame after frame in constant memory, through PyAV."""

import contextlib
import csv
import errno
import fractions
import importlib.util
import json
import os
from functools import partial
from pathlib import Path

import PIL.Image
from tqdm.auto import tqdm

from ..errors import InferenceError
from ..files.atomic import atomic_folder, claim
from ..files.images import printable_path
from ..wording import counted, printable, sentence
from .detections import SIDES, as_objects
from .stages import in_stages


VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
TABLES = {"csv": "detections.csv", "jsonl": "detections.jsonl"}
_COLUMNS = ("frame", "seconds", "label", "score", *SIDES, "error")
_ANNOTATED = "annotated.mp4"
_SLACK = 0.1  # seconds
_CODECS = ("libx264", "mpeg4")  # the first that PyAV was built with


def is_video(path):
    """Whether a path is taken for a video: by its ending."""
    return str(path).lower().endswith(VIDEO_SUFFIXES)


def detect_in_video(
    path, load, answers, draw, output_dir, threshold, format, overwrite, show, top_k, pictures, batch_size, workers
):  # fmt: skip
    """
    Args:
        path (`str`): the video.
        load (callable): to the labels, the predictor, and the largest batch that it takes, after the video was opened.
        answers (callable): predictor and decoded images to detections.
        draw (callable): an image and its objects to the annotated image.
        pictures (`bool`): write `annotated.mp4`, H.264 with the frames' own times, without sound.
        output_dir, threshold, format, overwrite, show, top_k, batch_size, workers: see `detect`.

    Returns:
        `dict`: `frames`, `objects`, and `unreadable`: 1 where it was not read whole, 0 else.

    Raises:
        `InferenceError`: PyAV is not installed, or the file is no video that can be opened.
    """
    if format not in TABLES:
        raise InferenceError(f"Of a video the table is {' or '.join(TABLES)}, not {format}.")
    if importlib.util.find_spec("av") is None:
        raise InferenceError('Videos need PyAV: pip install "hgnetv2-hf[video]".')
    import av

    try:
        container = av.open(os.fspath(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InferenceError(f"{path} is no video that can be opened: {sentence(error)[:200]}") from error
    if not container.streams.video:
        container.close()
        raise InferenceError(f"{path} is no video that can be opened: there are no pictures in it.")
    stream = container.streams.video[0]
    with container, claim(output_dir, [path], overwrite, TABLES.values()):
        labels, predictor, largest = load()
        with atomic_folder(output_dir) as folder:
            with open(folder / TABLES[format], "w", encoding="utf-8", newline="") as table:
                write = _table(table, format)
                writer = _Writer(folder / _ANNOTATED, stream) if pictures else None

                def finish(frame, decoded, found):
                    objects = as_objects(found, labels, threshold, top_k)
                    return lambda: (objects, draw(decoded[0], objects) if pictures else None)

                counts, problem = {"frames": 0, "objects": 0, "unreadable": 0}, []
                staged = in_stages(
                    _frames(container, stream, problem),
                    lambda frame: (frame[2], predictor.pixels(frame[2])),
                    partial(answers, predictor),
                    finish,
                    min(batch_size, largest or batch_size),
                    workers,
                )
                with tqdm(total=stream.frames or None, desc="detect", unit="frame", mininterval=0.5) as progress:
                    for (number, time, _), _, (objects, annotated) in staged:
                        for each in objects:
                            write({"frame": number, "seconds": time, **_columns(each)})
                        if writer is not None:
                            with _written():
                                writer.add(annotated, time)
                        counts["frames"] += 1
                        counts["objects"] += len(objects)
                        progress.update()
                if problem:
                    counts["unreadable"] = 1
                    write({"frame": counts["frames"], "error": problem[0]})
                if writer is not None:
                    with _written():
                        writer.close()
            if not counts["frames"]:
                raise InferenceError(f"No frame of {path} can be read{': ' + problem[0] if problem else ''}.")
    show(
        f"{counted(counts['objects'], 'object')} in {counted(counts['frames'], 'frame')} -> "
        f"{printable_path(output_dir)} ({_ANNOTATED + ' and ' if pictures else ''}{TABLES[format]})"
        + (f"; not the whole video: {problem[0]}" if problem else "")
    )
    return counts


@contextlib.contextmanager
def _written():
    import av

    try:
        yield
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise InferenceError(
            f"The annotated video cannot be written: {sentence(error)[:200]}; --no-pictures writes the table alone."
        ) from error


def _frames(container, stream, problem):
    """`(number, seconds, image)` of each, upright; what ends them early or damages some goes to `problem`."""
    import av

    number, end, damaged = -1, 0.0, 0
    try:
        for number, frame in enumerate(container.decode(stream)):
            damaged += frame.is_corrupt
            seconds = frame.time if frame.time is not None else number / float(stream.average_rate or 25)
            turns = round(frame.rotation / 90) % 4
            image = frame.to_image()
            lasts = (frame.duration or 0) * (frame.time_base or 0) or 1 / (stream.average_rate or 25)
            end = float(seconds + lasts)
            yield number, round(seconds, 6), image.rotate(90 * turns, expand=True) if turns else image
        stated = _stated_length(container, stream)
        if number + 1 < stream.frames:
            problem.append(f"{number + 1} of {stream.frames} frames can be read")
        elif end < 0.95 * stated - _SLACK:
            problem.append(f"it ends after {end:.2f} of {stated:.2f} seconds")
        elif damaged:
            problem.append(f"{damaged} frames are damaged")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        problem.append(printable(sentence(error))[:200])


def _stated_length(container, stream):
    """Seconds, or 0 where the file does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    is_alone = len(container.streams) == 1  # else sound may last longer
    return (container.duration or 0) / 1e6 if is_alone else 0.0


def _columns(each):
    box = {side: round(value, 2) for side, value in each["box"].items()}
    return {"label": printable(each["label"]), "score": round(each["score"], 6), **box}


def _table(file, format):
    """A function that writes a row."""
    if format == "jsonl":
        return lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")
    writer = csv.DictWriter(file, _COLUMNS)
    writer.writeheader()
    return writer.writerow


class _Writer:
    """Frames of one size at times of their own."""

    def __init__(self, path: Path, source):
        import av

        codec = next(name for name in _CODECS if name in av.codecs_available)
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(codec, rate=source.average_rate or 25)
        self._stream.pix_fmt = "yuv420p"
        self._time_base = fractions.Fraction(1, 90_000)
        self._stream.codec_context.time_base = self._time_base
        self._size, self._last = None, -1

    def add(self, image, seconds):
        import av

        if self._size is None:
            self._size = tuple(side + side % 2 for side in image.size)  # the colours of two pixels are one
            self._stream.width, self._stream.height = self._size
        if image.size != self._size:
            canvas = PIL.Image.new("RGB", self._size)
            canvas.paste(image)
            image = canvas
        frame = av.VideoFrame.from_image(image)
        frame.time_base = self._time_base
        frame.pts = self._last = max(self._last + 1, round(seconds * 90_000))
        self._container.mux(self._stream.encode(frame))

    def close(self):
        if self._size is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
