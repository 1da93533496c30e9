"""How other programs name the tensors of the network: one table of renaming rules per layout."""

import re
from collections.abc import Callable
from typing import NamedTuple, Optional, Union

from ..errors import ConversionError


class Layout(NamedTuple):
    """Renaming rules, applied in order, from a program's names to those of Transformers, and back."""

    title: str
    signature: str  # a tensor that every file of this layout holds
    rules: tuple[tuple[str, Union[str, Callable]], ...]
    reverse_rules: tuple[tuple[str, Union[str, Callable]], ...]
    pool_padding: str  # how the program that ships these files pads the stem's max-pool: "same" or "zero"
    prefix: str = "backbone."  # of the network inside a detector
    is_anywhere: bool = False  # or the network may lie behind any other prefix: nothing else has such names
    excluded: Optional[str] = None  # the beginning of names that no file of this layout holds
    transposed: tuple[str, ...] = ()  # patterns of (in, out) weights of linear layers, by their new names
    has_head: bool = True
    has_counters: bool = True  # `num_batches_tracked`
    is_keras: bool = False  # kernels are (height, width, in, out), and LAB's numbers have no dimension


_NAMES = (
    (r"^stem\.", "embedder."),
    (r"^stages\.", "encoder.stages."),
    (r"\.conv\.weight$", ".convolution.weight"),
    (r"\.bn\.", ".normalization."),
)
_NAMES_BACK = (
    (r"^embedder\.", "stem."),
    (r"^encoder\.stages\.", "stages."),
    (r"\.convolution\.weight$", ".conv.weight"),
    (r"\.normalization\.", ".bn."),
)
_SQUEEZE = (
    (r"\.aggregation_squeeze_conv\.", ".aggregation.0."),
    (r"\.aggregation_excitation_conv\.", ".aggregation.1."),
)
_SQUEEZE_BACK = (
    (r"\.aggregation\.0\.", ".aggregation_squeeze_conv."),
    (r"\.aggregation\.1\.", ".aggregation_excitation_conv."),
)
_STATISTICS = (
    (r"\.bn\._mean$", ".bn.running_mean"),
    (r"\.bn\._variance$", ".bn.running_var"),
)
_STATISTICS_BACK = (
    (r"\.bn\.running_mean$", ".bn._mean"),
    (r"\.bn\.running_var$", ".bn._variance"),
)
_TIMM_HEAD = (
    (r"^head\.last_conv\.0\.", "last_conv."),
    (r"^head\.last_conv\.2\.", "lab."),
    (r"^head\.fc\.", "fc."),
)
_TIMM_HEAD_BACK = (
    (r"^last_conv\.", "head.last_conv.0."),
    (r"^lab\.", "head.last_conv.2."),
    (r"^fc\.", "head.fc."),
)
_KERAS_VARIABLES = (  # Keras numbers them in each layer
    ("normalization", 0, "weight"),
    ("normalization", 1, "bias"),
    ("normalization", 2, "running_mean"),
    ("normalization", 3, "running_var"),
    ("lab", 0, "scale"),
    ("lab", 1, "bias"),
)
_PADDLE = {
    "rules": (*_SQUEEZE, (r"^fc\.decoder\.layers\.", "fc.layers."), *_STATISTICS, *_NAMES),
    "reverse_rules": (*_NAMES_BACK, *_STATISTICS_BACK, (r"^fc\.layers\.", "fc.decoder.layers."), *_SQUEEZE_BACK),
    "pool_padding": "same",
    "transposed": (r"fc\.weight", r"fc\.layers\..+\.weight"),
    "has_counters": False,
}

# Recognised in this order, so a name that says less comes after one that says more.
LAYOUTS = {
    "paddleclas": Layout(title="PaddleClas", signature="stem.stem1.bn._mean", prefix="", **_PADDLE),
    "paddledetection": Layout(title="PaddleDetection", signature="stem.stem1.bn._mean", **_PADDLE),
    "rtdetrv2": Layout(
        title="RT-DETRv2",
        signature="stem.stem2a.conv.1.weight",
        rules=((r"^(stem\.stem2[ab]\.conv)\.1\.weight$", r"\1.weight"), *_SQUEEZE, *_NAMES),
        reverse_rules=(*_NAMES_BACK, *_SQUEEZE_BACK, (r"^(stem\.stem2[ab]\.conv)\.weight$", r"\1.1.weight")),
        pool_padding="zero",
        has_head=False,
    ),
    "dfine": Layout(
        title="D-FINE, DEIM, RT-DETRv4 or DEIMv2",
        signature="stages.0.blocks.0.aggregation.0.conv.weight",
        rules=_NAMES,
        reverse_rules=_NAMES_BACK,
        pool_padding="zero",
        excluded="head.",
        has_head=False,
    ),
    "timm": Layout(
        title="timm",
        signature="stages.0.blocks.0.aggregation.0.conv.weight",
        rules=(*_NAMES, *_TIMM_HEAD),
        reverse_rules=(*_NAMES_BACK, *_TIMM_HEAD_BACK),
        pool_padding="same",  # trained in Paddle, though timm itself pads with zeros
        prefix="model.",  # in what `features_only` wraps with hooks, and in Lightning's modules
    ),
    "timm_features": Layout(
        title="timm's features_only",
        signature="stages_0.blocks.0.aggregation.0.conv.weight",
        rules=((r"^stages_(\d+)\.", r"stages.\1."), *_NAMES),
        reverse_rules=(*_NAMES_BACK, (r"^stages\.(\d+)\.", r"stages_\1.")),
        pool_padding="zero",  # such a file comes from a program that computed with timm
        is_anywhere=True,
        has_head=False,
    ),
    "keras": Layout(
        title="KerasHub",
        signature="layers/hg_net_v2_embeddings/stem1_layer/normalization/vars/2",
        rules=(
            (r"(hg_net_v2_(?:stage|basic_layer|conv_layer|conv_layer_light))/", r"\1_0/"),
            (r"^layers/hg_net_v2_conv_layer_0/", "last_conv/"),
            (r"^layers/dense/vars/0$", "fc.weight"),
            (r"^layers/dense/vars/1$", "fc.bias"),
            (r"^layers/hg_net_v2_embeddings/(\w+)_layer/", r"embedder/\1/"),
            (r"^layers/hg_net_v2_encoder/stages_list/hg_net_v2_stage_(\d+)/", r"encoder/stages/\1/"),
            (r"/blocks_list/hg_net_v2_basic_layer_(\d+)/", r"/blocks/\1/"),
            (r"/layer_list/hg_net_v2_conv_layer(?:_light)?_(\d+)/", r"/layers/\1/"),
            (r"/(conv[12]|downsample)_layer/", r"/\1/"),
            (r"/aggregation_squeeze_conv/", "/aggregation/0/"),
            (r"/aggregation_excitation_conv/", "/aggregation/1/"),
            (r"/convolution/vars/0$", "/convolution/weight"),
            *((rf"/{part}/vars/{index}$", f"/{part}/{name}") for part, index, name in _KERAS_VARIABLES),
            (r"^((?:embedder|encoder|last_conv)/.*)$", lambda match: match[1].replace("/", ".")),
        ),
        reverse_rules=(
            (r"^((?:embedder|encoder|last_conv)\..*)$", lambda match: match[1].replace(".", "/")),
            (r"^fc\.weight$", "layers/dense/vars/0"),
            (r"^fc\.bias$", "layers/dense/vars/1"),
            *((rf"/{part}/{name}$", f"/{part}/vars/{index}") for part, index, name in _KERAS_VARIABLES),
            (r"/convolution/weight$", "/convolution/vars/0"),
            (r"/aggregation/1/", "/aggregation_excitation_conv/"),
            (r"/aggregation/0/", "/aggregation_squeeze_conv/"),
            (r"/layers/(\d+)/(?=conv[12]/)", r"/layer_list/hg_net_v2_conv_layer_light_\1/"),
            (r"/layers/(\d+)/", r"/layer_list/hg_net_v2_conv_layer_\1/"),
            (r"/(conv[12]|downsample)/", r"/\1_layer/"),
            (r"/blocks/(\d+)/", r"/blocks_list/hg_net_v2_basic_layer_\1/"),
            (r"^encoder/stages/(\d+)/", r"layers/hg_net_v2_encoder/stages_list/hg_net_v2_stage_\1/"),
            (r"^embedder/(\w+)/", r"layers/hg_net_v2_embeddings/\1_layer/"),
            (r"^last_conv/", "layers/hg_net_v2_conv_layer/"),
            (r"(hg_net_v2_\w+)_0/", r"\1/"),
        ),
        pool_padding="zero",
        prefix="",
        transposed=(r"fc\.weight",),
        has_counters=False,
        is_keras=True,
    ),
    "transformers": Layout(
        title="Transformers",
        signature="embedder.stem1.normalization.running_mean",
        rules=(),
        reverse_rules=(),
        pool_padding="zero",
        prefix="model.backbone.model.",
    ),
}


# PP-HGNet's tensors: the same programs name them otherwise, and only these have it.
PP_HGNET_LAYOUTS = {
    "paddleclas": Layout(
        title="PaddleClas",
        signature="stem.0.bn._mean",
        rules=(
            (r"^stem\.", "stem.stem."),
            (r"\.aggregation_conv\.", ".aggregation.0."),
            (r"\.att\.conv\.", ".aggregation.1.convolution."),
            *_STATISTICS,
            *_NAMES,
        ),
        reverse_rules=(
            (r"\.aggregation\.1\.convolution\.", ".att.conv."),
            (r"\.aggregation\.0\.", ".aggregation_conv."),
            *_NAMES_BACK,
            *_STATISTICS_BACK,
            (r"^stem\.stem\.", "stem."),
        ),
        pool_padding="same",
        prefix="backbone.",  # in PP-OCRv4's text detection
        transposed=("fc.weight",),
        has_counters=False,
    ),
    "timm": Layout(
        title="timm",
        signature="stem.stem.0.bn.running_mean",
        rules=((r"\.aggregation\.1\.conv\.", ".aggregation.1.convolution."), *_NAMES, *_TIMM_HEAD),
        reverse_rules=(
            (r"\.aggregation\.1\.convolution\.", ".aggregation.1.conv."),
            *_NAMES_BACK,
            *_TIMM_HEAD_BACK,
        ),
        pool_padding="same",
        prefix="",
    ),
    "transformers": LAYOUTS["transformers"]._replace(signature="embedder.stem.0.normalization.running_mean"),
}


def layouts_of(model_type):
    """The layouts of the network with this model type."""
    return PP_HGNET_LAYOUTS if model_type == "pp_hgnet" else LAYOUTS


def recognise_layouts(names):
    """The layouts of the network that has these tensors."""
    return LAYOUTS if recognise_layout(names, layouts=PP_HGNET_LAYOUTS) is None else PP_HGNET_LAYOUTS


def recognise_layout(names, wanted=None, layouts=LAYOUTS):
    """The first layout whose signature is among ``names`` (of all, or only the wanted one), or ``None``."""
    for key, layout in layouts.items():
        fits = network_prefix(names, layout) is not None
        if layout.excluded is not None and any(name.startswith(layout.excluded) for name in names):
            fits = False
        if fits and wanted in (None, key):
            return key
    return None


def network_prefix(names, layout):
    """
    What stands before the network's names, or ``None`` where there is no network of this layout.

    Raises:
        `ConversionError`: there are several.
    """
    for prefix in ("", layout.prefix):
        if prefix + layout.signature in names:
            return prefix
    ending = "." + layout.signature
    found = [name.removesuffix(layout.signature) for name in names if layout.is_anywhere and name.endswith(ending)]
    if len(found) > 1:
        raise ConversionError(
            f"The file holds several networks of {layout.title}, behind {' and '.join(sorted(found)[:3])}; save the "
            "one to convert in a file of its own."
        )
    return found[0] if found else None


def split_detector(tensors, layout):
    """
    Parts a detector's file.

    Returns:
        `tuple[dict, list[str]]`: the network's tensors without the prefix they have inside a detector, and the names
        of everything else, which is empty unless the file holds a detector.
    """
    found = network_prefix(tensors, layout)
    prefix = layout.prefix if found is None else found
    if not prefix and not layout.is_anywhere:
        return tensors, []
    beginnings = (f"{prefix}stem.", f"{prefix}stages_") if layout.is_anywhere else prefix
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(beginnings)}
    others = [name for name in tensors if name not in inside]
    return {name.removeprefix(prefix): tensor for name, tensor in inside.items()}, others


def rename(tensors, layout):
    """``tensors`` of another program under the names, and in the orientation, of Transformers."""
    renamed = {}
    for name, tensor in tensors.items():
        new = _apply(layout.rules, name)
        if new in renamed:
            raise ConversionError(f"The file holds two tensors for {new}, one of them called {name}.")
        renamed[new] = _oriented(new, tensor, layout)
    return renamed


def rename_back(tensors, layout):
    """``tensors`` of Transformers under the names, and in the orientation, of another program; without what it lacks.

    Counters that never counted are left out: no other program needs them, and a file that had none gets none.
    """
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not (is_counter(name) and not (layout.has_counters and tensor.any()))
        and (layout.has_head or not is_head(name))
    }
    return {_apply(layout.reverse_rules, name): _oriented_back(name, tensor, layout) for name, tensor in kept.items()}


def is_counter(name):
    """Whether this is batch norm's count of training steps, which no computation uses."""
    return name.endswith(".num_batches_tracked")


def is_head(name):
    """Whether this is a tensor of the classifier, by its name in Transformers."""
    return name.startswith(("fc.", "last_conv.", "lab."))


def _apply(rules, name):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _oriented(name, tensor, layout):
    if layout.is_keras and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    if layout.is_keras and tensor.ndim == 0:
        return tensor.reshape(1)
    return _transposed(name, tensor, layout)


def _oriented_back(name, tensor, layout):
    if layout.is_keras and tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0)
    if layout.is_keras and re.search(r"\.lab\.(scale|bias)$", name):
        return tensor.reshape(())
    return _transposed(name, tensor, layout)


def _transposed(name, tensor, layout):
    is_transposed = tensor.ndim == 2 and any(re.fullmatch(pattern, name) for pattern in layout.transposed)
    return tensor.t() if is_transposed else tensor
