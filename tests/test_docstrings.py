"""Every public name has an example in its docstring, and the example does what it says."""

import doctest

import pytest

import hgnetv2_hf


ERRORS = [name for name in hgnetv2_hf.__all__ if name.endswith("Error")]
ONNX = ("onnx", "onnxscript", "onnxruntime")
EXTRAS = {"HGNetV2ImageProcessorFast": ("torchvision",), "export_model": ("openvino",), "load_exported": ONNX}


@pytest.fixture
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", sorted(set(hgnetv2_hf.__all__) - set(ERRORS)))
def test_the_example_of_a_public_name_runs(name, in_a_new_folder, capsys):
    for extra in EXTRAS.get(name, ()):
        pytest.importorskip(extra, reason=f"the example of {name} needs {extra}")
    docstring = getattr(hgnetv2_hf, name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(docstring, {}, name, None, 0)  # it imports what it uses
    assert len(example.examples) > 1, f"{name} has no example"
    report = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    assert runner.run(example, out=report.append).failed == 0, "".join(report)
