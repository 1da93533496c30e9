"""Writes tests/goldens/kerashub.tar.xz: a preset that the real KerasHub saved, and what it computes, in float64.

python tests/programs/golden_kerashub.py          # in an environment with keras-hub, without this package
"""

import os
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "hgnetv2_hf" / "conversion"))

import run_kerashub  # noqa: E402
from run_kerashub import keras_hub  # noqa: E402


STAGES = [[8, 4, 12, 1, 1, 3], [12, 4, 16, 2, 2, 5]]


def classifier():
    """A narrow network with LAB, a dense and a light stage, and weights that all matter."""
    backbone = keras_hub.models.HGNetV2Backbone(
        depths=[1, 2],
        embedding_size=8,
        hidden_sizes=[12, 16],
        stem_channels=[3, 4, 8],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=STAGES,
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
    )
    converter = keras_hub.layers.HGNetV2ImageConverter(
        image_size=(64, 64), scale=[0.017, 0.0175, 0.0174], offset=[-2.1, -2.0, -1.8], interpolation="bicubic"
    )
    preprocessor = keras_hub.models.HGNetV2ImageClassifierPreprocessor(converter)
    model = keras_hub.models.HGNetV2ImageClassifier(
        backbone, preprocessor, num_classes=5, head_filters=12, dropout=0.1
    )
    random = np.random.RandomState(0)
    for weight in model.weights:
        fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 1
        mean, spread = {"scale": (1.1, 0.2), "gamma": (0.8, 0.2), "moving_variance": (1.0, 0.1)}.get(
            weight.name, (-0.1 if weight.name == "bias" else 0.0, 0.2 if len(weight.shape) < 2 else 3.0)
        )
        weight.assign(mean + random.uniform(-1, 1, weight.shape) * spread / np.sqrt(fan_in))
    return model


def main():
    with tempfile.TemporaryDirectory() as folder:
        preset, request, answer = (os.path.join(folder, name) for name in ("preset", "request.npz", "answer.npz"))
        classifier().save_to_preset(preset)
        pixels = np.random.RandomState(1).normal(size=(1, 3, 33, 48)).astype("float32")
        np.savez(request, pixel_values=pixels, dtype="float64")
        run_kerashub.main(preset, request, answer)
        os.remove(request)
        with tarfile.open(ROOT / "tests" / "goldens" / "kerashub.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    archive.add(path, path.relative_to(folder), filter=_anonymous)


def _anonymous(member):
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
