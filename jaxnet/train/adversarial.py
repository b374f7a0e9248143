"""One training step of a generative adversarial network: the discriminator's updates, then the generator's."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnet.layers.layer import Input, Params
from jaxnet.losses import Adversarial, gradient_penalty
from jaxnet.networks import GAN, with_class
from jaxnet.train.state import TrainState
from jaxnet.train.step import Augment, Metrics, Step, augmented, jitted, updated

Optimizers = tuple[optax.GradientTransformation, optax.GradientTransformation]


def init_gan(gan: GAN, optimizers: Optimizers, key: Array, x: Input) -> TrainState:
    """Returns the state before the first step, with `params` = (generator's, discriminator's).

    Args:
        gan: the networks.
        optimizers: of the generator and of the discriminator.
        key: draws the parameters, and later what the steps draw.
        x: a batch of examples, or its `jax.ShapeDtypeStruct`.
    """
    k1, k2, run_key = jax.random.split(key, 3)
    z = jax.ShapeDtypeStruct((x.shape[0], gan.latent_size + gan.classes), x.dtype)
    seen = jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] + gan.classes), x.dtype)
    params = gan.generator.init(k1, z), gan.discriminator.init(k2, seen)
    opt_state = tuple(optimizer.init(p) for optimizer, p in zip(optimizers, params, strict=True))
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), run_key)


def generate(
    gan: GAN, params: Params, z: Array, labels: Array | None = None, *, key: Array | None = None
) -> Array:
    """G(z), of the classes `labels`; `params` are the generator's, z is (n, latent_size)."""
    return gan.generator.apply(params, with_class(z, labels, gan.classes), key=key)


def make_gan_step(
    gan: GAN,
    loss: Adversarial,
    optimizers: Optimizers,
    *,
    penalty: float = 0.0,
    discriminator_steps: int = 1,
    augment: Augment | None = None,
    steps: int | None = None,
) -> Step:
    """Returns the jitted `step(state, (x, labels)) → (state, metrics)`; what it returns, `train.fit` takes.

    z ~ N(0, 1) is drawn anew for each update. The discriminator goes down
    L_D(D(x), D(G(z))) + λ (‖∂D/∂x̂‖ − 1)², x̂ = ε x + (1 − ε) G(z), ε uniform in [0, 1]; then the generator down
    L_G(D(G(z))). ∂D/∂x̂ is the discriminator's hand-written backward pass, differentiated once more.

    Args:
        gan: the networks.
        loss: of `losses`: `non_saturating`, `least_squares`, `adversarial_hinge`, `wasserstein`.
        optimizers: of the generator and of the discriminator.
        penalty: λ; 10 is usual for `wasserstein`, 0 is none.
        discriminator_steps: updates of the discriminator in a step, all on the batch's examples.
        augment: changes x, `augment(key, x)`.
        steps: None, or how many steps one call makes; see `make_step`.

    The metrics are "loss" (the discriminator's), "generator_loss", and the mean logits "real" and "generated".

    Raises:
        ValueError: for penalty < 0, discriminator_steps < 1 or steps < 1.
    """
    if not penalty >= 0 or discriminator_steps < 1 or (steps is not None and steps < 1):
        raise ValueError(
            f"make_gan_step needs penalty ≥ 0, discriminator_steps ≥ 1 and steps ≥ 1 or None; got {penalty}, "
            f"{discriminator_steps} and {steps}"
        )
    generator, discriminator = gan.generator, gan.discriminator

    def one(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        x, labels = map(jnp.asarray, batch)
        x, key = augmented(augment, state, x)
        (g, d), (g_state, d_state) = state.params, state.opt_state

        def latent(key: Array) -> Array:
            return with_class(jax.random.normal(key, (len(x), gan.latent_size), x.dtype), labels, gan.classes)

        def seen(images: Array) -> Array:
            return with_class(images, labels, gan.classes)

        def discriminate(d: Params, d_state: Any, key: Array) -> tuple[Params, Any, Metrics]:
            z_key, g_key, real_key, fake_key, mix_key = jax.random.split(key, 5)
            fake = generator.apply(g, latent(z_key), key=g_key)

            def objective(d: Params) -> tuple[Array, Metrics]:
                real_logits = discriminator.apply(d, seen(x), key=real_key)
                fake_logits = discriminator.apply(d, seen(fake), key=fake_key)
                value = jnp.mean(loss.discriminator(real_logits, fake_logits))
                if penalty:
                    mix = jax.random.uniform(mix_key, (len(x), *(1,) * (x.ndim - 1)), x.dtype)
                    logits, pullback = discriminator.vjp(d, seen(mix * x + (1 - mix) * fake))
                    gradient = pullback(jnp.ones_like(logits))[1][..., : x.shape[-1]]
                    value = value + penalty * jnp.mean(gradient_penalty(gradient))
                return value, {"real": jnp.mean(real_logits), "generated": jnp.mean(fake_logits)}

            (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(d)
            return *updated(optimizers[1], grads, d, d_state), {"loss": value, **metrics}

        for k in jax.random.split(jax.random.fold_in(key, 0), discriminator_steps):
            d, d_state, metrics = discriminate(d, d_state, k)

        z_key, g_key, fake_key = jax.random.split(jax.random.fold_in(key, 1), 3)

        def g_loss(g: Params) -> Array:
            fake = generator.apply(g, latent(z_key), key=g_key)
            logits = discriminator.apply(d, seen(fake), key=fake_key)
            return jnp.mean(loss.generator(logits, logits))

        g_value, g_grads = jax.value_and_grad(g_loss)(g)
        g, g_state = updated(optimizers[0], g_grads, g, g_state)
        return TrainState((g, d), (g_state, d_state), state.step + 1, state.key), {
            **metrics,
            "generator_loss": g_value,
        }

    return Step(one, steps, jitted(one, steps), augment=augment)
