"""What jaxnet runs on here."""

import os
import platform
from pathlib import Path

import jax

from jaxnet import train
from jaxnet.ops import dispatch

OPS = ("linear", "rnn", "lstm", "gru", "adamw")


def facts() -> dict[str, str]:
    """Versions, platform and kernels."""
    versions = train.versions()
    device = jax.devices()[0]
    kind = processor() if device.platform == "cpu" else device.device_kind
    kernels = dispatch.implementations("adamw")["cpu"] or f"built, {dispatch.isa()}"
    return {
        "jaxnet": f"{versions['jaxnet']} on Python {versions['python']}, jax {versions['jax']}",
        "platform": f"{device.platform} ({kind}), {threads()} threads",
        "kernels": f"CPU: {kernels}",
    }


def processor() -> str:
    """The model of the CPU, or at least its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def threads() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serving(op: str) -> list[str]:
    """The implementations of an op that can run here, the plain one first."""
    found = dispatch.implementations(op)
    return ["xla", *(name for name, reason in found.items() if name == jax.default_backend() and not reason)]


def chosen(op: str) -> str:
    """The implementation of an op that would be chosen, where its sizes are worth a kernel."""
    return serving(op)[-1]
