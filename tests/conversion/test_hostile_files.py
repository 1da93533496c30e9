"""A checkpoint is data: malicious files are refused without effect, in bounded time and memory."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROGRAMS
from mutate_paddle_files import BYTES, SECONDS, run
from safetensors.torch import save_file

from hgnetv2_hf.hub.published import ASSETS, PUBLISHED


DIGITS = (ASSETS / PUBLISHED["digits"].file_name).read_bytes()


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments, state=None):
        self.reduction = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduction


def text(value):
    """The opcode that pushes a text."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def call(module, name, *arguments):
    """Opcodes that import a name and call it."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(map(text, arguments)) + b"tR"


def malicious_pickles(proof):
    touch = f"touch {proof}"
    array = pickle.dumps({"a": np.zeros(3, "float32")}, protocol=2)
    reconstruct = array[array.index(b"c") : array.index(b"R") + 1]
    big = text("x" * 1_000_000)
    doubled = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))  # x = (x, x), sixty times over
    doubled_list = b"](]q\x00" + b"".join(b"](h%ch%ceq%c" % (i - 1, i - 1, i) for i in range(1, 60)) + b"e"
    tower = b")" + b"\x85" * 200_000
    yield "system", call("os", "system", touch) + b"."
    yield "posix_system", call("posix", "system", touch) + b"."
    yield "popen", b"\x80\x02csubprocess\nPopen\n](X\x05\x00\x00\x00touch" + text(str(proof)) + b"e\x85R."
    yield "eval", call("builtins", "eval", f"__import__('os').system('{touch}')") + b"."
    yield "exec", call("__builtin__", "exec", f"import os; os.system('{touch}')") + b"."
    yield "import", call("builtins", "__import__", "os") + b"."
    yield "getattr_chain", b"\x80\x02cbuiltins\ngetattr\n(cos\nopen\n" + text("__globals__") + b"tR."
    yield "dotted_name", b"\x80\x04" + text("numpy") + text("ndarray.__init__") + b"\x93)R."
    yield (
        "dotted_stack_name",
        b"\x80\x04" + text("numpy.core.multiarray") + text("_reconstruct.__globals__") + b"\x93.",
    )
    yield "name_made_of_a_call", b"\x80\x04" + text("builtins") + call("builtins", "str", "eval")[2:] + b"\x93."
    yield "codecs_decode", call("_codecs", "decode", "x", "hex") + b"."
    yield "numpy_load", call("numpy", "load", "/etc/passwd") + b"."
    yield "numpy_fromfile", call("numpy", "fromfile", "/etc/passwd") + b"."
    yield "torch_storage", call("torch.storage", "_load_from_bytes", "x") + b"."
    yield "calls_ndarray", b"\x80\x02cnumpy\nndarray\n(K\xff\x85tR."
    yield "nested_reduction", b"\x80\x02" + reconstruct + b")R."
    yield "reduction_of_a_reduction", b"\x80\x02}" + text("a") + reconstruct + reconstruct + b"\x85Rs."
    yield "calls_a_text", b"\x80\x02" + text("os.system") + text(touch) + b"\x85R."
    yield "setstate_of_an_object", pickle.dumps({"a": Calls(object, state={"x": 1})}, protocol=2)
    yield "setstate_of_a_dictionary", b"\x80\x02ccollections\nOrderedDict\n)R}" + text("a") + text("b") + b"sb."
    yield "state_sets_attributes", b"\x80\x02" + reconstruct + b"}" + text("__class__") + text("x") + b"sb."
    yield "state_of_the_wrong_kind", b"\x80\x02}" + text("a") + reconstruct + b"(K\x01K\x02K\x03K\x04K\x05tbs."
    yield "newobj", b"\x80\x02cnumpy\ndtype\n)\x81."
    yield "newobj_ex", b"\x80\x04" + text("numpy") + text("dtype") + b"\x93)}\x92."
    yield "inst", b"\x80\x02(X\x01\x00\x00\x00xicollections\nOrderedDict\n."
    yield "obj", b"\x80\x02(ccollections\nOrderedDict\no."
    yield "persistent_id", b"\x80\x02Pos.system\n."
    yield "binary_persistent_id", b"\x80\x02K\x01Q."
    yield "extension", b"\x80\x02\x82\x01."
    yield "out_of_band_buffer", b"\x80\x05\x97."
    yield "read_only_buffer", b"\x80\x05}\x98."
    yield "huge_bytearray", b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x."
    yield "endless_bytearray", b"\x80\x05\x96" + b"\xff" * 8 + b"."
    buffer = (
        b"\x80\x05}" + text("a") + b"cnumpy._core.numeric\n_frombuffer\n(\x96" + (4).to_bytes(8, "little") + b"\0" * 4
    )
    float32 = b"cnumpy\ndtype\n" + text("f4") + b"\x85R"
    yield "buffer_of_the_wrong_size", buffer + float32 + b"K\x02\x85" + text("C") + b"tRs."
    yield "buffer_of_objects", buffer + b"cnumpy\ndtype\n" + text("O") + b"\x85RK\x01\x85" + text("C") + b"tRs."
    yield "buffer_of_no_type", buffer + text("f4") + b"K\x01\x85" + text("C") + b"tRs."
    yield "buffer_in_no_order", buffer + float32 + b"K\x01\x85" + text("Z") + b"tRs."
    yield "buffer_with_wrong_axes", buffer + float32 + b"K\x01\x85" + text("K") + b"K\x07\x85tRs."
    yield "buffer_with_a_tower_of_axes", buffer + float32 + b"K\x01\x85" + text("K") + tower + b"tRs."
    yield "buffer_from_a_name", b"\x80\x05cnumpy._core.numeric\n_frombuffer\ncnumpy\ndtype\n\x85R."
    yield "nested_in_itself", b"\x80\x02}q\x00" + text("model") + b"h\x00s."
    yield "endless_prefix", pickle.dumps({"module." * 140_000: np.zeros(3, "float32")}, protocol=5)
    yield "object_in_the_dictionary", pickle.dumps({"a": Calls(os.system, touch)}, protocol=4)
    yield "object_as_a_key", pickle.dumps({Path("x"): np.zeros(2)}, protocol=4)
    yield "object_array", pickle.dumps({"a": np.array([Path("x")], dtype=object)}, protocol=4)
    yield "structured_array", pickle.dumps({"a": np.zeros(2, dtype=[("x", "f4")])}, protocol=4)
    yield "text_array", pickle.dumps({"a": np.array(["x"])}, protocol=4)
    yield "huge_shape", array.replace(b"K\x03\x85", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86")
    yield "negative_shape", array.replace(b"K\x03\x85", b"J\xff\xff\xff\xff\x85")
    yield "huge_bytes", b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x."
    yield "huge_frame", b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"}."
    yield "huge_memo_index", b"\x80\x02}r\xff\xff\xff\xff."
    yield "number_of_a_million_digits", b"\x80\x02\x8b" + (10**6).to_bytes(4, "little") + b"\x01" * 10**6 + b"."
    yield "endless_decimal", b"\x80\x02L" + b"9" * 10**6 + b"L\n."
    yield "opcode_flood", b"\x80\x02(" + b"]" * 20_000_000 + b"l."
    yield "tuple_tower", b"\x80\x02)" + b"\x85" * 400_000 + b"."
    yield "tower_as_a_key", b"\x80\x02}" + tower + b"Ns."
    parts = b"}" + text("slices") + b"](" + tower + b"es" + text("OriginShape") + b"](K\x01es"
    yield "tower_as_a_part", b"\x80\x02}" + text("UnpackBigParamInfor@@") + b"}" + text("w") + parts + b"ss."
    yield "laughing_type", b"\x80\x02cnumpy\ndtype\n" + doubled + b"\x85R."
    yield "laughing_byte_order", b"\x80\x02cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03" + doubled + b"tb."
    yield "laughing_value", b"\x80\x02}" + text("a") + doubled + b"s."
    yield "laughing_name", b"\x80\x02}" + doubled + text("a") + b"s."
    yield "laughing_lists", b"\x80\x02}" + text("a") + doubled_list + b"s."
    encode = b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R"
    yield "text_encoded_again_and_again", b"\x80\x02](" + big + b"q\x00" + encode * 10_000 + b"e."
    apart = b"cbuiltins\ntuple\nh\x00\x85R"
    yield "text_taken_apart_again_and_again", b"\x80\x02](" + big + b"q\x00" + apart * 10_000 + b"e."
    yield "long_name", pickle.dumps({"x" * 10_000_000: np.zeros(3, "float32")}, protocol=4)
    yield "many_names", pickle.dumps({f"stem.{i}": np.zeros(1, "float32") for i in range(100_000)}, protocol=4)
    yield (
        "layers_by_the_thousand",
        pickle.dumps(
            {
                **{
                    f"stages.0.blocks.0.layers.{i}.conv.weight": np.zeros((2, 2, 1, 1), "float32") for i in range(9000)
                },
                **{f"stages.0.blocks.{i}.x": np.zeros(1, "float32") for i in range(9000)},
                "stages.0.blocks.0.aggregation_excitation_conv.conv.weight": np.zeros((2, 2, 1, 1), "float32"),
                "stem.stem1.bn._mean": np.zeros(2, "float32"),
            },
            protocol=4,
        ),
    )
    yield "trailing_program", pickle.dumps({"a": 1}, protocol=2)[:-1] + call("os", "system", touch)[2:] + b"0."


def malicious_others(folder, proof):
    """PyTorch and safetensors files, and folders."""
    touch = f"touch {proof}"
    for name, is_new in (("torch_system", True), ("old_torch_system", False)):
        torch.save({"model": Calls(os.system, touch)}, folder / name, _use_new_zipfile_serialization=is_new)
    torch.save({"w": torch.zeros(1).expand(2**20, 2**20)}, folder / "expanded_view")
    torch.save({"w": torch.zeros(3, device="meta")}, folder / "meta_tensor")
    torch.save([torch.zeros(3)], folder / "list_of_tensors")
    torch.save({"w": torch.zeros(3).to_sparse()}, folder / "sparse_tensor")
    with zipfile.ZipFile(folder / "zip_bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x00" * 200_000_000)
    with zipfile.ZipFile(folder / "zip_of_text", "w") as archive:
        archive.writestr("readme.txt", "hello")
    whole = folder / "whole_torch"
    torch.save({"w": torch.zeros(5000)}, whole)
    (folder / "half_torch").write_bytes(whole.read_bytes()[:9000])
    (folder / "old_magic_only").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    save_file({"w": torch.zeros(5000)}, folder / "whole_safetensors")
    data = (folder / "whole_safetensors").read_bytes()
    (folder / "half_safetensors").write_bytes(data[:9000])
    (folder / "huge_header").write_bytes((2**62).to_bytes(8, "little") + b'{"w":1}')
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    (folder / "huge_safetensors_shape").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    header = b'{"a":' * 100_000
    (folder / "deep_header").write_bytes(len(header).to_bytes(8, "little") + header)
    for name, config in (
        ("deep_json", "[" * 1_000_000),
        ("no_object", "[1, 2]"),
        ("wrong_types", '{"pretrained_cfg": {"input_size": 3, "mean": [[1]]}}'),
        ("wrong_sizes", '{"pretrained_cfg": {"input_size": [3, 0, 0], "crop_pct": 1e-300}}'),
        ("wrong_labels", '{"model_type": "pp_hgnet_v2", "id2label": {"a": {}}}'),
        ("wrong_strides", '{"model_type": "pp_hgnet_v2", "stem_strides": "x", "hidden_act": [1]}'),
    ):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config)
        (folder / name / "model.safetensors").write_bytes(_own_weights())


def _own_weights():
    from safetensors.torch import save

    from hgnetv2_hf.conversion.layouts import LAYOUTS, rename
    from hgnetv2_hf.conversion.paddle_file import read_paddle_file

    tensors = rename(read_paddle_file(ASSETS / PUBLISHED["digits"].file_name), LAYOUTS["paddleclas"])
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


CONVERT_ALL = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from mutate_paddle_files import Watch
from hgnetv2_hf import ConversionError, convert_checkpoint
from hgnetv2_hf.benchmark.memory import peak_memory
corpus = Path(sys.argv[1])
target = corpus.parent / "target"
convert_checkpoint("digits", target)
for valid in ("whole_torch", "whole_safetensors"):
    try:
        convert_checkpoint(corpus / valid, corpus.parent / "none")
    except ConversionError:
        pass
watch = Watch(corpus.parent)
before = peak_memory()
answers = {}
for path in sorted(corpus.iterdir()):
    start, worked = time.perf_counter(), time.process_time()
    try:
        convert_checkpoint(path, corpus.parent / "none")
        answer = "converted"
    except ConversionError as error:
        answer = f"refused: {error}"
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start, time.process_time() - worked
    answers[path.name] = [answer, *seconds, peak_memory() - before]
print(json.dumps([answers, watch.seen]))
"""


def test_malicious_files_are_refused_without_effect_in_bounded_time_and_memory(tmp_path):
    corpus, proof = tmp_path / "corpus", tmp_path / "executed"
    corpus.mkdir()
    pickles = dict(malicious_pickles(proof))
    for name, content in pickles.items():
        (corpus / name).write_bytes(content)
    malicious_others(corpus, proof)
    result = subprocess.run(
        [sys.executable, "-c", CONVERT_ALL, str(corpus), str(PROGRAMS)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-3000:])
    answers, seen = json.loads(result.stdout.splitlines()[-1])
    assert len(answers) == len(list(corpus.iterdir())) > 75
    for name, (answer, seconds, worked, added) in answers.items():
        assert answer.startswith("refused: ") and len(answer) < 1500, (name, answer[:300])
        # The processor's seconds; on a busy machine the clock's are several times as many.
        assert worked < SECONDS and seconds < 10 * SECONDS and added < BYTES, (name, worked, seconds, added)
    assert seen == []
    assert not proof.exists() and not (tmp_path / "none").exists()
    assert "os.system" in answers["system"][0] and "othing was executed" in answers["system"][0]
    assert "nothing was executed" in answers["torch_system"][0]


def test_the_same_pickles_have_an_effect_when_they_are_unpickled(tmp_path):
    """So that the test above means something."""
    pickles = dict(malicious_pickles(tmp_path / "executed"))
    for name in ("system", "posix_system", "eval", "exec", "object_in_the_dictionary", "trailing_program"):
        (tmp_path / "executed").unlink(missing_ok=True)
        pickle.loads(pickles[name])
        assert (tmp_path / "executed").exists(), name


@pytest.mark.slow
def test_mutated_files_convert_or_are_refused():
    """A fifth of what ``python tests/programs/mutate_paddle_files.py`` runs, with other seeds."""
    assert run(count=2_000, seed=1, jobs=2)
