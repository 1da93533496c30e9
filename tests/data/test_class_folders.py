"""How `train` reads a folder, what it says of it, and what it remembers of the data."""

import csv
import json
import resource
import shutil

import numpy as np
import PIL.Image
import pytest
from small_trainings import NO_AUGMENTATION, quick

from hgnetv2_hf.data.load import load_data
from hgnetv2_hf.errors import DataError, TrainingError
from hgnetv2_hf.files.images import find_images
from hgnetv2_hf.training import Options, recipe
from hgnetv2_hf.training.work_folder import enter_work_folder


def make(folder, paths):
    """Small images under these names."""
    for index, path in enumerate(paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), (index % 256, 0, 0)).save(file)
    return folder


def several(*folders, count=4):
    return [f"{folder}/{index}.png" for folder in folders for index in range(count)]


READINGS = {
    # folders: (classes, images to learn from, to validate)
    ("train/cat", "train/dog", "val/cat", "val/dog"): (["cat", "dog"], 8, 8),
    ("Train/cat", "Train/dog", "Val/cat", "Val/dog"): (["cat", "dog"], 8, 8),
    ("training/cat", "training/dog", "testing/cat", "testing/dog"): (["cat", "dog"], 8, 8),
    ("train/cat", "train/dog", "test/cat", "valid/cat", "valid/dog"): (["cat", "dog"], 8, 8),
    ("train/cat", "train/dog", "drafts/cat"): (["cat", "dog"], 6, 2),
    ("car", "test", "train"): (["car", "test", "train"], 9, 3),
    ("cat/indoors", "cat", "dog"): (["cat", "dog"], 9, 3),
}


@pytest.mark.parametrize("folders", READINGS)
def test_folders_are_read_as_their_names_say(folders, tmp_path):
    data = load_data(str(make(tmp_path / "data", several(*folders))), validation_fraction=0.25)
    assert (data.classes, len(data.train), len(data.validation)) == READINGS[folders]
    said = "\n".join(data.understood)
    assert all(name in said for name in data.classes)
    for folder in ("test", "drafts"):
        assert (f"not used: {folder}" in said) == (f"{folder}/cat" in folders)
    assert ("folders inside a class" in said) == ("cat/indoors" in folders)


@pytest.mark.parametrize(
    "folders, message",
    [
        (
            ("animals/cat", "animals/dog", "plants/rose"),
            "--class-folders outer .* animals, plants, or --class-folders inner",
        ),
        (("train/a/cat", "train/b/rose"), "--class-folders"),
        (("val/cat", "test/cat"), "but no train"),
        (("train/cat", "Train/dog"), "mean the same part"),
        (("train/cat", "train/dog", "val/cat", "VAL/dog"), "mean the same part"),
    ],
)
def test_folders_with_two_readings_are_refused(folders, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_data(str(make(tmp_path / "data", several(*folders))))


def test_an_option_says_which_of_nested_folders_are_the_classes(tmp_path):
    folder = make(tmp_path / "data", several("animals/cat", "animals/dog", "plants/rose", "plants/cat"))
    for option, classes in {"outer": ["animals", "plants"], "inner": ["cat", "dog", "rose"]}.items():
        data = load_data(str(folder), class_folders=option)
        assert data.classes == classes and len(data.train) + len(data.validation) == 16


def test_links_to_folders_are_followed_once_and_not_in_circles(tmp_path):
    make(tmp_path, [*several("data/cat", "data/dog"), *several("elsewhere", count=3)])
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "dog" / "again").symlink_to(tmp_path / "data" / "dog")
    data = load_data(str(tmp_path / "data"), validation_fraction=0.0)
    assert [data.train.labels.count(label) for label in (0, 1)] == [4 + 3, 4]
    assert len(list(find_images([str(tmp_path / "data")]))) == 4 + 4 + 3


def test_a_resumed_run_needs_the_data_it_started_with(tmp_path):
    folder, work = make(tmp_path / "data", several("cat", "dog")), tmp_path / "out.training"

    def enter(**settings):
        fingerprint = load_data(str(folder), validation_fraction=0.25).fingerprint()
        return enter_work_folder(work, {"seed": 1, **settings}, fingerprint, overwrite=False)

    assert not enter(logging_steps=5)
    assert enter(logging_steps=1, report_to="tensorboard", disable_tqdm=True)
    make(folder, ["cat/new.png"])
    with pytest.raises(TrainingError, match=r"started with \(then 8, now 9 images\)"):
        enter()
    (folder / "cat" / "new.png").unlink()
    assert enter()
    (folder / "cat" / "0.png").rename(folder / "dog" / "from cat.png")
    with pytest.raises(TrainingError, match="The data are not those"):
        enter()
    with pytest.raises(TrainingError, match=r"other settings \(learning_rate, the data\)"):
        enter(learning_rate=1.0)


def test_data_are_drawn_and_every_class_is_counted(scans, tiny, tmp_path):  # noqa: F811
    lines = []
    from hgnetv2_hf.training import train

    options = Options(**NO_AUGMENTATION, draw_data=3, class_weights=True, early_stopping=2)
    result = train(
        str(scans), str(tiny), str(tmp_path / "out"), options, show=lines.append, use_cpu=True, disable_tqdm=True,
        dataloader_num_workers=0, per_device_train_batch_size=16, num_train_epochs=8, learning_rate=0.0,
    )  # fmt: skip
    out = tmp_path / "out"
    picture = PIL.Image.open(out / "data.png")
    assert picture.width > 600 and picture.height > 300 and np.asarray(picture).std() > 10
    assert (
        result.metrics["epochs"] == 3
    )  # nothing is learnt at this rate: the first evaluation and two without a better one
    with open(out / "confusion.csv", newline="") as file:
        header, *table = csv.reader(file)
    counts = np.array([row[1:] for row in table], dtype=int)
    assert header == ["class", "0", "1", "2", "3"] and counts.sum(1).tolist() == [6, 6, 6, 6]
    metrics = json.loads((out / "metrics.json").read_text())
    assert counts.diagonal().sum() / 24 == pytest.approx(metrics["accuracy"])
    assert metrics["per_class"]["2"] == {"images": 6, "accuracy": counts[2, 2] / 6}
    assert any(line.startswith("recipe: small (48 images × 8 epochs") for line in lines)
    assert "close to chance (25.0%" in str(result)
    card = (out / "README.md").read_text()
    assert str(tmp_path) not in card and "out.training" not in card


def test_rare_classes_count_as_much_as_frequent_ones():
    from hgnetv2_hf.data.splits import Split
    from hgnetv2_hf.training.fit import class_weights

    labels = [0] * 6 + [1] * 2
    weights = class_weights(Split(range(8), labels), 2)
    assert [weights[label].item() * labels.count(label) for label in (0, 1)] == pytest.approx([4, 4])


@pytest.mark.parametrize(
    "images, epochs, seen, expected",
    [(2000, None, None, "small"), (1_281_167, None, None, "imagenet"), (1_281_167, 5, None, "small"),
     (50_000, 200, None, "imagenet"), (None, None, 9_999_999, "small"), (None, None, 10_000_000, "imagenet")],
)  # fmt: skip
def test_the_recipe_follows_the_images_seen_and_says_why(images, epochs, seen, expected):
    found, why = recipe.choose("auto", images, epochs, seen)
    assert found == expected and "10,000,000" in why
    assert recipe.choose("imagenet", 10) == ("imagenet", "option")


def test_a_disk_that_is_full_gets_one_sentence(scans, tiny, tmp_path, monkeypatch):  # noqa: F811
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))  # every larger file fails in the middle
    try:
        with pytest.raises(TrainingError, match="Cannot write") as caught:
            quick(scans, tiny, tmp_path / "out", num_train_epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(str(caught.value)) < 500 and not (tmp_path / "out").exists()


def test_the_small_recipe_keeps_the_scale_that_an_evaluation_shows():
    from hgnetv2_hf.training import Augmentation

    row = recipe.RECIPES["small"]
    augmentation = Augmentation(
        (32, 32), row.crop_scale, shift=row.shift, flip=0.0, rand_augment="none", random_erasing=0.0
    )
    image = PIL.Image.new("RGB", (96, 64), (200, 200, 200))
    image.paste((0, 0, 0), (36, 20, 60, 44))  # 24 of the 64 pixels that an evaluation sees in each direction
    sides = []
    for index in range(200):
        pixels = augmentation(image, (0, 0, index)).numpy() * np.array(augmentation.image_std).reshape(3, 1, 1)
        pixels = (pixels + np.array(augmentation.image_mean).reshape(3, 1, 1)) * 255
        assert pixels.shape == (3, 32, 32) and pixels[:, 0].max() < 230  # no padding but the border's own colour
        sides.append(np.sqrt((pixels[0] < 100).sum()))
    inside = [side for side in sides if side > 8]
    assert len(inside) > 100 and np.mean(inside) == pytest.approx(12, rel=0.15)
    assert augmentation(image, (0, 0, 1)).equal(augmentation(image, (0, 0, 1)))


def test_every_validation_image_counts_when_a_last_training_image_is_left_out(scans, tiny, tmp_path):  # noqa: F811
    shutil.copytree(scans, tmp_path / "data")
    extra = next((scans / "train" / "0").iterdir())
    shutil.copy(extra, tmp_path / "data" / "train" / "0" / "extra.png")  # 49 images in batches of 8
    result = quick(tmp_path / "data", tiny, tmp_path / "out", num_train_epochs=1, per_device_eval_batch_size=16)
    assert result.metrics["steps"] == 6
    assert sum(row["images"] for row in result.metrics["per_class"].values()) == 24


def test_class_weights_ignore_classes_that_are_not_there(scans, tiny, tmp_path):  # noqa: F811
    for part in ("train", "val"):
        for name in "01":
            shutil.copytree(scans / part / name, tmp_path / "data" / part / name)
    options, found = {"head": "keep", **NO_AUGMENTATION}, []
    for weighted in (False, True):
        result = quick(
            tmp_path / "data", tiny, tmp_path / str(weighted), Options(**options, class_weights=weighted), max_steps=3,
            learning_rate=0.01,
        )  # fmt: skip
        found.append(result.metrics["train_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)  # both classes have as many images


@pytest.mark.parametrize("options", [{"early_stopping": 1, "validation_fraction": 0.0}, {"class_weights": True}])
def test_options_without_effect_are_refused(options, scans, tiny, tmp_path):  # noqa: F811
    if "class_weights" in options:
        options = {**options, "teacher": str(tiny)}
    with pytest.raises(TrainingError, match="--early-stopping needs|--class-weights is about"):
        quick(scans / "train", tiny, tmp_path / "out", Options(**NO_AUGMENTATION, **options), max_steps=1)


def test_hidden_files_and_folders_are_not_data(tmp_path):
    folder = make(tmp_path / "data", several("animals/cat", "plants/rose", "plants/.copies"))
    (folder / "animals" / "._cover.png").write_bytes((folder / "animals/cat/0.png").read_bytes())
    with pytest.raises(DataError, match="--class-folders"):
        load_data(str(folder))
    make(folder, ["animals/cover.png"])
    data = load_data(str(folder), class_folders="inner", validation_fraction=0.0)
    assert data.classes == ["cat", "rose"] and len(data.train) == 8


def test_images_beside_inner_folders_are_counted_as_not_used(tmp_path):
    images = several("train/animals/cat", "train/plants/rose", "val/animals/cat", "val/plants/rose")
    folder = make(tmp_path / "data", images)
    assert not any("not used" in line for line in load_data(str(folder), class_folders="inner").understood)
    make(folder, [*several("train/animals", count=2), *several("val/plants", count=1)])
    data = load_data(str(folder), class_folders="inner")
    assert data.classes == ["cat", "rose"] and (len(data.train), len(data.validation)) == (8, 8)
    (line,) = [line for line in data.understood if line.startswith("not used")]
    assert "3 images" in line and str(folder / "train" / "animals") in line and str(folder / "val" / "plants") in line


@pytest.mark.parametrize(
    "link, target",
    [
        ("train/c", "train/a"),
        ("val", "train"),
        ("train/a/more", "train/b"),
        ("train/a/more", "val/b"),
        ("train/b/all", ""),
    ],
)
def test_links_that_use_images_twice_are_refused(link, target, tmp_path):
    parts = ["train/a", "train/b"] if link == "val" else ["train/a", "train/b", "val/a", "val/b"]
    folder = make(tmp_path / "data", several(*parts))
    (folder / link).symlink_to(folder / target)
    with pytest.raises(DataError, match="are the same folder"):
        load_data(str(folder))


def test_a_class_whose_name_is_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no UTF-8"):
        load_data(str(make(tmp_path / "data", several("a", "b\udcff"))))


def test_a_model_that_is_not_there_is_one_sentence_without_a_network(scans, tmp_path):  # noqa: F811
    with pytest.raises(TrainingError, match="There is no folder b9, and no variant"):
        quick(scans, "b9", tmp_path / "out")


def test_images_beside_the_folders_of_classes_are_named(tmp_path):
    folder = make(tmp_path / "data", [*several("train/a", "train/b", "val/a", "val/b"), "train/stray.png"])
    data = load_data(str(folder))
    assert len(data.train) == 8
    (line,) = [line for line in data.understood if line.startswith("not used")]
    assert "1 image directly in" in line and line.endswith("beside the folders of the classes")
