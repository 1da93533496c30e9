"""Writes a golden of PP-HGNet: what the real PaddleClas computes with the weights that `goldens/filler.py` makes.

    python golden_pp_hgnet.py tiny|small|base

Runs in an environment that has PaddlePaddle and PaddleClas.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np


TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "hgnetv2_hf" / "conversion")]  # without importing the package
from goldens import filler  # noqa: E402
from run_paddleclas import network  # noqa: E402


SEED, SHAPE = 7, (2, 3, 224, 224)


def manifest(variant):
    """Names and shapes of the tensors in a file of this variant."""
    from paddleclas.ppcls.arch.backbone.legendary_models import pp_hgnet

    state = getattr(pp_hgnet, f"PPHGNet_{variant}")().state_dict()
    return {
        "source": f"PaddleClas PPHGNet_{variant}",
        "tensors": {name: list(tensor.shape) for name, tensor in state.items()},
    }


def computed(variant, manifest_path):
    """Logits, and of each map the means and a corner, in float64."""
    random = np.random.RandomState(SEED)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder) / "checkpoint.pdparams")
        filler.write(str(manifest_path), checkpoint)
        answer = network(
            {
                "version": 1,
                "variant": variant,
                "class_num": 1000,
                "checkpoint": checkpoint,
                "pixel_values": random.normal(size=SHAPE).astype("float32"),
            }
        )
    maps = [answer[f"feature_{index}"] for index in range(5)]
    return {
        "pixel_values_seed": np.array(SEED),
        "pixel_values_shape": np.array(SHAPE),
        "logits": answer["logits"],
        "feature_shapes": np.array([each.shape for each in maps]),
        **{f"feature_mean_{index}": each.mean((2, 3)) for index, each in enumerate(maps)},
        **{f"feature_corner_{index}": each[:, :4, -3:, -3:] for index, each in enumerate(maps)},
    }


if __name__ == "__main__":
    (name,) = sys.argv[1:]
    path = TESTS / "goldens" / f"paddleclas_hgnet_{name}.json"
    path.write_text(json.dumps(manifest(name), indent=0) + "\n")
    np.savez_compressed(path.with_suffix(".npz"), **computed(name, path))
