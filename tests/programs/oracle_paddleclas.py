"""Runs inside an environment that has PaddlePaddle and PaddleClas (no PyTorch, no Transformers): the real thing.

python oracle_paddleclas.py network REQUEST.npz ANSWER.npz     the real PPHGNetV2, as `convert --verify` runs it
python oracle_paddleclas.py transform REQUEST.npz ANSWER.npz   the real evaluation transform
python oracle_paddleclas.py resize REQUEST.npz ANSWER.npz      PaddleDetection's resize: OpenCV, cubic
python oracle_paddleclas.py training REQUEST.npz ANSWER.npz    rates and decay of every parameter, and steps with
Paddle's Momentum
"""

import sys
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).parents[2] / "hgnetv2_hf" / "conversion"))  # without importing the package
from run_paddleclas import network  # noqa: E402


def transform(request):
    """What PaddleClas's own operators make of the encoded images: float32 (height, width, 3), or the error's name; and
    the version of Pillow, whose bicubic filter they use: 12.3 and 13.0 differ by up to two levels."""
    import cv2
    import PIL
    from paddleclas.deploy.python.preprocess import CropImage, NormalizeImage, ResizeImage

    resize = ResizeImage(resize_short=int(request["resize_short"]), interpolation="bicubic", backend="pil")
    crop = CropImage(int(request["crop_size"]))
    normalize = NormalizeImage(
        scale="1.0/255.0", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], order="", channel_num=3
    )
    answers = {"pillow": np.array(PIL.__version__)}
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


def resize(request):
    """PaddleDetection's ``Resize`` with ``interp: 2`` and ``keep_ratio: False``, which calls OpenCV with scale
    factors."""
    import cv2

    pixels, side = request["pixels"], float(request["side"])
    scales = {"fx": side / pixels.shape[1], "fy": side / pixels.shape[0]}
    return {"pixels": cv2.resize(pixels, None, None, interpolation=cv2.INTER_CUBIC, **scales)}


def training(request):
    """Steps of PaddleClas's network with Paddle's optimizer and losses, in float64; the rates and decay it
    attached."""
    import paddle
    import paddle.nn.functional as F
    from paddleclas.ppcls.arch.backbone.legendary_models import pp_hgnet_v2

    paddle.set_device("cpu")
    paddle.set_default_dtype("float64")
    model = getattr(pp_hgnet_v2, f"PPHGNetV2_{str(request['variant']).upper()}")(
        class_num=int(request["class_num"]), lr_mult_list=request["lr_mult_list"].tolist()
    )
    state = paddle.load(str(request["checkpoint"]), return_numpy=True)
    model.set_state_dict({name: value.astype("float64") for name, value in state.items() if hasattr(value, "astype")})
    answer = {}
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:  # batch norm's running statistics
            continue
        answer[f"rate:{name}"] = np.array(parameter.optimize_attr["learning_rate"])
        # L2Decay(0.0) on the parameter replaces the optimizer's; without one, the optimizer's holds.
        answer[f"decays:{name}"] = np.array(parameter.regularizer is None)
        assert parameter.regularizer is None or parameter.regularizer._coeff == 0.0
    optimizer = paddle.optimizer.Momentum(
        learning_rate=float(request["learning_rate"]),
        momentum=float(request["momentum"]),
        weight_decay=float(request["weight_decay"]),
        parameters=model.parameters(),
    )
    model.train()
    losses = []
    for pixel_values, labels in zip(request["pixel_values"], request["labels"]):
        logits = model(paddle.to_tensor(pixel_values.astype("float64")))
        # CELoss(epsilon), as ppcls/loss/celoss.py computes it
        target = F.label_smooth(
            F.one_hot(paddle.to_tensor(labels), logits.shape[-1]).astype("float64"), epsilon=float(request["epsilon"])
        )
        loss = paddle.sum(-F.log_softmax(logits, axis=-1) * target, axis=-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    answer.update({f"weight:{name}": value.numpy() for name, value in model.state_dict().items()})
    return {**answer, "losses": np.array(losses)}


def distillation(request):
    """DistillationCELoss and DMLLoss of two sets of logits, with Paddle's own functions, as ppcls/loss composes
    them."""
    import paddle
    import paddle.nn.functional as F

    paddle.set_device("cpu")
    student, teacher = (paddle.to_tensor(request[name].astype("float64")) for name in ("student", "teacher"))
    soft = F.softmax(teacher, axis=-1)
    one, other = F.softmax(student, axis=-1), soft
    symmetric = F.kl_div(paddle.log(one), other, reduction="batchmean")
    symmetric += F.kl_div(paddle.log(other), one, reduction="batchmean")
    return {
        "cross_entropy": F.cross_entropy(student, label=soft, soft_label=True).mean().numpy(),
        "symmetric_kl": (symmetric / 2.0).numpy(),
    }


TASKS = {each.__name__: each for each in (network, transform, resize, training, distillation)}

if __name__ == "__main__":
    task, request_path, answer_path = sys.argv[1:]
    np.savez(answer_path, **TASKS[task](np.load(request_path)))
