"""What jaxnet runs on here."""

import os

import jax

from jaxnet import train
from jaxnet.ops import dispatch

OPS = ("linear", "rnn", "lstm", "gru", "adamw")


def facts() -> dict[str, str]:
    """Versions, platform and kernels."""
    versions = train.versions()
    device = jax.devices()[0]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kernels = dispatch.implementations("adamw")["cpu"] or f"built, {dispatch.isa()}"
    return {
        "jaxnet": f"{versions['jaxnet']} on Python {versions['python']}, jax {versions['jax']}",
        "platform": f"{device.platform} ({device.device_kind}), {threads} threads",
        "kernels": f"CPU: {kernels}",
    }


def chosen(op: str) -> str:
    """The implementation of an op that would be chosen."""
    found = dispatch.implementations(op)
    platform = jax.default_backend()
    return platform if found.get(platform, "not written") is None else "xla"
