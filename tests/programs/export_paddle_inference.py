"""Runs inside an environment that has PaddlePaddle and PaddleClas: writes inference models as PaddleClas exports them.

    python export_paddle_inference.py OUT --variant b0 --form json|pdmodel [--checkpoint FILE.pdparams] [--classes 10]
        [--end softmax|sigmoid|none] [--backbone] [--ml-decoder]

OUT gets `inference.json` or `inference.pdmodel`, `inference.pdiparams`, and `outputs.npz` (an image and what the real
Paddle computes for it, in float32). Without a checkpoint, the weights are `goldens/filler.py`'s. `--variant narrow` is
B0 with widths of 8, small enough to be kept, and `narrow_tiny` the same of PP-HGNet's `tiny`, with dropout:
`goldens/paddle_exports.tar.xz` holds both in both forms; the first also as a backbone; and in the newer form ended by
a sigmoid, and with an ML-Decoder (Paddle 3.3.1 does not export attention in the older).
"""

import argparse
import os
import sys
from pathlib import Path


parser = argparse.ArgumentParser()
parser.add_argument("out", type=Path)
parser.add_argument("--variant", required=True)
parser.add_argument("--form", choices=("json", "pdmodel"), required=True)
parser.add_argument("--checkpoint")
parser.add_argument("--classes", type=int, default=10)
parser.add_argument("--end", choices=("softmax", "sigmoid", "none"), default="softmax")
parser.add_argument("--backbone", action="store_true")
parser.add_argument("--ml-decoder", action="store_true", help="with PaddleClas's defaults, but narrow for narrow ones")
arguments = parser.parse_args()
os.environ["FLAGS_enable_pir_api"] = str(int(arguments.form == "json"))  # noqa: SIM112  (read by the import)

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddle.base.layer_helper import LayerHelper  # noqa: E402
from paddleclas.ppcls.arch.backbone.legendary_models import pp_hgnet, pp_hgnet_v2  # noqa: E402
from paddleclas.ppcls.arch.gears import add_ml_decoder_head  # noqa: E402


sys.path.insert(0, str(Path(__file__).parents[1] / "goldens"))
from filler import values  # noqa: E402


NARROW = {  # B0's depths
    "stage1": [8, 8, 8, 1, False, False, 3, 3],
    "stage2": [8, 8, 8, 1, True, False, 3, 3],
    "stage3": [8, 8, 8, 2, True, True, 5, 3],
    "stage4": [8, 8, 8, 1, True, True, 5, 3],
}


NARROW_TINY = {
    "stage1": [8, 8, 8, 1, False],
    "stage2": [8, 8, 8, 1, True],
    "stage3": [8, 8, 8, 2, True],
    "stage4": [8, 8, 8, 1, True],
}
NARROW_ML_DECODER = {
    "in_channels": 16,
    "query_num": 4,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 2,
    "mlp_hidden_dim": 12,
    "activation": "gelu",
}


def write_older_operations():
    """Paddle 3.3.1 has these functions for its newer programs alone; its older ones still know the operations."""

    def written(function, kind, *inputs, **attributes):
        def write(x, y=None, name=None):
            if paddle.in_dynamic_mode():
                return function(*[x, y][: len(inputs)])
            helper = LayerHelper(kind)
            out = helper.create_variable_for_type_inference(x.dtype)
            helper.append_op(type=kind, inputs=dict(zip(inputs, (x, y))), outputs={"Out": out}, attrs=attributes)
            return out

        return write

    paddle.nn.functional.sigmoid = written(paddle.nn.functional.sigmoid, "sigmoid", "X")
    paddle.multiply = written(paddle.multiply, "elementwise_mul", "X", "Y", axis=-1)


class Exported(paddle.nn.Layer):
    """As PaddleClas's ``ExportModel``: the network and what ends it."""

    def __init__(self, model, end, is_backbone):
        super().__init__()
        self.stem = paddle.nn.Sequential(model.stem, model.pool) if hasattr(model, "pool") else model.stem
        self.stages = model.stages
        self.model = None if is_backbone else model
        self.end = {"softmax": paddle.nn.Softmax(axis=-1), "sigmoid": paddle.nn.Sigmoid()}.get(end)

    def forward(self, x):
        if self.model is not None:
            logits = self.model(x)
            return logits if self.end is None else self.end(logits)
        maps, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]


def build():
    paddle.seed(0)
    shared = {"class_num": arguments.classes}
    if arguments.variant == "narrow":
        return pp_hgnet_v2.PPHGNetV2(
            stage_config=NARROW, stem_channels=[3, 8, 8], use_lab=True, class_expand=16, **shared
        )
    if arguments.variant == "narrow_tiny":
        widths = {"stem_channels": [8, 8, 8], "stage_config": NARROW_TINY, "class_expand": 16}
        return pp_hgnet.PPHGNet(layer_num=5, dropout_prob=0.2, **widths, **shared)
    if arguments.variant in ("tiny", "small", "base"):
        return getattr(pp_hgnet, f"PPHGNet_{arguments.variant}")(**shared)
    return getattr(pp_hgnet_v2, f"PPHGNetV2_{arguments.variant.upper()}")(**shared)


paddle.set_device("cpu")
if arguments.form == "pdmodel":
    write_older_operations()
model = build()
if arguments.ml_decoder:
    decoder = NARROW_ML_DECODER if arguments.variant == "narrow" else {}
    add_ml_decoder_head(model, {"class_num": arguments.classes, **decoder})
if arguments.checkpoint is None:
    for name, tensor in model.state_dict().items():
        tensor.set_value(values(name, tensor.shape, conv_gain=1.5))
else:
    model.set_state_dict(paddle.load(arguments.checkpoint))
exported = Exported(model, arguments.end, arguments.backbone)
exported.eval()
image = paddle.randn([1, 3, 64, 96])
outputs = exported(image)
np.savez(
    arguments.out / "outputs.npz",
    image=image.numpy(),
    **{f"output_{i}": each.numpy() for i, each in enumerate(outputs if arguments.backbone else [outputs])},
)
signature = [paddle.static.InputSpec(shape=[None, 3, 224, 224], dtype="float32")]
exported = paddle.jit.to_static(exported, input_spec=signature, full_graph=True)
paddle.jit.save(exported, str(arguments.out / "inference"))
