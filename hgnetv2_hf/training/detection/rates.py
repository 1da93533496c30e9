"""Learning rates and weight decay per parameter, as D-FINE, RT-DETR and DEIM set them.

Sources: D-FINE ``configs/dfine``, RT-DETR ``configs/rtdetrv2``, DEIM ``configs/deim_dfine``. The backbone has a rate
of its own and decays, batch norm included: its pattern ``(?!.*norm|bn)`` does not exclude ``bn``; in DEIM's S and M
batch norm learns at the rate of the heads and does not decay. Normalisation of encoder and decoder does not decay, nor
do their biases in D-FINE N, S and M, and in DEIM N.
"""


def detector_groups(model, rate, backbone_rate, weight_decay, decays_biases, norm_learns_as_head=False):
    """
    Parameter groups for AdamW.

    Args:
        model (`PreTrainedModel`): a detector of Transformers.
        rate (`float`): of encoder and decoder.
        backbone_rate (`float`)
        weight_decay (`float`)
        decays_biases (`bool`): those of encoder and decoder.
        norm_learns_as_head (`bool`, defaults to `False`): the backbone's batch norm has the heads' rate and no decay.

    Returns:
        `list[dict]`: groups with `params`, `lr`, `weight_decay` and `name`; the one of the highest rate first.
    """
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        is_norm = "Norm" in type(module).__name__
        if ".backbone." in f".{name}" and not (is_norm and norm_learns_as_head):
            place, decays = "backbone", True
        else:
            exempt = is_norm or (name.endswith("bias") and not decays_biases)
            place, decays = ("encoder and decoder, without decay", False) if exempt else ("encoder and decoder", True)
        group = groups.setdefault(
            place,
            {
                "params": [],
                "lr": backbone_rate if place == "backbone" else rate,
                "weight_decay": weight_decay if decays else 0.0,
                "name": place,
            },
        )
        group["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: -group["lr"])
