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
        >>> params = train.best_parameters(folder, state.params)
    """

    def __init__(
        self, folder: str | Path, evaluate: Callable[[Params], Mapping[str, float]], of: str = "loss"
    ) -> None:
        """`of` names the measure among those that `evaluate(params)` returns."""
        self._folder, self._evaluate, self._of = Path(folder), evaluate, of

    def __call__(self, params: Params) -> Mapping[str, float]:
        """Measures, and keeps the parameters if they are better than all before.

        Raises:
            ValueError: if `evaluate` doesn't return the measure.
            OSError: if they can't be written.
        """
        measured = self._evaluate(params)
        if self._of not in measured:
            raise ValueError(f"Best needs a measure {self._of!r}; evaluate returned {', '.join(measured)}")
        value, before = jnp.float32(measured[self._of]), _restored(self._folder, params)
        if before is None or value < before.opt_state:
            number = 0 if before is None else int(before.step) + 1
            _checkpoints(self._folder).save(_state(params, value, number))
        return measured


def best_parameters(folder: str | Path, params: Params) -> Params:
    """Returns those that `Best` kept in the folder of a run.

    Args:
        folder: of the run.
        params: any parameters of the network.

    Raises:
        FileNotFoundError: if nothing was measured yet.
        ValueError: if they are those of another network.
    """
    found = _restored(Path(folder), params)
    if found is None:
        raise FileNotFoundError(f"{folder} has no best parameters yet: train for an epoch")
    return found.params


def _checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "best")


def _restored(folder: Path, params: Params) -> TrainState | None:
    return _checkpoints(folder).restore(_state(params, jnp.float32(0), 0))


def _state(params: Params, value: jax.Array, number: int) -> TrainState:
    """The measure is in the place of the optimizer's state, and steps count what was better."""
    return TrainState(params, value, jnp.asarray(number, jnp.int32), jax.random.key(0))
