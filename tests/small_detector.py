"""A D-FINE of random weights for images of 64×64 that finds three kinds of things."""

import torch
import transformers
from conftest import TINY_FIELDS, randomize

import hgnetv2_hf


LABELS = ["circle", "square", "star"]


def write_small_detector(folder):
    torch.manual_seed(0)
    config = transformers.DFineConfig(
        backbone_config=hgnetv2_hf.HGNetV2Config(**TINY_FIELDS, out_features=["stage3", "stage4"]),
        encoder_in_channels=[32, 40], feat_strides=[16, 32], num_feature_levels=2, encoder_hidden_dim=32, d_model=32,
        decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=20, decoder_n_points=[2, 2],
        encode_proj_layers=[1], decoder_in_channels=[32, 32], id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )  # fmt: skip
    model = randomize(transformers.DFineForObjectDetection(config))
    model.eval()
    with torch.no_grad():  # random weights prefer one class everywhere
        for name, parameter in model.named_parameters():
            if "lqe_layers" in name:
                parameter.zero_()
        logits = model(torch.randn(4, 3, 64, 64)).logits.flatten(0, 1)
        head, spread = model.class_embed[-1], logits.std(0)
        head.weight.div_(spread[:, None])
        head.bias.sub_(logits.mean(0)).div_(spread)
    model.save_pretrained(folder)
    transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
