"""Runs the real KerasHub; needs it, and not this package.

    python run_kerashub.py PRESET REQUEST.npz ANSWER.npz

The request holds ``pixel_values`` in PyTorch's order and ``dtype``; the answer the logits (where the preset has a
classifier), the maps of stem and stages in PyTorch's order, and the version. `KERAS_BACKEND` chooses what computes, by
default TensorFlow: only there Keras's batch norm is not rounded to float32 on the way.
"""

import os
import sys


os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras  # noqa: E402
import keras_hub  # noqa: E402
import numpy as np  # noqa: E402


def main(preset, request, answer):
    with np.load(request) as arrays:
        pixel_values, dtype = arrays["pixel_values"], str(arrays["dtype"])
    keras.config.set_floatx(dtype)
    pixels = pixel_values.transpose(0, 2, 3, 1).astype(dtype)
    arrays = {"version": np.array(keras_hub.__version__)}
    if os.path.exists(os.path.join(preset, "task.json")):
        model = keras_hub.models.ImageClassifier.from_preset(preset, dtype=dtype)
        assert type(model).__name__ == "HGNetV2ImageClassifier"
        arrays["logits"] = _numbers(_computed(model, pixels))
        backbone = model.backbone
    else:
        backbone = keras_hub.models.Backbone.from_preset(preset, dtype=dtype)
    assert type(backbone).__name__ == "HGNetV2Backbone"
    maps = _computed(backbone, pixels)
    for index, name in enumerate(backbone.stage_names):
        if name in maps:
            feature = _numbers(maps[name])
            arrays[f"feature_{index}"] = feature if _has_channels_first(backbone) else feature.transpose(0, 3, 1, 2)
    np.savez(answer, **arrays)


def _computed(model, pixels):
    channels_first = _has_channels_first(getattr(model, "backbone", model))
    return model(pixels.transpose(0, 3, 1, 2) if channels_first else pixels, training=False)


def _has_channels_first(backbone):
    return backbone.data_format == "channels_first"


def _numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


if __name__ == "__main__":
    main(*sys.argv[1:])
