"""An oracle from outside: PyTorch's attention, RMS norm, embedding and loss, in value and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import layers, networks, ops

torch = pytest.importorskip("torch", reason="PyTorch is only compared with: pip install '.[peers]'")
pytestmark = pytest.mark.long

B, T, S, H, D = 2, 5, 7, 3, 4


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def compared(arrays, ours, theirs):
    """Values and the gradients of all arrays."""
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(*tensors)
    dy = numbers(*expected.shape, seed=9)
    expected.backward(torch.tensor(dy))
    y, pullback = jax.jit(lambda *args: jax.vjp(ours, *args))(*map(jnp.asarray, arrays))
    np.testing.assert_allclose(y, expected.detach(), atol=1e-11)
    for found, tensor in zip(pullback(jnp.asarray(dy)), tensors, strict=True):
        np.testing.assert_allclose(found, tensor.grad, atol=1e-11)


def by_head(*tensors):
    """(B, T, N, H) as (B, N, T, H): PyTorch's order."""
    return [t.transpose(1, 2) for t in tensors]


MASK = np.random.default_rng(1).random((B, 1, T, S)) < 0.6
MASK[..., 0] = True  # PyTorch has NaN where no key is seen


@pytest.mark.parametrize(
    ("k", "ours", "theirs"),
    [
        (4, {}, {}),
        (4, {"causal": True, "scale": 0.3}, {"is_causal": True, "scale": 0.3}),
        (2, {"causal": True}, {"is_causal": True, "enable_gqa": True}),
        (1, {"mask": MASK}, {"attn_mask": MASK, "enable_gqa": True}),
        (4, {"lengths": np.array([7, 3])}, {"attn_mask": (np.arange(S) < np.array([[7], [3]]))[:, None, None]}),
    ],
    ids=["plain", "causal", "grouped", "one key", "lengths"],
)
def test_scaled_dot_product_attention(x64, k, ours, theirs):
    ours = {name: jnp.asarray(v) if isinstance(v, np.ndarray) else v for name, v in ours.items()}
    theirs = {name: torch.tensor(v) if isinstance(v, np.ndarray) else v for name, v in theirs.items()}
    arrays = numbers(B, T, 4, H), numbers(B, S, k, H, seed=1), numbers(B, S, k, D, seed=2)

    def attend(*tensors):
        y = torch.nn.functional.scaled_dot_product_attention(*by_head(*tensors), **theirs)
        return y.transpose(1, 2)

    compared(arrays, lambda *args: ops.attention(*args, **ours), attend)


@pytest.mark.parametrize("shape", [(B, 4, T, S), (1, 4, T, S), (B, 1, 1, S)], ids=str)
def test_a_bias_and_its_gradient(x64, shape):
    arrays = numbers(B, T, 4, H), numbers(B, S, 4, H, seed=1), numbers(B, S, 4, D, seed=2), numbers(*shape, seed=3)

    def attend(q, k, v, bias):
        y = torch.nn.functional.scaled_dot_product_attention(*by_head(q, k, v), attn_mask=bias)
        return y.transpose(1, 2)

    compared(arrays, lambda q, k, v, bias: ops.attention(q, k, v, bias=bias), attend)


@pytest.mark.parametrize("memory", [False, True])
def test_multi_head_attention(x64, memory):
    e, heads = 6, 3
    options = {"kdim": 5, "vdim": 5} if memory else {}
    theirs = torch.nn.MultiheadAttention(e, heads, batch_first=True, dtype=torch.float64, **options)
    torch.nn.init.normal_(theirs.in_proj_bias, generator=torch.Generator().manual_seed(0))
    layer = layers.attention(heads, memory=memory, causal=not memory)
    x, m = numbers(B, T, e), numbers(B, S, 5, seed=1)
    inputs = (jnp.asarray(x), jnp.asarray(m)) if memory else jnp.asarray(x)

    if memory:
        weights = [theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight]
    else:
        weights = theirs.in_proj_weight.chunk(3)
    maps = list(zip(weights, theirs.in_proj_bias.chunk(3), strict=True))
    maps += [(theirs.out_proj.weight, theirs.out_proj.bias)]

    def named(pairs):
        names = ("query", "key", "value", "output")
        return {
            name: {"weight": jnp.asarray(w.detach().numpy().T), "bias": jnp.asarray(b.detach().numpy())}
            for name, (w, b) in zip(names, pairs, strict=True)
        }

    tx, tm = torch.tensor(x, requires_grad=True), torch.tensor(m, requires_grad=True)
    hidden = None if memory else torch.triu(torch.ones(T, T, dtype=torch.bool), 1)  # True is not seen
    expected, _ = theirs(tx, *((tm, tm) if memory else (tx, tx)), attn_mask=hidden, need_weights=False)
    dy = numbers(B, T, e, seed=9)
    expected.backward(torch.tensor(dy))

    y, pullback = jax.jit(layer.vjp)(named(maps), inputs)
    dparams, dx = pullback(jnp.asarray(dy))
    np.testing.assert_allclose(y, expected.detach(), atol=1e-11)
    for found, tensor in zip(dx if memory else (dx,), (tx, tm), strict=False):
        np.testing.assert_allclose(found, tensor.grad, atol=1e-11)
    if memory:
        gradients = [theirs.q_proj_weight.grad, theirs.k_proj_weight.grad, theirs.v_proj_weight.grad]
    else:
        gradients = theirs.in_proj_weight.grad.chunk(3)
    pairs = list(zip(gradients, theirs.in_proj_bias.grad.chunk(3), strict=True))
    pairs += [(theirs.out_proj.weight.grad, theirs.out_proj.bias.grad)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), dparams, named(pairs))


@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder(x64, norm_first):
    e, heads = 6, 2
    block = torch.nn.TransformerEncoderLayer(
        e, heads, 5, dropout=0.0, activation="relu", batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    with torch.no_grad():
        for i, p in enumerate(block.parameters()):
            p.copy_(torch.tensor(numbers(*p.shape, seed=i)))
    net = networks.transformer_encoder(
        e, 1, heads, hidden=5, activation="relu", norm_first=norm_first, positions=None
    )

    def named(of):
        """The parameters, or their gradients, as ours: those of a block stand in a `repeat` of one."""

        def array(tensor):
            return jnp.asarray(of(tensor).detach().numpy())

        def dense(weight, bias):
            return {"weight": array(weight).T, "bias": array(bias)}

        def norm(module):
            return {"scale": array(module.weight), "bias": array(module.bias)}

        attention = block.self_attn
        weights, biases = (array(a) for a in (attention.in_proj_weight, attention.in_proj_bias))
        maps = zip(("query", "key", "value"), jnp.split(weights, 3), jnp.split(biases, 3), strict=True)
        first = {name: {"weight": w.T, "bias": b} for name, w, b in maps}
        first |= {"output": dense(attention.out_proj.weight, attention.out_proj.bias)}
        forward = tuple(dense(module.weight, module.bias) for module in (block.linear1, block.linear2))
        steps = [(norm(block.norm1), (first,)), (norm(block.norm2), forward)]
        if norm_first:
            return tuple(((before, *parts), ()) for before, parts in steps)
        return tuple(((parts, ()), after) for after, parts in steps)

    x = numbers(B, T, e)
    tensor = torch.tensor(x, requires_grad=True)
    expected = block(tensor)
    if norm_first:  # ours has a normalisation at the end
        expected = torch.nn.functional.layer_norm(expected, (e,))
    dy = numbers(B, T, e, seed=9)
    expected.backward(torch.tensor(dy))

    plain = {"scale": jnp.ones(e), "bias": jnp.zeros(e)}
    stacked = jax.tree.map(lambda p: p[None], named(lambda p: p))
    y, pullback = jax.jit(net.vjp)((stacked, plain) if norm_first else (stacked,), jnp.asarray(x))
    (dblock, *_), dx = pullback(jnp.asarray(dy))
    np.testing.assert_allclose(y, expected.detach(), atol=1e-10)
    np.testing.assert_allclose(dx, tensor.grad, atol=1e-10)
    gradients = jax.tree.map(lambda p: p[None], named(lambda p: p.grad))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), dblock, gradients)


def test_rms_norm(x64):
    arrays = numbers(2, 3, 5), numbers(5, seed=1)
    compared(
        arrays,
        lambda x, scale: ops.rms_norm(x, scale, eps=1e-3),
        lambda x, scale: torch.nn.functional.rms_norm(x, (5,), scale, eps=1e-3),
    )


def test_embedding(x64):
    ids = np.array([[2, 0, 2], [4, 4, 4]])
    compared(
        [numbers(5, 3)],
        lambda table: ops.embedding(jnp.asarray(ids), table),
        lambda table: torch.nn.functional.embedding(torch.tensor(ids), table),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_linear_cross_entropy(x64, smoothing):
    labels = np.array([3, -100, 0, 8])
    options = {"label_smoothing": smoothing}

    def ours(x, weight, bias):
        return ops.linear_cross_entropy(
            x, weight, jnp.asarray(labels), bias=bias, ignore_label=-100, chunk=4, **options
        )

    def theirs(x, weight, bias):
        return torch.nn.functional.cross_entropy(
            x @ weight + bias, torch.tensor(labels), ignore_index=-100, reduction="none", **options
        )

    compared([numbers(4, 3), numbers(3, 9, seed=1), numbers(9, seed=2)], ours, theirs)


def test_the_gradient_of_a_gradient(x64):
    arrays = numbers(1, T, 2, H), numbers(1, S, 1, H, seed=1), numbers(1, S, 1, H, seed=2)

    def penalty(*args):
        slopes = jax.grad(lambda *args: jnp.tanh(ops.attention(*args, causal=True)).sum(), (0, 1, 2))(*args)
        return sum(jnp.square(slope).sum() for slope in slopes)

    found = jax.jit(jax.grad(penalty, (0, 1, 2)))(*arrays)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    q, k, v = by_head(*tensors)
    z = (q @ k.transpose(2, 3) / H**0.5).masked_fill(torch.triu(torch.ones(T, S, dtype=torch.bool), 1), -torch.inf)
    slopes = torch.autograd.grad(torch.tanh(z.softmax(-1) @ v).sum(), tensors, create_graph=True)
    sum(slope.square().sum() for slope in slopes).backward()
    for a, tensor in zip(found, tensors, strict=True):
        np.testing.assert_allclose(a, tensor.grad, atol=1e-11)
