"""Runs the real PaddleClas network; needs PaddlePaddle and PaddleClas, and neither PyTorch nor this package.

    python run_paddleclas.py REQUEST.npz ANSWER.npz

The request names the checkpoint (``checkpoint``), the input (``pixel_values``), the network (``variant``, or
``stages``, ``stem_channels``, ``use_lab``, ``use_last_conv``, ``class_expand``), ``class_num``, ``dropout_prob`` and
``ml_decoder``, the arguments of a head as JSON, or an empty text; ``version`` is 1 for PP-HGNet, whose rows of
``stages`` end with the number of layers.
The answer holds the logits (where the checkpoint has a classifier), the maps of stem and stages, in float64, and the
versions.
"""

import json
import sys

import numpy as np


_HEAD = ("fc.", "last_conv.", "lab.")


def network(request):
    import paddle
    from paddleclas.ppcls.arch.backbone.legendary_models import pp_hgnet, pp_hgnet_v2

    paddle.set_device("cpu")
    paddle.set_default_dtype("float64")
    is_first_version = "version" in request and int(request["version"]) == 1
    model = _build_pp_hgnet(pp_hgnet, request) if is_first_version else _build(pp_hgnet_v2, request)
    state = paddle.load(str(request["checkpoint"]), return_numpy=True)
    state = {name: value.astype("float64") for name, value in state.items() if hasattr(value, "astype")}
    has_head = any(name.startswith("fc.") for name in state)
    missing, unexpected = model.set_state_dict(state)
    missing = [name for name in missing if has_head or not name.startswith(_HEAD)]
    if missing or unexpected:
        raise SystemExit(f"PaddleClas misses {missing[:3]} and does not expect {unexpected[:3]}")
    model.eval()
    maps = []
    for layer in [model.pool if is_first_version else model.stem, *model.stages]:
        layer.register_forward_post_hook(lambda layer, inputs, output: maps.append(output.numpy()))
    with paddle.no_grad():
        logits = model(paddle.to_tensor(request["pixel_values"].astype("float64"))).numpy()
    answer = {f"feature_{i}": feature for i, feature in enumerate(maps)}
    if has_head:
        answer["logits"] = logits
    return {**answer, "version": np.array(f"{_version('paddleclas')} on PaddlePaddle {paddle.__version__}")}


def _build(pp_hgnet_v2, request):
    model = _classifier(pp_hgnet_v2, request)
    if "ml_decoder" in request and str(request["ml_decoder"]):
        from paddleclas.ppcls.arch.gears import add_ml_decoder_head

        add_ml_decoder_head(model, json.loads(str(request["ml_decoder"])))
    return model


def _classifier(pp_hgnet_v2, request):
    arguments = {"class_num": int(request["class_num"]), "dropout_prob": float(request["dropout_prob"])}
    if str(request["variant"]):
        return getattr(pp_hgnet_v2, f"PPHGNetV2_{str(request['variant']).upper()}")(**arguments)
    return pp_hgnet_v2.PPHGNetV2(
        stage_config={f"stage{i + 1}": [int(value) for value in row] for i, row in enumerate(request["stages"])},
        stem_channels=request["stem_channels"].tolist(),
        use_lab=bool(request["use_lab"]),
        use_last_conv=bool(request["use_last_conv"]),
        class_expand=int(request["class_expand"]),
        **arguments,
    )


def _build_pp_hgnet(pp_hgnet, request):
    if str(request["variant"]):
        return getattr(pp_hgnet, f"PPHGNet_{request['variant']}")(class_num=int(request["class_num"]))
    rows = [[int(value) for value in row] for row in request["stages"]]
    return pp_hgnet.PPHGNet(
        stem_channels=request["stem_channels"].tolist()[1:],
        stage_config={f"stage{i + 1}": row[:-1] for i, row in enumerate(rows)},
        layer_num=rows[0][-1],
        use_last_conv=bool(request["use_last_conv"]),
        class_expand=int(request["class_expand"]),
        class_num=int(request["class_num"]),
        dropout_prob=float(request["dropout_prob"]),
    )


def _version(package):
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    request_path, answer_path = sys.argv[1:]
    np.savez(answer_path, **network(np.load(request_path)))
