import cvxpy
import numpy as np
import pytest
import torch

from protonmf_cli.maths.residual_codes import residual_codes


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_they_solve_the_quadratic_program(scale):
    generator = np.random.default_rng(2)
    leftover, residual = generator.standard_normal((300, 40)) * scale, generator.standard_normal(40)
    unknown = cvxpy.Variable(300)
    away = cvxpy.sum_squares(leftover / scale - cvxpy.outer(unknown, residual))
    cvxpy.Problem(cvxpy.Minimize(away)).solve(solver=cvxpy.CLARABEL)
    codes = residual_codes(torch.from_numpy(leftover), torch.from_numpy(residual)).numpy()
    np.testing.assert_allclose(codes, unknown.value * scale, rtol=1e-5, atol=1e-7 * scale)


def test_no_residual_no_codes():
    assert residual_codes(torch.ones(3, 2), torch.zeros(2)).tolist() == [0, 0, 0]
