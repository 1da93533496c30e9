"""`optimize_for_inference` of detectors: sampling in one gather, boxes of chosen places only, one compiled graph."""

import copy
import functools
import pickle

import pytest
import torch
import transformers
from transformers.models.d_fine import modeling_d_fine
from transformers.models.rt_detr import modeling_rt_detr
from transformers.models.rt_detr_v2 import modeling_rt_detr_v2

from hgnetv2_hf import optimize_for_inference
from hgnetv2_hf.inference import sampling
from hgnetv2_hf.inference.comparison import detector_difference
from hgnetv2_hf.inference.late_boxes import box_chosen_places
from hgnetv2_hf.inference.optimize import CompiledPerShape


SHAPES, POINTS = [(9, 7), (5, 4), (2, 2)], [4, 4, 4]
EXACT = 1e-9  # in float64


def inputs(dtype, points=12):
    generator = torch.Generator().manual_seed(0)
    length = sum(height * width for height, width in SHAPES)
    value = torch.randn(2, length, 4, 8, dtype=dtype, generator=generator)
    locations = torch.rand(2, 50, 4, points, 2, dtype=dtype, generator=generator) * 1.8 - 0.4  # some outside
    locations[0, 0] = 0.0
    locations[0, 1] = 1.0
    locations[0, 2] = 1e6
    weights = torch.rand(2, 50, 4, points, dtype=dtype, generator=generator)
    return value, locations, weights


@pytest.mark.parametrize("module", [modeling_d_fine, modeling_rt_detr_v2])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_points_are_sampled_as_transformers_samples_them(module, dtype, bound):
    value, locations, weights = inputs(dtype)
    expected = module.multi_scale_deformable_attention_v2(value, SHAPES, locations, weights, POINTS)
    got = sampling.sample_points(value, SHAPES, locations, weights, POINTS)
    assert got.shape == expected.shape and (got - expected).abs().max() <= bound * expected.abs().max()


def test_points_are_sampled_as_rt_detrs_module_does():
    value, locations, weights = inputs(torch.float64)
    locations, weights = locations.unflatten(3, (3, 4)), weights.unflatten(3, (3, 4))
    arguments = (value, torch.tensor(SHAPES), SHAPES, torch.tensor([0, 63, 83]), locations, weights, 64)
    module = modeling_rt_detr.MultiScaleDeformableAttention()
    assert torch.allclose(sampling._Sampling(module)(*arguments), module(*arguments), rtol=0, atol=1e-13)


def test_another_function_of_that_name_stays(detector, monkeypatch):
    theirs = modeling_d_fine.multi_scale_deformable_attention_v2
    monkeypatch.setattr(
        modeling_d_fine, "multi_scale_deformable_attention_v2", lambda *arguments: 1.001 * theirs(*arguments)
    )
    model = small(detector)
    assert sampling.sample_on_cpu(copy.deepcopy(model)) == 0
    assert difference(model, optimize_for_inference(model)) < EXACT


def test_what_it_does_not_know_stays_as_it_is(detector, monkeypatch):
    monkeypatch.setattr(
        modeling_rt_detr.MultiScaleDeformableAttention, "forward", lambda self, value, *rest: value.flatten(2)
    )
    sampling._is_known_module.cache_clear()
    assert not sampling._is_known_module(modeling_rt_detr.MultiScaleDeformableAttention)
    sampling._is_known_module.cache_clear()
    model = small(detector)
    attentions = [module for module in model.modules() if hasattr(module, "sampling_offsets")]
    attentions[0].forward = functools.partial(type(attentions[0]).forward, attentions[0])  # somebody's own
    theirs = attentions[0].forward
    assert sampling.sample_on_cpu(model) == len(attentions) - 1 and attentions[0].forward is theirs

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.enc_bbox_head = torch.nn.Linear(8, 4)

        def forward(self, memory):
            return self.enc_bbox_head(memory).sigmoid()  # of all places

    other = Other()
    box_chosen_places(other)
    assert other(torch.zeros(1, 3, 8)).shape == (1, 3, 4)
    box_chosen_places(model)
    assert model.model.enc_bbox_head.head is not None


def difference(model, optimized, *samples):
    def run(pixels):
        output = optimized(torch.from_numpy(pixels))
        return {name: output[name].numpy() for name in ("logits", "pred_boxes")}

    return detector_difference(model, run, list(samples) or [pixels_of(2, 96, 64)])


def pixels_of(batch, height, width):
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def small(detector):
    """In float64: the small detector's random heads enlarge what float32 rounds."""
    return transformers.AutoModelForObjectDetection.from_pretrained(detector).double().eval()


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_the_same(detector, twin_of):
    model = small(detector)
    optimized, pixels = optimize_for_inference(model), pixels_of(1, 64, 64)
    assert difference(model, optimized) < EXACT
    expected, got = optimized(pixels), twin_of(optimized)(pixels)
    assert torch.equal(got.logits, expected.logits) and torch.equal(got.pred_boxes, expected.pred_boxes)
    assert expected.get("enc_outputs_coord_logits") is None  # of places that were not chosen it was not computed
    assert expected.enc_outputs_class.shape == model(pixels).enc_outputs_class.shape


@pytest.mark.slow
def test_it_can_be_saved_as_a_file_exported_and_compiled_from_outside(detector, tmp_path):
    model = small(detector)
    optimized, pixels = optimize_for_inference(model), pixels_of(1, 64, 64)
    torch.save(optimized, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    exported = torch.export.export(optimized, (pixels,), strict=False).module()
    compiled = torch.compile(optimized, fullgraph=sampling.follows_detectors(), backend="eager")
    for twin in (loaded, exported, compiled):
        assert difference(model, twin, pixels) < EXACT


def test_small_images_have_maps_of_one_place(detector):
    """There, a point has no neighbours on both sides."""
    model = small(detector)
    model.config.num_queries = model.model.config.num_queries = 3
    assert difference(model, optimize_for_inference(model), pixels_of(1, 32, 64)) < EXACT


def test_a_detector_is_compiled_as_a_whole(detector, monkeypatch):
    calls = []
    monkeypatch.setattr(
        torch, "compile", lambda forward, **_: lambda *a, **k: calls.append(sorted(k)) or forward(*a, **k)
    )
    model = small(detector)
    optimized, pixels = optimize_for_inference(model, compile=True), pixels_of(1, 64, 64)
    assert isinstance(optimized._forward, CompiledPerShape) == sampling.follows_detectors()
    outputs = [optimized(pixels), optimized(pixel_values=pixels)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    if sampling.follows_detectors():
        assert calls == [[], []] and len(optimized._forward._seen) == 1  # a keyword is not compiled anew


@pytest.mark.slow
@pytest.mark.skipif(not sampling.follows_detectors(), reason="this Transformers' checks cut the graph")
def test_compiled_it_computes_the_same_in_one_graph(detector):
    import torch._dynamo

    model = small(detector).float()  # the compiler has no float64
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    optimized = optimize_for_inference(model, compile=True)
    assert difference(model, optimized, pixels_of(1, 64, 64).float()) < 1e-4
    assert not torch._dynamo.utils.counters["graph_break"]


GOLDENS = ("dfine_n", "deim_dfine_n", "deimv2_n", "deimv2_atto", "rtdetrv2_hgnetv2_l", "paddledet_rtdetr_hgnetv2_l")


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_every_family_computes_the_same(converted_golden, name):
    """DEIMv2 n in float32 lies 7e-6 from its own float64, stock or optimised."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(converted_golden(name)).eval()
    optimized = optimize_for_inference(model)
    bound = 2e-5 if name == "deimv2_n" else 1e-5
    assert difference(model, optimized, torch.randn(1, 3, 640, 640), torch.randn(2, 3, 320, 416)) < bound
