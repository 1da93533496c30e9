"""`grad_cam` and `explain`: the definition's arithmetic, any class of classifier, maps that lie on the object."""

import csv
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from canvases import write_single
from torch import nn

import hgnetv2_hf
from hgnetv2_hf.cli import main
from hgnetv2_hf.data.digits import load_held_out
from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.inference.explain import explain


@pytest.fixture
def classifier(digits_folder):
    return transformers.AutoModelForImageClassification.from_pretrained(digits_folder).eval()


@pytest.fixture
def pixel_values():
    return torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("layer", ["stage4", "stage3"])
def test_maps_are_those_of_the_papers_formula(classifier, pixel_values, layer):
    """Equations 1 and 2, the gradient taken numerically: each map in turn moved by a little, everywhere."""
    model, number = classifier.double(), int(layer[-1]) - 1
    with torch.no_grad():
        stages = model.encoder.stages
        feature_map = model.embedder(pixel_values.double())
        for stage in stages[: number + 1]:
            feature_map = stage(feature_map)

        def logits(feature_map):
            for stage in stages[number + 1 :]:
                feature_map = stage(feature_map)
            return model._head(feature_map)[:, 4]

        step, weights = 1e-6, torch.zeros(feature_map.shape[:2], dtype=torch.float64)
        for channel in range(feature_map.shape[1]):
            move = torch.zeros_like(feature_map)
            move[:, channel] = step
            weights[:, channel] = (logits(feature_map + move) - logits(feature_map - move)) / (2 * step)
        weights /= feature_map.shape[2] * feature_map.shape[3]  # the gradient's mean
        expected = (weights[:, :, None, None] * feature_map).sum(1).relu()
        expected = nn.functional.interpolate(expected[:, None], (64, 96), mode="bilinear")[:, 0]
        expected /= expected.amax((1, 2), keepdim=True)
    found = hgnetv2_hf.grad_cam(model, pixel_values.double(), target=4, layer=layer)
    assert found.dtype == torch.float32 and found.shape == (3, 64, 96)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_the_model_is_left_as_it_is(classifier, pixel_values):
    with torch.inference_mode():
        maps = hgnetv2_hf.grad_cam(classifier, pixel_values)  # where no gradient exists, and of a tensor without one
        logits = classifier(pixel_values).logits
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not classifier.encoder.stages[3]._forward_hooks and not maps.requires_grad
    assert 0 <= maps.min() and maps.amax((1, 2)).tolist() == [1, 1, 1]
    best = logits.argmax(1)
    for target in (best, best.tolist(), [classifier.config.id2label[index] for index in best.tolist()]):
        assert torch.equal(hgnetv2_hf.grad_cam(classifier, pixel_values, target), maps)


def test_threads_that_share_a_model_get_their_own_maps(classifier):
    images = [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    expected = [hgnetv2_hf.grad_cam(classifier, image, 7) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: [hgnetv2_hf.grad_cam(classifier, image, 7) for image in images], range(8)):
            assert all(torch.equal(*pair) for pair in zip(found, expected))


def test_stocks_model_has_the_same_maps(pixel_values):
    hgnetv2_hf.unregister()
    config = transformers.HGNetV2Config(num_labels=5)
    stock = transformers.HGNetV2ForImageClassification(config).eval()
    ours = hgnetv2_hf.HGNetV2ForImageClassification(hgnetv2_hf.HGNetV2Config(**config.to_dict())).eval()
    ours.load_state_dict(stock.state_dict())
    pairs = [hgnetv2_hf.grad_cam(model, pixel_values, 2, "stage2") for model in (stock, ours)]
    torch.testing.assert_close(*pairs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"layer": "stage5"}, "no layer 'stage5': stem, stage1, stage2, stage3, stage4"),
        ({"target": "eleven"}, "no class 'eleven' among the model's 10"),
        ({"target": -1}, "no class -1"),
        ({"target": [1, 2]}, "2 targets for 3 images"),
        ({"target": 1.5}, "no class 1.5"),
    ],
)
def test_what_cannot_be_explained_is_named(classifier, pixel_values, options, words):
    with pytest.raises(ValueError, match=words):
        hgnetv2_hf.grad_cam(classifier, pixel_values, **options)


def test_models_in_training_optimised_or_of_another_kind_are_refused(classifier, pixel_values):
    with pytest.raises(ValueError, match="computes without gradients, as an optimised one does"):
        hgnetv2_hf.grad_cam(hgnetv2_hf.optimize_for_inference(classifier), pixel_values)
    with pytest.raises(ValueError, match="training mode"):
        hgnetv2_hf.grad_cam(classifier.train(), pixel_values)
    with pytest.raises(ValueError, match="HGNetV2Backbone is no classifier with HGNetV2"):
        hgnetv2_hf.grad_cam(hgnetv2_hf.HGNetV2Backbone(hgnetv2_hf.HGNetV2Config()), pixel_values)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, scan in enumerate(load_held_out()[0][:5]):
        PIL.Image.fromarray(np.asarray(scan)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no image")
    return folder


def test_a_folder_with_a_picture_per_image_and_a_table(digits_folder, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["explain", str(photos), "--model", str(digits_folder), "--output", str(out)]) == 0
    assert "4 heat maps" in (printed := capsys.readouterr().out) and "1 image could not be read" in printed
    with open(out / "explained.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pipe = transformers.pipeline("image-classification", model=str(digits_folder), device="cpu")
    for index, row in enumerate(rows):
        assert row["image"] == str(photos / f"{index}.png")
        if index == 2:
            assert row["error"] and not row["picture"]
            continue
        best = pipe(str(photos / f"{index}.png"))[0]
        assert row["label"] == row["explained"] == best["label"]
        assert float(row["score"]) == pytest.approx(best["score"], abs=1e-4)
        assert 0 <= int(row["x"]) < 32 and 0 <= int(row["y"]) < 32
        assert PIL.Image.open(out / row["picture"]).size == (2 * 320 + 6, 320)
    assert {path.name for path in out.iterdir()} == {"explained.csv", "0.png", "1.png", "3.png", "4.png"}
    assert main(["explain", str(photos), "--model", str(digits_folder), "--output", str(out)]) == 1
    again = ["--overwrite", "--target", "7", "--layer", "stage3"]
    assert main(["explain", str(photos), "--model", str(digits_folder), "--output", str(out), *again]) == 0
    with open(out / "explained.csv", encoding="utf-8", newline="") as file:
        assert {row["explained"] for row in csv.DictReader(file)} == {"7", ""}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"target": "eleven"}, "no class 'eleven'"),
        ({"layer": "head"}, "no layer 'head'"),
        ({"paths": ["x"]}, "no image x"),
    ],
)
def test_bad_requests_get_one_sentence_and_leave_nothing(digits_folder, photos, tmp_path, options, words):
    with pytest.raises(InferenceError, match=words):
        explain(**{"paths": [str(photos)], "model": digits_folder, "output_dir": tmp_path / "out", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_label_of_two_classes_is_no_answer(classifier, pixel_values):
    classifier.config.id2label[3] = classifier.config.id2label[8] = "crane"
    with pytest.raises(ValueError, match=r"'crane' belongs to the classes \[3, 8\]; pass an index"):
        hgnetv2_hf.grad_cam(classifier, pixel_values, "crane")
    for index in (3, np.int64(3)):
        assert hgnetv2_hf.grad_cam(classifier, pixel_values, index).shape == (3, 64, 96)
    with pytest.raises(ValueError, match="no class True"):
        hgnetv2_hf.grad_cam(classifier, pixel_values, True)


def test_the_picture_shows_the_image_whatever_the_scale_of_its_pixels(photos):
    from hgnetv2_hf.inference.explain import draw_explained

    image = PIL.Image.open(photos / "0.png").convert("RGB")
    for options in ({"do_rescale": True}, {"do_rescale": False, "image_mean": [123.0] * 3, "image_std": [58.0] * 3}):
        processor = transformers.ConvNextImageProcessor(do_resize=False, do_normalize=True, **options)
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
        picture = np.asarray(draw_explained(processor, pixel_values, np.zeros(pixel_values.shape[2:], "float32")))
        enlarged = image.resize((320, 320), PIL.Image.Resampling.NEAREST)
        assert np.abs(picture[:, :320].astype(int) - np.asarray(enlarged)).max() <= 1


def test_names_that_are_long_or_no_utf8_are_pictures_too(digits_folder, photos, tmp_path):
    (photos / "0.png").rename(os.fsdecode(os.fsencode(photos) + b"/u\xff.png"))
    for folder in ("a", "b"):
        (photos / folder).mkdir()
        (photos / "1.png").rename(photos / folder / f"{'n' * 251}.png") if folder == "a" else shutil.copy(
            photos / "a" / f"{'n' * 251}.png", photos / folder
        )
    explain([str(photos)], digits_folder, tmp_path / "out", show=str)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{'n' * 240}.png", f"{'n' * 240}-2.png"} < names and len(names) == 6


def test_what_is_read_is_not_replaced(digits_folder, photos, tmp_path):
    (photos / "explained.csv").write_text("looks like an output")
    for inside in (photos, photos / "0.png"):
        with pytest.raises(InferenceError, match="contains the source"):
            explain([str(inside)], digits_folder, photos, overwrite=True)
    assert (photos / "0.png").is_file()


def test_detectors_are_refused(detector, photos, tmp_path):
    with pytest.raises(InferenceError, match="is a detector, whose boxes say where; use detect"):
        explain([str(photos)], detector, tmp_path / "out")


@pytest.mark.long
def test_the_strongest_place_lies_on_the_object(digits_folder, tmp_path):
    """Trained on images that say which digit is there, and not where."""
    write_single(tmp_path / "data", 3000)
    places = write_single(tmp_path / "data", 100, seed=1, part="val", held_out=True)
    training = ["train", str(tmp_path / "data"), "--model", str(digits_folder), "--output", str(tmp_path / "trained")]
    assert main([*training, "--recipe", "small", "--image-size", "224", "--num_train_epochs", "3"]) == 0
    options = {"layer": "stage4", "show": str}
    explain([str(tmp_path / "data" / "val")], tmp_path / "trained", tmp_path / "out", **options)
    hits = right = 0
    with open(tmp_path / "out" / "explained.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            left, top, side = places[row["image"]]
            right += row["image"].split("/")[-2] == row["label"]
            hits += left <= int(row["x"]) < left + side and top <= int(row["y"]) < top + side
    print(f"{right} of 100 labels are right; {hits} of 100 maps are strongest on the digit")
    assert hits >= 90
