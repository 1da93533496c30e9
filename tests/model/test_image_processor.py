"""The image processor: PaddleClas's pixels with PIL, the same geometry with torchvision, clear refusals."""

import io
import json

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import slow_except
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,
)  # 5.8 and 5.16 hide it without torchvision
from transformers.utils import is_torchvision_available

from hgnetv2_hf import HGNetV2ImageProcessor, HGNetV2ImageProcessorFast
from hgnetv2_hf.model import image_processing_hgnetv2 as module


needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed here")


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return np.frombuffer(buffer.getvalue(), "uint8")


def decode(data):
    return PIL.Image.open(io.BytesIO(data.tobytes()))


@pytest.fixture(scope="session")
def photos():
    """Photos that scikit-learn and scikit-image ship, resized to many shapes, encoded: name -> bytes."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    random = np.random.RandomState(0)
    originals = [*load_sample_images().images]
    originals += [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket", "cat")]
    encoded = {}
    for photo in map(PIL.Image.fromarray, originals):
        for _ in range(16):
            size = tuple(int(side) for side in random.randint(20, 700, 2))
            encoded[f"image:{len(encoded)}"] = encode(photo.convert("RGB").resize(size, PIL.Image.Resampling.BILINEAR))
    return encoded


@pytest.fixture(scope="session")
def edge_cases(photos):
    """Every mode and shape that a user may hand over."""
    random = np.random.RandomState(1)
    photo = decode(photos["image:0"]).convert("RGB").resize((300, 260))
    with_alpha = photo.copy()
    with_alpha.putalpha(PIL.Image.fromarray(random.randint(0, 255, (260, 300)).astype("uint8")))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    return {
        "image:one_pixel": encode(photo.resize((1, 1))),
        "image:very_wide": encode(photo.resize((5000, 1))),
        "image:tall_and_shrinking": encode(photo.resize((300, 1100))),
        "image:exact": encode(photo.resize((232, 232))),
        "image:grey": encode(photo.convert("L")),
        "image:palette": encode(photo.convert("P")),
        "image:grey_alpha": encode(photo.convert("LA")),
        "image:rgba": encode(with_alpha),
        "image:one_bit": encode(photo.convert("1")),
        "image:16_bit": encode(PIL.Image.fromarray(random.randint(0, 65535, (260, 300)).astype("uint16"))),
        "image:noise": encode(PIL.Image.fromarray(random.randint(0, 255, (260, 300, 3)).astype("uint8"))),
        "image:jpeg": encode(photo, "JPEG", quality=90),
        "image:exif": encode(photo, "JPEG", quality=95, exif=exif),
        "image:cmyk": encode(photo.convert("CMYK"), "JPEG", quality=95),
    }


@pytest.mark.paddle
@pytest.mark.parametrize("resize_short", slow_except([232, 236, 288], 232))
def test_pixels_equal_those_of_paddleclas_operators_bit_for_bit(paddle, photos, edge_cases, resize_short):
    images = {**photos, **edge_cases} if resize_short == 232 else photos
    expected = paddle("transform", resize_short=resize_short, crop_size=224, **images)
    assert expected["pillow"] == PIL.__version__, (
        "install the same Pillow beside PaddleClas: versions resize differently"
    )
    processor = HGNetV2ImageProcessor(size={"shortest_edge": resize_short}, crop_size={"height": 224, "width": 224})
    different = {}
    for name, data in images.items():
        ours = processor(decode(data), return_tensors="np", data_format="channels_last")["pixel_values"][0]
        assert ours.dtype == np.float32
        if not np.array_equal(ours, expected[name]):
            different[name] = float(np.abs(ours - expected[name]).max())
    assert len(images) >= 100
    assert not different


@pytest.mark.slow
@pytest.mark.paddle
def test_a_very_tall_image_equals_paddleclas(paddle, photos):
    data = encode(decode(photos["image:0"]).convert("RGB").resize((1, 5000)))
    expected = paddle("transform", resize_short=232, crop_size=224, **{"image:tall": data})
    ours = HGNetV2ImageProcessor()(decode(data), return_tensors="np", data_format="channels_last")["pixel_values"][0]
    assert np.array_equal(ours, expected["image:tall"])


def test_resizing_in_strips_gives_the_bytes_of_pil(monkeypatch, photos):
    monkeypatch.setattr(module, "_STRIP_PIXELS", 5000)
    for data in list(photos.values())[:30]:
        image = decode(data)
        width, height = module._resized(*image.size, {"shortest_edge": min(image.size) + 13})
        box = module._crop_box(width, height, {"height": min(image.size), "width": min(image.size) - 5})
        ours = module._resize_and_crop(image, width, height, PIL.Image.Resampling.BICUBIC, box)
        whole = image.resize((width, height), PIL.Image.Resampling.BICUBIC).crop(box)
        assert ours.tobytes() == whole.tobytes()


@needs_torchvision
def test_torchvision_has_the_same_geometry_and_differs_by_at_most_two_levels_on_photos(photos):
    pil, torchvision = HGNetV2ImageProcessor(), HGNetV2ImageProcessorFast()
    levels = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    worst = 0
    for data in photos.values():
        ours = pil(decode(data), **levels)["pixel_values"].int()
        fast = torchvision(decode(data), **levels)["pixel_values"].int()
        worst = max(worst, (ours - fast).abs().max().item())
    assert worst <= 2


@pytest.mark.parametrize("mode, value", [("F", 0.5), ("I", -5)])
def test_an_image_without_a_scale_is_named(tmp_path, mode, value):
    path = tmp_path / "depth.tiff"
    PIL.Image.new(mode, (8, 8), value).save(path)
    for image in (path, PIL.Image.open(path)):
        with pytest.raises(ValueError, match="depth.tiff of mode"):
            HGNetV2ImageProcessor()(image)


@needs_torchvision
def test_torchvision_differs_by_at_most_thirty_two_levels_on_noise():
    """The documented worst case: tall images that shrink, which Pillow 13 resizes rows first."""
    random = np.random.RandomState(0)
    levels = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    worst = 0
    for number in range(120):
        width, height = random.randint(20, 700, 2)
        shape = (height, width, 3)
        noise = random.randint(0, 2, shape) * 255 if number % 2 else random.randint(0, 256, shape)
        image = PIL.Image.fromarray(noise.astype("uint8"))
        ours = HGNetV2ImageProcessor()(image, **levels)["pixel_values"].int()
        fast = HGNetV2ImageProcessorFast()(image, **levels)["pixel_values"].int()
        worst = max(worst, (ours - fast).abs().max().item())
    assert worst <= 32


@needs_torchvision
def test_torchvision_normalises_like_pil(photos):
    image = decode(photos["image:0"]).resize((224, 224))
    ours, fast = (
        form(image, do_resize=False, return_tensors="pt")["pixel_values"]
        for form in (HGNetV2ImageProcessor(), HGNetV2ImageProcessorFast())
    )
    assert torch.allclose(ours, fast, atol=1e-6)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed here")
def test_without_torchvision_the_fast_form_says_so():
    with pytest.raises(ImportError, match="torchvision"):
        HGNetV2ImageProcessorFast()


def test_arrays_tensors_paths_and_lists_of_mixed_sizes_agree(photos, tmp_path):
    processor = HGNetV2ImageProcessor()
    image = decode(photos["image:1"]).convert("RGB")
    image.save(tmp_path / "photo.png")
    array = np.asarray(image)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    forms = [
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        array,
        array.transpose(2, 0, 1),
        array.astype("uint16") * 256 + 7,
        array / 255,
        (array / 255).astype("float32"),
        array.astype("float64"),
        array.astype("int64"),
        array[None],
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1)[None],
        [image],
    ]
    for form in forms:
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], expected)
    other = decode(photos["image:20"])
    batch = processor([image, other], return_tensors="pt")["pixel_values"]
    assert batch.shape == (2, 3, 224, 224)
    assert torch.equal(batch[:1], expected)
    assert torch.equal(batch[1:], processor(other, return_tensors="pt")["pixel_values"])


def test_options_of_one_call_override_those_of_the_processor(photos):
    processor, image = HGNetV2ImageProcessor(), decode(photos["image:2"])
    assert processor(image, size=256, crop_size=128, return_tensors="pt")["pixel_values"].shape == (1, 3, 128, 128)
    fixed = processor(image, size={"height": 40, "width": 60}, do_center_crop=False, return_tensors="pt")
    assert fixed["pixel_values"].shape == (1, 3, 40, 60)
    raw = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert raw.max() > 100
    last = processor(image, data_format="channels_last", return_tensors="np")["pixel_values"]
    assert last.shape == (1, 224, 224, 3)


REFUSED = [
    (np.zeros((10, 10, 2), "uint8"), "channels"),
    (np.zeros((3,), "uint8"), "dimensions"),
    (np.zeros((0, 10, 3), "uint8"), "dimensions"),
    (np.full((40, 40, 3), np.nan), "finite"),
    (np.full((40, 40, 3), 300.0), "scale"),
    (np.full((40, 40, 3), -1), "scale"),
    (np.zeros((3, 40, 4), "uint8"), "input_data_format"),
    (PIL.Image.fromarray(np.zeros((4, 4), "float32")), "mode F"),
    (PIL.Image.fromarray(np.full((4, 4), 70000, "int32")), "scale"),
    (PIL.Image.new("RGB", (40000, 1)), "limit"),
    ([], "empty"),
    ("no_such_file.jpg", "no_such_file.jpg"),
    (object(), "object"),
]


@pytest.mark.parametrize("image, words", REFUSED)
def test_what_cannot_be_interpreted_is_a_value_error_that_says_why(image, words):
    with pytest.raises(ValueError, match=words):
        HGNetV2ImageProcessor()(image)


def test_a_corrupt_file_is_a_value_error_with_its_name(tmp_path, photos):
    truncated, empty = tmp_path / "truncated.png", tmp_path / "empty.jpg"
    truncated.write_bytes(photos["image:0"].tobytes()[:2000])
    empty.write_bytes(b"")
    for path in (truncated, empty):
        with pytest.raises(ValueError, match=path.name):
            HGNetV2ImageProcessor()(path)


def test_a_crop_larger_than_the_resized_image_is_refused_as_paddleclas_does():
    with pytest.raises(ValueError, match="crop of 224×224 is larger"):
        HGNetV2ImageProcessor(size=100)(PIL.Image.new("RGB", (50, 50)))


@pytest.mark.parametrize(
    "options", [{"size": {"longest_edge": 5}}, {"size": -1}, {"crop_size": {"height": 3}}, {"image_std": [0, 1, 1]}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="`(size|crop_size|image_std)`"):
        HGNetV2ImageProcessor(**options)
    with pytest.raises(ValueError, match="colour"):
        HGNetV2ImageProcessor()(PIL.Image.new("RGB", (50, 50)), colour=True)


def test_saves_and_loads_through_the_auto_class(tmp_path, photos):
    processor = HGNetV2ImageProcessor(size={"shortest_edge": 236}, crop_size=288, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "HGNetV2ImageProcessor"
    reloaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is HGNetV2ImageProcessor
    assert reloaded.to_dict() == processor.to_dict()
    assert (reloaded.size, reloaded.crop_size) == ({"shortest_edge": 236}, {"height": 288, "width": 288})


@needs_torchvision
def test_the_torchvision_form_is_there_for_who_asks(tmp_path):
    HGNetV2ImageProcessor(size=256).save_pretrained(tmp_path)
    fast = AutoImageProcessor.from_pretrained(tmp_path, use_fast=True)
    assert type(fast) is HGNetV2ImageProcessorFast
    assert fast.size == {"shortest_edge": 256}


@pytest.mark.parametrize("kind", [HGNetV2ImageProcessor, HGNetV2ImageProcessorFast])
def test_a_single_mean_makes_grey_images_of_one_channel(kind, tmp_path):
    if kind is HGNetV2ImageProcessorFast:
        pytest.importorskip("torchvision", reason="torchvision comes with the extra [detection]")
    photo = PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (70, 90, 3), dtype="uint8"))
    options = {"size": 60, "crop_size": 50, "image_mean": [0.25], "image_std": [0.5]}
    kind(**options).save_pretrained(tmp_path)
    grey = kind.from_pretrained(tmp_path)(photo, return_tensors="pt")["pixel_values"]
    rgb = kind(**{**options, "image_mean": [0.25] * 3, "image_std": [0.5] * 3})
    assert grey.shape == (1, 1, 50, 50)
    expected = rgb(photo.convert("L").convert("RGB"), return_tensors="pt")["pixel_values"]
    assert torch.equal(grey[:, 0], expected[:, 0])
