"""
Inference models of Paddle as sources: which files belong together, what their parameters are called, what they say.

PaddleClas's names, or of a detector PaddleDetection's, are dealt out over Paddle's, `KIND_NUMBER.SUFFIX`: numbers
count the layers of a kind in the order of construction, in PaddleClas that of the network's own state dict.
"""

import contextlib
import functools
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from ..errors import ConversionError
from ..model.variants import DOWNSAMPLE_STRIDE, PP_HGNET_VARIANTS
from .layouts import is_counter, layouts_of, rename_back
from .ml_decoder import SIGNATURE as ML_DECODER
from .network import LARGEST_SIDE, model_class
from .paddle_detector import MOST_CLONES, PREFIX, detector_layers, name_constants
from .paddle_graph import before_the_end, check_operations, is_downscaling
from .paddle_program import Program, is_parameters, named_parameters, read_parameters, read_program


PROGRAMS = (".json", ".pdmodel")
PARAMETERS = ".pdiparams"
SETTINGS = ("inference.yml", "infer_cfg.yml")  # of PaddleX and PaddleClas; of PaddleDetection


class InferenceFiles(NamedTuple):
    """The files of one inference model."""

    parameters: Path
    program: Optional[Path]
    settings: Optional[Path] = None
    folder: Any = None  # a temporary one, which lives as long as this


class InferenceModel(NamedTuple):
    """What was read."""

    tensors: dict[str, torch.Tensor]  # by PaddleClas's names, or those of PaddleDetection
    assumed: dict[str, tuple[Any, str]] = {}  # about the names
    declared: dict[str, tuple[Any, str]] = {}  # fields that the program shows
    program: Optional[Program] = None
    parameters: dict[str, torch.Tensor] = {}  # by the program's names
    layers: dict[str, str] = {}  # the program's values to the names of the layers that give them
    constants: dict[str, str] = {}  # of a detector, by the program's names, and its own names


def find_inference_files(path):
    """
    Args:
        path (`str` or `os.PathLike`): a folder, or one of the files of an inference model.

    Returns:
        [`InferenceFiles`]: `None` where the path is of something else.

    Raises:
        `ConversionError`: the program or the parameters are missing, or nothing says which ones belong together.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob(f"[!.]*{PARAMETERS}"))  # a name with a dot before it is macOS's doing
        programs = [each for kind in PROGRAMS for each in sorted(path.glob(f"[!.]*{kind}")) if _is_program(each)]
        if not found and not programs:
            return None
        if len(found) == 1 and not programs:
            return _beside(found[0])
        if len(found) != 1 or len({each.stem for each in programs}) != 1 or programs[0].stem != found[0].stem:
            names = ", ".join(each.name for each in [*programs, *found][:6])
            raise ConversionError(
                f"{path} is not one inference model, which has a program ({' or '.join(PROGRAMS)}) and parameters "
                f"({PARAMETERS}) of one name, each once: it holds {names}."
            )
        return _beside(found[0])
    if path.suffix == PARAMETERS or _starts_as_parameters(path):
        return _beside(path)
    if path.suffix in PROGRAMS and _is_program(path):
        if not path.with_suffix(PARAMETERS).is_file():
            raise ConversionError(f"{path} is a program without weights: {path.stem}{PARAMETERS} is not beside it.")
        return _beside(path.with_suffix(PARAMETERS))._replace(program=path)
    return None


def _starts_as_parameters(path):
    try:
        with open(path, "rb") as file:
            return is_parameters(file.read(16))
    except OSError:
        return False


def _is_program(path):
    if path.suffix != ".json":
        return True
    try:
        with open(path, "rb") as file:
            return b'"base_code"' in file.read(200)
    except OSError:
        return False


def _beside(parameters):
    programs = [parameters.with_suffix(kind) for kind in PROGRAMS if parameters.with_suffix(kind).is_file()]
    settings = [parameters.parent / name for name in SETTINGS if (parameters.parent / name).is_file()]
    return InferenceFiles(parameters, programs[0] if programs else None, settings[0] if settings else None)


@contextlib.contextmanager
def naming(archive, folder):
    """Errors name the archive, and not the temporary folder with what was in it."""
    try:
        yield
    except ConversionError as error:
        if folder is None:
            raise
        text = str(error).replace(f"{folder.name}/", f"{archive}: ").replace(folder.name, str(archive))
        raise ConversionError(text) from error


def is_archive(path):
    """Whether this is a `.tar` file, gzipped or not, by its content."""
    try:
        return os.path.isfile(path) and tarfile.is_tarfile(path)
    except (EOFError, OSError, zlib.error, lzma.LZMAError):  # compressed, and cut off at its beginning
        return True


def unpack(path):
    """
    The inference model inside a `.tar` archive (or a gzipped one), in a temporary folder.

    Args:
        path (`str`): the archive. Only regular files with the endings of an inference model are taken out of it, by
            their last names.

    Returns:
        [`InferenceFiles`]

    Raises:
        `ConversionError`: it holds none or several, is damaged, or unfolds to more than it should.
    """
    folder = tempfile.TemporaryDirectory(prefix="hgnetv2-hf-")
    try:
        with tarfile.open(path) as archive:
            members = [each for each in _members(path, archive) if each.isfile() and _is_wanted(Path(each.name).name)]
            for member in members:
                target = Path(folder.name) / Path(member.name).name
                if target.exists():
                    raise ConversionError(f"{path} holds more than one {target.name}.")
                with archive.extractfile(member) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ConversionError(f"{path} cannot be unpacked: {str(error) or error!r:.150}.") from error
    with naming(path, folder):
        files = find_inference_files(folder.name)
    if files is None:
        raise ConversionError(f"{path} is an archive without an inference model of Paddle ({PARAMETERS}).")
    return files._replace(folder=folder)


_MOST_BYTES, _MOST_MEMBERS = 4 * 2**30, 1000  # the largest network has 0.3 GB, in four files
_BLOCK = 512


def _members(path, archive):
    """All members, up to the archive's own end: what is cut off, or fails a checksum, is no archive."""
    members, size = [], 0
    for member in archive:
        members.append(member)
        size += member.size
        if size > _MOST_BYTES or len(members) > _MOST_MEMBERS:
            raise ConversionError(
                f"{path} unfolds to more than any network has ({_MOST_BYTES // 2**30} GB, {_MOST_MEMBERS} files); "
                "unpack it, and pass the folder."
            )
    if archive.fileobj.tell() < archive.offset + _BLOCK:  # behind the last member lies a block of zeros
        raise EOFError("it ends too early")
    while archive.fileobj.read(2**20):
        pass
    return members


def _is_wanted(name):
    return not name.startswith(".") and (name.endswith((PARAMETERS, *PROGRAMS)) or name in SETTINGS)


def read_inference_model(files):
    """
    Args:
        files ([`InferenceFiles`]): whose program and parameters are read.

    Returns:
        [`InferenceModel`]

    Raises:
        `ConversionError`: a file is damaged, they do not belong together, or the network is another one.
    """
    tensors = read_parameters(str(files.parameters))
    if files.program is None:
        named = name_by_shapes(tensors, files.parameters)
        reason = "no program is beside them, and the shapes leave one order"
        return InferenceModel(named, {"names": (f"{len(named)} parameters", reason)})
    program = read_program(str(files.program))
    parameters = named_parameters(program, tensors)
    names = paddleclas_names(parameters)
    read = _read_detector if any(name.startswith(PREFIX) for name in names.values()) else _read_network
    try:
        return read(program, parameters, names, f"read from {files.program.name}")
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ConversionError(f"{files.program} is no program that Paddle writes ({error!r:.100}).") from error


def _read_network(program, parameters, names, reason):
    check_operations(program)
    facts = {**_facts(program, names), **_image_size(program, names)}
    if ML_DECODER in names.values():
        facts.update(_decoder_facts(program, names))
    return InferenceModel(
        tensors={names[name]: parameters[name] for name in names},
        declared={field: (value, reason) for field, value in facts.items()},
        program=program,
        parameters=parameters,
        layers=_norms(program, names),
    )


def _read_detector(program, parameters, names, reason):
    constants = name_constants(parameters)
    facts = _facts(program, {name: ours.removeprefix(PREFIX) for name, ours in names.items()})
    if (queries := _num_queries(program)) is not None:
        facts["num_queries"] = queries
    return InferenceModel(
        tensors={ours: parameters[name] for name, ours in names.items()},
        declared={field: (value, reason) for field, value in facts.items()},
        program=program,
        parameters=parameters,
        layers={**_norms(program, names), **_heads(program, names)},
        constants=constants,
    )


# Names

# A layer's kind, what Paddle's names call it, and the suffixes of its parameters by their last names in the network.
_LAYERS = {
    "conv2d": ("conv2d", {"weight": "w_0"}),
    "conv2d with bias": ("conv2d", {"weight": "w_0", "bias": "b_0"}),
    "batch_norm2d": ("batch_norm2d", {"weight": "w_0", "bias": "b_0", "_mean": "w_1", "_variance": "w_2"}),
    "learnable_affine_block": ("learnable_affine_block", {"scale": "w_0", "bias": "w_1"}),
    "linear": ("linear", {"weight": "w_0", "bias": "b_0"}),
    "embedding": ("embedding", {"weight": "w_0"}),
    "layer_norm": ("layer_norm", {"weight": "w_0", "bias": "b_0"}),
    "multi_head_attention": ("multi_head_attention", {"in_proj_weight": "w_0", "in_proj_bias": "b_0"}),
}
_VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5", "b6")


class _Network(NamedTuple):
    """A published one, with as many layers as it has; widths come from the tensors."""

    variant: str
    has_head: bool = True
    decoder_layers: int = 0  # of an ML-Decoder
    decoder_self_attention: bool = False

    @property
    def model_type(self):
        if self.decoder_layers:
            return "pp_hgnet_v2_ml"
        return "pp_hgnet" if self.variant in PP_HGNET_VARIANTS else "pp_hgnet_v2"


_NETWORKS = tuple(
    _Network(variant, has_head) for has_head in (True, False) for variant in (*_VARIANTS, *PP_HGNET_VARIANTS)
)


class _Layer(NamedTuple):
    word: str
    number: int
    clone: int  # of layers that are copies of one


def paddleclas_names(parameters):
    """
    Args:
        parameters (`dict[str, torch.Tensor]`): by the program's names.

    Returns:
        `dict[str, str]`: the program's name to PaddleClas's, in the order of PaddleClas's state dict; or of a detector
        to PaddleDetection's, in the order of construction, and those of the constants behind them.

    Raises:
        `ConversionError`: the parameters are not those of a PP-HGNetV2, or of a PP-HGNet.
    """
    constants = name_constants(parameters)
    parsed = _parsed(name for name in parameters if name not in constants)
    held = {}
    for layer, _ in parsed:
        held.setdefault(layer.word, set()).add(layer)
    counts = {word: len(found) for word, found in held.items()}
    layers = next((layers for layers in _possible_layers(held) if _counts(layers) == counts), None)
    if layers is None:
        text = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        raise ConversionError(
            f"The program's layers are not those of a published PP-HGNetV2 or PP-HGNet (they are {text:.200}); "
            "convert the .pdparams."
        )
    ordered = {word: iter(sorted(found)) for word, found in held.items()}
    names = {}
    for layer, kind in layers:
        word, suffixes = _LAYERS[kind]
        found = next(ordered[word])
        for last, suffix in suffixes.items():
            name = parsed.get((found, suffix))
            if name is None:
                raise ConversionError(f"The program lacks the parameter {word}_{found.number}.{suffix}.")
            names[name] = f"{layer}.{last}"
    unknown = [name for name in parameters if name not in names and name not in constants]
    if unknown or (constants and _ATTENTION not in held):
        name = [*unknown, *constants][0]
        raise ConversionError(f"The program holds the parameter {name:.80}, which no PP-HGNetV2 has.")
    return {**names, **constants}


_ATTENTION = "multi_head_attention"


def _parsed(names):
    """Layer and suffix to the name; clones are counted in the order of their own numbers."""
    clones, parsed = {}, {}
    for name in names:
        match = re.fullmatch(r"(\w+?)_(\d{1,9})\.([wb]_\d)(?:_deepcopy_(\d{1,9}))?", name)
        if match is None or match[1] not in {word for word, _ in _LAYERS.values()}:
            raise ConversionError(
                f"The program holds the parameter {name!r:.80}, which no PP-HGNetV2 has: it is of another network, or "
                "fused or quantised; convert the .pdparams, or export it again without."
            )
        clones.setdefault((match[1], int(match[2]), match[3]), []).append((int(match[4] or 0), name))
    for (word, number, suffix), found in clones.items():
        for clone, (_, name) in enumerate(sorted(found)):
            parsed[_Layer(word, number, clone), suffix] = name
    return parsed


def _possible_layers(held):
    """Those of all networks that this may be."""
    if _ATTENTION not in held:
        yield from map(_layers_of, _decoded(held) if "embedding" in held else _NETWORKS)
        return
    numbers = [layer.number for layer in held[_ATTENTION]]
    clones = [numbers.count(number) for number in sorted(set(numbers))]
    if len(clones) == 2 and max(clones) <= MOST_CLONES:  # of one layer of the encoder, and of one of the decoder
        for variant in _VARIANTS:
            yield detector_layers(_layers_of(_Network(variant, has_head=False)), *clones)


def _decoded(held):
    """Classifiers with an ML-Decoder."""
    layers = len(held.get("layer_norm", ())) // _NORMS_OF_A_DECODER_LAYER
    if 0 < layers <= MOST_CLONES:
        for self_attention in (False, True):
            for variant in _VARIANTS:
                yield _Network(variant, decoder_layers=layers, decoder_self_attention=self_attention)


_NORMS_OF_A_DECODER_LAYER = 3


@functools.cache
def _layers_of(network):
    """The layers of a network, by PaddleClas's names and in its order, each with its kind."""
    layers = {}
    for name, tensor in _template(network).items():
        layer, last = name.rsplit(".", 1)
        layers.setdefault(layer, {})[last] = tensor.ndim
    return tuple((layer, _kind(dimensions)) for layer, dimensions in layers.items())


def _kind(dimensions):
    """The kind of a layer, by what its parameters are called and how many dimensions they have."""
    if "scale" in dimensions:
        return "learnable_affine_block"
    if "_mean" in dimensions:
        return "batch_norm2d"
    has_bias = "bias" in dimensions
    kinds = {1: "layer_norm", 2: "linear" if has_bias else "embedding"}
    return kinds.get(dimensions["weight"], "conv2d with bias" if has_bias else "conv2d")


@functools.cache
def _template(network):
    """Empty tensors under PaddleClas's names."""
    kind = model_class(network.model_type, "AutoModelForImageClassification" if network.has_head else "AutoBackbone")
    decoder = {name: getattr(network, name) for name in ("decoder_layers", "decoder_self_attention")}
    with torch.device("meta"):
        model = kind(kind.config_class.from_variant(network.variant, **decoder if network.decoder_layers else {}))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not is_counter(name)}
    return rename_back(tensors, layouts_of(network.model_type)["paddleclas"])


def _counts(layers):
    counts = {}
    for _, kind in layers:
        word, _ = _LAYERS[kind]
        counts[word] = counts.get(word, 0) + 1
    return counts


_OFFSETS = range(1100)  # where numbers may start; later ones sort alike


def name_by_shapes(tensors, path):
    """
    Names parameters without a program, where only one order fits.

    Args:
        tensors (`list[torch.Tensor]`): in the order of the file.
        path (`Path`): the file, for errors.

    Returns:
        `dict[str, torch.Tensor]`: by PaddleClas's names.

    Raises:
        `ConversionError`: no network fits, or the shapes leave more than one order.
    """
    shapes = [tuple(tensor.shape) for tensor in tensors]
    advice = f"put its program ({' or '.join(path.stem + kind for kind in PROGRAMS)}) beside it"
    network = next((network for network in _NETWORKS if _fits(shapes, network)), None)
    if network is None:
        raise ConversionError(
            f"{path} holds parameters without names, and their shapes are not in the order of a PP-HGNetV2-B0 to B6 "
            f"or PP-HGNet exported by a program that built nothing before; {advice}."
        )
    # The numbers of convolutions show whether anything was built before; affine blocks, all alike, follow them.
    first = _file_order(network, 0, "conv2d")
    fitting = (start for start in _OFFSETS if _fits_convolutions(shapes, network, start))
    if any(_file_order(network, start, "conv2d") != first for start in fitting):
        raise ConversionError(
            f"{path} holds parameters without names, and their shapes leave more than one order of them; {advice}."
        )
    found = dict(zip(_file_order(network, 0), tensors))
    return {name: found[name] for name in _template(network)}


def _file_order(network, start, only=None):
    """PaddleClas's names in the order of a file, where numbers start there; of all layers, or those of one kind."""
    numbers, names = {}, {}
    for layer, kind in _layers_of(network):
        word, suffixes = _LAYERS[kind]
        number = numbers[word] = numbers.get(word, start - 1) + 1
        if only in (None, word):
            names.update({f"{word}_{number}.{suffix}": f"{layer}.{last}" for last, suffix in suffixes.items()})
    return [names[name] for name in sorted(names)]


def _fits(shapes, network):
    """Whether these are the shapes of a network that was built first; its class count is free."""
    names, template = _file_order(network, 0), _template(network)
    return len(names) == len(shapes) and all(
        shape[:-1] == tuple(template[name].shape)[:-1] if name.startswith("fc.") else shape == template[name].shape
        for name, shape in zip(names, shapes)
    )


def _fits_convolutions(shapes, network, start):
    template = _template(network)
    expected = [template[name].shape for name in _file_order(network, start, "conv2d")]
    return [shape for shape in shapes if len(shape) == 4] == expected


# What a program shows


def _parameter_of(program):
    return {each.outputs[0]: each.inputs[0] for each in program.operations if each.kind == "parameter"}


def _norms(program, names):
    """The values that batch norms give, and these layers' names in PaddleClas."""
    parameter_of, norms = _parameter_of(program), {}
    for operation in program.operations:
        if operation.kind.startswith("batch_norm"):
            scale = names.get(parameter_of.get(operation.inputs[3]), "")
            norms[operation.outputs[0]] = scale.removesuffix(".weight")
    return norms


def _heads(program, names):
    """The values that a detector's heads give, found by the biases that are added last, and the boxes of its end."""
    last = max(int(name.split(".")[2]) for name in names.values() if name.startswith("transformer.dec_bbox_head."))
    biases = {
        f"transformer.{head}.bias": f"transformer.{head}" for head in ("enc_score_head", "enc_bbox_head.layers.2")
    }
    biases[f"transformer.dec_score_head.{last}.bias"] = "logits"
    biases[f"transformer.dec_bbox_head.{last}.layers.2.bias"] = "pred_boxes"
    parameter_of, heads = _parameter_of(program), {}
    for operation in program.operations:
        if operation.kind == "add" and names.get(parameter_of.get(operation.inputs[1])) in biases:
            heads[operation.outputs[0]] = biases[names[parameter_of[operation.inputs[1]]]]
    for value in [value for value, head in heads.items() if head == "pred_boxes"]:
        del heads[value]
        heads[_follow(program, value, ("add", "sigmoid"))] = "pred_boxes"
    missing = {*biases.values()} - {head for value, head in heads.items() if value is not None}
    if missing:
        raise ConversionError(f"The program never computes {min(missing)}, as every RT-DETR does.")
    return heads


def _follow(program, value, kinds):
    """The value that these operations make of another, each of what the one before gave."""
    for kind in kinds:
        uses = [each for each in program.operations if each.kind == kind and value in each.inputs]
        value = uses[0].outputs[0] if uses else None
    return value


def _num_queries(program):
    """How many places the first choice of the best ones takes, ``None`` without any."""
    constants = _constants(program)
    for operation in program.operations:
        if operation.kind == "topk":
            count = _argument(operation, constants, 1, "k")
            return int(count) if isinstance(count, (int, float)) else None
    return None


def _constants(program):
    """Values that are numbers, or lists of them."""
    kinds = ("full", "full_int_array")
    return {each.outputs[0]: each.attributes.get("value") for each in program.operations if each.kind in kinds}


def _argument(operation, constants, place, *names):
    """What Paddle 3 passes as a value, at this place, is an attribute in Paddle 2."""
    if len(operation.inputs) > place:
        return constants.get(operation.inputs[place])
    return next((operation.attributes[name] for name in names if name in operation.attributes), None)


def _image_size(program, names):
    """Of the images that a classifier was exported for, where they are of one size: a crop, where it is a square."""
    shapes = [each.attributes.get("shape") for each in program.operations if each.kind == "data"]
    if len(shapes) != 1 or len(shapes[0] or ()) != 4 or min(shapes[0][2:]) <= 0:
        return {}
    height, width = map(int, shapes[0][2:])
    if max(height, width) > LARGEST_SIDE:
        raise ConversionError(f"The program takes images of {height}×{width} pixels, which no such network does.")
    if height == width and ML_DECODER not in names.values():
        return {"crop_size": height}
    return {"image_size": [height, width]}


def _facts(program, names):
    """Fields that no tensor shows."""
    parameter_of, constants = _parameter_of(program), _constants(program)
    returned = {each.inputs[0] for each in program.operations if each.kind == "fetch"}
    strides, pool_stride, facts = {}, [], {}
    for operation in program.operations:
        if operation.kind in ("conv2d", "depthwise_conv2d"):
            layer = names.get(parameter_of.get(operation.inputs[1]))
            strides[layer] = _plain_stride(operation.attributes.get("strides"))
        elif operation.kind == "relu":
            facts["hidden_act"] = "relu"
        elif operation.kind == "sigmoid" and operation.outputs[0] in returned:
            facts["problem_type"] = "multi_label_classification"
        elif operation.kind == "dropout" and is_downscaling(operation.attributes):
            facts["dropout_prob"] = _dropout(operation, constants)
        elif operation.kind == "pool2d" and operation.attributes.get("padding_algorithm") == "SAME":
            facts["pool_padding"] = "same"
        elif operation.kind == "pool2d" and operation.attributes.get("pooling_type") == "max":
            pool_stride = [_plain_stride(operation.attributes.get("strides"))]
    stages = 1 + max(int(name.split(".")[1]) for name in names.values() if name.startswith("stages."))
    stem = [name for name in names.values() if re.fullmatch(r"stem\.\w+\.conv\.weight", name)]
    facts["stem_strides"] = [*map(strides.get, stem), *(pool_stride if "stem.0.conv.weight" in stem else [])]
    facts["stage_downsample_strides"] = [
        strides.get(f"stages.{stage}.downsample.conv.weight", DOWNSAMPLE_STRIDE) for stage in range(stages)
    ]
    return facts


def _decoder_facts(program, names):
    """Those of an ML-Decoder."""
    parameter_of, constants = _parameter_of(program), _constants(program)
    returned = {each.inputs[0] for each in program.operations if each.kind == "fetch"}
    logits = {*returned, *before_the_end(program).values()}
    hidden, facts = set(), {}
    for operation in program.operations:
        if operation.kind == "softmax" and operation.outputs[0] in returned:
            facts["problem_type"] = "single_label_classification"
        if operation.kind == "add" and re.fullmatch(_HIDDEN, names.get(parameter_of.get(operation.inputs[1]), "")):
            hidden.add(operation.outputs[0])
        elif operation.kind in ("relu", "gelu") and operation.inputs[0] in hidden:
            facts["decoder_activation_function"] = operation.kind
        elif operation.kind == "reshape":
            shape = _argument(operation, constants, 1, "shape") or []
            if len(shape) == 4 and shape[:2] == [0, 0]:  # places, and numbers for each head
                facts["decoder_attention_heads"] = shape[2]
        elif operation.kind == "dropout" and not is_downscaling(operation.attributes):
            facts["decoder_dropout"] = _dropout(operation, constants)
        elif operation.kind == "slice" and operation.outputs[0] in logits:
            facts["num_labels"] = int(_argument(operation, constants, 2, "ends")[0])
    return facts


_HIDDEN = r"fc\.decoder\.layers\.\d+\.linear1\.bias"


def _dropout(operation, constants):
    """The probability, which a program keeps as float32, as somebody wrote it."""
    probability = _argument(operation, constants, 2, "dropout_prob")
    return float(str(np.float32(probability))) if isinstance(probability, float) else probability


def _plain_stride(stride):
    return stride[0] if isinstance(stride, list) and len(set(stride)) == 1 else stride
