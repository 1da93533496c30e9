"""The models as Transformers users expect them: outputs, losses, precision, compilation, memory, initialisation."""

import warnings

import pytest
import torch
from conftest import TINY_PP_HGNET_FIELDS, randomize, relative_difference
from torch import nn
from transformers import AutoModel, pipeline

import hgnetv2_hf
from hgnetv2_hf import (
    HGNetV2Backbone,
    HGNetV2Config,
    HGNetV2ForImageClassification,
    HGNetV2Model,
    PPHGNetBackbone,
    PPHGNetConfig,
    PPHGNetForImageClassification,
    PPHGNetModel,
    PPHGNetV2Backbone,
    PPHGNetV2Config,
    PPHGNetV2ForImageClassification,
    PPHGNetV2MLConfig,
    PPHGNetV2MLForImageClassification,
    PPHGNetV2Model,
    set_drop_path_rate,
)


CLASSIFIERS = [HGNetV2ForImageClassification, PPHGNetV2ForImageClassification, PPHGNetForImageClassification]
MULTI_LABEL = PPHGNetV2MLForImageClassification
BASE_MODELS = [HGNetV2Model, PPHGNetV2Model, PPHGNetModel]
MODELS = [*CLASSIFIERS, MULTI_LABEL, *BASE_MODELS, HGNetV2Backbone, PPHGNetV2Backbone, PPHGNetBackbone]

EXTRA = {
    PPHGNetV2Config: {"class_expand": 24},
    PPHGNetConfig: {"class_expand": 24},
    PPHGNetV2MLConfig: {"class_expand": 24, "decoder_hidden_size": 16, "decoder_ffn_dim": 12, "decoder_queries": 1},
}


@pytest.fixture
def build(tiny_fields):
    def build(model_class, **options):
        config_class = model_class.config_class
        fields = dict(TINY_PP_HGNET_FIELDS) if config_class is PPHGNetConfig else tiny_fields
        extra = EXTRA.get(config_class, {})
        return randomize(model_class(config_class(**{**fields, **extra, **options})).eval())

    return build


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_class", MODELS)
def test_tuples_hold_what_the_model_outputs_hold(build, pixel_values, model_class):
    model = build(model_class)
    for hidden in (False, True):
        as_dict = model(pixel_values, output_hidden_states=hidden)
        as_tuple = model(pixel_values, output_hidden_states=hidden, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(as_dict.to_tuple())
        assert (as_dict.hidden_states is not None) == hidden
    assert [tuple(state.shape[1:]) for state in as_tuple[-1]] == [
        (8, 16, 24),
        (16, 16, 24),
        (24, 8, 12),
        (32, 4, 6),
        (40, 2, 3),
    ]


@pytest.mark.parametrize("model_class", BASE_MODELS)
def test_the_base_model_gives_the_last_map_and_its_average(build, pixel_values, model_class):
    output = build(model_class)(pixel_values)
    assert output.last_hidden_state.shape == (2, 40, 2, 3)
    assert torch.allclose(output.pooler_output, output.last_hidden_state.mean((2, 3)), atol=1e-6)


def test_the_feature_extraction_pipeline_runs_on_a_classifier_folder(build, tmp_path):
    from PIL import Image

    build(PPHGNetV2ForImageClassification).save_pretrained(tmp_path)
    hgnetv2_hf.HGNetV2ImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    assert torch.tensor(extract(Image.new("RGB", (80, 70)))).shape == (1, 40, 2, 2)
    assert torch.tensor(extract(Image.new("RGB", (80, 70)), pool=True)).shape == (1, 40)


@pytest.mark.parametrize("model_class", MODELS)
def test_missing_or_wrong_input_is_a_value_error(build, model_class):
    model = build(model_class)
    with pytest.raises(ValueError, match="pixel_values"):
        model()
    with pytest.raises(ValueError, match="num_channels"):
        model(torch.randn(1, 4, 64, 64))


@pytest.mark.parametrize("model_class", CLASSIFIERS)
def test_losses_are_cross_entropy_binary_cross_entropy_and_squared_error(build, pixel_values, model_class):
    model = build(model_class, num_labels=3)
    labels = torch.tensor([0, 2])
    output = model(pixel_values, labels=labels)
    assert torch.allclose(output.loss, nn.functional.cross_entropy(output.logits, labels))

    model = build(model_class, num_labels=3, problem_type="multi_label_classification")
    labels = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    output = model(pixel_values, labels=labels)
    assert torch.allclose(output.loss, nn.functional.binary_cross_entropy_with_logits(output.logits, labels))

    model = build(model_class, num_labels=1)
    labels = torch.tensor([0.5, -1.0])
    output = model(pixel_values, labels=labels)
    assert torch.allclose(output.loss, nn.functional.mse_loss(output.logits[:, 0], labels))


@pytest.mark.parametrize("model_class", MODELS)
def test_saved_and_loaded_models_compute_the_same_bits(build, pixel_values, tmp_path, model_class):
    model = build(model_class).double()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    reloaded = model_class.from_pretrained(tmp_path, dtype=torch.float64).eval()
    for ours, theirs in zip(model.state_dict().values(), reloaded.state_dict().values()):
        assert torch.equal(ours, theirs)
    first, second = (_first(each(pixel_values.double())) for each in (model, reloaded))
    assert relative_difference(first.detach(), second.detach()) < 1e-12


@pytest.mark.parametrize("model_class", [PPHGNetV2ForImageClassification, PPHGNetForImageClassification])
def test_a_classifier_folder_gives_base_model_and_backbone_without_warnings(
    build, tmp_path, pixel_values, caplog, model_class
):
    model = build(model_class)
    model.save_pretrained(tmp_path)
    stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base = AutoModel.from_pretrained(tmp_path).eval()
        backbone = hgnetv2_hf.load_backbone(tmp_path, out_features=stages).eval()
    assert not [record for record in caplog.records if "not used" in record.message or "UNEXPECTED" in record.message]
    maps = model(pixel_values, output_hidden_states=True).hidden_states
    assert torch.allclose(base(pixel_values).last_hidden_state, maps[-1], atol=1e-5)
    assert backbone.channels == [feature.shape[1] for feature in maps]
    for ours, theirs in zip(backbone(pixel_values).feature_maps, maps):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_load_backbone_refuses_another_model(tmp_path):
    from transformers import ResNetConfig

    ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="resnet"):
        hgnetv2_hf.load_backbone(tmp_path)
    with pytest.raises(OSError):
        hgnetv2_hf.load_backbone(tmp_path / "missing")


@pytest.mark.parametrize("model_class", [HGNetV2ForImageClassification, PPHGNetV2Backbone, PPHGNetBackbone])
def test_hidden_act_reaches_every_block(build, model_class):
    model = build(model_class, hidden_act="gelu")
    activations = [module.activation for name, module in model.named_modules() if hasattr(module, "activation")]
    kinds = {type(activation).__name__ for activation in activations}
    assert kinds == {"GELUActivation", "Identity"}


@pytest.mark.parametrize("model_class", CLASSIFIERS)
def test_gradient_checkpointing_gives_the_same_gradients(build, pixel_values, model_class):
    gradients = []
    for checkpointing in (False, True):
        model = build(model_class).train()
        if checkpointing:
            assert model.supports_gradient_checkpointing
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(pixel_values, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model_class", [PPHGNetV2ForImageClassification, MULTI_LABEL, HGNetV2Backbone])
def test_half_precision_loads_and_runs(build, pixel_values, tmp_path, model_class, dtype):
    model = build(model_class)
    model.save_pretrained(tmp_path)
    half = model_class.from_pretrained(tmp_path, dtype=dtype).eval()
    output, reference = (_first(m(x)) for m, x in ((half, pixel_values.to(dtype)), (model, pixel_values)))
    assert output.dtype == dtype
    assert relative_difference(output.detach().float(), reference.detach()) < 0.05


@pytest.mark.parametrize("model_class", MODELS)
def test_channels_last_computes_the_same(build, pixel_values, model_class):
    model = build(model_class).double()
    expected = _first(model(pixel_values.double()))
    model = model.to(memory_format=torch.channels_last)
    output = _first(model(pixel_values.double().to(memory_format=torch.channels_last)))
    assert relative_difference(output.detach(), expected.detach()) < 1e-12


@pytest.mark.parametrize("model_class", [PPHGNetV2ForImageClassification, PPHGNetForImageClassification])
def test_device_map_places_the_model(build, pixel_values, tmp_path, model_class):
    model = build(model_class)
    model.save_pretrained(tmp_path)
    placed = model_class.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    assert torch.allclose(placed(pixel_values).logits, model(pixel_values).logits, atol=1e-5)
    assert {type(module).__name__ for module in model.modules()} >= set(model._no_split_modules)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [PPHGNetV2ForImageClassification, MULTI_LABEL, HGNetV2Backbone])
def test_compiles_as_one_graph(build, pixel_values, model_class):
    """What Inductor makes of such graphs is tested in `inference/test_inference.py`."""
    model = build(model_class)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for batch in (pixel_values, pixel_values[:, :, :32].repeat(2, 1, 1, 1)):
            assert relative_difference(_first(compiled(batch)), _first(model(batch))) < 1e-4


@pytest.mark.skipif(
    not hasattr(getattr(torch.export, "Dim", None), "AUTO"),
    reason="this torch has no automatic dimensions (before 2.6)",
)
@pytest.mark.parametrize(
    "model_class",
    [
        PPHGNetV2ForImageClassification,
        pytest.param(PPHGNetForImageClassification, marks=pytest.mark.slow),
        HGNetV2ForImageClassification,
        pytest.param(MULTI_LABEL, marks=pytest.mark.slow),
        HGNetV2Backbone,
    ],
)
def test_exports_with_dynamic_batch_and_image_size(build, pixel_values, model_class):
    model = build(model_class)
    model.config.return_dict = False
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        model,
        (),
        {"pixel_values": pixel_values},
        dynamic_shapes={"pixel_values": {0: auto, 2: auto, 3: auto}},
    )
    for shape in ((3, 3, 96, 64), (5, 3, 128, 160), (2, 3, 75, 50)):
        batch = torch.randn(shape)
        expected, output = (_first(each(pixel_values=batch)) for each in (model, program.module()))
        assert relative_difference(output.detach(), expected.detach()) < 1e-5


@pytest.mark.parametrize("name", ["b0", "b6"])
@pytest.mark.parametrize("training", [False, True])
def test_fresh_pp_models_neither_vanish_nor_explode_at_depth(name, training):
    torch.manual_seed(0)
    model = PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(name, num_labels=10)).train(training)
    with torch.no_grad():
        output = model(torch.randn(2, 3, 128, 128), output_hidden_states=True)
    for feature in output.hidden_states:
        assert 0.3 < feature.std() < 3, [round(f.std().item(), 4) for f in output.hidden_states]
    assert 0.1 < output.logits.std() < 5


@pytest.mark.parametrize("name", ["b0", "b6"])
def test_fresh_hgnet_v2_models_start_as_stock_and_train_without_vanishing(name):
    """Stock's initialisation, kept bit for bit (drop-in), relies on batch statistics; so it is checked with them."""
    torch.manual_seed(0)
    model = HGNetV2Backbone(HGNetV2Config.from_variant(name)).train()
    with torch.no_grad():
        states = model(torch.randn(2, 3, 128, 128), output_hidden_states=True).hidden_states
    for feature in states:
        assert 0.3 < feature.std() < 3


def test_missing_weights_are_initialised(build, tmp_path):
    """A checkpoint without LAB, batch norm and head loads into a network that has them; nothing is left undefined."""
    from safetensors.torch import load_file, save_file

    model = build(PPHGNetV2ForImageClassification)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if "lab" not in name and "fc" not in name and "stem2a" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reloaded = PPHGNetV2ForImageClassification.from_pretrained(tmp_path)
    for name, tensor in reloaded.state_dict().items():
        if name in kept:
            assert torch.equal(tensor, kept[name])
        elif name.endswith(("lab.scale", "normalization.weight", "running_var")):
            assert (tensor == 1).all(), name
        elif name.endswith(("bias", "running_mean", "num_batches_tracked")):
            assert (tensor == 0).all(), name
        else:
            assert torch.isfinite(tensor).all() and tensor.std() < 2, name


@pytest.mark.parametrize("model_class", [HGNetV2Backbone, PPHGNetBackbone])
def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean(build, pixel_values, model_class):
    model = build(model_class, stage_num_blocks=[1, 1, 3, 2])
    before = _first(model(pixel_values))
    assert set_drop_path_rate(model, 0.5) == 3
    assert torch.equal(_first(model(pixel_values)), before)
    drop = model.encoder.stages[3].blocks[1].drop_path.train()
    ones = torch.ones(4000, 2, 1, 1)
    torch.manual_seed(0)
    dropped = drop(ones)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    set_drop_path_rate(model, 0.0)
    assert not [module for module in model.modules() if type(module).__name__ == "HGNetV2DropPath"]
    with pytest.raises(ValueError, match="drop_path_rate"):
        set_drop_path_rate(model, 1.0)
    with pytest.raises(ValueError, match="no HGNetV2 block"):
        set_drop_path_rate(nn.Linear(1, 1), 0.1)


@pytest.mark.parametrize("model_class", [PPHGNetV2ForImageClassification, PPHGNetForImageClassification])
def test_dropout_drops_without_rescaling_and_evaluation_multiplies(build, pixel_values, model_class):
    plain = build(model_class)
    dropping = build(model_class, dropout_prob=0.25)
    dropping.load_state_dict(plain.state_dict())
    plain.fc.bias.data.zero_(), dropping.fc.bias.data.zero_()
    assert torch.allclose(dropping(pixel_values).logits, plain(pixel_values).logits * 0.75, atol=1e-6)
    torch.manual_seed(0)
    kept = dropping.dropout.train()(torch.ones(100, 100))
    assert set(kept.flatten().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(0.75, abs=0.02)


def _first(output):
    """The main tensor of a model's output."""
    value = output[0] if isinstance(output, tuple) else output.to_tuple()[0]
    return value[-1] if isinstance(value, tuple) else value
