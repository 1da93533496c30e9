"""A traced graph as a file of each runtime, in float32, half or int8. Nothing is serialised here: the exporters of
PyTorch and of each runtime do that, ONNX Runtime's tool makes float16 of it, and NNCF int8."""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from .runtime import openvino_core


# Where a detector's float16 is float16: its convolutions and what lies between them. In its decoder coordinates on a
# large image need more digits, scores decide which queries are taken, and masked anchors overflow.
_HALF_PARTS = re.compile(
    r"\.(backbone|(encoder|decoder)_input_proj|lateral_convs|fpn_blocks|downsample_convs|pan_blocks)\b"
)
_HALF_OPERATIONS = frozenset("Add Clip Concat Conv MaxPool Mul Pad Relu Resize Sigmoid Slice Split".split())
_FLOAT32_IN_DETECTORS = {"openvino": ["MatMul", "GridSample"], "onnx": ["MatMul", "Gemm", "GridSample"]}


def write_onnx(graph, program, path):
    import onnx
    import torch

    written = torch.onnx.export(
        program, (), dynamo=True, input_names=graph.input_names, output_names=graph.names, verbose=False
    )
    written.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


def write_openvino(graph, program, path):
    import openvino

    model = openvino.convert_model(program)
    for ports, names in ((model.inputs, graph.input_names), (model.outputs, graph.names)):
        for port, name in zip(ports, names):
            port.get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def write_executorch(graph, program, path):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    with open(path, "wb") as file:
        lowered.write_to_file(file)


def write_litert(graph, program, path):
    import litert_torch

    litert_torch.convert(graph, program.example_inputs[0]).export(str(path))


def write_ncnn(graph, program, path):
    import pnnx
    import torch

    name = path.name.removesuffix(".ncnn.param")
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        traced = os.path.join(scratch, f"{name}.pt")
        torch.jit.trace(graph, program.example_inputs[0], check_trace=False).save(traced)
        with open(os.path.join(scratch, "log"), "w") as log, contextlib.redirect_stdout(log):
            pnnx.convert(traced, program.example_inputs[0], fp16=False)
        for each in files_of(Path(scratch) / path.name):
            shutil.copy(each, path.parent)


def write_coreml(graph, program, path):
    import coremltools

    model = coremltools.convert(
        program.run_decompositions({}),
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=coremltools.precision.FLOAT32,
        inputs=[coremltools.TensorType(name=graph.input_names[0])],
        outputs=[coremltools.TensorType(name=name) for name in graph.names],
    )
    model.save(str(path))


WRITERS = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "executorch": write_executorch,
    "litert": write_litert,
    "ncnn": write_ncnn,
    "coreml": write_coreml,
}


def halve_onnx(source, path, is_detector):
    """Float16 inside, float32 at the ends."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(source)
    kept = [node.name for node in model.graph.node if is_detector and not _computes_in_half(node)]
    halved = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=kept))
    halved.topological_sort()  # casts are appended at the end
    del halved.model.graph.value_info[:]  # some still say float32
    onnx.checker.check_model(halved.model, full_check=True)
    onnx.save(halved.model, path)


def _computes_in_half(node):
    scopes = next((each.value for each in node.metadata_props if each.key == "pkg.torch.onnx.name_scopes"), "")
    return node.op_type in _HALF_OPERATIONS and _HALF_PARTS.search(scopes) is not None


def halve_openvino(source, path, is_detector):
    """Weights in float16; OpenVINO itself keeps what overflows in float32, and computes as its device does."""
    import openvino

    openvino.save_model(openvino_core().read_model(source), path, compress_to_fp16=True)


def join_onnx(first, second, path):
    """A file that computes the second graph from the outputs of the first, which have the names of its inputs."""
    import onnx
    import onnx.compose

    graphs = [onnx.load(each) for each in (first, second)]
    outputs = [each.name for each in graphs[0].graph.output]
    prefixed = onnx.compose.add_prefix(graphs[1], "post/", rename_inputs=False, rename_outputs=False)
    prefixed.ir_version = graphs[0].ir_version
    joined = onnx.compose.merge_models(graphs[0], prefixed, [(name, name) for name in outputs])
    onnx.checker.check_model(joined, full_check=True)
    onnx.save(joined, path)


def join_openvino(first, second, path):
    import openvino

    models = [openvino_core().read_model(each) for each in (first, second)]
    for result, parameter in zip(models[0].get_results(), models[1].get_parameters()):
        for target in parameter.output(0).get_target_inputs():
            target.replace_source_output(result.input_value(0))
    further = models[1].get_parameters()[len(models[0].get_results()) :]
    joined = openvino.Model(models[1].get_results(), [*models[0].get_parameters(), *further])
    openvino.save_model(joined, path, compress_to_fp16=False)


JOINS = {"onnx": join_onnx, "openvino": join_openvino}
HALVES = {"onnx": halve_onnx, "openvino": halve_openvino}


def quantize(format, source, path, images, is_detector):
    """
    Post-training quantisation by NNCF.

    Args:
        format (`"onnx"` or `"openvino"`)
        source, path (`Path`): the float32 file, and the file to write.
        images (`list[torch.Tensor]`): `(1, channels, height, width)` each, to measure ranges on.
        is_detector (`bool`): its linear layers and sampling stay in float32.
    """
    import nncf

    arrays = [image.numpy() for image in images]
    # Where a processor lacks VNNI, sums of 8-bit products saturate; NNCF's fix keeps all weights to 7 bits.
    fix = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    options = {"subset_size": len(arrays), "advanced_parameters": fix}
    if is_detector:
        options["ignored_scope"] = nncf.IgnoredScope(types=_FLOAT32_IN_DETECTORS[format], validate=False)
    if format == "openvino":
        import openvino

        model = openvino_core().read_model(source)
        openvino.save_model(nncf.quantize(model, nncf.Dataset(arrays), **options), path, compress_to_fp16=False)
        return
    import onnx

    dataset = nncf.Dataset([{"pixel_values": np.asarray(array)} for array in arrays])
    onnx.save(nncf.quantize(onnx.load(source), dataset, **options), path)


def files_of(path):
    """What belongs to a written file: itself, weights beside it (OpenVINO, ncnn), or what is inside (Core ML)."""
    if path.is_dir():
        return [each for each in path.rglob("*") if each.is_file()]
    return [each for each in (path, path.with_suffix(".bin")) if each.is_file()]
