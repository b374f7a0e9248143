"""Spoken digits from WAV files as FSDD has them, and the log-mel spectrum beside its formula in float64."""

import io
import tarfile
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import data

RATE = 8000


def wav(samples, channels=1, width=2, rate=RATE):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def sound(length, seed=0):
    return np.random.default_rng(seed).integers(-(2**15), 2**15, length).astype("<i2")


SOUNDS = {
    f"recordings/{digit}_{speaker}_{index}.wav": sound(300 + 10 * index + digit, 100 * digit + index)
    for digit in (3, 0)
    for speaker in ("theo", "anna")
    for index in (0, 4, 5, 49)
}
FILES = {name: wav(samples) for name, samples in SOUNDS.items()} | {"recordings/readme.txt": b""}


def packed(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("as_folder", [False, True], ids=["archive", "folder"])
def test_digits_by_index(as_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXNET_DATA", str(tmp_path))
    (tmp_path / "fsdd" / "recordings").mkdir(parents=True)
    if as_folder:
        for name, content in FILES.items():
            (tmp_path / "fsdd" / name).write_bytes(content)
    else:
        (tmp_path / "fsdd" / "recordings").rmdir()
        packed(tmp_path / "fsdd" / "recordings.tar", FILES)
    found = data.spoken_digits()
    (x, lengths), y = found.train
    (test_x, test_lengths), test_y = found.test
    assert (x.shape, x.dtype, test_x.shape) == ((8, 793), np.float32, (8, 343))
    np.testing.assert_array_equal(y, [0] * 4 + [3] * 4)
    np.testing.assert_array_equal(test_y, y)
    np.testing.assert_array_equal(lengths[:4], [350, 790, 350, 790])
    np.testing.assert_array_equal(test_lengths[:4], [300, 340, 300, 340])
    np.testing.assert_array_equal(x[1, :790] * 32768, SOUNDS["recordings/0_anna_49.wav"])
    assert not x[0, 350:].any()
    assert -1 <= x.min() < x.max() < 1
    assert (found.rate, len(found.classes)) == (RATE, 10)


def test_digits_by_speaker(tmp_path):
    packed(tmp_path / "recordings.tar", FILES)
    found = data.spoken_digits(tmp_path, strangers=("theo",))
    for part, speaker in ((found.train, "anna"), (found.test, "theo")):
        (x, lengths), y = part
        assert len(x) == len(y) == 8
        wanted = SOUNDS[f"recordings/3_{speaker}_49.wav"]
        np.testing.assert_array_equal(x[-1, : lengths[-1]] * 32768, wanted)
    for strangers in (("theo", "anna"), ("nobody",)):
        with pytest.raises(ValueError, match=r"some of the speakers \['anna', 'theo'\]; got"):
            data.spoken_digits(tmp_path, strangers=strangers)


def test_no_recordings(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXNET_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"recordings\.tar.*https://.*--data DIR"):
        data.spoken_digits()
    with pytest.raises(
        FileNotFoundError, match=r"has neither recordings\.tar nor the folder recordings.*https://"
    ):
        data.spoken_digits(tmp_path)
    packed(tmp_path / "recordings.tar", {"recordings/1_theo_7.wav": wav(sound(300))})
    with pytest.raises(ValueError, match="no recordings to test on"):
        data.spoken_digits(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"MP3 or so", "is a damaged WAV file"),
        (b"", "is a damaged WAV file"),
        (FILES["recordings/0_theo_4.wav"][:-100], "is cut short: 580 bytes of 680"),
        (FILES["recordings/0_theo_4.wav"][:44], "is cut short: 0 bytes of 680"),
        (wav(sound(0)), "is cut short: 0 bytes of 0"),
        (wav(sound(300), channels=2), r"\(2, 16, 8000\) instead of \(1, 16, 8000\)"),
        (wav(sound(300), width=1), r"\(1, 8, 8000\) instead"),
        (wav(sound(300), rate=16000), r"\(1, 16, 16000\) instead"),
    ],
)
def test_a_damaged_recording_is_named(content, message, tmp_path):
    packed(tmp_path / "recordings.tar", FILES | {"recordings/0_theo_4.wav": content})
    with pytest.raises(ValueError, match=rf"recordings/0_theo_4\.wav {message}|{message}"):
        data.spoken_digits(tmp_path)


def test_a_recording_by_another_name(tmp_path):
    packed(tmp_path / "recordings.tar", FILES | {"recordings/ten_theo_4.wav": FILES["recordings/0_theo_4.wav"]})
    with pytest.raises(ValueError, match=r"ten_theo_4\.wav isn't named DIGIT_SPEAKER_INDEX\.wav"):
        data.spoken_digits(tmp_path)


def formula(x, rate, window, hop, filters, low, high, floor):
    """One recording in float64, filter by filter, bin by bin."""
    width, step = round(window * rate), round(hop * rate)
    size = 2 ** int(np.ceil(np.log2(width)))
    edges = np.linspace(2595 * np.log10(1 + low / 700), 2595 * np.log10(1 + high / 700), filters + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = np.arange(size // 2 + 1) * rate / size
    rows = []
    for start in range(0, len(x) - width + 1, step):
        n = np.arange(width)
        part = x[start : start + width] * np.sin(np.pi * n / width) ** 2
        power = np.abs(np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), n) / size) @ part) ** 2
        weights = [np.interp(bins, edges[m : m + 3], [0, 1, 0]) for m in range(filters)]
        rows.append([np.log(max(w @ power, floor)) for w in weights])
    return np.array(rows)


OPTIONS = {"rate": 8000, "window": 0.025, "hop": 0.01, "filters": 40, "low": 0.0, "high": 4000.0, "floor": 1e-6}


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 0.032, "hop": 0.016, "filters": 20, "low": 60.0, "high": 3800.0, "floor": 3.0}],
    ids=["defaults", "others"],
)
def test_log_mel_is_its_formula(options):
    x = np.random.default_rng(0).normal(size=(2, 1000))
    x[1, 500:] = 0
    wanted = np.stack([formula(row, **(OPTIONS | options)) for row in x])
    found = data.log_mel(jnp.asarray(x, jnp.float32), **options)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    frames = {name: value for name, value in options.items() if name in ("window", "hop")}
    assert wanted.shape[1] == data.mel_frames(1000, **frames)


def test_log_mel_in_float64(x64):
    x = np.random.default_rng(1).normal(size=700)
    np.testing.assert_allclose(data.log_mel(jnp.asarray(x)), formula(x, **OPTIONS), rtol=1e-9)


def test_a_tone_lights_its_filter():
    time = np.arange(4000) / RATE
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 42) / 2595) - 1)
    tones = np.sin(2 * np.pi * edges[[10, 20, 30], None] * time[None]).astype(np.float32)
    found = data.log_mel(jnp.asarray(tones))
    assert (found.mean(1).argmax(-1) == np.array([9, 19, 29])).all()


def test_frames_of_a_padded_recording_are_those_of_the_recording():
    sounds = [np.random.default_rng(t).normal(size=t).astype(np.float32) for t in (200, 279, 280, 281, 900, 100)]
    x, lengths = data.padded(sounds)
    spectrum, counts = data.log_mel(jnp.asarray(x)), data.mel_frames(lengths)
    np.testing.assert_array_equal(counts, [1, 1, 2, 2, 9, 0])
    for one, count, row in zip(sounds[:5], counts, spectrum, strict=False):
        np.testing.assert_allclose(row[:count], data.log_mel(jnp.asarray(one)), rtol=1e-5, atol=1e-5)


def test_log_mel_is_a_pure_function_of_any_leading_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 400))
    found = data.log_mel(x)
    assert found.shape == (2, 3, 3, 40)
    np.testing.assert_allclose(jax.vmap(data.log_mel)(x), found, rtol=1e-5)
    assert data.log_mel(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    gradient = jax.grad(lambda x: data.log_mel(x).sum())(x)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((199,), {}, r"needs real samples \(…, T\), T ≥ 200; got float32 \(199,\)"),
        ((), {}, "needs real samples"),
        ((400,), {"low": 4000.0}, "0 ≤ low < high ≤ rate / 2"),
        ((400,), {"high": 4001.0}, "got 0.0, 4001.0, 40 and 1e-06"),
        ((400,), {"floor": 0.0}, "floor > 0"),
        ((400,), {"filters": 0}, "filters ≥ 1"),
        ((400,), {"filters": 200}, "200 filters are too many for a window of 256 samples"),
        ((400,), {"hop": 0.00001}, "a window needs 2 samples, a hop 1"),
    ],
)
def test_what_has_no_spectrum(shape, options, message):
    with pytest.raises(ValueError, match=message):
        data.log_mel(jnp.ones(shape), **options)


def test_whole_numbers_have_no_spectrum():
    with pytest.raises(ValueError, match=r"needs real samples .* got int16"):
        data.log_mel(jnp.ones(400, jnp.int16))


def test_the_real_digits(real_data):
    found = data.spoken_digits(real_data("fsdd"))
    (x, lengths), y = found.train
    (_, test_lengths), test_y = found.test
    assert (x.shape, len(test_y)) == ((2700, 18262), 300)
    np.testing.assert_array_equal(np.bincount(y), [270] * 10)
    np.testing.assert_array_equal(np.bincount(test_y), [30] * 10)
    assert (lengths.min(), lengths.max()) == (1149, 18262)
    assert test_lengths.max() < 10_000
