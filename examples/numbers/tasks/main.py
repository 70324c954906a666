"""Needs a package from PyPI: the environment is made once, and shared by every version with the same requirements."""

import numpy as np

from multinode import Multinode

mn = Multinode()


@mn.function(cpu=1, memory="512 MiB")
def largest_eigenvalue(size, seed=0):
    """Returns the largest eigenvalue of a random symmetric matrix."""
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((size, size))
    return float(np.linalg.eigvalsh(matrix + matrix.T)[-1])
