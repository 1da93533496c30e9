"""Writes the golden of PaddleClas's ML-Decoder; needs PaddlePaddle and PaddleClas.

    python tests/programs/golden_ml_decoder.py

A small network with LAB, and a head that uses everything it has: queries that look at each other, two layers, more
labels than queries, the last of which share theirs.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np


GOLDENS = Path(__file__).parents[1] / "goldens"
sys.path[:0] = [str(GOLDENS), str(Path(__file__).parents[2] / "hgnetv2_hf" / "conversion")]
NAME = "paddleclas_ml"
STAGES = [
    [8, 8, 16, 1, False, False, 3, 2],
    [16, 8, 24, 1, True, False, 3, 2],
    [24, 8, 32, 2, True, True, 5, 2],
    [32, 8, 40, 1, True, True, 5, 2],
]
HEAD = {
    "class_num": 10,
    "in_channels": 24,
    "query_num": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 4,
    "mlp_hidden_dim": 12,
    "remove_self_attn": False,
}
REQUEST = {
    "variant": "",
    "stages": np.array(STAGES, dtype=int),
    "stem_channels": np.array([3, 8, 8]),
    "use_lab": True,
    "use_last_conv": True,
    "class_expand": 24,
    "class_num": 10,
    "dropout_prob": 0.0,
    "ml_decoder": json.dumps(HEAD),
}
PIXEL_VALUES = {"pixel_values_seed": 0, "pixel_values_shape": (2, 3, 64, 77)}


def main():
    import filler
    import run_paddleclas
    from paddleclas.ppcls.arch.backbone.legendary_models import pp_hgnet_v2

    tensors = {
        name: list(tensor.shape) for name, tensor in run_paddleclas._build(pp_hgnet_v2, REQUEST).state_dict().items()
    }
    manifest = GOLDENS / f"{NAME}.json"
    manifest.write_text(json.dumps({"tensors": tensors, "ml_decoder": HEAD}, indent=0) + "\n", encoding="utf-8")
    random = np.random.RandomState(PIXEL_VALUES["pixel_values_seed"])
    pixel_values = random.normal(size=PIXEL_VALUES["pixel_values_shape"]).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/w.pdparams"
        filler.write(str(manifest), checkpoint)
        answer = run_paddleclas.network({**REQUEST, "checkpoint": checkpoint, "pixel_values": pixel_values})
    np.savez(GOLDENS / f"{NAME}.npz", logits=answer["logits"], **PIXEL_VALUES)
    print(f"{GOLDENS / NAME}: logits {answer['logits'].shape} of PaddleClas {answer['version']}")


if __name__ == "__main__":
    main()
