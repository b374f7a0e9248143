"""The parameters of a run at which a measure was best."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxnet.layers.layer import Params
from jaxnet.train.checkpoint import Checkpoints
from jaxnet.train.state import TrainState


class Best:
    """Keeps the parameters at which a measure is least: an `evaluate` for `train.fit`.

    They are checkpoints in `folder/best`, and go on with the run: one that is resumed keeps the same.

    Example:
        >>> best = train.Best(folder, evaluate, of="loss")
        >>> state = train.fit(state, step, batches, epochs=5, run=folder, evaluate=best)
        >>> params = best.restore(state.params)
    """

    def __init__(
        self, folder: str | Path, evaluate: Callable[[Params], Mapping[str, float]], of: str = "loss"
    ) -> None:
        """`of` names the measure among those that `evaluate(params)` returns."""
        self._checkpoints, self._evaluate, self._of = Checkpoints(Path(folder) / "best"), evaluate, of

    def __call__(self, params: Params) -> Mapping[str, float]:
        """Measures, and keeps the parameters if they are better than all before.

        Raises:
            ValueError: if `evaluate` doesn't return the measure.
            OSError: if they can't be written.
        """
        measured = self._evaluate(params)
        if self._of not in measured:
            raise ValueError(f"Best needs a measure {self._of!r}; evaluate returned {', '.join(measured)}")
        value, before = jnp.float32(measured[self._of]), self._checkpoints.restore(_state(params, jnp.float32(0)))
        if before is None or value < before.opt_state:
            number = 0 if before is None else int(before.step) + 1
            self._checkpoints.save(_state(params, value, number))
        return measured

    def restore(self, params: Params) -> Params:
        """Returns the best; `params` has the form of what is restored.

        Raises:
            FileNotFoundError: if nothing was measured yet.
            ValueError: if they are those of another network.
        """
        found = self._checkpoints.restore(_state(params, jnp.float32(0)))
        if found is None:
            raise FileNotFoundError("there are no best parameters yet: train for an epoch")
        return found.params


def _state(params: Params, value: jax.Array, number: int = 0) -> TrainState:
    return TrainState(params, value, jnp.asarray(number, jnp.int32), jax.random.key(0))
