"""Pascal VOC's format: an XML file per image, as VOCdevkit has them, or beside the images, as LabelImg writes them."""

import os
from xml.etree import ElementTree

import numpy as np

from ..errors import DataError
from ..files.images import is_image_name, walk
from ..wording import counted, sentence
from .annotated import Annotations, Found, SizedFiles, check_class_names, shortened
from .class_folders import TRAIN_NAMES
from .splits import VALIDATION_NAMES


_LARGEST = 2**24  # bytes of one image's annotations
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_CLASS_LISTS = ("label_list.txt", "labels.txt", "classes.txt")


def find_voc(folder):
    """The folders of VOC data in a folder: with `Annotations`, or XML files beside images, or parts of these."""
    if (folder / "Annotations").is_dir():
        return [folder]
    inside = [path for path in (folder, folder / "VOCdevkit") if path.is_dir()]
    years = [path for place in inside for path in sorted(place.glob("VOC20*")) if (path / "Annotations").is_dir()]
    if years:
        return years
    parts = [path for path in folder.iterdir() if path.name.lower() in (*TRAIN_NAMES, *VALIDATION_NAMES)]
    has_xml = any(name.endswith(".xml") for place in (folder, *parts) for name in _names(place))
    return [folder] if has_xml else []


def read_voc(source):
    """
    Boxes are taken as they stand: left, top, right and bottom are `xmin`, `ymin`, `xmax` and `ymax`, nothing
    subtracted, as D-FINE's and torchvision's readers take them, although VOC counts pixels from 1 and includes the
    last. `difficult` objects are crowd: never learnt from, ignored in evaluation, as VOC's own evaluation does.

    Args:
        source (`Path`): `VOCdevkit/VOC2012` or a folder above it that holds one year; any folder with `Annotations`,
            `JPEGImages` and, if parts are given, `ImageSets/Main/train.txt`; or a folder, or `train` and `valid`
            folders, with an XML file beside each image.

    Returns:
        [`Found`]: classes are sorted by name, or in the order of `label_list.txt` (`labels.txt`, `classes.txt`) where
        the folder has one.

    Raises:
        `DataError`: there are no such files, or several years.
    """
    folders = find_voc(source) if source.is_dir() else []
    if not folders:
        raise DataError(f"{source} holds no Annotations folder with XML files, and none beside images.")
    if len(folders) > 1:
        raise DataError(f"{source} holds {' and '.join(path.name for path in folders)}; pass one of these folders.")
    folder = folders[0]
    parts, unused = _parts(folder)
    class_list = next((folder / name for name in _CLASS_LISTS if (folder / name).is_file()), None)
    known = None if class_list is None else _lines(class_list)
    read = {part: [_read_file(*pair) for pair in pairs] for part, pairs in parts.items()}
    names = {each.name for files in read.values() for file in files for each in file.objects}
    classes = known or sorted(names)
    if not classes:
        problems = [file.problem for files in read.values() for file in files if file.problem]
        first = f": {counted(len(problems), 'problem')}; the first: {problems[0]}" if problems else ""
        raise DataError(f"{folder} holds no object in any XML file{first}.")
    check_class_names(classes, str(class_list or folder))
    trains, held_out = ([name for name in parts if name in each] for each in (_TRAINING, VALIDATION_NAMES))
    train = _annotations(read[trains[0]], classes)
    validation = _annotations(read[held_out[0]], classes) if held_out else None
    understood = [f"format: Pascal VOC: {folder}, boxes as they stand, difficult objects as crowd"]
    if class_list:
        understood.append(f"classes: from {class_list}")
    if unused:
        understood.append(f"not used: {', '.join(unused)}")
    where = f"{held_out[0]} of {folder}" if held_out else ""
    return Found(train, validation, classes, where, understood)


_TRAINING = (*TRAIN_NAMES, "trainval")


class _File:
    """What one XML file says, or why it says nothing."""

    def __init__(self, image, size=(0, 0), objects=(), problem=None):
        self.image, self.size, self.objects, self.problem = image, size, objects, problem


class _Object:
    def __init__(self, name, box, is_difficult, place):
        self.name, self.box, self.is_difficult, self.place = name, box, is_difficult, place


def _parts(folder):
    """Part -> (image, XML file or the reason why there is none) of each of its images; and what is not used."""
    if (folder / "Annotations").is_dir():
        return _listed_parts(folder)
    names = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    trains = [name for name in TRAIN_NAMES if name in names]
    held_out = [name for name in VALIDATION_NAMES if name in names]
    if not trains:
        return _with_counts({"train": _pairs_beside(folder)})
    parts = {"train": _pairs_beside(names[trains[0]])}
    if held_out:
        parts[held_out[0]] = _pairs_beside(names[held_out[0]])
    return _with_counts(parts, held_out[1:])


def _with_counts(parts, unused=()):
    """Takes images without an XML file out, and says how many."""
    unused = list(unused)
    without = sum(xml is None for pairs in parts.values() for _, xml in pairs)
    if without:
        unused.append(f"{counted(without, 'image')} without an XML file")
    return {part: [pair for pair in pairs if pair[1] is not None] for part, pairs in parts.items()}, unused


def _pairs_beside(folder):
    """Images and XML files of the same name, in a folder and those inside; images of no XML file with ``None``."""
    pairs = []
    for place, names in walk(folder):
        pairs += _paired(place, sorted(names), place, sorted(names))
    return pairs


def _listed_parts(folder):
    images = folder / "JPEGImages"
    if not images.is_dir():
        images = folder / "images" if (folder / "images").is_dir() else folder
    annotations = folder / "Annotations"
    pairs = _paired(images, _names(images), annotations, _names(annotations))
    lists = folder / "ImageSets" / "Main"
    files = {name: lists / f"{name}.txt" for name in (*_TRAINING, *VALIDATION_NAMES)}
    files = {name: file for name, file in files.items() if file.is_file()}
    trains = [name for name in _TRAINING if name in files]
    held_out = [name for name in VALIDATION_NAMES if name in files]
    if trains == ["trainval"]:
        held_out = [name for name in held_out if name in ("test", "testing")]  # val is a part of trainval
    if not trains:
        return _with_counts({"train": pairs})
    by_name = {}
    for image, xml in pairs:
        by_name[os.path.splitext(os.path.basename(xml or image))[0]] = (image, xml)
    parts = {}
    for name in (trains[0], *held_out[:1]):
        parts[name] = [by_name.get(line) or _unknown(line, by_name, images) for line in _lines(files[name])]
        parts[name] = [(image, xml or "there is no XML file for it") for image, xml in parts[name]]
    return parts, [name for name in (*trains[1:], *held_out[1:]) if name != "trainval"]


def _unknown(line, by_name, images):
    """Lists of one class have a number behind each name."""
    name, _, number = line.rpartition(" ")
    if name.strip() in by_name and number in ("-1", "0", "1"):
        return by_name[name.strip()]
    return os.path.join(images, line), "there is no XML file of this name"


def _paired(image_folder, image_names, xml_folder, xml_names):
    """(image, XML file) of each XML file, then (image, ``None``) of images of no XML file."""
    images = {}
    for name in image_names:
        if is_image_name(name):
            images.setdefault(os.path.splitext(name)[0], []).append(name)
    pairs, used = [], set()
    for name in xml_names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() == ".xml" and not name.startswith("."):
            found = images.get(stem, [])
            used.add(stem)
            image = found[0] if len(found) == 1 else None  # else its own `filename` says which
            pairs.append((os.path.join(image_folder, image or ""), os.path.join(xml_folder, name)))
    pairs += [(os.path.join(image_folder, names[0]), None) for stem, names in images.items() if stem not in used]
    return pairs


def _names(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _lines(file):
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a list: {sentence(error)[:200]}.") from error
    return [line for line in lines if line]


class _WithoutEntities(ElementTree.TreeBuilder):
    def doctype(self, *_):
        """Entities are declared there; they grow without bound, or name other files."""
        raise ValueError("it has a document type, which annotations do not need")


def _read_file(image, file):
    if not os.path.isfile(file):  # a reason
        return _File(image, problem=file)
    try:
        if os.path.getsize(file) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        parser = ElementTree.XMLParser(target=_WithoutEntities())
        root = ElementTree.parse(file, parser).getroot()
        if image.endswith(os.sep):
            image = _named(image, root)
        size = tuple(_number(root.find(f"size/{name}"), 0) for name in ("width", "height"))
        if not all(0 <= value < 2**31 and value.is_integer() for value in size):
            raise ValueError(f"its size is {size[0]:g}×{size[1]:g}, expected pixels")
        objects = [_object(element, place) for place, element in enumerate(root.findall("object"), 1)]
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        return _File(image, problem=f"{file} cannot be read: {sentence(error)[:200]}")
    return _File(image, size, objects)


def _named(folder, root):
    """The image that an XML file names, in this folder."""
    name = (root.findtext("filename") or "").strip()
    name = name.replace("\\", "/").rpartition("/")[2]
    if not name or name in (".", "..") or "\0" in name or len(name) > 255:
        raise ValueError("there is no image of its name, and it names none")
    return os.path.join(folder, name)


def _object(element, place):
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"object {place} has no name")
    corners = element.find("bndbox")
    if corners is None:
        raise ValueError(f"object {place} has no bndbox")
    box = [_number(corners.find(corner)) for corner in _CORNERS]
    return _Object(name, box, _number(element.find("difficult"), 0) != 0, place)


def _number(element, default=None):
    text = None if element is None else (element.text or "").strip()
    if not text:
        if default is None:
            raise ValueError("a corner of a bndbox is missing")
        return float(default)
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{element.tag} is {shortened(text)}, expected a number") from error


def _annotations(files, classes):
    left_out, by_image = [f"{file.image}: {file.problem}" for file in files if file.problem], {}
    for file in files:
        if not file.problem and by_image.setdefault(file.image, file) is not file:
            left_out.append(f"{file.image}: named a second time, by another XML file or by the list")
    files = list(by_image.values())
    label_of = {name: label for label, name in enumerate(classes)}
    rows = []
    for index, file in enumerate(files):
        for each in file.objects:
            if each.name in label_of:
                rows.append((index, label_of[each.name], each.is_difficult, each.place, *each.box))
            else:
                left_out.append(f"{file.image}, object {each.place}: there is no class {shortened(each.name)}")
    table = np.array(rows, dtype="float64").reshape(-1, 8)
    image_of_each, labels, crowd, places = (table[:, column].astype("int64") for column in range(4))
    images = SizedFiles([file.image for file in files], np.array([file.size for file in files], dtype="int64"))
    areas = np.full(len(table), np.nan)
    return Annotations(
        images, image_of_each, table[:, 4:], labels, crowd.astype(bool), areas, places, "object", left_out=left_out
    )
