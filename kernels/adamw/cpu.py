"""AdamW on the CPU: one call for all leaves. The formulas are in `jaxnet/ops/adamw.py`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .. import ffi

_DTYPES = (jnp.dtype("float32"), jnp.dtype("float64"))


def unsupported(
    grads: Sequence[jax.Array],
    mu: Sequence[jax.Array],
    nu: Sequence[jax.Array],
    params: Sequence[jax.Array],
) -> str | None:
    """Why the kernel can't serve these leaves; None if it can."""
    if reason := ffi.unavailable():
        return reason
    for i, leaf in enumerate(zip(grads, mu, nu, *([params] if params else []), strict=True)):
        dtypes = {x.dtype for x in leaf}
        if len(dtypes) > 1 or not dtypes.issubset(_DTYPES):
            found = ", ".join(x.dtype.name for x in leaf)
            return (
                "gradient, moments and parameter of a leaf must be all float32 or all float64; "
                f"those of leaf {i} are {found}"
            )
    if len({jax.typeof(x).manual_axis_type.varying for x in (*grads, *mu, *nu, *params)}) > 1:
        return "under shard_map all leaves must vary over the same mesh axes, since one call serves them all"
    return None


def run(
    grads: Sequence[jax.Array],
    mu: Sequence[jax.Array],
    nu: Sequence[jax.Array],
    params: Sequence[jax.Array],
    scalars: Sequence[jax.Array],
    *,
    decayed: Sequence[bool],
    nesterov: bool,
    apply: bool,
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """Returns the updates (with `apply` the new parameters) and the new moments.

    The new moments, and the new parameters, overwrite the buffers of the old ones where those are donated.

    Args:
        grads: n arrays.
        mu: n arrays, the first moments.
        nu: n arrays, the second moments.
        params: n arrays, or none if not `apply` and nothing decays.
        scalars: the eleven fields of `jaxnet.ops.adamw.Scalars`.
        decayed: for each leaf whether its weights decay.
        nesterov: whether the first moment looks one step ahead.
        apply: whether to add the updates to the parameters.
    """
    n = len(grads)
    widest = jnp.result_type(float)  # float64 where it is enabled, and only there can a leaf be float64
    args = (jnp.stack([s.astype(widest) for s in scalars]), *grads, *mu, *nu, *params)
    outputs = params if apply else nu
    aliases = {1 + n + i: n + i for i in range(2 * n)}
    if apply:
        aliases |= {1 + 3 * n + i: i for i in range(n)}
    results = ffi.call(
        "jaxnet_adamw",
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*outputs, *mu, *nu)],
        *args,
        aliases=aliases,
        batched=True,
        apply=apply,
        nesterov=bool(nesterov),
        decay=np.array(decayed, np.int8),
    )
    return results[:n], results[n : 2 * n], results[2 * n :]
