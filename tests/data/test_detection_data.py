"""Data with objects: every format is read to the same boxes, and what is wrong with them is said in a sentence."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import small_scenes as scenes

from hgnetv2_hf.data.detection import (
    Objects,
    check_detection_data,
    draw_contact_sheet,
    draw_objects,
    load_detection_data,
)
from hgnetv2_hf.errors import DataError


@pytest.fixture(scope="module")
def written(make_once):
    """The scenes in a format; everybody's, to read."""
    return lambda name: make_once(f"scenes-{name.replace(' ', '-')}", scenes.WRITERS[name])


@pytest.mark.parametrize("name", scenes.WRITERS)
def test_every_format_is_read_to_the_same_objects(name, written):
    if name in ("metadata", "saved", "parquet"):
        pytest.importorskip("datasets", reason="comes with the extra [train]")
    data = load_detection_data(written(name))
    assert data.classes == scenes.CLASSES and data.skipped == []
    assert data.category_ids == (scenes.CATEGORY_IDS if "coco" in name else None)
    for split, indices in ((data.train, scenes.PARTS["train"]), (data.validation, scenes.PARTS["val"])):
        assert len(split) == len(split.images) == len(split.objects) == len(indices)
        found = [int(Path(split.images.name(position)).stem) for position in range(len(split))]
        assert sorted(found) == list(indices)
        assert split.ids == ([1000 + 7 * index for index in found] if "coco" in name else None)
        for index, objects, image in zip(found, split.objects, split.images):
            size, boxes, labels = scenes.scene(index)
            assert image.mode == "RGB" and image.size == size
            assert objects.boxes.dtype == np.float64 and objects.boxes.shape == (len(boxes), 4)
            np.testing.assert_allclose(objects.boxes, np.array(boxes).reshape(-1, 4), atol=1e-9)
            assert objects.labels.dtype == np.int64 and objects.labels.tolist() == labels
            assert not objects.crowd.any()
            expected = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
            np.testing.assert_allclose(objects.areas, expected, atol=1e-7)
            for (left, top, *_), label in zip(boxes[-1:], labels[-1:]):  # the last is drawn over the others
                assert np.argmax(np.asarray(image)[top + 1, left + 1]) == label
    said = "\n".join(data.understood)
    assert "8 images, 12 objects, 2 images without objects" in said and "cat, dog, rose" in said
    assert ("bounding box" in said) == (name == "yolo polygons")


def test_boxes_are_those_that_pycocotools_reads(written):
    coco = pytest.importorskip("pycocotools.coco")
    folder = written("coco")
    data = load_detection_data(folder, check=False)
    for split, part in ((data.train, "train"), (data.validation, "val")):
        original = coco.COCO(folder / "annotations" / f"instances_{part}2017.json")
        assert split.ids == original.getImgIds()
        for position, number in enumerate(split.ids):
            rows = original.loadAnns(original.getAnnIds(number))
            objects = split.objects[position]
            corners = objects.boxes - np.concatenate([np.zeros_like(objects.boxes[:, :2]), objects.boxes[:, :2]], 1)
            assert corners.tolist() == [row["bbox"] for row in rows]
            assert [data.category_ids[label] for label in objects.labels] == [row["category_id"] for row in rows]
            assert objects.areas.tolist() == [row["area"] for row in rows]


def test_boxes_are_those_that_torchvision_reads(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    folder = scenes.write_voc(tmp_path, "jpg")
    data = load_detection_data(folder)
    for split, part in ((data.train, "train"), (data.validation, "val")):
        original = torchvision.datasets.VOCDetection(tmp_path, "2012", part)
        assert len(original) == len(split)
        for position, (image, target) in enumerate(original):
            rows = target["annotation"].get("object", [])
            boxes = [[float(row["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")] for row in rows]
            assert split.objects[position].boxes.tolist() == boxes
            assert [data.classes[label] for label in split.objects[position].labels] == [row["name"] for row in rows]
            assert split.images[position].tobytes() == image.tobytes()


def one_coco(folder, change=None, indices=range(6)):
    """A COCO file with its images beside it; `change` edits its content."""
    content = scenes.coco(indices)
    for index in indices:
        scenes.draw(index, folder / "images" / f"{index}.png")
    if change is not None:
        content = change(content) or content
    return scenes.write_json(content, folder / "data.json")


def test_crowds_and_areas_of_masks_are_kept_and_boxes_are_not_rounded(tmp_path):
    def change(content):
        content["annotations"][0] |= {"iscrowd": 1, "area": 12.5, "bbox": [1.1, 2.2, 10.3, 11.7]}
        del content["annotations"][1]["area"]

    data = load_detection_data(one_coco(tmp_path, change), validation_fraction=0)
    objects = data.train.objects[0]
    assert objects.crowd.tolist() == [True] and objects.areas.tolist() == [12.5]
    assert objects.boxes.tolist() == [[1.1, 2.2, 1.1 + 10.3, 2.2 + 11.7]]
    (left, top, right, bottom) = scenes.scene(1)[1][0]
    assert data.train.objects[1].areas[0] == (right - left) * (bottom - top)
    assert data.validation is None and data.held_out == ""


def test_difficult_objects_of_voc_are_crowd(tmp_path):
    scenes.draw(0, tmp_path / "0.png")
    (tmp_path / "0.xml").write_text(scenes.voc(0).replace("<difficult>0", "<difficult>1"))
    scenes.draw(1, tmp_path / "1.png")
    (tmp_path / "1.xml").write_text(scenes.voc(1))
    scenes.draw(2, tmp_path / "2.png")
    data = load_detection_data(tmp_path, validation_fraction=0)
    assert [objects.crowd.any() for objects in data.train.objects] == [True, False]
    said = "\n".join(data.understood)
    assert "1 image without an XML file" in said and "classes without boxes to learn from: cat" in said


def test_the_declared_size_says_whether_boxes_are_of_the_rotated_image(tmp_path):
    stored = PIL.Image.new("RGB", (60, 40), "blue")
    stored.paste("red", (0, 0, 20, 10))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    for name in ("upright", "stored", "other"):
        stored.save(tmp_path / f"{name}.png", exif=exif)
    sizes = {"upright": (40, 60), "stored": (60, 40), "other": (80, 120)}
    content = {
        "images": [
            {"id": index, "file_name": f"{name}.png", "width": width, "height": height}
            for index, (name, (width, height)) in enumerate(sizes.items())
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 0, "bbox": [30, 0, 10, 20]},
            {"id": 2, "image_id": 1, "category_id": 0, "bbox": [0, 0, 20, 10]},
            {"id": 3, "image_id": 2, "category_id": 0, "bbox": [0, 0, 20, 10]},
        ],
        "categories": [{"id": 0, "name": "red"}],
    }
    data = load_detection_data(scenes.write_json(content, tmp_path / "data.json"), validation_fraction=0)
    assert [data.train.images[index].size for index in range(len(data.train))] == [(40, 60), (60, 40)]
    for image, objects in zip(data.train.images, data.train.objects):
        left, top, right, bottom = objects.boxes[0].astype(int)
        pixels = np.asarray(image)[..., 0] > 128
        assert pixels[top:bottom, left:right].all() and pixels.sum() == 200
    (line,) = data.skipped
    assert "other.png" in line and "40×60" in line and "80×120" in line
    del content["images"][2], content["annotations"][2]
    for image in content["images"]:
        del image["width"], image["height"]
    content["annotations"][1]["bbox"] = [30, 0, 10, 20]
    data = load_detection_data(scenes.write_json(content, tmp_path / "data.json"), validation_fraction=0)
    assert [image.size for image in data.train.images] == [(40, 60), (40, 60)]


@pytest.mark.parametrize("mode, suffix", [("L", "png"), ("CMYK", "tif"), ("I;16", "png"), ("P", "png"), ("LA", "png")])
def test_images_of_every_mode_are_read_as_classifiers_read_them(mode, suffix, tmp_path):
    from hgnetv2_hf.data.decoding import open_image

    levels = np.arange(64 * 48, dtype="uint16").reshape(48, 64) * 20
    image = (
        PIL.Image.fromarray(levels) if mode == "I;16" else PIL.Image.fromarray(levels.astype("uint8")).convert(mode)
    )
    for index in range(2):
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / "images" / f"{index}.{suffix}")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [thing]\n")
    data = load_detection_data(tmp_path, validation_fraction=0)
    assert data.skipped == [] and data.train.images[0].mode == "RGB"
    assert data.train.images[0].tobytes() == open_image(tmp_path / "images" / f"0.{suffix}").tobytes()
    assert data.train.objects[0].boxes.tolist() == [[24, 18, 40, 30]]


def test_corners_in_a_column_are_refused_until_an_option_says_so(tmp_path):
    pytest.importorskip("datasets", reason="comes with the extra [train]")
    scenes.as_datasets(tmp_path / "images", corners=True).save_to_disk(tmp_path / "data")
    data = load_detection_data(tmp_path / "data", box_format="xyxy")
    assert data.train.objects[0].boxes.tolist() == scenes.scene(0)[1]
    with pytest.raises(DataError, match="pass box_format xyxy"):
        load_detection_data(tmp_path / "data")


def test_two_readings_are_refused_until_an_option_says_which(tmp_path):
    scenes.write_coco(tmp_path)
    scenes.write_yolo(tmp_path)
    with pytest.raises(DataError, match="--format coco or --format yolo"):
        load_detection_data(tmp_path)
    assert "COCO" in load_detection_data(tmp_path, data_format="coco").understood[0]
    assert "YOLO" in load_detection_data(tmp_path, data_format="yolo").understood[0]


def test_a_single_file_of_a_known_layout_finds_its_images(written):
    data = load_detection_data(
        written("coco images") / "annotations" / "instances_val2017.json", validation_fraction=0
    )
    assert len(data.train) == 4 and data.skipped == []
    data = load_detection_data(written("yolo") / "data.yaml")
    assert len(data.train) == 8


# What is broken: (how the COCO content changes, what the error says)
REFUSED = {
    "truncated": (lambda c: json.dumps(c)[:-20], "cannot be read as JSON"),
    "no JSON": (lambda c: "images: []", "cannot be read as JSON"),
    "no UTF-8": (lambda c: "\udcff{}", "cannot be read as JSON"),
    "deep nesting": (lambda c: '{"images":' + "[" * 100_000, "nests deeper"),
    "a list": (lambda c: "[1, 2]", "no COCO file"),
    "no annotations": (lambda c: c.pop("annotations") and None, "no list of annotations"),
    "categories as an object": (lambda c: c.update(categories={}), "no list of categories"),
    "no category": (lambda c: c.update(categories=[]), "names no class"),
    "category without id": (lambda c: c["categories"][0].pop("id") and None, "category with id None"),
    "category twice": (lambda c: c["categories"].append(c["categories"][0]), "two categories with the id"),
    "classes of one name": (lambda c: c["categories"][0].update(name="dog"), "two classes of the same name"),
    "class without name": (lambda c: c["categories"][0].update(name=" "), "has no name"),
    "class that is no text": (lambda c: c["categories"][0].update(name="\ud800"), "cannot be written"),
    "image id twice": (lambda c: c["images"][1].update(id=1000), "two images with the id 1000"),
    "image file twice": (lambda c: c["images"][1].update(file_name="0.png"), "two images with the file_name"),
    "image without id": (lambda c: c["images"][0].pop("id") and None, "image 0, counted from 0"),
    "image id a text": (lambda c: c["images"][0].update(id="7"), "image 0, counted from 0"),
    "absolute name": (lambda c: c["images"][0].update(file_name="/etc/passwd"), "leads out of the data"),
    "Windows's absolute name": (lambda c: c["images"][0].update(file_name="C:\\a.png"), "leads out of the data"),
    "name that climbs": (lambda c: c["images"][0].update(file_name="../../a.png"), "leads out of the data"),
    "name that is a number": (lambda c: c["images"][0].update(file_name=7), "file_name is 7"),
    "name with a null": (lambda c: c["images"][0].update(file_name="a\0b"), "file_name is"),
    "name without end": (lambda c: c["images"][0].update(file_name="a" * 10**6), "file_name is"),
    "width of a text": (lambda c: c["images"][0].update(width="wide"), "'wide' wide"),
    "huge width": (lambda c: c["images"][0].update(width=10**400), "expected pixels"),
    "nothing to learn": (lambda c: c.update(annotations=[]), "no box to learn from"),
    "crowds only": (lambda c: [row.update(iscrowd=1) for row in c["annotations"]] and None, "no box to learn from"),
    "no images": (lambda c: c.update(images=[], annotations=[]), "no image to learn from"),
    "no image there": (lambda c: [i.update(file_name=f"x{i['id']}") for i in c["images"]] and None, "None of the"),
    "corners for sizes": (
        lambda c: c.update(annotations=[
            {"id": row["id"], "image_id": row["image_id"], "category_id": 7, "bbox": [x, y, x + width, y + height]}
            for row in c["annotations"] for x, y, width, height in [row["bbox"]]
        ]),
        "pass box_format xyxy",
    ),
}  # fmt: skip


def edited(change):
    """A COCO file's text after a change in place, or what the change returns instead."""
    content = scenes.coco(range(6))
    answer = change(content)
    return answer if isinstance(answer, str) else json.dumps(content)


def refuses(message, source, **options):
    with pytest.raises(DataError, match=message) as caught:
        load_detection_data(source, **options)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_coco_file_is_refused_in_one_sentence(name, tmp_path):
    change, message = REFUSED[name]
    path = one_coco(tmp_path)
    path.write_bytes(edited(change).encode("utf-8", "surrogateescape"))
    refuses(message, path)


def box(position=0, **fields):
    return lambda content: content["annotations"][position].update(fields)


# What is left out of a COCO file, and the data go on: (how the content changes, what `skipped` says)
LEFT_OUT = {
    "unknown category": (box(category_id=99), "no category with the id 99"),
    "unknown image": (box(image_id=-5), "no image with the id -5"),
    "image id a list": (box(image_id=[1]), "no image with the id a list of 1"),
    "no bbox": (lambda c: c["annotations"][0].pop("bbox"), "has no bbox"),
    "bbox of three": (box(bbox=[1, 2, 3]), "expected four numbers"),
    "bbox of texts": (box(bbox=["1", "2", "3", "4"]), "bbox is a list with '1', expected four numbers"),
    "bbox an object": (box(bbox={"x": 1}), "expected four numbers"),
    "bbox of a huge number": (box(bbox=[1, 2, 3, 10**400]), "bbox is"),
    "bbox not finite": (box(bbox=[1, 2, float("nan"), 4]), "not made of finite numbers"),
    "bbox infinite": (box(bbox=[1, 2, float("inf"), 4]), "not made of finite numbers"),
    "bbox far away": (box(bbox=[1e12, 2, 3, 4]), "not made of finite numbers"),
    "empty": (box(bbox=[1, 2, 0, 4]), "no width or no height"),
    "negative": (box(bbox=[10, 10, -5, 4]), "no width or no height"),
    "outside": (box(bbox=[500, 10, 5, 4]), "lies outside the image of 40×80"),
    "iscrowd a text": (box(iscrowd="yes"), "expected 0 or 1"),
    "area a text": (box(area="large"), "expected a number"),
    "annotation a number": (lambda c: c["annotations"].append(7), "has no bbox"),
    "missing file": (lambda c: c["images"][0].update(file_name="gone.png"), "there is no such file"),
    "other size": (lambda c: c["images"][0].update(width=90), "90×80 stands in the annotations"),
    "no image": (lambda c: c["images"][0].update(file_name="bad.png"), "cannot identify"),
    "truncated image": (lambda c: c["images"][0].update(file_name="cut.png"), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_cannot_be_learnt_from_is_left_out_and_named(name, tmp_path):
    change, message = LEFT_OUT[name]
    path = one_coco(tmp_path)
    path.write_text(edited(change))
    (tmp_path / "images" / "bad.png").write_text("no image")
    (tmp_path / "images" / "cut.png").write_bytes((tmp_path / "images" / "0.png").read_bytes()[:2000])
    data = load_detection_data(path, validation_fraction=0)
    (line,) = data.skipped
    assert message in line and len(line) < 400
    is_image = any(word in name for word in ("file", "size", "no image", "truncated"))
    assert len(data.train) == (5 if is_image else 6)
    assert sum(map(len, data.train.objects)) == (11 if name == "annotation a number" else 10)


def test_oddities_are_counted_and_kept(tmp_path):
    def change(content):
        first, second = content["annotations"][:2]
        content["annotations"].append({**first, "id": second["id"]})
        content["annotations"].append({**second, "id": 500, "bbox": [-1.5, 3, 20, 20]})
        content["annotations"] += [{**second, "id": 1000 + number} for number in range(301)]
        content["categories"].append({"id": 99, "name": "unicorn"})

    data = load_detection_data(one_coco(tmp_path, change), validation_fraction=0)
    said = "\n".join(data.understood)
    assert data.skipped == []
    assert "1 annotation id used more than once" in said
    assert "1 box reached over the edge of the image, by up to 1.5 pixels" in said
    assert "302 objects with the class and the box of another" in said
    assert "1 image with more than 300 objects" in said and "classes without boxes to learn from: unicorn" in said
    assert any((objects.boxes == [0, 3, 18.5, 23]).all(axis=1).any() for objects in data.train.objects)
    assert data.classes == ["cat", "dog", "rose", "unicorn"] and data.category_ids == [3, 7, 20, 99]


def test_an_image_in_both_parts_is_refused(tmp_path):
    scenes.write_coco(tmp_path)
    shutil.copy(tmp_path / "train2017" / "4.png", tmp_path / "val2017" / "8.png")
    refuses("the content of a training image; the first: .*8.png and .*4.png", tmp_path)
    assert load_detection_data(tmp_path, check=False).skipped == []
    scenes.write_yolo(tmp_path / "yolo")
    file = tmp_path / "yolo" / "data.yaml"
    file.write_text(file.read_text().replace("images/val", "images/train"))
    refuses("8 images of .* are in the training part and in the validation part", tmp_path / "yolo", check=False)


def test_copies_among_held_out_images_are_learnt_from(tmp_path):
    path = one_coco(tmp_path, indices=range(12))
    for index in (5, 9):
        shutil.copy(tmp_path / "images" / "1.png", tmp_path / "images" / f"{index}.png")
    for seed in range(6):
        data = load_detection_data(path, validation_fraction=0.3, seed=seed)
        contents = [{image.tobytes() for image in split.images} for split in (data.train, data.validation)]
        assert not contents[0] & contents[1] and len(data.train) + len(data.validation) == 12
        ids = [*data.train.ids, *data.validation.ids]
        assert sorted(ids) == [1000 + 7 * index for index in range(12)]
        for split in (data.train, data.validation):
            for number, name, objects in zip(split.ids, map(split.images.name, range(len(split))), split.objects):
                index = int(Path(name).stem)
                assert number == 1000 + 7 * index and objects.boxes.tolist() == scenes.scene(index)[1]


YOLO_REFUSED = {
    "truncated": ("names: [a, b", "cannot be read as YAML"),
    "deep nesting": ("names: " + "[" * 5_000, "nests deeper|cannot be read"),
    "code": ("names: !!python/object/apply:os.system ['true']\ntrain: images/train", "cannot be read as YAML"),
    "a list": ("- train: a\n- names: b", "holds no table"),
    "no names": ("train: images/train\nnc: 3", "no names of classes"),
    "other count": ("train: images/train\nnc: 4\nnames: [a, b, c]", "nc: 4, but 3 names"),
    "names from 1": ("train: images/train\nnames: {1: a, 2: b, 3: c}", "not numbered 0, 1, 2"),
    "names YAML takes for truths": ("train: images/train\nnames: [yes, no, maybe]", "write its name in quotes"),
    "growing names": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
        ) + "train: images/train\nnames: *i",
        "write its name in quotes",
    ),
    "no train": ("val: images/val\nnames: [a, b, c]", "names no images to learn from"),
    "train not there": ("train: images/gone\nnames: [a, b, c]", "There is no .*images/gone"),
    "train a number": ("train: 7\nnames: [a, b, c]", "train: 7; expected a path"),
    "an empty list": ("train: empty.txt\nnames: [a, b, c]", "lists no image"),
    "huge": ("#" * 2**21 + "\ntrain: images/train", "such a file has a few thousand"),
}  # fmt: skip


@pytest.mark.parametrize("name", YOLO_REFUSED)
def test_a_broken_description_is_refused_in_one_sentence(name, tmp_path):
    text, message = YOLO_REFUSED[name]
    scenes.write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    (tmp_path / "empty.txt").write_text("\n")
    refuses(message, tmp_path, data_format="yolo")


YOLO_LEFT_OUT = {
    "class out of range": ("7 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2", "line 1: there is no class 7; there are 3", 1),
    "class below 0": ("-1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2", "line 1: there is no class -1", 1),
    "outside": ("0 1.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2", "line 1: the box .* lies outside", 1),
    "not finite": ("0 nan 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2", "line 1: the box .* not made of finite numbers", 1),
    "words": ("cat 0.5 0.5 0.2 0.2", "line 1 is not made of numbers: 'cat", None),
    "short row": ("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2", "line 2 has 4 numbers, expected 5", None),
    "with a score": ("0 0.5 0.5 0.2 0.2 0.9", "line 1 has 6 numbers, expected 5", None),
    "class with a fraction": ("0.5 0.5 0.5 0.2 0.2", "line 1 starts with 0.5", None),
    "infinite class": ("inf 0.5 0.5 0.2 0.2", "line 1 starts with inf", None),
    "no text": ("\udcff", "cannot be read", None),
}


@pytest.mark.parametrize("name", YOLO_LEFT_OUT)
def test_a_broken_label_file_leaves_its_row_or_its_image_out(name, tmp_path):
    text, message, objects = YOLO_LEFT_OUT[name]
    scenes.write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "1.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    data = load_detection_data(tmp_path)
    (line,) = data.skipped
    assert re.search(message, line) and "1.png" in line
    assert len(data.train) == (7 if objects is None else 8)
    if objects:
        names = [data.train.images.name(position) for position in range(8)]
        assert len(data.train.objects[[Path(each).stem for each in names].index("1")]) == objects


def test_key_points_are_not_taken_for_polygons(tmp_path):
    scenes.write_yolo(tmp_path)
    for file in (tmp_path / "labels").rglob("*.txt"):
        file.write_text("".join(f"{line} 0.1 0.1 2 0.9 0.9 2\n" for line in file.read_text().splitlines()))
    with open(tmp_path / "data.yaml", "a") as file:
        file.write("kpt_shape: [2, 3]\n")
    data = load_detection_data(tmp_path)
    np.testing.assert_allclose(data.train.objects[0].boxes, scenes.scene(0)[1])
    assert any("key points" in line for line in data.understood)


VOC_LEFT_OUT = {
    "truncated": (lambda text: text[:-30], "cannot be read"),
    "entities": (
        lambda text: '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]>' + text.replace("cat", "&z;"),
        "document type",
    ),
    "a file as an entity": (
        lambda text: '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + text, "document type",
    ),
    "deep nesting": (lambda text: "<a>" * 50_000, "cannot be read"),
    "no name": (lambda text: text.replace("<name>", "<title>").replace("</name>", "</title>"), "object 1 has no name"),
    "no box": (lambda text: text.replace("bndbox", "polygon"), "object 1 has no bndbox"),
    "no corner": (lambda text: text.replace("xmin", "left"), "a corner of a bndbox is missing"),
    "a corner of text": (lambda text: text.replace("<xmin>", "<xmin>left"), "xmin is 'left"),
    "size of text": (lambda text: text.replace("<width>", "<width>w"), "width is 'w"),
    "other size": (lambda text: text.replace("<width>4", "<width>9"), "stands in the annotations"),
}  # fmt: skip


@pytest.mark.parametrize("name", VOC_LEFT_OUT)
def test_a_broken_xml_file_leaves_its_image_out(name, tmp_path):
    change, message = VOC_LEFT_OUT[name]
    scenes.write_voc(tmp_path)
    file = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "0.xml"
    file.write_text(change(file.read_text()))
    data = load_detection_data(tmp_path)
    (line,) = data.skipped
    assert message in line and "0.png" in line and len(line) < 500
    assert len(data.train) == 7 and len(data.validation) == 4


def test_other_data_that_cannot_be_read_are_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    refuses("holds no annotations", tmp_path / "empty")
    refuses("is no JSON file of COCO's", tmp_path / "text.txt")
    refuses("There is no", tmp_path / "gone")
    refuses("There is no .*gone.json", "gone.json")
    for data_format, message in {"coco": "no COCO file", "yolo": "no data.yaml", "voc": "no Annotations"}.items():
        refuses(message, tmp_path / "empty", data_format=data_format)
    refuses("There is no format tfrecord", tmp_path, data_format="tfrecord")
    for year in (2007, 2012):
        (tmp_path / "years" / f"VOC{year}" / "Annotations").mkdir(parents=True)
    refuses("holds VOC2007 and VOC2012; pass one", tmp_path / "years")
    (tmp_path / "xml").mkdir()
    scenes.draw(0, tmp_path / "xml" / "0.png")
    (tmp_path / "xml" / "0.xml").write_text("<annotation>")
    refuses("no object in any XML file: 1 problem; the first: .*0.xml cannot be read", tmp_path / "xml")


def test_held_out_images_leave_every_class_in_training(tmp_path):
    path = one_coco(tmp_path, indices=range(12))
    seen = set()
    for seed in range(5):
        data = load_detection_data(path, validation_fraction=0.4, seed=seed, check=False)
        learnt = set(np.concatenate([objects.labels for objects in data.train.objects]).tolist())
        assert learnt == {0, 1, 2} and 1 <= len(data.validation) <= 5 and f"seed {seed}" in data.held_out
        assert set(data.train.ids) | set(data.validation.ids) == {1000 + 7 * index for index in range(12)}
        again = load_detection_data(path, validation_fraction=0.4, seed=seed, check=False)
        assert again.validation.ids == data.validation.ids and again.fingerprint() == data.fingerprint()
        seen.add(tuple(data.validation.ids))
    assert len(seen) > 1
    assert len(load_detection_data(path, validation_fraction=1e-9, check=False).validation) == 1


def test_the_fingerprint_changes_with_boxes_labels_and_parts(tmp_path):
    path = one_coco(tmp_path)
    data = load_detection_data(path, validation_fraction=0.3, check=False)
    found = {data.fingerprint()["sha256"]}
    for options in ({"seed": 1}, {"validation_fraction": 0.0}):
        found.add(
            load_detection_data(path, **{"validation_fraction": 0.3, "check": False, **options}).fingerprint()[
                "sha256"
            ]
        )
    for change in (box(category_id=20), box(bbox=[1, 2, 3, 4]), box(iscrowd=1), box(area=3)):
        path.write_text(edited(change))
        found.add(load_detection_data(path, validation_fraction=0.3, check=False).fingerprint()["sha256"])
    assert len(found) == 7


def test_checking_later_replaces_the_counts(tmp_path):
    path = one_coco(tmp_path)
    data = load_detection_data(path, validation_fraction=0, check=False)
    (tmp_path / "images" / "0.png").unlink()
    checked = check_detection_data(data)
    assert [line for line in checked.understood if "objects," in line] == [
        "training: 5 images, 10 objects, 1 image without objects"
    ]
    assert len(checked.skipped) == 1 and len(checked.train) == 5 and len(data.train) == 6


def test_selected_images_keep_their_objects(written):
    split = load_detection_data(written("coco"), check=False).train
    chosen = split.select([5, 0, 3, 5]).select([3, 1])
    assert chosen.ids == [split.ids[5], split.ids[0]] and len(chosen) == 2
    assert chosen.objects[0].boxes.tolist() == split.objects[5].boxes.tolist()
    assert chosen.images.name(1) == split.images.name(0) and chosen.images[1].tobytes() == split.images[0].tobytes()
    assert len(split.select([]).objects) == 0
    with pytest.raises(IndexError):
        split.objects[len(split)]


@pytest.mark.parametrize("size", [(4, 4), (30, 500), (900, 700)])
def test_boxes_are_drawn_where_they_are_at_any_size(size, tmp_path):
    image = PIL.Image.new("RGB", size, "white")
    right, bottom = size[0] * 0.9, size[1] * 0.9
    objects = Objects(
        np.array([[size[0] * 0.5, size[1] * 0.5, right, bottom]]), np.array([0]), np.array([True]), np.array([1.0])
    )
    drawn = draw_objects(image, objects, ["a class ✓"])
    assert drawn.size == size and image.getextrema() == ((255, 255),) * 3
    assert drawn.getpixel((int(right), int(bottom))) != (255, 255, 255)
    none = Objects(np.empty((0, 4)), np.empty(0, int), np.empty(0, bool), np.empty(0))
    assert draw_objects(image, none, ["a"]).tobytes() == image.tobytes()
    draw_contact_sheet([(image, objects), (image, none)] * 3, ["a class"], tmp_path / "sheet.png")
    sheet = np.asarray(PIL.Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] > 1200 and sheet.shape[0] > 600 and sheet.std() > 1


@pytest.mark.slow
def test_a_hundred_thousand_images_load_in_seconds_and_modest_memory(tmp_path):
    random = np.random.RandomState(1)
    images = [{"id": index, "file_name": f"{index:012}.jpg", "width": 640, "height": 480} for index in range(10**5)]
    boxes = np.round(random.rand(8 * 10**5, 4) * [500, 400, 100, 70] + [0, 0, 2, 2], 2).tolist()
    annotations = [
        {"id": number, "image_id": number % 10**5, "category_id": number % 80, "bbox": each, "iscrowd": 0}
        for number, each in enumerate(boxes)
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in range(80)]
    path = scenes.write_json(
        {"images": images, "annotations": annotations, "categories": categories}, tmp_path / "a.json"
    )
    del images, boxes, annotations
    started = time.process_time()
    data = load_detection_data(path, check=False)
    assert time.process_time() - started < 60
    assert (
        len(data.train) == 90_000
        and sum(map(len, data.train.objects)) + sum(map(len, data.validation.objects)) == 800_000
    )
    tables = [split.table() for split in (data.train, data.validation)]
    assert sum(table.boxes.nbytes + table.labels.nbytes + table.areas.nbytes for table in tables) < 50 * 2**20
