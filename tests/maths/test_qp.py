import numpy as np
import pytest

from protonmf_cli.maths.qp import fit_heads


def test_a_thousand_heads_equal_least_squares():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((1000, 2048))
    bases = np.abs(generator.standard_normal((1000, 10, 2048)))
    fit = fit_heads(vectors, list(bases))
    for vector, basis, found in zip(vectors, bases, fit.coefficients, strict=True):
        expected, residual = np.linalg.lstsq(basis.T, vector, rcond=None)[0], vector - found @ basis
        assert np.linalg.norm(found - expected) <= 1e-10 * np.linalg.norm(expected)
        assert np.abs(basis @ residual).max() < 1e-9 * np.linalg.norm(vector) * np.linalg.norm(basis, axis=1).max()
    assert fit.accurate


def test_ragged_counts():
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((3, 20))
    bases = [np.abs(generator.standard_normal((p, 20))) for p in (1, 4, 2)]
    fit = fit_heads(vectors, bases)
    assert [len(a) for a in fit.coefficients] == [1, 4, 2]
    for vector, basis, a in zip(vectors, bases, fit.coefficients, strict=True):
        np.testing.assert_allclose(basis @ (vector - a @ basis), 0, atol=1e-12)


def test_condition_number_names_dependent_prototypes():
    basis = np.array([[1.0, 0.0, 0.0], [1.0, 1e-8, 0.0]])
    fit = fit_heads(np.ones((2, 3)), [np.eye(3)[:2], basis])
    assert fit.condition[0] == pytest.approx(1)
    assert fit.condition[1] > 1e7
    assert all(np.isfinite(a).all() for a in fit.coefficients)
