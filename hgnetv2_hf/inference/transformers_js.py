"""Folders for Transformers.js, in Node and browsers: one ONNX graph from an image's own pixels to what that library's
pipelines expect.

Browsers scale images as they like, and Transformers.js takes a softmax over a detector's classes with a background
behind them, whatever the family. So the graph holds the image processor (scaling, crop, normalisation), and of a
detector the choice of boxes, in a form from which that library computes the scores it should.
"""

import fractions
import json
import math

import numpy as np
import torch
from torch import nn

from ..errors import ExportError
from ..evaluation.boxes import surest_boxes


_CLASSIFIER, _DETECTOR = "resnet", "d_fine"  # types which Transformers.js knows, and runs any graph of
_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "q8"}
_REFUSED = "a graph for Transformers.js, and no weights"  # where Python's configuration expects something it knows
_MODES = {2: "linear", 3: "cubic"}  # PIL's bilinear and bicubic, both with antialiasing
BROWSER_TOLERANCE = 1e-3  # of a score
_FILLING = 1000  # classes that share what the score of a query leaves to 1
_NOTHING = -100.0
_LARGEST_SHORTEST_SIDE = 8192  # of an image; beyond, a side may come out one pixel larger or smaller
_HALF = 0.5001  # PIL rounds halves up, which float32 may bring a little below
_FLOAT, _INT64 = 1, 7  # of ONNX


class BrowserPostProcessing(nn.Module):
    """
    A detector's outputs to outputs of the same kind, from which a softmax gives the scores that a sigmoid should.

    A row per detection, the surest first, chosen as the image processor does; its logits are the logarithms of a
    distribution: the score at its class, and the rest spread evenly over `_FILLING` classes that do not exist, so that
    none of them is larger than a score above ``1 / _FILLING``.
    """

    names = ["chosen_logits", "chosen_boxes"]  # until `join` renames them
    input_names = ["logits", "pred_boxes"]

    def forward(self, logits, pred_boxes):
        sizes = torch.ones_like(pred_boxes[:, :2, 0])
        scores, labels, corners = surest_boxes(logits, pred_boxes, sizes, logits.shape[1])
        low, high = corners[..., :2], corners[..., 2:]
        scores = scores.clamp(1e-12, 1 - 1e-7)[..., None]
        is_own = labels[..., None] == torch.arange(logits.shape[2], device=logits.device)
        own = torch.where(is_own, scores.log(), torch.full_like(scores, _NOTHING))
        rest = ((1 - scores) / _FILLING).log().expand(-1, -1, _FILLING)
        return torch.cat([own, rest], -1), torch.cat([(low + high) / 2, high - low], -1)


def processing_of(processor, channels):
    """
    What an image processor does, from its own `to_dict`.

    Raises:
        `ExportError`: it does something that the graph has no operation for.
    """
    options = processor.to_dict()
    size, crop = dict(options.get("size") or {}), dict(options.get("crop_size") or {})
    size = {name: value for name, value in size.items() if value is not None}
    unsupported = [name for name in ("do_pad", "do_thumbnail", "do_flip_channel_order") if options.get(name)]
    if options.get("do_resize", True):
        if set(size) not in ({"shortest_edge"}, {"height", "width"}):
            unsupported.append(f"size={size}")
        if options.get("resample", 2) not in _MODES:
            unsupported.append(f"resample={options['resample']} (bilinear 2 and bicubic 3 are)")
    if not options.get("do_convert_rgb", True):
        unsupported.append("do_convert_rgb=False")
    smallest = min(size.values(), default=math.inf) if "shortest_edge" in size else math.inf
    if options.get("do_center_crop") and options.get("do_resize", True):
        for side in ("height", "width"):
            if crop[side] > size.get(side, smallest):
                raise ExportError(f"The image processor's crop_size {crop} is larger than its size {size}.")
    if unsupported:
        raise ExportError(
            f"The image processor's {', '.join(unsupported)} is not exported for Transformers.js; onnx leaves images "
            "to you."
        )
    return {
        "size": size if options.get("do_resize", True) else None,
        "mode": _MODES.get(options.get("resample", 2)),
        "crop": (crop["height"], crop["width"]) if options.get("do_center_crop") else None,
        "factor": options["rescale_factor"] if options.get("do_rescale", True) else None,
        "normalize": (options["image_mean"], options["image_std"]) if options.get("do_normalize", True) else None,
        "channels": channels,
    }


def preprocessing(options, opset, ir_version):
    """
    An ONNX model from the pixels of images, `(batch, 3, height, width)`, float32 from 0 to 255, to the network's.

    Args:
        options (`dict`): of [`processing_of`].
        opset, ir_version (`int`): of the network's graph.
    """
    import onnx

    build = _Builder()
    pixels = "pixel_values"
    if options["channels"] == 1:
        pixels = _grey(build, pixels)
    if options["size"] is not None:
        pixels = _scaled(build, pixels, options)
    if options["crop"] is not None:
        pixels = _cropped(build, pixels, options["crop"])
    if options["factor"] is not None:
        pixels = build("Mul", pixels, np.float32(options["factor"]))
    if options["normalize"] is not None:
        mean, deviation = (np.array(each, "float32").reshape(1, -1, 1, 1) for each in options["normalize"])
        pixels = build("Div", build("Sub", pixels, mean), deviation)
    build("Identity", pixels, output="prepared")
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        build.nodes,
        "preprocessing",
        [onnx.helper.make_tensor_value_info("pixel_values", floats, ["batch", 3, "image_height", "image_width"])],
        [onnx.helper.make_tensor_value_info("prepared", floats, ["batch", options["channels"], "height", "width"])],
        build.constants,
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


class _Builder:
    """Nodes in a row; arrays among the inputs become constants."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def __call__(self, operation, *inputs, output=None, **attributes):
        import onnx

        names = []
        for each in inputs:
            if not isinstance(each, str):
                name = f"constant_{len(self.constants)}"
                self.constants.append(onnx.numpy_helper.from_array(np.asarray(each), name))
                each = name
            names.append(each)
        output = output or f"value_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operation, names, [output], **attributes))
        return output


def _grey(build, pixels):
    """PIL's "L"."""
    weights = np.array([19595, 38470, 7471], "float32").reshape(1, 3, 1, 1)
    total = build("ReduceSum", build("Mul", pixels, weights), np.array([1]), keepdims=1)
    return build("Floor", build("Div", build("Add", total, np.float32(32768)), np.float32(65536)))


def _scaled(build, pixels, options):
    """As PIL scales: the width, then the height, each rounded to whole levels. (Of some images that shrink, PIL 13
    scales the height first, which moves some pixels by a level or two.)"""
    shape = build("Shape", pixels)
    sides = build("Slice", shape, np.array([2]), np.array([4]))
    if "shortest_edge" in options["size"]:
        sides = _rounded(build, sides, options["size"]["shortest_edge"])
    else:
        sides = np.array([options["size"]["height"], options["size"]["width"]])
    start = build("Slice", shape, np.array([0]), np.array([3]))
    wide = _resized(build, pixels, build("Concat", start, _side(build, sides, 1), axis=0), options["mode"])
    start = build("Slice", shape, np.array([0]), np.array([2]))
    return _resized(build, wide, build("Concat", start, sides, axis=0), options["mode"])


def _rounded(build, sides, target):
    """
    Python's ``round(side * (target / shortest))`` of both sides, in whole numbers and float32: graphs in browsers have
    no double.

    Where the exact product lies in the middle of two whole numbers, Python's lies above or below it if the error of
    the quotient is large enough to reach the next double; else the even number is taken.
    """
    shortest = build("ReduceMin", sides, keepdims=1)
    products = build("Mul", sides, np.array(target))
    quotient = build("Div", products, shortest)
    twice = build("Mul", build("Sub", products, build("Mul", quotient, shortest)), np.array(2))
    errors = np.array([0.0, *(_error_in_half_units(target, side) for side in range(1, _LARGEST_SHORTEST_SIDE))])
    error = build("Gather", errors.astype("float32"), build("Min", shortest, np.array(len(errors) - 1)))
    middle = build("Add", build("Cast", quotient, to=_FLOAT), np.float32(0.5))
    powers = 2.0 ** np.arange(-1, 24, dtype="float32")[:, None]
    smaller = build("Where", build("LessOrEqual", powers, middle), powers, np.float32(0.5))
    mantissa = build("Div", middle, build("ReduceMax", smaller, np.array([0]), keepdims=0))
    is_moved = build("Greater", build("Mul", mantissa, build("Abs", error)), np.float32(1))
    is_odd = build("Equal", build("Mod", quotient, np.array(2)), np.array(1))
    from_even = build("And", build("Not", is_moved), is_odd)
    from_above = build("And", is_moved, build("Greater", error, np.float32(0)))
    from_middle = build("And", build("Equal", twice, shortest), build("Or", from_even, from_above))
    rounds_up = build("Or", build("Greater", twice, shortest), from_middle)
    return build("Add", quotient, build("Cast", rounds_up, to=_INT64))


def _error_in_half_units(target, side):
    """Of ``target / side`` in double, relative, in units of 2^-53."""
    exact = fractions.Fraction(target, side)
    return float((fractions.Fraction(target / side) - exact) / exact * 2**53)


def _side(build, sides, index):
    return build("Slice", sides, np.array([index]), np.array([index + 1]))


def _resized(build, pixels, sizes, mode):
    scaled = build(
        "Resize",
        pixels,
        "",
        "",
        sizes,
        mode=mode,
        antialias=1,
        exclude_outside=1,  # at the border, as PIL
        cubic_coeff_a=-0.5,
        coordinate_transformation_mode="half_pixel",
    )
    levels = build("Floor", build("Add", scaled, np.float32(_HALF)))
    return build("Clip", levels, np.float32(0), np.float32(255))


def _cropped(build, pixels, crop):
    sides = build("Slice", build("Shape", pixels), np.array([2]), np.array([4]))
    start = build("Div", build("Sub", sides, np.array(crop)), np.array([2]))
    cropped = build("Slice", pixels, start, build("Add", start, np.array(crop)), np.array([2, 3]))
    return build("Reshape", cropped, np.array([0, 0, *crop]))  # an image that is smaller is an error


def join(network, options, post_processing, path):
    """
    Writes the whole graph.

    Args:
        network (`Path`): the exported model.
        options (`dict`): of [`processing_of`].
        post_processing (`Path`, *optional*): of a detector.
        path (`Path`): the file to write.
    """
    import onnx
    import onnx.compose

    model = onnx.load(network)
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    outputs = [each.name for each in model.graph.output]
    model = onnx.compose.add_prefix(model, "network/")
    before = preprocessing(options, opset, model.ir_version)
    joined = onnx.compose.merge_models(before, model, [("prepared", "network/pixel_values")])
    if post_processing is not None:
        after = onnx.compose.add_prefix(onnx.load(post_processing), "after/")
        after.ir_version = joined.ir_version
        pairs = [(f"network/{name}", f"after/{name}") for name in outputs]
        joined = onnx.compose.merge_models(joined, after, pairs)
    for value, name in zip(joined.graph.output, outputs):
        joined.graph.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
        value.name = name
    onnx.checker.check_model(joined, full_check=True)
    onnx.save(joined, path)


def write_configuration(config, is_detector, precision, folder):
    """`config.json` and `preprocessor_config.json`, which Transformers.js reads and Transformers in Python refuses: a
    model with its weights in a graph is none of its models."""
    model = {
        "model_type": _DETECTOR if is_detector else _CLASSIFIER,
        **({"backbone_config": {"model_type": _REFUSED}} if is_detector else {"layer_type": _REFUSED}),
        "id2label": {str(index): label for index, label in config.id2label.items()},
        "label2id": config.label2id,
        "transformers.js_config": {"dtype": _DTYPES[precision]},
    }
    processor = {
        "image_processor_type": "RTDetrImageProcessor" if is_detector else "ViTImageProcessor",
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"), False),
        "do_convert_rgb": True,
        "size": {_REFUSED: 0},
    }
    for name, values in (("config.json", model), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def browser_difference(path, graph, processor):
    """
    How far what Transformers.js computes from this graph lies from what Python's pipeline does, on images of several
    sizes: the largest difference of a score, of all labels, or of the detections one by one.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for image in _images():
        pixels = np.asarray(image, "float32").transpose(2, 0, 1)[None]
        got = session.run(None, {"pixel_values": pixels})
        with torch.no_grad():
            expected = graph.outputs(graph.original, processor(image, return_tensors="pt")["pixel_values"])
        ours = torch.from_numpy(got[0])[0].double().softmax(-1)
        if graph.is_detector:
            scores, _, _ = surest_boxes(*expected, torch.ones(1, 2), expected[0].shape[1])
            difference = ours[:, : expected[0].shape[2]].max(-1).values - scores[0]
        else:
            difference = ours - expected[0][0].double().softmax(-1)
        largest = max(largest, difference.abs().max().item())
    return largest if math.isfinite(largest) else math.inf


def _images():
    """Smooth and noisy ones, lying and upright, larger and smaller than networks take."""
    import PIL.Image

    random = np.random.RandomState(0)
    for width, height in ((640, 427), (333, 500), (900, 1200), (150, 90)):
        coarse = PIL.Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype="uint8")).resize((width, height))
        noise = random.randint(-60, 61, (height, width, 3))
        yield PIL.Image.fromarray((np.asarray(coarse).astype("int64") + noise).clip(0, 255).astype("uint8"))
