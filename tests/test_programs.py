"""A sample of the programs that people copy (programs.py), put through pieces as benchmarks/verify/programs.py does."""

import importlib.util
import pathlib

import numpy as np
import pytest

PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "verify" / "programs.py"
QUICK = {"image_classification_from_scratch": "average.weights", "mlp_mixer": "average.outputs",
         "vision_transformer": "report", "siamese_network": "cache_teacher", "masked_attention": "cluster",
         "gated_residual": "prune", "text_transformer": "regularizers", "custom_train_step": "prune"}


@pytest.fixture(scope="module")
def verify():
    spec = importlib.util.spec_from_file_location("verify_programs", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names():
    text = (pathlib.Path(__file__).parent / "programs.py").read_text()
    return [part.split("(")[0] for part in text.split("@program\ndef ")[1:]]


@pytest.mark.parametrize(("program", "piece"), [
    *QUICK.items(), *(pytest.param(name, piece, marks=pytest.mark.slow) for name in names() if name not in QUICK
                      for piece in ("prune", "cluster"))])
def test_a_program_keeps_what_it_computes(verify, program, piece):
    assert [row[1:] for row in verify.one(program, {piece: verify.PIECES[piece]})] == [("ok", "")]


@pytest.mark.slow
def test_a_wrong_result_is_seen(verify):
    def spoilt(p):
        expected = verify.outputs(p.model, p.x)
        verify.near([part + 0.1 for part in expected], expected, 1e-3, "spoilt")

    def changed(p):
        p.model.weights[0].assign_add(np.ones(p.model.weights[0].shape))

    def raised(p):
        return p.model.no_such_name

    found = verify.one("custom_train_step", {"spoilt": spoilt, "changed": changed, "raised": raised})
    assert [result for _, result, _ in found] == ["wrong", "wrong", "raised"]
