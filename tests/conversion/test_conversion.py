"""Conversion: what is recognised, what is assumed, what is refused; and nothing is left behind when it fails."""

import functools
import json
import multiprocessing
import os
import pickle
import pickletools
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import GOLDENS, randomize
from goldens import filler
from safetensors.torch import save_file

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint
from hgnetv2_hf.cli import main
from hgnetv2_hf.conversion.layouts import LAYOUTS, rename, rename_back
from hgnetv2_hf.conversion.paddle_file import read_paddle_file, write_paddle_file
from hgnetv2_hf.conversion.weight_file import read_weights
from hgnetv2_hf.hub.published import ASSETS, PUBLISHED


DIGITS = ASSETS / PUBLISHED["digits"].file_name


@pytest.fixture
def tensors():
    """A valid, small checkpoint under PaddleClas's names."""
    return read_paddle_file(DIGITS)


@pytest.fixture
def write(tmp_path):
    def write(tensors, name="checkpoint.pdparams"):
        write_paddle_file(tensors, tmp_path / name)
        return tmp_path / name

    return write


def assert_nothing_left(folder, *expected):
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)


def test_reads_every_tensor_of_a_paddle_file(golden_checkpoint):
    manifest = json.loads((GOLDENS / "paddleclas_b0.json").read_text())
    tensors = read_paddle_file(golden_checkpoint("paddleclas_b0"))
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == manifest["tensors"]
    name = "stages.3.blocks.0.aggregation_squeeze_conv.conv.weight"
    assert np.array_equal(tensors[name], filler.values(name, manifest["tensors"][name]))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_the_pickle_protocols_and_reductions_that_paddle_writes(tmp_path, protocol):
    class NamedArray:  # what some writers store for a tensor
        def __init__(self, value):
            self.value = value

        def __reduce__(self):
            return tuple, (("parameter_0", self.value),)

    single = np.arange(6, dtype="float32").reshape(2, 3)
    fortran = np.asfortranarray(single)
    content = {
        "a": single,
        "b": fortran,
        "c": NamedArray(single),
        "d": np.zeros((0, 2), "float32"),
        "e": single[0, 0:1],
        "f": np.arange(24, dtype="float32").reshape(2, 3, 4).transpose(1, 0, 2),
        "g": np.array(3.0),
    }
    path = tmp_path / "file.pdparams"
    path.write_bytes(pickle.dumps({**content, "StructuredToParameterName@@": {"a": "x"}}, protocol=protocol))
    tensors = read_paddle_file(path)
    for name in "abc":
        assert np.array_equal(tensors[name], single)
    assert list(tensors["d"].shape) == [0, 2] and tensors["e"].tolist() == [0.0]
    assert np.array_equal(tensors["f"], content["f"]) and tensors["g"].shape == () and float(tensors["g"]) == 3


@pytest.mark.parametrize("nesting", [(), ("model",), ("state_dict",), ("ema", "module")])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_paddle_file_may_hold_its_weights_in_other_dictionaries(tmp_path, tensors, nesting, protocol):
    content = {name: tensor.numpy() for name, tensor in tensors.items()}
    for key in reversed(nesting):
        content = {key: content, "epoch": 3, "StructuredToParameterName@@": {}}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content, protocol=protocol))
    report = convert_checkpoint(tmp_path / "w.pdparams", tmp_path / "out")
    assert report.assumed.get("weights", ("",))[0] == ".".join(nesting)
    model = hgnetv2_hf.PPHGNetV2ForImageClassification.from_pretrained(tmp_path / "out")
    again = rename_back(model.state_dict(), LAYOUTS["paddleclas"])
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


PREFIXES = ["module.", "_orig_mod.", "_layers.", "Student.", "module._orig_mod.", "Student._layers.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("ending", ["pdparams", "pth", "safetensors"])
def test_prefixes_that_all_tensors_share_are_stripped(tmp_path, tensors, prefix, ending):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    path = tmp_path / f"w.{ending}"
    {"pdparams": write_paddle_file, "pth": torch.save, "safetensors": save_file}[ending](wrapped, path)
    read, place = read_weights(path)
    assert set(read) == set(tensors) and place.taken == ("Student" if "Student" in prefix else "")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_of_a_student_and_its_teacher_the_student_converts_and_is_named(tmp_path, tensors, write, prefix):
    both = {f"{prefix}Student.{name}": tensor for name, tensor in tensors.items()}
    both.update({f"{prefix}Teacher.{name}": torch.zeros_like(tensor) for name, tensor in tensors.items()})
    report = convert_checkpoint(write(both), tmp_path / "out")
    assert "weights = Student (the place inside the file; it also holds Teacher)" in str(report)
    model = hgnetv2_hf.PPHGNetV2ForImageClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(model.fc.bias, tensors["fc.bias"])


def test_a_prefix_of_some_tensors_only_is_no_prefix(tmp_path, tensors, write):
    some = {f"module.{name}" if name.startswith("stem") else name: tensor for name, tensor in tensors.items()}
    with pytest.raises(ConversionError):
        convert_checkpoint(write(some), tmp_path / "out")


def test_joins_arrays_that_old_protocols_split(tmp_path):
    path = tmp_path / "file.pdparams"
    parts = {"w": {"OriginShape": (3, 2), "slices": ["w@@.0", "w@@.1"]}}
    whole = np.arange(6, dtype="float32")
    path.write_bytes(
        pickle.dumps({"w@@.0": whole[:4], "w@@.1": whole[4:], "UnpackBigParamInfor@@": parts}, protocol=2)
    )
    assert np.array_equal(read_paddle_file(path)["w"], whole.reshape(3, 2))


def test_writing_what_was_read_gives_the_same_bytes(tmp_path, tensors):
    """That the real Paddle reads such a file is shown in test_paddleclas_parity."""
    write_paddle_file(tensors, tmp_path / "file.pdparams")
    assert (tmp_path / "file.pdparams").read_bytes() == DIGITS.read_bytes()


def test_renaming_there_and_back_is_the_identity(tensors):
    layout = LAYOUTS["paddleclas"]
    there_and_back = rename_back(rename(tensors, layout), layout)
    assert list(there_and_back) == list(tensors)
    assert all(torch.equal(there_and_back[name], tensor) for name, tensor in tensors.items())


def test_recognises_variant_task_classes_and_lists_what_it_assumes(golden_checkpoint, tmp_path):
    report = convert_checkpoint(golden_checkpoint("paddleclas_b4"), tmp_path / "b4", variant="l", layout="paddleclas")
    assert (report.variant, report.task, report.num_labels, report.model_type) == (
        "b4",
        "classification",
        1000,
        "pp_hgnet_v2",
    )
    manifest = json.loads((GOLDENS / "paddleclas_b4.json").read_text())["tensors"]
    learned = [shape for name, shape in manifest.items() if not name.endswith(("._mean", "._variance"))]
    assert report.num_parameters == sum(int(np.prod(shape)) for shape in learned)
    assert set(report.assumed) >= {"hidden_act", "stem_strides", "dropout_prob", "resize_short", "crop_size", "labels"}
    card = (tmp_path / "b4" / "README.md").read_text()
    for field, (_, reason) in report.assumed.items():
        assert field in str(report) and field in card and reason in card
    config = json.loads((tmp_path / "b4" / "config.json").read_text())
    assert config["id2label"]["0"] == "tench, Tinca tinca"
    assert config["id2label"]["999"].startswith("toilet tissue")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(
        os.listdir(tmp_path / "b4")
    )


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("PPHGNetV2_B0_ssld_pretrained.pdparams", {}, 236),
        ("PPHGNetV2_B0_ssld_stage1_pretrained.pdparams", {}, 236),
        ("my_ssld_run.pdparams", {}, 236),
        ("best_model.pdparams", {}, 232),
        ("best_model.pdparams", {"resize_short": 256}, 256),
        ("PPHGNetV2_B0_ssld_pretrained.pdparams", {"resize_short": 288, "crop_size": 288}, 288),
    ],
)
def test_preprocessing_follows_the_checkpoint(golden_checkpoint, tmp_path, name, options, expected):
    os.link(golden_checkpoint("paddleclas_b0"), tmp_path / name)
    convert_checkpoint(tmp_path / name, tmp_path / "out", **options)
    saved = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    crop = options.get("crop_size", 224)
    assert saved["size"] == {"shortest_edge": expected}
    assert saved["crop_size"] == {"height": crop, "width": crop}


def test_any_widths_depths_and_kernels_are_recognised(tmp_path, write):
    config = hgnetv2_hf.PPHGNetV2Config(
        stem_channels=[3, 10, 12],
        stage_in_channels=[12, 20, 28],
        stage_mid_channels=[6, 8, 10],
        stage_out_channels=[20, 28, 36],
        stage_num_blocks=[2, 1, 3],
        stage_downsample=[True, False, True],
        stage_light_block=[True, False, True],
        stage_kernel_size=[7, 1, 5],
        stage_numb_of_layers=[1, 4, 2],
        class_expand=30,
        num_labels=4,
    )
    model = randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config).eval())
    path = write(rename_back(model.state_dict(), LAYOUTS["paddleclas"]))
    report = convert_checkpoint(path, tmp_path / "out")
    assert report.variant is None
    reloaded = hgnetv2_hf.PPHGNetV2ForImageClassification.from_pretrained(tmp_path / "out")
    for field in ("stem_channels", "stage_kernel_size", "stage_num_blocks", "stage_light_block", "stage_downsample"):
        assert getattr(reloaded.config, field) == getattr(config, field)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), reloaded.state_dict().values()))


def test_dropout_is_an_option_because_no_tensor_shows_it(tmp_path):
    convert_checkpoint(DIGITS, tmp_path / "out", dropout=0.2)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dropout_prob"] == 0.2


def test_published_names_are_found_or_say_which_file_to_get(tmp_path):
    assert convert_checkpoint("digits", tmp_path / "out").num_labels == 10
    with pytest.raises(ConversionError, match="download https://.*PPHGNetV2_B4_ssld_pretrained.pdparams yourself"):
        convert_checkpoint("PPHGNetV2_B4_ssld_stage2", tmp_path / "other")


def test_options_that_do_not_fit_the_file_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="leave them out for a backbone"):
        convert_checkpoint(DIGITS, tmp_path / "out", task="backbone", dropout=0.2)
    with pytest.raises(ConversionError, match="crop of 224"):
        convert_checkpoint(DIGITS, tmp_path / "out", crop_size=224)
    assert_nothing_left(tmp_path)


class RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def _array_with_shape(dimensions):
    """An array that claims ``dimensions`` sides of 2**2000 each: multiplying them would take hours."""
    array = pickle.dumps(np.zeros(3, "float32"), protocol=2)
    shape = b"(" + (b"\x8a\xfb" + b"\x01" * 251) * (dimensions // 200) + b"t"
    assert array.count(b"K\x03\x85") == 1
    return b"\x80\x02}U\x01a" + array[2:-1].replace(b"K\x03\x85", shape) + b"s."


def bad_files(tensors, tmp_path, write):
    """name: (path, words of the message)"""
    valid = DIGITS.read_bytes()

    def raw(name, content):
        path = tmp_path / f"{name}.pdparams"
        path.write_bytes(content)
        return path

    def changed(name, **changes):
        return write({**tensors, **changes}, f"{name}.pdparams")

    without = {name: tensor for name, tensor in tensors.items() if name != "stages.2.blocks.1.layers.0.conv1.bn.bias"}
    torch.save({"weight": torch.zeros(3)}, tmp_path / "torch.pdparams")
    torch.save({"w": torch.zeros(3)}, tmp_path / "old_torch.pdparams", _use_new_zipfile_serialization=False)
    nan = tensors["fc.weight"].clone()
    nan[0, 0] = float("nan")
    proof = tmp_path / "executed"
    return {
        "missing": (tmp_path / "no_such_file.pdparams", "no file"),
        "folder": (tmp_path, "folder without weights"),
        "empty": (raw("empty", b""), "empty"),
        "truncated": (raw("truncated", valid[: len(valid) // 2]), "truncated"),
        "text": (raw("text", b"<html>404 Not Found</html>"), "no weight file"),
        "command": (raw("command", pickle.dumps({"a": RunsACommand(f"touch {proof}")})), "Nothing was executed"),
        "eval": (raw("eval", b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R."), "builtins.eval"),
        "no_dictionary": (raw("list", pickle.dumps([1, 2], protocol=4)), "dictionary"),
        "no_array": (raw("strings", pickle.dumps({"a": "b"}, protocol=4)), "not an array"),
        "no_tensors": (raw("nothing", pickle.dumps({}, protocol=4)), "no tensors"),
        "torch": (tmp_path / "torch.pdparams", "layout"),
        "old_torch": (tmp_path / "old_torch.pdparams", "layout"),
        "other_network": (write({"conv1.weight": torch.zeros(3)}, "other.pdparams"), "layout"),
        "lacks_a_tensor": (write(without, "lacks.pdparams"), "lacks"),
        "lacks_the_stem": (
            write({n: t for n, t in tensors.items() if "stem1.conv" not in n}, "stem.pdparams"),
            "missing",
        ),
        "has_an_extra_tensor": (changed("extra", **{"neck.weight": torch.zeros(3)}), "neck.weight"),
        "wrong_shape": (changed("shape", **{"stem.stem3.bn.bias": torch.zeros(5)}), "shape"),
        "wrong_dimensions": (changed("dimensions", **{"last_conv.weight": torch.zeros(5)}), "dimensions"),
        "two_for_one": (changed("two", **{"embedder.stem1.convolution.weight": torch.zeros(3)}), "two tensors"),
        "nan": (changed("nan", **{"fc.weight": nan}), "not finite"),
        "integers": (changed("integers", **{"fc.bias": torch.zeros(10, dtype=torch.int64)}), "int64"),
        "claims_terabytes": (raw("terabytes", b"\x80\x04\x8e" + (2**45).to_bytes(8, "little") + b"x."), "truncated"),
        "split_nonsense": (raw("split", pickle.dumps({"UnpackBigParamInfor@@": 5}, protocol=4)), "split arrays"),
        "deep_key": (raw("key", b"\x80\x02})" + b"\x85" * 400_000 + b"Ns."), "keys that are not names"),
        "endless_shape": (raw("shape", _array_with_shape(2_000_000)), "impossible shape"),
        "deep_memo": (raw("memo", b"\x80\x02}r\xff\xff\xff\xff."), "no tensors"),
    }


BAD = (
    "missing folder empty truncated text command eval no_dictionary no_array no_tensors torch old_torch other_network "
    "lacks_a_tensor lacks_the_stem has_an_extra_tensor wrong_shape wrong_dimensions two_for_one nan integers "
    "claims_terabytes split_nonsense deep_key endless_shape deep_memo"
).split()


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_status_one_and_nothing_left(tensors, tmp_path, write, capsys, case):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    path, words = bad_files(tensors, inputs, lambda t, name: _write_into(inputs, t, name))[case]
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(path, tmp_path / "target")
    assert main(["convert", str(path), str(tmp_path / "target")]) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and error.startswith("hgnetv2-hf: ")
    assert not (inputs / "executed").exists()
    assert_nothing_left(tmp_path, "inputs")


def _write_into(folder, tensors, name):
    write_paddle_file(tensors, folder / name)
    return folder / name


def test_mutated_files_are_read_or_end_in_a_conversion_error(tmp_path):
    """Bit flips, truncations, inserted and repeated pieces, with a fixed seed."""
    random = np.random.RandomState(0)
    small = {
        "stem.a": np.arange(6, dtype="float32").reshape(2, 3),
        "b": np.zeros(3),
        "StructuredToParameterName@@": {},
    }
    originals = [DIGITS.read_bytes(), *(pickle.dumps(small, protocol=protocol) for protocol in (2, 3, 4, 5))]
    path, refused = tmp_path / "mutated.pdparams", 0
    for number in range(1000):
        data = bytearray(originals[random.randint(len(originals))])
        first, second, third = sorted(random.randint(0, min(len(data), 3000), 3).tolist())
        if number % 4 == 0:
            data[second] ^= 1 << random.randint(8)
        elif number % 4 == 1:
            del data[second:]
        elif number % 4 == 2:
            data[second:second] = random.bytes(random.randint(1, 12))
        else:
            data[third:third] = data[first:second]
        path.write_bytes(data)
        try:
            read_paddle_file(path)
        except ConversionError:
            refused += 1
    assert 500 < refused < 1000


def test_the_command_in_the_hostile_file_would_run_if_the_file_were_unpickled(tmp_path):
    """So that the test above means something."""
    pickle.loads(pickle.dumps({"a": RunsACommand(f"touch {tmp_path / 'executed'}")}))
    assert (tmp_path / "executed").exists()


def test_refused_opcodes_are_those_that_paddle_never_writes():
    from hgnetv2_hf.conversion.paddle_file import _Interpreter

    names = {code.name for code in pickletools.opcodes if ord(code.code) in _Interpreter.dispatch}
    assert not names & {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}


@pytest.mark.parametrize("variant", ["b0", "b6", "pico"])
def test_a_variant_that_does_not_fit_is_status_one_and_one_that_does_not_exist_is_two(tmp_path, capsys, variant):
    assert main(["convert", str(DIGITS), str(tmp_path / "out"), "--variant", variant]) == 1
    assert f"does not hold a {variant}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["convert", str(DIGITS), str(tmp_path / "out"), "--variant", "b7"])
    assert exit_.value.code == 2
    with pytest.raises(ValueError, match="b7"):
        convert_checkpoint(DIGITS, tmp_path / "out", variant="b7")
    assert_nothing_left(tmp_path)


def test_a_backbone_file_has_no_classifier_to_convert(tmp_path, tensors, write):
    head = ("fc.", "last_conv.", "lab.")
    path = write({name: tensor for name, tensor in tensors.items() if not name.startswith(head)})
    with pytest.raises(ConversionError, match="--task backbone"):
        convert_checkpoint(path, tmp_path / "out", task="classification")
    assert convert_checkpoint(path, tmp_path / "out").task == "backbone"
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()


def test_an_existing_target_is_kept_unless_overwriting(tmp_path):
    target = tmp_path / "target"
    convert_checkpoint(DIGITS, target)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="--overwrite"):
        convert_checkpoint(DIGITS, target)
    assert (target / "notes.txt").read_text() == "mine"
    convert_checkpoint(DIGITS, target, overwrite=True)
    assert not (target / "notes.txt").exists() and (target / "model.safetensors").exists()
    assert_nothing_left(tmp_path, "target")


def test_overwriting_never_deletes_what_is_no_model_folder(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_text("precious")
    with pytest.raises(ConversionError, match="refuses to delete"):
        convert_checkpoint(DIGITS, photos, overwrite=True)
    source = tmp_path / "model" / "checkpoint.pdparams"
    source.parent.mkdir()
    (source.parent / "config.json").write_text("{}")
    source.write_bytes(DIGITS.read_bytes())
    with pytest.raises(ConversionError, match="contains the source"):
        convert_checkpoint(source, source.parent, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConversionError, match="not a folder"):
        convert_checkpoint(DIGITS, tmp_path / "file", overwrite=True)
    assert (photos / "holiday.jpg").exists() and source.exists()


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path, tensors, write):
    target = tmp_path / "target"
    convert_checkpoint(DIGITS, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    bad = write({**tensors, "neck.weight": torch.zeros(1)})
    with pytest.raises(ConversionError):
        convert_checkpoint(bad, target, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_full_target_leaves_nothing(tmp_path):
    """The system refuses to write further than so many bytes into a file, as a full disk does."""
    code = """
import os, resource, signal, sys
from hgnetv2_hf.cli import main
import hgnetv2_hf.conversion, transformers
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (1000, 300_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    print(main(["convert", sys.argv[1], sys.argv[2]]), os.listdir(sys.argv[3]))
"""
    target = tmp_path / "new" / "target"
    command = [sys.executable, "-c", code, str(DIGITS), str(target), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, "1 []\n" * 2), run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("hgnetv2-hf: ")]
    assert len(errors) == 2 and all(line.startswith("hgnetv2-hf: Cannot write") for line in errors), run.stderr
    assert_nothing_left(tmp_path)


def test_a_read_only_target_leaves_nothing(tmp_path):
    """Root may write anywhere, so the conversion runs as somebody else where this runs as root."""
    closed = tmp_path / "closed"
    closed.mkdir()
    code = """
import os, sys
from hgnetv2_hf.cli import main
import hgnetv2_hf.conversion, transformers, hgnetv2_hf.model.modeling_hgnetv2
if os.geteuid() == 0:
    os.seteuid(65534)
for target in sys.argv[2:]:
    print(main(["convert", sys.argv[1], target]))
"""
    if os.geteuid() != 0:
        closed.chmod(0o555)
    source = tmp_path / "checkpoint.pdparams"
    source.write_bytes(DIGITS.read_bytes())
    for folder in [tmp_path, *(each for each in tmp_path.parents if each.name.startswith(("pytest-", "popen-")))]:
        folder.chmod(0o755)
    command = [sys.executable, "-c", code, str(source), str(closed / "target"), str(closed / "new" / "target")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, "1\n" * 2), run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("hgnetv2-hf: ")]
    assert len(errors) == 2 and all(line.startswith("hgnetv2-hf: Cannot") for line in errors), run.stderr
    assert_nothing_left(closed)


def _convert_in_a_child(source, target, overwrite):
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    convert_checkpoint(source, target, overwrite=overwrite)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_fifty_moments_the_target_is_complete_or_absent_and_the_next_run_succeeds(tmp_path, overwrite):
    """The children are forked from a server that has imported everything, so the moments fall into the conversion."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hgnetv2_hf.conversion", "hgnetv2_hf.model.modeling_hgnetv2", "test_conversion"])
    target = tmp_path / "target"
    child = functools.partial(context.Process, target=_convert_in_a_child, args=(DIGITS, target, overwrite))

    def run_to_the_end():
        start, process = time.perf_counter(), child()
        process.start()
        process.join()
        assert process.exitcode == 0
        return time.perf_counter() - start

    run_to_the_end()  # starts the server
    if not overwrite:
        shutil.rmtree(target)
    whole = run_to_the_end()
    expected = {path.name: path.read_bytes() for path in target.iterdir()}
    random, attempts, killed, absent = np.random.RandomState(0), 0, 0, 0
    # On a busy machine `whole` may have come out too long, and most attempts end before they are killed.
    while attempts < 25 or killed < 15 or (not overwrite and absent < 5):
        attempts += 1
        assert attempts <= 250, (killed, absent)
        if not overwrite:
            shutil.rmtree(target)
        process = child()
        process.start()
        time.sleep(random.uniform(0, whole))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if target.exists():
            assert {path.name: path.read_bytes() for path in target.iterdir()} == expected
        else:
            assert not overwrite
            absent += 1
            run_to_the_end()
            assert {path.name: path.read_bytes() for path in target.iterdir()} == expected
    if overwrite:
        run_to_the_end()
    assert_nothing_left(tmp_path, "target")


def test_ended_politely_it_cleans_up(tmp_path, monkeypatch):
    from hgnetv2_hf.conversion import convert

    def interrupted(*_):
        raise SystemExit(1)  # what the command line makes of SIGTERM

    monkeypatch.setattr(convert, "model_card", interrupted)
    with pytest.raises(SystemExit):
        convert_checkpoint(DIGITS, tmp_path / "target")
    assert_nothing_left(tmp_path)


@pytest.mark.slow
def test_memory_stays_within_three_times_the_file(capsys):
    assert main(["benchmark", "--conversion", "--variant", "b5"]) == 0
    *_, added = capsys.readouterr().out.split()
    assert float(added) < 3
