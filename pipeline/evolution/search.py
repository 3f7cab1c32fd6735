"""CMA-ES (Hansen 2016) by pycma, with the random stream as part of its state."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import cma
import numpy as np
from cma.utilities import utils
from numpy.typing import NDArray

from pipeline.base.errors import DamagedDataError
from pipeline.storage.layout import SESSION_BEGUN, session_key


class _Normal:
    """Standard normal numbers for pycma, in place of numpy's global stream. Pickled: the name must stay."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def __call__(self, *shape: int) -> NDArray[np.float64]:
        return self._rng.standard_normal(shape)


# pycma's convergence criteria are disabled: fitness is noisy, and the config sets the limits.
_NO_TERMINATION = {
    "tolflatfitness": np.inf,
    "tolfun": 0,
    "tolfunhist": 0,
    "tolfunrel": 0,
    "tolx": 0,
    "tolxstagnation": False,
    "tolstagnation": np.inf,
    "tolfacupx": np.inf,
    "tolupsigma": np.inf,
    "maxiter": np.inf,
}


_SILENT = -9  # pycma keeps it for the process when a search is made, and not when one is restored


class Search:
    """CMA-ES with an ask-and-tell interface that maximises fitness; only this class flips the sign for pycma.

    Args:
        start: Parameters at which the search starts, (n,) float64.
        sigma: Initial step size.
        population_size: Candidates per generation.
        seed: Seed of the search's random stream.
    """

    def __init__(self, start: NDArray[np.float64], *, sigma: float, population_size: int, seed: int) -> None:
        options = {
            "popsize": population_size,
            "randn": _Normal(seed),
            "seed": np.nan,  # leave numpy's global stream alone
            "signals_filename": "",
            "verbose": _SILENT,
            "verb_log": 0,
            **_NO_TERMINATION,
        }
        self._es = cma.CMAEvolutionStrategy(start, sigma, options)

    def ask(self) -> NDArray[np.float64]:
        """Draw the next generation's candidates, (population_size, n) float64."""
        return np.asarray(self._es.ask())

    def tell(self, candidates: NDArray[np.float64], fitness: Sequence[float]) -> None:
        """Update the search with one finite fitness value per candidate, in the order of the candidates."""
        values = np.asarray(fitness, np.float64)
        if values.shape != (len(candidates),) or len(candidates) != self._es.popsize:
            raise ValueError(f"expected {self._es.popsize} fitness values, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"fitness must be finite, got {values.tolist()}")
        self._es.tell(list(candidates), (-values).tolist())

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the search distribution, (n,) float64."""
        return np.array(self._es.mean)

    @property
    def sigma(self) -> float:
        """Step size. If it is set, adaptation continues from the new value."""
        return float(self._es.sigma)

    @sigma.setter
    def sigma(self, sigma: float) -> None:
        self._es.sigma = sigma

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance matrix C, (n, n) float64."""
        return np.array(self._es.sm.covariance_matrix)

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviations of the search distribution, (n,) float64."""
        return self.sigma * np.sqrt(np.diag(self.covariance))

    def to_bytes(self) -> bytes:
        """Pickle the whole state, including the random stream."""
        return pickle.dumps(self._es)

    @classmethod
    def from_bytes(cls, data: bytes) -> Search:
        """Restore a search from ``to_bytes``. Unpickles: use it only on bytes whose checksum was verified.

        Raises:
            DamagedDataError: The installed versions cannot restore the state.
        """
        search = cls.__new__(cls)
        try:
            search._es = pickle.loads(data)
        except Exception as error:  # a pickle of other versions can fail in any way
            raise DamagedDataError(
                f"pycma's state in the checkpoint cannot be restored by cma {cma.__version__}: {error!r}",
                resume_after="install the versions that the run was started with (listed in "
                f"RUN_DIR/{session_key(1, SESSION_BEGUN)})",
            ) from error
        utils.global_verbosity = _SILENT
        return search
