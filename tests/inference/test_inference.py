"""`optimize_for_inference`: the same outputs, faster, and an object that says what it is not for."""

import copy
import inspect
import os
import pickle
import subprocess
import sys
import typing
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from conftest import relative_difference, slow_except, with_lab_of_both_signs
from transformers import pipeline

import hgnetv2_hf
from hgnetv2_hf import HGNetV2Config, PPHGNetV2Config, optimize_for_inference
from hgnetv2_hf.data import digits
from hgnetv2_hf.inference import precision
from hgnetv2_hf.inference.comparison import detector_difference
from hgnetv2_hf.inference.folding import FoldedConvLayer, ShiftedMaxPool, fold
from hgnetv2_hf.inference.precision import PrecisionWarning, onednn_computes


FLOAT32 = 1e-5


def classifier(fields, **options):
    return with_lab_of_both_signs(
        hgnetv2_hf.PPHGNetV2ForImageClassification(PPHGNetV2Config(**fields, num_labels=7, class_expand=24, **options))
    )


def outputs(model, pixel_values):
    with torch.no_grad():
        output = model(pixel_values, output_hidden_states=True)
    return {
        **{f"hidden state {index}": each for index, each in enumerate(output.hidden_states)},
        **({"logits": output.logits} if hasattr(output, "logits") else {}),
        **{f"map {index}": each for index, each in enumerate(getattr(output, "feature_maps", ()))},
    }


def assert_same(optimized, model, pixel_values, tolerance=FLOAT32):
    ours, original = outputs(optimized, pixel_values), outputs(model, pixel_values)
    for name, value in original.items():
        assert relative_difference(ours[name].to(value.dtype), value) < tolerance, name


@pytest.mark.parametrize("variant", slow_except(["b0", "b1", "b2", "b3", "b4", "b5", "b6"], "b0", "b4"))
def test_every_variant_computes_the_same_in_float32(variant):
    torch.manual_seed(0)
    model = with_lab_of_both_signs(hgnetv2_hf.PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant)))
    assert_same(optimize_for_inference(model), model, torch.randn(1, 3, 96, 128))


@pytest.mark.parametrize("variant", ["b0", "l", "pico", "atto"])
def test_a_backbone_gives_all_its_maps(variant):
    torch.manual_seed(0)
    config = HGNetV2Config.from_variant(variant)
    config.out_features = config.stage_names
    model = with_lab_of_both_signs(hgnetv2_hf.HGNetV2Backbone(config))
    optimized = optimize_for_inference(model)
    assert optimized.channels == model.channels
    assert_same(optimized, model, torch.randn(2, 3, 64, 96))


def test_shapes_may_change_from_call_to_call(tiny_fields):
    model = classifier(tiny_fields)
    optimized = optimize_for_inference(model)
    for shape in [(1, 3, 64, 64), (5, 3, 64, 64), (2, 3, 33, 47), (1, 3, 64, 64)]:
        assert_same(optimized, model, torch.randn(shape))
        if torch.backends.mkldnn.is_available():
            layers = [module for module in optimized.modules() if isinstance(module, FoldedConvLayer)]
            assert all(layer._packed is not None for layer in layers)
    assert isinstance(optimized.embedder.pool, ShiftedMaxPool)


def test_float64_is_exact_and_bfloat16_close(tiny_fields):
    model = classifier(tiny_fields)
    x = torch.randn(2, 3, 64, 64)
    assert_same(
        optimize_for_inference(copy.deepcopy(model).double()), copy.deepcopy(model).double(), x.double(), 1e-12
    )
    half = optimize_for_inference(model, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half(x).logits.dtype == torch.bfloat16
    assert_same(half, model, x, 0.05)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_warns_where_it_is_emulated_and_auto_avoids_it(tiny_fields, monkeypatch, native):
    monkeypatch.setattr(precision, "_cpu_is_native", lambda dtype: native)
    model = classifier(tiny_fields)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert optimize_for_inference(model, dtype="auto").dtype == (torch.bfloat16 if native else torch.float32)
        assert not [each for each in caught if each.category is PrecisionWarning]
        optimize_for_inference(model, dtype=torch.bfloat16)
    said = [str(each.message) for each in caught if each.category is PrecisionWarning]
    assert len(said) == (0 if native else 1) and all("bfloat16 natively" in each for each in said)


@pytest.mark.skipif(not precision.cpu_flags(), reason="oneDNN on x86 and Linux")
def test_what_onednn_may_not_use_is_not_native():
    code = (
        "import torch; from hgnetv2_hf.inference.precision import *; print(is_native(torch.bfloat16), fastest_dtype())"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "False torch.float32\n"


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_other_activations_keep_their_lab(tiny_fields, activation):
    model = classifier(tiny_fields, hidden_act=activation)
    assert_same(optimize_for_inference(model), model, torch.randn(2, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_computes_the_same_for_each_shape(tiny_fields, dtype):
    model = classifier(tiny_fields)
    torch._dynamo.utils.counters.clear()
    optimized = optimize_for_inference(model, dtype=dtype, compile=True)
    for shape in [(2, 3, 64, 64), (1, 3, 96, 64), (2, 3, 64, 64)]:
        assert_same(optimized, model, torch.randn(shape), FLOAT32 if dtype == torch.float32 else 0.05)
    layers = sum(isinstance(module, FoldedConvLayer) for module in optimized.modules())
    packed = torch._dynamo.utils.counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"]
    if onednn_computes(dtype):
        assert packed >= 2 * layers  # frozen, for both shapes


def test_the_model_it_was_given_stays_as_it_is(tiny_fields):
    model = classifier(tiny_fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimize_for_inference(model, dtype=torch.bfloat16)
    assert type(model) is hgnetv2_hf.PPHGNetV2ForImageClassification
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_batch_norm_and_no_lab_is_left(tiny_fields):
    optimized = optimize_for_inference(classifier(tiny_fields))
    names = {type(module).__name__ for module in optimized.modules()}
    assert not names & {"BatchNorm2d", "HGNetV2LearnableAffineBlock", "HGNetV2ConvLayer"}
    assert "FoldedConvLayer" in names and "FoldedConvLayer" in repr(optimized)


def test_it_refuses_to_be_saved_pushed_and_trained(tiny_fields, tmp_path):
    optimized = optimize_for_inference(classifier(tiny_fields))
    assert optimized.eval() is optimized
    for refused in (
        lambda: optimized.save_pretrained(tmp_path / "folder"),
        lambda: optimized.push_to_hub("user/name"),
        lambda: optimized.train(),
        lambda: torch.nn.Sequential(optimized).train(),
    ):
        with pytest.raises(RuntimeError, match="optimised for inference cannot be"):
            refused()
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda model: model.train(), "model.eval"),
        (lambda model: optimize_for_inference(model), "already"),
        (lambda model: setattr(model, "hf_quantizer", object()) or model, "quantised"),
        (lambda model: model.to("meta"), "offloaded"),
        (lambda model: torch.compile(model), "compiled"),
        (lambda model: torch.nn.Linear(2, 2).eval(), "no HGNetV2"),
    ],
)
def test_what_cannot_be_optimised_gets_a_clear_answer(tiny_fields, prepare, message):
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(prepare(classifier(tiny_fields)))


def test_type_checkers_know_what_comes_back():
    hints = typing.get_type_hints(optimize_for_inference)
    assert hints["return"] is hints["model"] and hints["model"].__bound__ is torch.nn.Module
    for function in (hgnetv2_hf.load_exported, hgnetv2_hf.export_model):
        assert set(typing.get_type_hints(function)) == {*inspect.signature(function).parameters, "return"}


def test_wrong_types_get_a_clear_answer(tiny_fields):
    with pytest.raises(TypeError, match="takes a model"):
        optimize_for_inference("folder")
    with pytest.raises(ValueError, match="floating-point"):
        optimize_for_inference(classifier(tiny_fields), dtype=torch.int8)


def test_not_a_number_is_refused_where_a_fused_clamp_would_hide_it(tiny_fields):
    model = classifier(tiny_fields)
    optimized = optimize_for_inference(model)
    x = torch.randn(2, 3, 64, 64)
    for value in (float("nan"), float("inf")):
        x[1, 2, 3, 4] = value
        with pytest.raises(ValueError, match="NaN"):
            optimized(x)
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    assert optimize_for_inference(model)(torch.randn(1, 3, 64, 64)).logits[0, 0].isnan()
    with torch.no_grad():
        model.embedder.stem4.normalization.weight[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        optimize_for_inference(model)


def test_a_layer_with_a_forward_of_its_own_or_a_hook_stays_as_it_is(tiny_fields):
    model = classifier(tiny_fields)
    seen = []
    model.embedder.stem1.register_forward_hook(lambda *_: seen.append(1))
    other = type(model.embedder.stem3)
    changed = type("Changed", (other,), {"forward": lambda self, x: other.forward(self, x) + 1})
    model.embedder.stem3.__class__ = changed
    optimized = optimize_for_inference(model)
    assert_same(optimized, model, torch.randn(1, 3, 64, 64))
    assert type(optimized.embedder.stem3) is changed and len(seen) == 2
    assert isinstance(optimized.embedder.stem4, FoldedConvLayer)


def test_stock_classes_are_recognised(tiny_fields):
    from transformers.models.hgnet_v2 import configuration_hgnet_v2, modeling_hgnet_v2

    config = configuration_hgnet_v2.HGNetV2Config(**tiny_fields, num_labels=3)
    model = with_lab_of_both_signs(modeling_hgnet_v2.HGNetV2ForImageClassification(config))
    optimized = optimize_for_inference(model)
    assert type(optimized).__mro__[2] is modeling_hgnet_v2.HGNetV2ForImageClassification
    assert_same(optimized, model, torch.randn(2, 3, 64, 64))


def test_remote_code_is_recognised(tiny_fields, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    classifier(tiny_fields).save_pretrained(tmp_path / "folder")
    code = f"""
import torch, transformers, hgnetv2_hf
hgnetv2_hf.unregister()
loader = transformers.AutoModelForImageClassification
model = loader.from_pretrained({str(tmp_path / "folder")!r}, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model)
x = torch.randn(2, 3, 64, 64)
difference = (hgnetv2_hf.optimize_for_inference(model)(x).logits - model(x).logits).abs().max()
assert difference < 1e-5 * model(x).logits.abs().max(), difference
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["DFine", "RTDetr", "RTDetrV2"])
def test_detectors_compute_the_same(name, frozen):
    torch.manual_seed(0)
    backbone = HGNetV2Config.from_variant("b0", out_features=["stage2", "stage3", "stage4"])
    options = {"encoder_in_channels": [256, 512, 1024], "num_queries": 30, "decoder_layers": 2}
    config = getattr(transformers, f"{name}Config")(
        backbone_config=backbone, freeze_backbone_batch_norms=frozen, use_focal_loss=True, **options
    )
    model = with_lab_of_both_signs(getattr(transformers, f"{name}ForObjectDetection")(config))
    x = torch.randn(1, 3, 128, 128)
    # In float64: in float32 the queries with almost equal scores change places.
    exact = copy.deepcopy(model).double()
    optimized = optimize_for_inference(exact)
    with torch.no_grad():
        expected, got = exact(x.double()), optimized(x.double())
    assert relative_difference(got.logits, expected.logits) < 1e-9
    assert relative_difference(got.pred_boxes, expected.pred_boxes) < 1e-9
    left = {type(module).__name__ for module in optimized.model.backbone.modules()}
    assert not any("BatchNorm" in each for each in left)
    # In float32 up to the neck, which nothing sorts.
    optimized = optimize_for_inference(model)
    with torch.no_grad():
        expected, got = model(x).encoder_last_hidden_state, optimized(x).encoder_last_hidden_state
    for ours, theirs in zip(*(each if isinstance(each, (list, tuple)) else [each] for each in (got, expected))):
        assert relative_difference(ours, theirs) < FLOAT32


def test_a_detectors_neck_is_folded_too():
    torch.manual_seed(0)
    backbone = HGNetV2Config.from_variant("b0", out_features=["stage2", "stage3", "stage4"])
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[256, 512, 1024], decoder_layers=2
    )
    model = transformers.RTDetrForObjectDetection(config).eval()
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    branches = sum(type(module).__name__.endswith("RepVggBlock") for module in model.modules())
    assert branches > 0 and fold(model) == convolutions - branches  # two branches become one convolution
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]


def test_the_result_works_in_a_pipeline(tmp_path):
    folder = tmp_path / "digits"
    hgnetv2_hf.convert_checkpoint("digits", folder)
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    images, labels = digits.load_held_out()
    expected = classify(images[:50], top_k=3)
    original = classify.model
    for options in ({}, {"dtype": torch.bfloat16}):
        classify.model = optimize_for_inference(original, **options)
        got = classify(images[:50], top_k=3, batch_size=8)
        assert [each[0]["label"] for each in got] == [each[0]["label"] for each in expected]
    built = pipeline(
        "image-classification",
        model=optimize_for_inference(original),
        image_processor=hgnetv2_hf.HGNetV2ImageProcessor.from_pretrained(folder),
    )
    for ours, theirs in zip(built(images[:50], top_k=3), expected):
        assert np.allclose([each["score"] for each in ours], [each["score"] for each in theirs], atol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_can_be_pickled_and_computes_the_same(tiny_fields, tmp_path, dtype):
    optimized = optimize_for_inference(classifier(tiny_fields), dtype=dtype)
    x = torch.randn(1, 3, 64, 64)
    expected = optimized(x).logits
    torch.save(optimized, tmp_path / "model.pt")
    for twin in (
        pickle.loads(pickle.dumps(optimized)),
        pickle.loads(pickle.dumps(optimized, protocol=0)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        assert type(twin) is type(optimized) and torch.equal(twin(x).logits, expected)
        with pytest.raises(RuntimeError, match="cannot be saved"):
            twin.save_pretrained(tmp_path / "folder")


@pytest.mark.slow
def test_it_can_be_sent_to_a_process(tiny_fields, tmp_path):
    optimized, x = optimize_for_inference(classifier(tiny_fields)), torch.randn(1, 3, 64, 64)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((optimized, x, optimized(x).logits)))
    code = (
        "import pickle, sys; model, x, y = pickle.load(open(sys.argv[1], 'rb')); assert (model(x).logits == y).all()"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=300)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda optimized: pickle.loads(pickle.dumps(optimized))])
def test_compiled_forms_are_copied_without_their_compilation(tiny_fields, monkeypatch, twin_of):
    compiled, x = [], torch.randn(1, 3, 64, 64)
    monkeypatch.setattr(torch, "compile", lambda forward, **_: compiled.append(forward) or forward)
    whole, inside = classifier(tiny_fields), torch.nn.Sequential(classifier(tiny_fields)).eval()
    for model, network in ((whole, lambda twin: twin), (inside, lambda twin: twin[0])):
        optimized = optimize_for_inference(model, compile=True)
        twin = twin_of(optimized)
        assert compiled[-1].__self__ is network(twin)
        assert torch.equal(twin(x).logits, optimized(x).logits)


def test_pixels_by_position_and_by_name_are_one_compilation(tiny_fields, monkeypatch):
    calls = []
    monkeypatch.setattr(
        torch, "compile", lambda forward, **_: lambda *a, **k: calls.append((len(a), *k)) or forward(*a, **k)
    )
    optimized, x = optimize_for_inference(classifier(tiny_fields), compile=True), torch.randn(1, 3, 64, 64)
    (
        optimized(x),
        optimized(pixel_values=x),
        optimized(x, return_dict=True),
        optimized(pixel_values=x, return_dict=True),
    )
    assert calls == [(1,), (1,), (1, "return_dict"), (1, "return_dict")]
    assert len(optimized._forward._seen) == 2


def test_it_can_be_exported_and_compiled_from_outside(tiny_fields):
    optimized, x = optimize_for_inference(classifier(tiny_fields)), torch.randn(2, 3, 64, 64)
    expected = optimized(x).logits
    exported = torch.export.export(optimized, (x,), strict=False).module()
    compiled = torch.compile(optimized, fullgraph=True, backend="eager")
    for logits in (exported(x).logits, compiled(x).logits):
        assert relative_difference(logits, expected) < FLOAT32


def test_a_copy_computes_with_its_own_weights(tiny_fields):
    optimized = optimize_for_inference(classifier(tiny_fields))
    x = torch.randn(1, 3, 64, 64)
    before = optimized(x).logits
    twin = copy.deepcopy(optimized)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(optimized(x).logits, before)
    assert not torch.equal(twin(x).logits, before)


def run_in_openvino(model, **options):
    pytest.importorskip("openvino", reason="comes with the extra [openvino]")
    return optimize_for_inference(model, runtime="openvino", **options)


def test_a_classifier_in_openvino_is_an_object_of_its_kind(digits_folder):
    original = transformers.AutoModelForImageClassification.from_pretrained(digits_folder)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    optimized = run_in_openvino(original.eval())
    assert isinstance(optimized, type(original)) and optimized.config is original.config
    x = torch.randn(3, 3, 32, 48)
    with torch.no_grad():
        assert relative_difference(optimized(pixel_values=x).logits, original(x).logits) < 1e-4
    assert torch.equal(optimized(x, return_dict=False)[0], optimized(x).logits)
    pipes = [transformers.pipeline("image-classification", model=str(digits_folder), device="cpu") for _ in range(2)]
    pipes[1].model = optimized
    images = digits.load_held_out()[0][:5]
    answers = [[each[0]["label"] for each in pipe(images)] for pipe in pipes]
    assert answers[0] == answers[1]
    for refused in (optimized.train, lambda: optimized.save_pretrained("nowhere"), lambda: copy.deepcopy(optimized)):
        with pytest.raises((RuntimeError, TypeError), match="optimised for inference|neither copied"):
            refused()
    with pytest.raises(ValueError, match="output_hidden_states is for"):
        optimized(x, output_hidden_states=True)
    with pytest.raises(ValueError, match="NaN"):
        optimized(torch.full((1, 3, 32, 32), float("nan")))
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())


@pytest.mark.slow
def test_a_backbone_and_a_detector_run_in_openvino(tiny_fields, detector):
    backbone = hgnetv2_hf.HGNetV2Backbone(HGNetV2Config(**tiny_fields, out_features=["stage2", "stage4"])).eval()
    optimized, x = run_in_openvino(with_lab_of_both_signs(backbone)), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(optimized(x).feature_maps, backbone(x).feature_maps):
            assert relative_difference(ours, theirs) < 1e-4
    pipe = transformers.pipeline("object-detection", model=str(detector), device="cpu")
    image = PIL.Image.radial_gradient("L").convert("RGB").resize((90, 70))
    expected = pipe(image, threshold=0.3)
    pipe.model = run_in_openvino(pipe.model)
    found = pipe(image, threshold=0.3)
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    assert all(abs(one["score"] - other["score"]) < 1e-4 for one, other in zip(found, expected))


def test_what_openvino_cannot_be_asked_is_one_sentence(tiny_fields):
    for options, words in [
        ({"runtime": "tensorrt"}, "no runtime 'tensorrt'"),
        ({"runtime": "openvino", "compile": True}, "compiles by itself"),
        ({"runtime": "openvino", "dtype": torch.float16}, "float32 and bfloat16"),
    ]:
        with pytest.raises(ValueError, match=words):
            optimize_for_inference(classifier(tiny_fields), **options)


def test_eight_threads_get_the_answers_of_one(tiny_fields):
    optimized = optimize_for_inference(classifier(tiny_fields))
    inputs = [torch.randn(1 + index % 3, 3, 32 + 32 * (index % 2), 32) for index in range(24)]
    expected = [optimized(each).logits for each in inputs]
    with ThreadPoolExecutor(8) as pool:
        for got, right in zip(pool.map(lambda x: optimized(x).logits, inputs), expected):
            assert torch.allclose(got, right, atol=1e-5)


@pytest.mark.parametrize("name", ["dfine_n", "deimv2_n"])
def test_all_convolutions_of_a_detector_are_folded(converted_golden, name):
    model = transformers.AutoModelForObjectDetection.from_pretrained(converted_golden(name)).eval()
    optimized = optimize_for_inference(model)
    left = [type(module).__name__ for module in optimized.modules() if isinstance(module, torch.nn.Conv2d)]
    assert not left and not [module for module in optimized.modules() if "Norm2d" in type(module).__name__]

    def run(pixel_values):
        output = optimized(torch.from_numpy(pixel_values))
        return {name: output[name].numpy() for name in ("logits", "pred_boxes")}

    assert detector_difference(model, run, [torch.randn(1, 3, 320, 416)]) < FLOAT32
