"""Losses, each beside its derivative.

A loss is a function of a prediction and a target, per example; the mean over them is the caller's:
`losses.cross_entropy(net.apply(params, x), y).mean()`. Each is a `jax.custom_jvp` with the derivative
in both arguments written out, so forward mode, reverse mode and second order use the formulas here.
Values are computed in at least float32 and have the dtype of the prediction. `linear_cross_entropy`, an op, takes
the last layer's input and weight in place of the logits, which it never stores.
"""

from jaxnet.losses.adversarial import Adversarial as Adversarial
from jaxnet.losses.adversarial import adversarial_hinge as adversarial_hinge
from jaxnet.losses.adversarial import gradient_penalty as gradient_penalty
from jaxnet.losses.adversarial import least_squares as least_squares
from jaxnet.losses.adversarial import non_saturating as non_saturating
from jaxnet.losses.adversarial import wasserstein as wasserstein
from jaxnet.losses.classification import binary_cross_entropy as binary_cross_entropy
from jaxnet.losses.classification import check_labels as check_labels
from jaxnet.losses.classification import cross_entropy as cross_entropy
from jaxnet.losses.classification import focal as focal
from jaxnet.losses.classification import hinge as hinge
from jaxnet.losses.divergence import gaussian_kl as gaussian_kl
from jaxnet.losses.divergence import kl_divergence as kl_divergence
from jaxnet.losses.divergence import negative_elbo as negative_elbo
from jaxnet.losses.loss import Loss as Loss
from jaxnet.losses.loss import counted as counted
from jaxnet.losses.loss import derivative as derivative
from jaxnet.losses.regression import huber as huber
from jaxnet.losses.regression import squared_error as squared_error
from jaxnet.ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
