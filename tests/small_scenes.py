"""Small images with coloured boxes, as data of every format that `load_detection_data` reads."""

import json

import numpy as np
import PIL.Image
import PIL.ImageDraw


CLASSES = ["cat", "dog", "rose"]
COLOURS = ["red", "green", "blue"]
CATEGORY_IDS = [3, 7, 20]
PARTS = {"train": range(0, 8), "val": range(8, 12)}


def scene(index):
    """(width, height), boxes (left, top, right, bottom: whole pixels) and labels; every fourth has no object."""
    random = np.random.RandomState(index)
    width, height = (64, 48) if index % 2 else (40, 80)
    boxes, labels = [], []
    for _ in range(0 if index % 4 == 3 else 1 + index % 3):
        left, top = random.randint(0, width - 20), random.randint(0, height - 20)
        boxes.append([left, top, left + random.randint(8, 20), top + random.randint(8, 20)])
        labels.append(len(boxes) % 3 if len(boxes) > 1 else index % 3)
    return (width, height), boxes, labels


def draw(index, path, **options):
    size, boxes, labels = scene(index)
    random = np.random.RandomState(100 + index)
    image = PIL.Image.fromarray(random.randint(0, 60, (size[1], size[0], 3)).astype("uint8"))
    drawing = PIL.ImageDraw.Draw(image)
    for box, label in zip(boxes, labels):
        drawing.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=COLOURS[label])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def coco(indices, name="{}.png"):
    """The content of a COCO file of these scenes."""
    images, annotations = [], []
    for index in indices:
        (width, height), boxes, labels = scene(index)
        images.append({"id": 1000 + 7 * index, "file_name": name.format(index), "width": width, "height": height})
        for (left, top, right, bottom), label in zip(boxes, labels):
            annotations.append({
                "id": len(annotations) + 1, "image_id": 1000 + 7 * index, "category_id": CATEGORY_IDS[label],
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top), "iscrowd": 0,
            })  # fmt: skip
    categories = [{"id": number, "name": label} for number, label in zip(CATEGORY_IDS, CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]}


def write_json(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_coco(folder):
    """`annotations/instances_train2017.json`, `train2017/…`."""
    for part, indices in PARTS.items():
        write_json(coco(indices), folder / "annotations" / f"instances_{part}2017.json")
        for index in indices:
            draw(index, folder / f"{part}2017" / f"{index}.png")
    return folder


def write_coco_images(folder):
    """The same with `images/train2017`, and files of key points and captions beside."""
    for part, indices in PARTS.items():
        write_json(coco(indices), folder / "annotations" / f"instances_{part}2017.json")
        write_json(coco(indices), folder / "annotations" / f"person_keypoints_{part}2017.json")
        for index in indices:
            draw(index, folder / "images" / f"{part}2017" / f"{index}.png")
    return folder


def write_roboflow(folder):
    """`train/_annotations.coco.json`, `valid/…`, with a root category that has no boxes."""
    for part, indices in PARTS.items():
        name = "valid" if part == "val" else part
        content = coco(indices)
        content["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
        write_json(content, folder / name / "_annotations.coco.json")
        for index in indices:
            draw(index, folder / name / f"{index}.png")
    return folder


def write_coco_beside(folder):
    """`train.json`, `val.json`, and file names with folders in them."""
    for part, indices in PARTS.items():
        write_json(coco(indices, f"pictures/{part}/{{}}.png"), folder / f"{part}.json")
        for index in indices:
            draw(index, folder / "pictures" / part / f"{index}.png")
    return folder


def yolo_rows(index):
    (width, height), boxes, labels = scene(index)
    return "".join(
        f"{label} {(left + right) / 2 / width!r} {(top + bottom) / 2 / height!r} {(right - left) / width!r} "
        f"{(bottom - top) / height!r}\n"
        for (left, top, right, bottom), label in zip(boxes, labels)
    )


def polygon_rows(index):
    (width, height), boxes, labels = scene(index)
    return "".join(
        f"{label} {left / width!r} {(top + bottom) / 2 / height!r} {(left + right) / 2 / width!r} {top / height!r} "
        f"{right / width!r} {(top + bottom) / 2 / height!r} {(left + right) / 2 / width!r} {bottom / height!r}\n"
        for (left, top, right, bottom), label in zip(boxes, labels)
    )


def write_yolo(folder, rows=yolo_rows):
    """`data.yaml`, `images/train`, `labels/train`; images without objects have no label file."""
    for part, indices in PARTS.items():
        for index in indices:
            draw(index, folder / "images" / part / f"{index}.png")
            if text := rows(index):
                label = folder / "labels" / part / f"{index}.txt"
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(text)
    (folder / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\ntest:\nnc: 3\nnames: {0: cat, 1: dog, 2: rose}\n"
    )
    return folder


def write_yolo_polygons(folder):
    return write_yolo(folder, polygon_rows)


def write_yolo_lists(folder):
    """The same with lists of files."""
    write_yolo(folder)
    for part, indices in PARTS.items():
        (folder / f"{part}.txt").write_text("".join(f"./images/{part}/{index}.png\n" for index in indices))
    (folder / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat, dog, rose]\n")
    return folder


def write_yolo_roboflow(folder):
    """`../train/images`, which is beside `data.yaml`."""
    for part, indices in PARTS.items():
        name = "valid" if part == "val" else part
        for index in indices:
            draw(index, folder / name / "images" / f"{index}.png")
            label = folder / name / "labels" / f"{index}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(yolo_rows(index))
    (folder / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: ['cat', 'dog', 'rose']\n")
    return folder


def voc(index, name=None):
    """An XML file."""
    (width, height), boxes, labels = scene(index)
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for (left, top, right, bottom), label in zip(boxes, labels)
    )
    return (
        f"<annotation><filename>{name or f'{index}.png'}</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def write_voc(folder, suffix="png"):
    """`VOCdevkit/VOC2012`."""
    root = folder / "VOCdevkit" / "VOC2012"
    for place in ("Annotations", "ImageSets/Main"):
        (root / place).mkdir(parents=True)
    for part, indices in PARTS.items():
        for index in indices:
            draw(index, root / "JPEGImages" / f"{index}.{suffix}")
            (root / "Annotations" / f"{index}.xml").write_text(voc(index, f"{index}.{suffix}"))
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{index}\n" for index in indices))
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("0 1\n")
    return folder


def write_labelimg(folder):
    """`train` and `valid` with an XML file beside each image."""
    for part, indices in PARTS.items():
        place = folder / ("valid" if part == "val" else part)
        for index in indices:
            draw(index, place / f"{index}.png")
            (place / f"{index}.xml").write_text(voc(index, "another name.jpeg"))
    return folder


def write_metadata(folder):
    """An image folder of the `datasets` library; classes are texts."""
    for part, indices in PARTS.items():
        lines = []
        for index in indices:
            draw(index, folder / part / f"{index}.png")
            _, boxes, labels = scene(index)
            objects = {
                "bbox": [[left, top, right - left, bottom - top] for left, top, right, bottom in boxes],
                "category": [CLASSES[label] for label in labels],
            }
            lines.append(json.dumps({"file_name": f"{index}.png", "objects": objects}))
        (folder / part / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def as_datasets(folder, corners=False):
    """A `datasets.DatasetDict` with a `ClassLabel`; `corners`: boxes as left, top, right, bottom."""
    import datasets

    objects = {
        "bbox": datasets.Sequence(datasets.Value("float64"), length=4),
        "category": datasets.ClassLabel(names=CLASSES),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": datasets.Sequence(objects)})
    parts = {}
    for part, indices in PARTS.items():
        rows = {"image": [], "objects": []}
        for index in indices:
            draw(index, folder / f"{index}.png")
            _, boxes, labels = scene(index)
            spelled = boxes if corners else [[a, b, c - a, d - b] for a, b, c, d in boxes]
            rows["image"].append(str(folder / f"{index}.png"))
            rows["objects"].append({"bbox": spelled, "category": labels})
        parts["validation" if part == "val" else part] = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict(parts)


def write_saved(folder):
    as_datasets(folder.with_name(f"{folder.name}-images")).save_to_disk(folder)
    return folder


def write_parquet(folder):
    folder.mkdir()
    for part, dataset in as_datasets(folder.with_name(f"{folder.name}-images")).items():
        dataset.to_parquet(folder / f"{part}-00000-of-00001.parquet")
    return folder


WRITERS = {
    "coco": write_coco, "coco images": write_coco_images, "coco beside": write_coco_beside,
    "roboflow coco": write_roboflow, "yolo": write_yolo, "yolo polygons": write_yolo_polygons,
    "yolo lists": write_yolo_lists, "yolo roboflow": write_yolo_roboflow, "voc": write_voc,
    "labelimg": write_labelimg, "metadata": write_metadata, "saved": write_saved, "parquet": write_parquet,
}  # fmt: skip
