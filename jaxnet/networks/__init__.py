"""Networks: each returns a `Layer`."""

from jaxnet.networks.feedforward import feedforward as feedforward
