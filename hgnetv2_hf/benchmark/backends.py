"""The backends that `hgnetv2-hf benchmark` compares."""

STOCK = "stock"
BACKENDS = {  # name: what is measured
    STOCK: "Transformers' own model, eager float32",
    "timm": "timm, eager float32",
    "timm-compiled": "timm, channels-last, compiled with frozen weights, float32",
    "timm-compiled-bf16": "the same in bfloat16",
    "eager": "this package's model, eager float32",
    "optimised": "optimize_for_inference, float32",
    "optimised-bf16": "optimize_for_inference, bfloat16",
    "compiled": "optimize_for_inference with compile=True, float32",
    "compiled-bf16": "optimize_for_inference with compile=True, bfloat16",
    "onnx-stock": "Transformers' own graph in ONNX Runtime, float32",
    "onnx": "export --format onnx, float32",
    "openvino-stock": "Transformers' own graph in OpenVINO, float32",
    "openvino-stock-bf16": "Transformers' own graph in OpenVINO, bfloat16",
    "openvino": "export --format openvino, float32",
    "openvino-bf16": "export --format openvino, bfloat16",
    "openvino-int8": "export --format openvino --int8, calibrated on noise",
}
DEFAULT_BACKENDS = (STOCK, "eager", "optimised", "optimised-bf16")
