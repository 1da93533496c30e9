"""Runs inside an environment that has PaddlePaddle and PaddleClas (no PyTorch, no Transformers): the real thing.

python oracle_paddleclas.py network REQUEST.npz ANSWER.npz     the real PPHGNetV2
python oracle_paddleclas.py transform REQUEST.npz ANSWER.npz   the real evaluation transform
"""

import sys

import numpy as np


def network(request):
    """Logits and the feature maps of stem and stages, in float64."""
    import paddle
    from paddleclas.ppcls.arch.backbone.legendary_models import pp_hgnet_v2

    paddle.set_device("cpu")
    paddle.set_default_dtype("float64")
    arguments = {"class_num": int(request["class_num"]), "dropout_prob": float(request["dropout_prob"])}
    if str(request["variant"]):
        model = getattr(pp_hgnet_v2, f"PPHGNetV2_{str(request['variant']).upper()}")(**arguments)
    else:
        model = custom_network(pp_hgnet_v2, request, arguments)
    state = paddle.load(str(request["checkpoint"]), return_numpy=True)
    state = {name: value.astype("float64") for name, value in state.items() if hasattr(value, "astype")}
    missing, unexpected = model.set_state_dict(state)
    assert not missing and not unexpected, (missing, unexpected)
    model.eval()
    maps = []
    for layer in [model.stem, *model.stages]:
        layer.register_forward_post_hook(lambda layer, inputs, output: maps.append(output.numpy()))
    with paddle.no_grad():
        logits = model(paddle.to_tensor(request["pixel_values"].astype("float64"))).numpy()
    return {"logits": logits, **{f"feature_{i}": feature for i, feature in enumerate(maps)}}


def custom_network(pp_hgnet_v2, request, arguments):
    rows = {f"stage{i + 1}": [_plain(value) for value in row] for i, row in enumerate(request["stages"])}
    return pp_hgnet_v2.PPHGNetV2(
        stage_config=rows,
        stem_channels=request["stem_channels"].tolist(),
        use_lab=bool(request["use_lab"]),
        use_last_conv=bool(request["use_last_conv"]),
        class_expand=int(request["class_expand"]),
        **arguments,
    )


def _plain(value):
    return int(value)


def transform(request):
    """What PaddleClas's own operators make of the encoded images: float32 (height, width, 3), or the error's name."""
    import cv2
    from paddleclas.deploy.python.preprocess import CropImage, NormalizeImage, ResizeImage

    resize = ResizeImage(resize_short=int(request["resize_short"]), interpolation="bicubic", backend="pil")
    crop = CropImage(int(request["crop_size"]))
    normalize = NormalizeImage(
        scale="1.0/255.0", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], order="", channel_num=3
    )
    answers = {}
    for name in request.files:
        if not name.startswith("image:"):
            continue
        decoded = cv2.imdecode(request[name], cv2.IMREAD_COLOR)[:, :, ::-1]
        try:
            cropped = crop(resize(decoded))
            answers[name + ":pixels"] = cropped
            answers[name] = normalize(cropped)
        except Exception as error:
            answers[name + ":error"] = np.array(type(error).__name__)
    return answers


if __name__ == "__main__":
    task, request_path, answer_path = sys.argv[1:]
    np.savez(answer_path, **{"network": network, "transform": transform}[task](np.load(request_path)))
