"""Writes tests/goldens/paddlex_ocr.json and .npz: what PaddleX computes for the backbones of PP-OCRv5's server models.

    python tests/programs/golden_text_recognition.py PADDLEX     # the unpacked package, in PaddlePaddle's environment

The networks are narrow ones with the strides of PaddleX's own configurations; `goldens/filler.py` makes the weights.
The file is a whole recognition network in PaddleOCR's names, as far as its backbone and the names of its head go.
"""

import importlib
import json
import re
import sys
import types
from pathlib import Path

import numpy as np


TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
from goldens import filler  # noqa: E402


WIDTHS = {
    "stem_channels": [3, 8, 12],
    "stage_in_channels": [12, 16, 24, 32],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 24, 32, 40],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [16, 24, 32, 40],
}
HEADS = {
    "rec": {"head.ctc_encoder.encoder.conv1.conv.weight": [5, 40, 1, 3], "head.ctc_head.fc.weight": [8, 6]},
    "det": {"neck.ins_conv.0.weight": [8, 16, 1, 1], "head.binarize.conv1.weight": [4, 8, 3, 3]},
}
CONFIGS = {
    "rec": ("text_recognition", "_config_pp_ocrv5_server_rec", "PPOCRV5ServerRecConfig"),
    "det": ("text_detection", "_config_pp_ocrv5_server", "PPOCRV5ServerDetConfig"),
}
BACK = (
    (r"^embedder\.", "backbone.stem."),
    (r"^encoder\.", "backbone."),
    (r"\.aggregation\.0\.", ".aggregation_squeeze_conv."),
    (r"\.aggregation\.1\.", ".aggregation_excitation_conv."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
)


def without_the_rest(root):
    """PaddleX's modules, without what its packages import for everything else."""
    for name in ("paddlex", "paddlex.inference", "paddlex.inference.models", "paddlex.inference.utils"):
        module = types.ModuleType(name)
        module.__path__ = [str(Path(root, *name.split(".")[1:]))]
        sys.modules[name] = module
    for name in ("image_classification", "text_recognition", "text_detection", "common"):
        for suffix in ("", ".modeling"):
            module = types.ModuleType(f"paddlex.inference.models.{name}{suffix}")
            module.__path__ = [str(Path(root, "inference", "models", name, *suffix.split(".")[1:]))]
            sys.modules[module.__name__] = module
    benchmark = types.ModuleType("paddlex.inference.utils.benchmark")
    benchmark.add_inference_operations = lambda *names: None
    benchmark.benchmark = types.SimpleNamespace(timeit_with_options=lambda **options: lambda function: function)
    sys.modules[benchmark.__name__] = benchmark
    transformers = types.ModuleType("paddlex.inference.models.common.transformers")
    transformers.__path__ = [str(Path(root, "inference", "models", "common", "transformers"))]
    sys.modules[transformers.__name__] = transformers
    base = types.ModuleType("paddlex.inference.models.common.transformers.transformers")
    base.PretrainedModel, base.BatchNormHFStateDictMixin = type("Model", (), {}), type("Mixin", (), {})
    base.PretrainedConfig = type("PretrainedConfig", (), {"__init__": lambda self, **options: None})
    sys.modules[base.__name__] = base


def main(root):
    import paddle

    paddle.set_default_dtype("float64")
    without_the_rest(root)
    models = "paddlex.inference.models"
    backbone_class = importlib.import_module(f"{models}.image_classification.modeling.hgnetv2").HGNetV2Backbone
    config_class = importlib.import_module(f"{models}.image_classification.modeling._config_hgnetv2").HGNetV2Config
    manifest, answer = {}, {}
    for kind, (room, module, name) in CONFIGS.items():
        own = getattr(importlib.import_module(f"{models}.{room}.modeling.{module}"), name)().backbone_config
        config = config_class(**{**vars(own), **WIDTHS})
        network = backbone_class(config)
        network.eval()
        state = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
        names = {name: name for name in state}
        for pattern, replacement in BACK:
            names = {name: re.sub(pattern, replacement, theirs) for name, theirs in names.items()}
        values = filler.state_dict({"tensors": {names[name]: shape for name, shape in state.items()}})
        network.set_state_dict({name: values[names[name]].astype("float64") for name in state})
        pixels = np.random.RandomState(3).normal(size=(1, 3, 48, 80)).astype("float32")
        with paddle.no_grad():
            maps = network(paddle.to_tensor(pixels.astype("float64")))
        answer.update({f"{kind}_feature_{index}": each.numpy() for index, each in enumerate(maps)})
        manifest[kind] = {"tensors": {**{names[name]: shape for name, shape in state.items()}, **HEADS[kind]}}
    (TESTS / "goldens" / "paddlex_ocr.json").write_text(json.dumps(manifest, indent=0) + "\n", encoding="utf-8")
    np.savez_compressed(TESTS / "goldens" / "paddlex_ocr.npz", **answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
