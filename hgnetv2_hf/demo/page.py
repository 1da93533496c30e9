"""The page: one image, every model's answer to it beside the others'."""

import html
import os
import socket
import tempfile
from contextlib import contextmanager

import PIL.Image

from ..errors import HGNetV2Error, InferenceError, raised_as
from ..files.images import UNREADABLE, find_images, printable_path
from ..wording import sentence
from .answers import TOP_K, answer, heat_map, load


LARGEST_FILE = 20 * 2**20  # bytes
_SECONDS_KEPT = 600  # of uploaded and drawn files, while the page is served


@raised_as(InferenceError)
def serve(models, examples=(), host=None, port=None, show=print):
    """
    Serves the page until it is interrupted. Uploads are removed after minutes, all of them at the end.

    Args:
        models (`list[str]`): classifiers and detectors: folders, repositories, or folders of `hgnetv2-hf export`.
        examples (`list[str]`, *optional*): image files, folders or globs to choose from.
        host (`str`, *optional*): the address to listen on; by default this machine alone, or `GRADIO_SERVER_NAME`.
        port (`int`, *optional*): by default the first free one from 7860, or `GRADIO_SERVER_PORT`.
        show (callable, defaults to `print`): receives the address.

    Raises:
        `InferenceError`: a model cannot be loaded, there are no such images, or nobody can listen there.
    """
    with _own_files():
        page = build(models, examples)
        _check_address(host or os.environ.get("GRADIO_SERVER_NAME"), port)
        try:
            _, address, _ = page.launch(
                server_name=host, server_port=port, max_file_size=LARGEST_FILE, quiet=True, show_error=True,
                prevent_thread_lock=True, ssr_mode=False, footer_links=[],
            )  # fmt: skip
        except Exception as error:  # each library inside Gradio has errors of its own
            raise InferenceError(f"Cannot serve the page: {sentence(error)[:200]}") from error
        show(f"{address} (Ctrl+C ends it)")
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)


def _check_address(host, port):
    """Gradio would try a hundred ports, and wait for each."""
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host or "127.0.0.1", port or 0))
    except (OSError, OverflowError) as error:
        place = f"{host or '127.0.0.1'}{f':{port}' if port else ''}"
        raise InferenceError(f"Cannot listen on {place}: {getattr(error, 'strerror', None) or error}.") from error


@contextmanager
def _own_files():
    """What the page writes lies in a folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="hgnetv2-hf-demo-") as folder:
        before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def import_gradio():
    try:
        import gradio
    except ImportError as error:
        raise InferenceError('The page needs Gradio 6: pip install "hgnetv2-hf[demo]".') from error
    return gradio


def build(models, examples=()):
    """
    Args:
        models, examples: as in [`serve`].

    Returns:
        `gradio.Blocks`
    """
    gradio = import_gradio()
    files = _images(examples)
    loaded = [load(each) for each in models]
    names = _short_names([each.name for each in loaded])
    page = gradio.Blocks(title="PP-HGNetV2", analytics_enabled=False, delete_cache=(60, _SECONDS_KEPT))
    with page, gradio.Row():
        with gradio.Column():
            photo = gradio.Image(label="Image", sources=["upload", "webcam", "clipboard"], type="filepath")
            photo.preprocess = lambda given: given and given.path  # Gradio's opens the file, whatever its size
            threshold = gradio.Slider(
                0.05, 0.95, 0.5, step=0.05, label="Score from which an object is shown",
                visible=any(each.task == "detector" for each in loaded),
            )  # fmt: skip
            if files:
                gradio.Examples([[file] for file in files], [photo], label="Examples", examples_per_page=20)
        for model, name in zip(loaded, names):
            with gradio.Column(min_width=320):
                gradio.HTML(f"<h3>{html.escape(name)}</h3>")
                if model.task == "classifier":
                    _show_classifier(gradio, model, photo)
                else:
                    _show_detector(gradio, model, photo, threshold)
    return page


def _images(paths):
    files = list(find_images(paths)) if paths else []
    for file in files:
        try:
            with PIL.Image.open(file):
                pass
        except UNREADABLE as error:
            raise InferenceError(f"The example {printable_path(file)} is no image that can be read.") from error
    return files


def _short_names(names):
    """The last part of each, or all of it where another ends so."""
    last = [name.rstrip("/").rpartition("/")[2] for name in names]
    return [short if last.count(short) == 1 else name for short, name in zip(last, names)]


def _show_classifier(gradio, model, photo):
    took = gradio.Markdown()
    scores = gradio.Label(num_top_classes=TOP_K, show_label=False)
    if model.explained is None:

        def answered(path):
            found = answer(model, path)
            return found.time, found.scores

        _on(photo.change, gradio, answered, [photo], [took, scores])
        return
    chosen = gradio.Radio(label="What the network sees, and where it sees", visible=False)
    heat = gradio.Image(show_label=False, visible=False, buttons=["download", "fullscreen"])

    def explained(path):
        found = answer(model, path)
        best = found.classes[0][1]
        radio = gradio.update(choices=found.classes, value=best, visible=True)
        return found.time, found.scores, radio, gradio.update(value=heat_map(model, path, best), visible=True)

    def another(path, target):
        return gradio.skip(), gradio.update(value=heat_map(model, path, target), visible=True)

    _on(photo.change, gradio, explained, [photo], [took, scores, chosen, heat])
    _on(chosen.input, gradio, another, [photo, chosen], [took, heat])


def _show_detector(gradio, model, photo, threshold):
    took = gradio.Markdown()
    picture = gradio.Image(show_label=False, visible=False, buttons=["download", "fullscreen"])

    def answered(path, threshold):
        found = answer(model, path, 0.5 if threshold is None else threshold)
        return found.time, gradio.update(value=found.picture, visible=True)

    for event in (photo.change, threshold.release):
        _on(event, gradio, answered, [photo, threshold], [took, picture])


def _on(event, gradio, compute, inputs, outputs):
    """What cannot be answered is a sentence in the first output, and empties the others; no image empties all."""

    def answered(path, *values):
        reason = None
        if path is not None:
            try:
                return compute(path, *values)
            except HGNetV2Error as error:
                reason = f"**No answer.** {error}"
        hidden = [gradio.update(value=None, visible=isinstance(each, gradio.Label)) for each in outputs[1:]]
        return reason, *hidden

    event(answered, inputs, outputs, api_visibility="private", show_progress="minimal")
