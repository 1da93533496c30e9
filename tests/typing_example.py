"""Uses the public names as somebody's typed program does. Nobody runs this; mypy reads it, in test_types.py."""

from typing_extensions import reveal_type

from hgnetv2_hf import (
    HGNetV2Backbone,
    HGNetV2Config,
    HGNetV2ImageProcessor,
    PPHGNetConfig,
    PPHGNetV2Config,
    PPHGNetV2ForImageClassification,
    convert_checkpoint,
    export_model,
    export_weights,
    load_backbone,
    load_backbone_into,
    load_exported,
    optimize_for_inference,
    set_drop_path_rate,
)
from hgnetv2_hf.training import MovingAverage, Options, freeze, parameter_groups, train


report = convert_checkpoint("PPHGNetV2_B4_ssld_stage1", "b4", verify=True)
reveal_type(report)  # ConversionReport
reveal_type(report.num_parameters)  # int
reveal_type(export_weights("b4", "b4.pdparams"))  # ExportReport
reveal_type(load_backbone("b4", out_features=["stage3", "stage4"]))  # HGNetV2Backbone
reveal_type(HGNetV2Config.from_variant("b0"))  # HGNetV2Config
reveal_type(PPHGNetV2Config.from_variant("b0", num_labels=10))  # PPHGNetV2Config

reveal_type(PPHGNetConfig.from_variant("tiny"))  # PPHGNetConfig

backbone = HGNetV2Backbone(HGNetV2Config.from_variant("b0"))
model = PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant("b0"))
reveal_type(load_backbone_into(model, "b4"))  # LoadedBackbone
reveal_type(optimize_for_inference(backbone))  # HGNetV2Backbone
reveal_type(optimize_for_inference(model, dtype="auto", compile=True))  # PPHGNetV2ForImageClassification
reveal_type(HGNetV2ImageProcessor(size={"shortest_edge": 232}))  # HGNetV2ImageProcessor
reveal_type(export_model("b4", "b4-onnx", "onnx"))  # ModelExport
reveal_type(load_exported("b4-onnx"))  # ExportedModel
reveal_type(set_drop_path_rate(model, 0.1))  # int

options = Options(head="new", class_weights=True)
reveal_type(options)  # Options
trained = train("photos", "b4", "out", options, num_train_epochs=5)
reveal_type(trained)  # Trained
reveal_type(trained.metrics)  # dict[str, Any]
reveal_type(freeze(model, 0))  # Frozen
reveal_type(MovingAverage(model, decay=0.99))  # MovingAverage
reveal_type(parameter_groups(model, 0.1))  # list[dict[str, Any]]

# What is wrong is found: mypy is told to say so if one of these comments were needless.
convert_checkpoint("digits", "out", variant=4)  # type: ignore[arg-type]
Options(heads="new")  # type: ignore[call-arg]
train("photos", "b4", 3)  # type: ignore[arg-type]
