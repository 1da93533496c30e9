"""Builds a model of a given type from its default configuration and runs it, in evaluation and training mode.

    python every_model.py OUT_FOLDER

Run without this package, it leaves what stock Transformers built, saved and computed, for a comparison with the same
seed.
"""

import sys


def types_with_hgnetv2():
    """Model types of the installed Transformers whose default configuration holds an HGNetV2, found by looking
    inside."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found = []
    for model_type in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[model_type]()
        except Exception:  # some configurations have no default
            continue
        if type(config).__module__.startswith("transformers.") and any(
            getattr(value, "model_type", None) == "hgnet_v2" for value in vars(config).values()
        ):
            found.append(model_type)
    return found


def build(model_type, seed=0):
    import torch
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]()
    if model_type == "pp_doclayout_v2":  # stock itself does not run with the defaults of these two
        config.class_thresholds = [0.5] * config.num_labels
        config.class_order = list(range(config.num_labels))
    elif model_type == "pp_ocrv5_server_det":
        config.intraclass_block_config = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
        for ratio, kernel in (("long", 7), ("mid", 5), ("short", 3)):
            pad = kernel // 2
            config.intraclass_block_config |= {
                f"vertical_long_to_small_conv_{ratio}ratio": [[kernel, 1], 1, [pad, 0]],
                f"horizontal_small_to_long_conv_{ratio}ratio": [[1, kernel], 1, [0, pad]],
                f"symmetric_conv_long_{ratio}ratio": [kernel, 1, pad],
            }
        config.kernel_list, config.scale_factor_list = [3, 2, 2], [1, 2, 4, 8]
    mapping = modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING
    if type(config) not in mapping:
        mapping = modeling_auto.MODEL_MAPPING
    torch.manual_seed(seed)
    return mapping[type(config)](config)


def answers(model, seed=1):
    """Everything that the model returns in evaluation mode and, for detectors, the loss and its parts in training
    mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    side = 320
    pixel_values = torch.randn(1, 3, side, side, generator=generator)
    if "rec" in model.config.model_type:
        pixel_values = pixel_values[:, :, :48].contiguous()
    found = {}
    for mode in ("eval", "train"):
        model.train(mode == "train")
        arguments = {}
        if mode == "train" and "Detection" in type(model).__name__ and "num_denoising" in model.config.to_dict():
            boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.3, 0.2]])
            arguments["labels"] = [{"class_labels": torch.tensor([0, 1]), "boxes": boxes}]
        with torch.no_grad():
            try:
                torch.manual_seed(seed)
                output = model(pixel_values, **arguments)
            except ValueError as error:
                if "does not support training" not in str(error):
                    raise
                torch.manual_seed(seed)
                output = model(pixel_values)
        for name, value in output.items():
            if isinstance(value, torch.Tensor):
                found[f"{mode}.{name}"] = value.clone()
            elif name == "loss_dict":
                found.update({f"{mode}.{key}": part.clone() for key, part in value.items()})
    return found


if __name__ == "__main__":
    sys.modules["hgnetv2_hf"] = None
    import torch

    for each in types_with_hgnetv2():
        stock = build(each)
        stock.save_pretrained(f"{sys.argv[1]}/{each}")
        torch.save(answers(stock), f"{sys.argv[1]}/{each}.pt")
        print(each)
