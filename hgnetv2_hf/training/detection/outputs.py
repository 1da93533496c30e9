"""A detector of Transformers in training, its outputs as the original's decoder hands them to its criterion.

Denoising queries are put before the decoder's own by a hook that lives as long as the call. The model is called
without labels, computes no loss of its own, draws no noise of its own, and is not changed.
"""

import contextlib

import torch

from ...errors import TrainingError
from .criterion import REFINING
from .denoising import inverse_sigmoid, make_denoising


# By `config.model_type`.
FAMILY_OF = {"d_fine": "dfine", "rt_detr": "rtdetr", "rt_detr_v2": "rtdetrv2", "deim": "deim", "deim_v2": "deimv2"}


def family_of(config):
    """The key of the criterion's family. Raises ``TrainingError`` for a model of another type."""
    try:
        family = FAMILY_OF[config.model_type]
        return "deimv2-lite" if family == "deimv2" and config.encoder_type == "lite" else family
    except KeyError:
        raise TrainingError(
            f"Unsupported model type {config.model_type!r}: expected {', '.join(FAMILY_OF)}."
        ) from None


def draw_denoising(config, targets):
    """The denoising queries that a configuration asks for; see [`make_denoising`]."""
    return make_denoising(
        targets,
        config.num_labels,
        config.num_queries,
        config.num_denoising,
        config.label_noise_ratio,
        config.box_noise_scale,
        keeps_size=family_of(config) in REFINING,
    )


def training_outputs(model, pixel_values, denoising=None, call=None):
    """
    Args:
        model (`PreTrainedModel`): `DFineForObjectDetection`, `RTDetrForObjectDetection`, `RTDetrV2ForObjectDetection`,
            `DEIMForObjectDetection` or `DEIMv2ForObjectDetection`, in training mode.
        pixel_values (`torch.Tensor`): `(images, 3, height, width)`.
        denoising (`dict`, *optional*): see [`make_denoising`]; none by default.
        call (callable, *optional*): what is called with `pixel_values`, where the model is wrapped (DDP).

    Returns:
        `dict`: what [`DetectionCriterion`] takes, in float32 at least.

    Raises:
        `TrainingError`: the model is none of these, or not in training mode.
    """
    family = family_of(model.config)
    if not model.training:
        raise TrainingError("The losses are those of a step of training: call model.train() first.")
    with _denoising_queries(model, denoising), _recorded(_box_heads(model, family)) as offsets:
        found = (call or model)(pixel_values=pixel_values, return_dict=True)
    logits, boxes = _at_least_float32(found["intermediate_logits"], found["intermediate_reference_points"])
    logits, boxes = list(logits.unbind(1)), list(boxes.unbind(1))
    encoder_logits, encoder_boxes = _at_least_float32(found["enc_topk_logits"], found["enc_topk_bboxes"])
    encoder = {"pred_logits": encoder_logits, "pred_boxes": encoder_boxes}
    count = None if denoising is None else denoising["num_split"][0]  # of denoising queries
    if family in REFINING:
        outputs = _dfine_outputs(model, found, logits, boxes, count)
    else:
        outputs = _rtdetr_outputs(logits, _connected(boxes, offsets), count)
    if family == "rtdetr":
        outputs["aux_outputs"].append(encoder)  # the last of its auxiliary outputs
    else:
        outputs["enc_aux_outputs"], outputs["enc_meta"] = [encoder], {"class_agnostic": False}
    if denoising is not None:
        outputs["dn_meta"] = {
            "dn_positive_idx": denoising["positive_idx"],
            "dn_num_group": denoising["num_group"],
            "dn_num_split": denoising["num_split"],
        }
    return outputs


@contextlib.contextmanager
def _denoising_queries(model, denoising):
    if denoising is None:
        yield
        return

    def prepend(decoder, args, kwargs):
        content, points = kwargs["inputs_embeds"], kwargs["reference_points"]
        classes = model.model.denoising_class_embed(denoising["labels"].to(content.device)).to(content.dtype)
        noisy = denoising["boxes_unact"].to(points)
        may_not_look = denoising["attn_mask"].to(content.device)
        mask = torch.zeros(may_not_look.shape, dtype=content.dtype, device=content.device)
        return args, {
            **kwargs,
            "inputs_embeds": torch.cat([classes, content], 1),
            "reference_points": torch.cat([noisy, points], 1),
            "encoder_attention_mask": mask.masked_fill(may_not_look, -torch.inf),  # of the decoder, despite its name
        }

    handle = model.model.decoder.register_forward_pre_hook(prepend, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _box_heads(model, family):
    return () if family in REFINING else model.model.decoder.bbox_embed


@contextlib.contextmanager
def _recorded(modules):
    """What these modules return during the call, one after the other."""
    found = []
    handles = [module.register_forward_hook(lambda module, args, output: found.append(output)) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _connected(boxes, offsets):
    """RT-DETR's boxes in training: each layer's also depends on the layer before, which Transformers cuts off."""
    connected = boxes[:1]
    for before, offset in zip(boxes, offsets[1:]):
        connected.append(torch.sigmoid(offset.to(before.dtype) + inverse_sigmoid(before)))
    return connected


def _rtdetr_outputs(logits, boxes, count):
    layers = [{"pred_logits": scores[:, count:], "pred_boxes": box[:, count:]} for scores, box in zip(logits, boxes)]
    outputs = {**layers[-1], "aux_outputs": layers[:-1]}
    if count is not None:
        outputs["dn_aux_outputs"] = [
            {"pred_logits": scores[:, :count], "pred_boxes": box[:, :count]} for scores, box in zip(logits, boxes)
        ]
    return outputs


def _dfine_outputs(model, found, logits, boxes, count):
    corners, points = _at_least_float32(found["intermediate_predicted_corners"], found["initial_reference_points"])
    values = {"pred_logits": logits[1:], "pred_boxes": boxes[1:], "pred_corners": corners.unbind(1)}
    layers = [dict(zip(values, each)) for each in zip(*values.values())]
    for layer, point in zip(layers, points.unbind(1)):
        layer["ref_points"] = point
    first = {"pred_logits": logits[0], "pred_boxes": boxes[0]}

    def of(queries, layers):
        return [{name: value[:, queries] for name, value in layer.items()} for layer in layers]

    def with_teacher(layers):
        teacher = {"teacher_corners": layers[-1]["pred_corners"], "teacher_logits": layers[-1]["pred_logits"]}
        return [{**layer, **teacher} for layer in layers]

    ordinary, decoder = of(slice(count, None), layers), model.model.decoder
    outputs = {
        **ordinary[-1],
        "up": decoder.up,
        "reg_scale": decoder.reg_scale,
        "aux_outputs": with_teacher(ordinary)[:-1],
        "pre_outputs": of(slice(count, None), [first])[0],
    }
    if count is not None:
        outputs["dn_outputs"] = with_teacher(of(slice(None, count), layers))
        outputs["dn_pre_outputs"] = of(slice(None, count), [first])[0]
    return outputs


def _at_least_float32(*tensors):
    """Losses are computed in float32 where the model computes in less, as the originals do outside their autocast."""
    return [each.float() if each.dtype in (torch.float16, torch.bfloat16) else each for each in tensors]
