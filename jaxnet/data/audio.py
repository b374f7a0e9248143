"""Sound: the spoken digits of FSDD, and the logarithmic mel spectrum.

T samples, F frames, M mel filters.
"""

import io
import re
import wave
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnet.data.archive import members
from jaxnet.data.sequences import padded

Recorded = tuple[tuple[np.ndarray, np.ndarray], np.ndarray]


class Recordings(NamedTuple):
    """Sounds with a class: parts are ((x, lengths), y), x float32 in [−1, 1), (n, T), 0 after the end of each."""

    name: str
    train: Recorded
    test: Recorded
    classes: tuple[str, ...]
    rate: int  # samples per second
    source: str


def spoken_digits(folder: str | Path | None = None, *, strangers: Sequence[str] = ()) -> Recordings:
    """The Free Spoken Digit Dataset: six people, the ten digits, each fifty times, 8,000 samples per second.

    As its authors split it, recordings 0 to 4 of each person and digit are the test. Reads
    `recordings/DIGIT_SPEAKER_INDEX.wav` from `recordings.tar` or the folder `recordings`, in `folder` or its
    subfolder `fsdd`.

    Args:
        folder: where it lies.
        strangers: speakers, such as `("theo",)`, all of whose recordings are the test instead, and all others'
            are trained on: nobody is in both.

    Raises:
        FileNotFoundError: if it isn't there; the message has the public source.
        ValueError: for a damaged file, whose name the message has, or a speaker who isn't there.

    Reference: Jackson et al., "Free spoken digit dataset", https://github.com/Jakobovski/free-spoken-digit-dataset.
    """
    rate, found = 8000, []
    source = "https://github.com/Jakobovski/free-spoken-digit-dataset (recordings/, packed as recordings.tar)"
    for name, content in members(folder, "fsdd", "recordings", "recordings.tar", source):
        if name.endswith(".wav"):
            said = re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", Path(name).name)
            if not said:
                raise ValueError(f"{name} isn't named DIGIT_SPEAKER_INDEX.wav")
            found.append((int(said[1]), said[2], int(said[3]), _samples(name, content, rate)))
    found.sort(key=lambda recording: recording[:3])
    speakers = {speaker for _, speaker, *_ in found}
    if not set(strangers) <= speakers or set(strangers) == speakers:
        raise ValueError(f"strangers must be some of the speakers {sorted(speakers)}; got {list(strangers)}")

    def part(test: bool) -> Recorded:
        chosen = [r for r in found if test == (r[1] in strangers if strangers else r[2] < 5)]
        if not chosen:
            raise ValueError(f"there are no recordings to {'test' if test else 'train'} on")
        x, lengths = padded([samples for *_, samples in chosen])
        return (x, lengths), np.array([digit for digit, *_ in chosen], np.int32)

    digits = tuple("0123456789")
    return Recordings("spoken digits", part(False), part(True), digits, rate, "Jackson et al., FSDD, 2016")


def _samples(name: str, content: bytes, rate: int) -> np.ndarray:
    """A WAV file of one channel with 16 bits, as float32 in [−1, 1)."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = file.getnchannels(), file.getsampwidth() * 8, file.getframerate()
            raw, samples = file.readframes(file.getnframes()), file.getnframes()
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{name} is a damaged WAV file: {error}") from error
    if form != (1, 16, rate):
        raise ValueError(f"{name} has (channels, bits, samples per second) {form} instead of {(1, 16, rate)}")
    if len(raw) != 2 * samples or not samples:
        raise ValueError(f"{name} is cut short: {len(raw)} bytes of {2 * samples}")
    return np.frombuffer(raw, "<i2").astype(np.float32) / 32768


def mel_frames(
    length: np.ndarray | Array | int, *, rate: int = 8000, window: float = 0.025, hop: float = 0.01
) -> Array:
    """How many frames `log_mel` makes of `length` samples, int32: ⌊(T − window) / hop⌋ + 1, or 0."""
    width, step = _widths(rate, window, hop)
    return jnp.maximum((jnp.asarray(length, jnp.int32) - width) // step + 1, 0)


@partial(jax.jit, static_argnames=("rate", "window", "hop", "filters", "low", "high", "floor"))
def log_mel(
    x: Array,
    *,
    rate: int = 8000,
    window: float = 0.025,
    hop: float = 0.01,
    filters: int = 40,
    low: float = 0.0,
    high: float | None = None,
    floor: float = 1e-6,
) -> Array:
    """The logarithmic mel spectrum of sound: samples (…, T) to (…, F, M), in the dtype of x.

        S_f = |DFT(hann · x_f)|²,   y_f = log(max(B S_f, floor))

    x_f are `window` seconds of x from f · `hop` on, filled up with 0 to a power of two; F is `mel_frames(T)`. The
    rows of B are triangles between neighbours of M + 2 frequencies that lie evenly on the mel scale,
    mel(ν) = 2595 log₁₀(1 + ν / 700), from `low` to `high`. A frame depends on the samples in it alone: the first
    `mel_frames(length)` of a padded recording are those of the recording.

    Args:
        x: samples, real, (…, T) with T of at least one window.
        rate: samples per second.
        window: of a frame, in seconds.
        hop: from frame to frame, in seconds.
        filters: M.
        low: the lowest frequency.
        high: the highest; None for rate / 2.
        floor: the energy below which there is silence.

    Raises:
        ValueError: if x is shorter than a window or not real, a number is out of range, or there are so many
            filters that one has no frequency of the DFT in it.

    Reference: O'Shaughnessy, "Speech communication" (1987), for the scale; Young et al., "The HTK book" (2006),
    section 5.4, for the filters.
    """
    width, step = _widths(rate, window, hop)
    if x.ndim < 1 or x.shape[-1] < width or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"log_mel needs real samples (…, T), T ≥ {width}; got {x.dtype} {x.shape}")
    high = rate / 2 if high is None else high
    if not 0 <= low < high <= rate / 2 or filters < 1 or floor <= 0:
        raise ValueError(
            f"log_mel needs 0 ≤ low < high ≤ rate / 2, filters ≥ 1 and floor > 0; got {low}, {high}, {filters} "
            f"and {floor}"
        )
    size = 1 << (width - 1).bit_length()  # of the DFT
    bank = _mel_filters(rate, size, filters, low, high)
    dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    starts = np.arange(0, x.shape[-1] - width + 1, step)
    parts = x.astype(dtype)[..., starts[:, None] + np.arange(width)]  # (…, F, width)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
    parts = jnp.einsum("...w,w->...w", parts, jnp.asarray(hann, dtype))
    spectrum = jnp.fft.rfft(parts, size)
    power = spectrum.real**2 + spectrum.imag**2  # (…, F, size / 2 + 1)
    energy = jnp.matmul(power, jnp.asarray(bank.T, dtype), precision="highest")
    return jnp.log(jnp.maximum(energy, jnp.asarray(floor, dtype))).astype(x.dtype)


def _widths(rate: int, window: float, hop: float) -> tuple[int, int]:
    """Samples in a window and in a hop."""
    width, step = round(window * rate), round(hop * rate)
    if width < 2 or step < 1:
        raise ValueError(f"a window needs 2 samples, a hop 1; got {window} s and {hop} s at {rate} per second")
    return width, step


def _mel_filters(rate: int, size: int, filters: int, low: float, high: float) -> np.ndarray:
    """B (M, size / 2 + 1): the value of each triangle at each frequency of the DFT."""
    ends = 2595 * np.log10(1 + np.array([low, high]) / 700)
    mel = np.linspace(ends[0], ends[1], filters + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = np.arange(size // 2 + 1) * rate / size
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    bank = np.maximum(np.minimum(rising, falling), 0)
    if not bank.any(1).all():
        raise ValueError(
            f"{filters} filters are too many for a window of {size} samples: one has no frequency in it"
        )
    return bank
