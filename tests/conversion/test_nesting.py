"""Files with several sets of weights: which is taken, what is said about the others, and how to choose."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from hgnetv2_hf import ConversionError, convert_checkpoint
from hgnetv2_hf.cli import main
from hgnetv2_hf.conversion.paddle_file import read_paddle_file, write_paddle_file
from hgnetv2_hf.conversion.weight_file import read_weights
from hgnetv2_hf.hub.published import ASSETS, PUBLISHED


DIGITS = ASSETS / PUBLISHED["digits"].file_name
MARK = "fc.bias"  # tells the sets apart


@pytest.fixture(scope="module")
def tensors():
    return read_paddle_file(DIGITS)


@pytest.fixture
def marked(tensors):
    """A set of weights with a value of its own, and a prefix."""

    def make(value, prefix=""):
        return {f"{prefix}{name}": t + value if name == MARK else t.clone() for name, t in tensors.items()}

    return make


def taken(path, tensors, weights=None):
    """The value of the set that was read, its place and the others'."""
    read, place = read_weights(path, weights)
    assert set(read) == set(tensors)
    return round(float((read[MARK] - tensors[MARK]).mean())), place.taken, place.others


FILES = {
    "ema and model": (
        lambda made: {"model": made(1), "ema": {"module": made(2), "updates": 7}, "optimizer": {"state": {0: {}}}},
        {None: (2, "ema.module"), "ema": (2, "ema.module"), "model": (1, "model"), "EMA.module": (2, "ema.module")},
    ),
    "timm's trainer": (
        lambda made: {"epoch": 3, "state_dict": made(1), "state_dict_ema": made(2), "optimizer": {"state": {}}},
        {None: (2, "state_dict_ema"), "ema": (2, "state_dict_ema"), "model": (1, "state_dict")},
    ),
    "a student and its teacher": (
        lambda made: {**made(1, "Student."), **made(2, "Teacher.")},
        {None: (1, "Student"), "student": (1, "Student"), "teacher": (2, "Teacher"), "Teacher": (2, "Teacher")},
    ),
    "wrapped students": (
        lambda made: {"state_dict": {**made(1, "module.student._orig_mod."), **made(2, "module.teacher.module.")}},
        {None: (1, "state_dict.student"), "teacher": (2, "state_dict.teacher")},
    ),
    "dictionaries of their own": (
        lambda made: {"teacher": made(2), "student": made(1)},
        {None: (1, "student"), "teacher": (2, "teacher")},
    ),
    "averages beside a model": (
        lambda made: {"state_dict": {**made(1, "model."), **made(2, "ema_model.module.")}},
        {None: (2, "state_dict.ema_model"), "model": (1, "state_dict.model")},
    ),
    "torchvision's averages": (
        lambda made: {"model": made(1), "model_ema": {"n_averaged": torch.tensor(5), **made(2, "module.")}},
        {None: (2, "model_ema"), "model": (1, "model")},
    ),
    "keys that nobody knows": (
        lambda made: {"net_a": made(1), "more": {"net_b": made(2)}, "scaler": {"scale": torch.ones(1)}},
        {"net_a": (1, "net_a"), "more.net_b": (2, "more.net_b"), "net_b": (2, "more.net_b")},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_an_option_chooses_among_the_sets_of_a_file(name, tensors, marked, tmp_path):
    content, answers = FILES[name]
    torch.save(content(marked), tmp_path / "w.pth")
    places = {place for _, place in answers.values()}
    for wanted, (value, place) in answers.items():
        assert taken(tmp_path / "w.pth", tensors, wanted) == (value, place, (*(places - {place}),))


def test_paddle_and_safetensors_files_take_the_option_too(tensors, marked, tmp_path):
    both = {**marked(1, "Student."), **marked(2, "Teacher.")}
    write_paddle_file(both, tmp_path / "flat.pdparams")
    save_file(both, tmp_path / "flat.safetensors")
    nested = {"model": marked(1), "ema": {"module": marked(2)}}
    arrays = {key: _arrays(value) for key, value in nested.items()}
    (tmp_path / "nested.pdparams").write_bytes(pickle.dumps(arrays, protocol=4))
    for file in ("flat.pdparams", "flat.safetensors"):
        assert taken(tmp_path / file, tensors, "teacher") == (2, "Teacher", ("Student",))
    assert taken(tmp_path / "nested.pdparams", tensors, "model") == (1, "model", ("ema.module",))
    assert taken(tmp_path / "nested.pdparams", tensors) == (2, "ema.module", ("model",))


def _arrays(value):
    return {key: _arrays(each) for key, each in value.items()} if isinstance(value, dict) else value.numpy()


def test_the_report_and_the_card_name_what_was_taken_and_what_was_left(tensors, marked, tmp_path):
    torch.save({"state_dict": marked(1), "state_dict_ema": marked(2)}, tmp_path / "w.pth")
    report = convert_checkpoint(tmp_path / "w.pth", tmp_path / "default")
    assert report.assumed["weights"] == ("state_dict_ema", "the place inside the file; it also holds state_dict")
    report = convert_checkpoint(tmp_path / "w.pth", tmp_path / "out", weights="model")
    assert report.assumed["weights"] == ("state_dict", "option; it also holds state_dict_ema")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `weights` | `state_dict` | option; it also holds state_dict_ema |" in card


@pytest.mark.parametrize(
    "content, wanted, words",
    [
        (FILES["timm's trainer"][0], "teacher", "holds no weights 'teacher', but these: state_dict_ema, state_dict."),
        (FILES["a student and its teacher"][0], "ema", "holds no weights 'ema', but these: Student, Teacher."),
        (lambda made: made(1), "ema", "holds no weights 'ema', but one set without a name: leave --weights out."),
        (FILES["keys that nobody knows"][0], None, "holds weights under net_a, more.net_b; pass --weights"),
        (
            lambda made: {"a": {"net": made(1)}, "b": {"net": made(2)}},
            "net",
            "several weights 'net': a.net, b.net; name",
        ),
        (FILES["ema and model"][0], "", "holds no weights '', but these: ema.module, model."),
    ],
)
def test_a_choice_that_is_not_there_is_one_sentence(content, wanted, words, marked, tmp_path, capsys):
    torch.save(content(marked), tmp_path / "w.pth")
    option = [] if wanted is None else ["--weights", wanted]
    assert main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "out"), *option]) == 1
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("wanted", [None, "model", "ema", "a.b"])
def test_dictionaries_in_themselves_and_floods_of_them_end_in_a_sentence(wanted, tmp_path):
    endless = {}
    endless["model"] = endless["ema"] = endless
    shared = {f"{i}.{i}": [] for i in range(300)}
    for _ in range(8):  # each level holds the one below three hundred times
        shared = {f"k{i}": shared for i in range(300)}
    long = {"module." * 100_000: torch.zeros(3)}
    for index, content in enumerate((endless, shared, {"model": long}, {"x" * 10**6: {"a.b": torch.zeros(1)}})):
        path = tmp_path / f"{index}.pth"
        torch.save(content, path)
        with pytest.raises(ConversionError) as raised:
            convert_checkpoint(path, tmp_path / "out", weights=wanted)
        assert len(str(raised.value)) < 1500
