"""Runs inside an environment that has PaddlePaddle and PaddleClas: writes inference models as PaddleClas exports them.

    python export_paddle_inference.py OUT --variant b0 --form json|pdmodel [--checkpoint FILE.pdparams] [--classes 10]
        [--end softmax|sigmoid|none] [--backbone]

OUT gets `inference.json` or `inference.pdmodel`, `inference.pdiparams`, and `outputs.npz` (an image and what the real
Paddle computes for it, in float32). Without a checkpoint, the weights are `goldens/filler.py`'s. `--variant narrow` is
B0 with widths of 8, small enough to be kept: `goldens/paddle_exports.tar.xz` holds it in both forms, also as a
backbone, and ended by a sigmoid in the newer one (Paddle 3.3.1 does not export that in the older).
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
arguments = parser.parse_args()
os.environ["FLAGS_enable_pir_api"] = str(int(arguments.form == "json"))  # noqa: SIM112  (read by the import)

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddleclas.ppcls.arch.backbone.legendary_models import pp_hgnet_v2  # noqa: E402


sys.path.insert(0, str(Path(__file__).parents[1] / "goldens"))
from filler import values  # noqa: E402


NARROW = {  # B0's depths
    "stage1": [8, 8, 8, 1, False, False, 3, 3],
    "stage2": [8, 8, 8, 1, True, False, 3, 3],
    "stage3": [8, 8, 8, 2, True, True, 5, 3],
    "stage4": [8, 8, 8, 1, True, True, 5, 3],
}


class Exported(paddle.nn.Layer):
    """As PaddleClas's ``ExportModel``: the network and what ends it."""

    def __init__(self, model, end, is_backbone):
        super().__init__()
        self.stem, self.stages = model.stem, model.stages
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
    if arguments.variant != "narrow":
        return getattr(pp_hgnet_v2, f"PPHGNetV2_{arguments.variant.upper()}")(class_num=arguments.classes)
    return pp_hgnet_v2.PPHGNetV2(
        stage_config=NARROW, stem_channels=[3, 8, 8], use_lab=True, class_expand=16, class_num=arguments.classes
    )


paddle.set_device("cpu")
model = build()
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
