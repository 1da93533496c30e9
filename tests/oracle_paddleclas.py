"""Runs inside an environment that has PaddlePaddle and PaddleClas (no PyTorch, no Transformers): the real thing.

python oracle_paddleclas.py network REQUEST.npz ANSWER.npz     the real PPHGNetV2, as `convert --verify` runs it
python oracle_paddleclas.py transform REQUEST.npz ANSWER.npz   the real evaluation transform
python oracle_paddleclas.py resize REQUEST.npz ANSWER.npz      PaddleDetection's resize: OpenCV, cubic
"""

import sys
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).parent.parent / "hgnetv2_hf" / "conversion"))  # without importing the package
from run_paddleclas import network  # noqa: E402


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


def resize(request):
    """PaddleDetection's ``Resize`` with ``interp: 2`` and ``keep_ratio: False``, which calls OpenCV with scale factors."""
    import cv2

    pixels, side = request["pixels"], float(request["side"])
    scales = {"fx": side / pixels.shape[1], "fy": side / pixels.shape[0]}
    return {"pixels": cv2.resize(pixels, None, None, interpolation=cv2.INTER_CUBIC, **scales)}


if __name__ == "__main__":
    task, request_path, answer_path = sys.argv[1:]
    np.savez(
        answer_path, **{"network": network, "transform": transform, "resize": resize}[task](np.load(request_path))
    )
