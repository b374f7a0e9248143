import itertools
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.train.report import Report, work_update
from jaxnet.train.report.figures import pixels, png, smooth, thin

VOID = {"meta", "img", "br", "hr", "input", "link"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """A page read strictly: tags must balance; keeps its text, attributes and ids."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.words = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.attributes.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, name):
        return [attributes[name] for _, attributes in self.attributes if name in attributes]


def page_of(report, tmp_path):
    report.write(tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def metrics(steps):
    for i in range(steps):
        row = {"step": i + 1, "epoch": i // 50, "loss": 2 / (1 + i / 20), "accuracy": i / steps}
        epoch_ends = i % 50 == 49
        yield row | {"test_loss": row["loss"] + 0.1 if epoch_ends else None, "learning_rate": 0.1}


# ---- the worked update ------------------------------------------------------------------------------

ACTIVATIONS = {
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2, jnp.tanh),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float), jax.nn.relu),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2, jax.nn.sigmoid),
}
LOSSES = {
    "cross_entropy": lambda z, y: -jax.nn.log_softmax(z)[y],
    "binary_cross_entropy": lambda z, y: jnp.sum(jnp.logaddexp(0, z) - y * z),
    "squared_error": lambda z, y: jnp.sum((z - y) ** 2),
}


def example(sizes, activation, output, bias=True, seed=0):
    """A random network, one example, the worked update, and jax's gradient in float64."""
    random = np.random.default_rng(seed)
    params = [
        {"weight": random.normal(size=(i, o)) / math.sqrt(i)} | ({"bias": random.normal(size=o)} if bias else {})
        for i, o in itertools.pairwise(sizes)
    ]
    x = random.normal(size=sizes[0])
    target = {
        "cross_entropy": sizes[-1] - 1,
        "binary_cross_entropy": random.integers(0, 2, sizes[-1]).astype(float),
        "squared_error": random.normal(size=sizes[-1]),
    }[output]
    f, derivative, jax_f = ACTIVATIONS[activation]

    def loss(params, x):
        for layer in params[:-1]:
            x = jax_f(x @ layer["weight"] + layer.get("bias", 0.0))
        return LOSSES[output](x @ params[-1]["weight"] + params[-1].get("bias", 0.0), target)

    with jax.enable_x64(True):
        value, gradients = jax.tree.map(np.asarray, jax.value_and_grad(loss)(params, x))
        after = loss(jax.tree.map(lambda w, g: w - 0.05 * g, params, gradients), x).item()
    update = work_update(
        params, x, target, activation=(f, derivative), output=output, learning_rate=0.05, gradients=gradients
    )
    return params, x, update, value, gradients, after


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("output", list(LOSSES))
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("sizes", [(5, 3), (7, 6, 4), (9, 8, 5, 2), (4, 1, 1)])
def test_update_is_jax_grads(sizes, activation, output, bias):
    params, _, update, loss, gradients, after = example(sizes, activation, output, bias)
    assert update.largest_difference < 1e-12
    assert math.isclose(update.loss, loss, rel_tol=1e-12)
    assert math.isclose(update.loss_after, after, rel_tol=1e-10)
    assert update.parameters == sum(w.size for layer in params for w in layer.values())
    for layer, p, g in zip(update.layers, params, gradients, strict=True):
        assert (layer.inputs, layer.outputs) == p["weight"].shape
        assert len(layer.neurons) == min(3, layer.outputs)
        for neuron in layer.neurons:
            assert len(neuron.changes) == min(4, layer.inputs) + bias
            for change in neuron.changes:
                name, at = (
                    ("bias", change.column) if change.row is None else ("weight", (change.row, change.column))
                )
                assert change.old == p[name][at]
                assert change.autodiff == g[name][at]
                assert abs(change.gradient - g[name][at]) < 1e-12
                assert change.gradient == change.input * neuron.delta
                assert abs(change.new - (p[name][at] - 0.05 * g[name][at])) < 1e-12


def test_update_adds_up():
    """What a reader checks by hand: terms and rest make the total, total and bias make z, and so on."""
    params, x, update, *_ = example((7, 6, 4), "tanh", "cross_entropy")
    for n, layer in enumerate(update.layers):
        for neuron in layer.neurons:
            for total in filter(None, (neuron.forward, neuron.backward)):
                terms = [term.weight * term.value for term in total.terms]
                assert math.isclose(sum(terms) + total.rest, total.total, abs_tol=1e-14)
                assert [abs(t) for t in terms] == sorted(map(abs, terms), reverse=True)
            assert math.isclose(neuron.forward.total + neuron.bias, neuron.z, abs_tol=1e-14)
            if n == 0:
                assert math.isclose(neuron.a, math.tanh(neuron.z))
                assert math.isclose(neuron.delta, neuron.backward.total * (1 - neuron.a**2), abs_tol=1e-14)
                assert all(term.value == x[term.number] for term in neuron.forward.terms)
            else:
                assert neuron.delta == update.prediction[neuron.number] - update.target[neuron.number]
    assert math.isclose(update.prediction.sum(), 1)
    assert math.isclose(update.loss, -math.log(update.prediction[3]))
    below, above = ([neuron.number for neuron in layer.neurons] for layer in update.layers)
    np.testing.assert_array_equal(update.layers[1].links, params[1]["weight"][np.ix_(below, above)])


def test_update_takes_a_distribution_and_passes_over_empty_layers():
    params = [{"weight": np.eye(3)}, (), {"weight": np.eye(3)}]
    z, y = np.array([0.1, 0.2, 0.4]), np.array([0.5, 0.5, 0.0])
    p = np.exp(z) / np.exp(z).sum()
    rules = {"activation": (np.copy, np.ones_like), "output": "cross_entropy", "learning_rate": 1}
    update = work_update(params, z, y, gradients=params, **rules)
    np.testing.assert_allclose(update.delta, p - y, atol=1e-15)
    assert math.isclose(update.loss, -(y * np.log(p)).sum())
    assert len(update.layers) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"output": "hinge"}, r"output must be one of .*, got 'hinge'"),
        ({"x": np.ones(4)}, r"params\[0\]\['weight'\] must have shape \(4, out\), got \(3, 2\)"),
        ({"target": 2}, r"target must be a class number below 2, got 2"),
        ({"target": 0.5}, r"target must be a class number below 2, got 0.5"),
        ({"target": np.ones(3)}, r"target must hold 2 numbers.*got shape \(3,\)"),
        ({"params": []}, r"at least one dense layer"),
        ({"params": [{"kernel": np.ones((3, 2))}]}, r"must be a dense layer .*, got \['kernel'\]"),
        ({"params": [{"weight": np.ones((3, 2)), "bias": np.ones(3)}]}, r"must have shape \(2,\), got \(3,\)"),
        ({"gradients": [{"weight": np.ones((2, 3))}]}, r"gradients must be shaped as params"),
        ({"neurons": 0}, r"at least 1, got 0"),
        ({"classes": ["a"]}, r"classes must name the 2 outputs, got 1"),
    ],
)
def test_update_rejects(changed, message):
    good = {"params": [{"weight": np.ones((3, 2))}], "x": np.ones(3), "target": 1, "output": "cross_entropy"}
    good |= {"gradients": good["params"], "activation": (np.tanh, np.cos), "learning_rate": 0.1}
    with pytest.raises(ValueError, match=message):
        work_update(**(good | changed))


@pytest.mark.parametrize("output", list(LOSSES))
@pytest.mark.parametrize("sizes", [(5, 3), (9, 8, 5, 30), (4, 1, 1)])
def test_update_is_written_out_with_all_its_digits(tmp_path, sizes, output):
    *_, update, _, _, _ = example(sizes, "tanh", output)
    report = Report("one step")
    report.worked_update(update)
    values = set(map(float, Page(page_of(report, tmp_path)).values("value")))
    for layer in update.layers:
        for neuron in layer.neurons:
            assert {neuron.z, neuron.bias, neuron.delta} <= values
            shown = [*neuron.changes[:2], neuron.changes[-1]]
            assert {v for c in shown for v in (c.old, c.gradient, c.autodiff, c.new)} <= values
            assert {v for t in neuron.forward.terms for v in (t.weight, t.value, t.weight * t.value)} <= values
    assert {update.loss, update.loss_after} <= values


def test_update_of_a_diverged_run_is_shown(tmp_path):
    params = [{"weight": np.full((2, 2), np.inf)}, {"weight": np.full((2, 2), 1e200)}]
    rules = {"activation": (np.tanh, np.cos), "output": "cross_entropy", "learning_rate": 1e300}
    update = work_update(params, np.array([1.0, -1.0]), 0, gradients=params, **rules)
    report = Report("diverged")
    report.worked_update(update)
    assert "not a number" in Page(page_of(report, tmp_path)).text


# ---- the page ---------------------------------------------------------------------------------------


@pytest.fixture
def full():
    """A page with everything on it."""
    random = np.random.default_rng(0)
    images = random.random((6, 8, 8))
    report = Report("Digits", "64–32–10 on 1,437 images", facts={"test accuracy": "98.1 %", "time": "3 s"})
    report.curves(list(metrics(300)))
    report.confusion(random.integers(0, 40, (10, 10)) + 100 * np.eye(10, dtype=int), range(10))
    report.pictures("The most mistaken", images, [f"is {i}, said {i + 1}" for i in range(6)])
    report.pictures("Photographs", random.random((2, 120, 160, 3)), ["one", "two"])
    report.worked_update(example((64, 32, 10), "tanh", "cross_entropy")[2]._replace(picture=images[0]))
    report.roc([0, 0.1, 1], [0, 0.9, 1], np.float32(0.9))
    foretold = np.stack([images[0, 0], np.where(np.arange(8) < 5, np.nan, 0.5)])
    lines = [("<a>", images[0, 0], [[1, 2]], [1]), ("b", images[0, 0], [], []), ("c", foretold, [], [])]
    report.series("Series", lines, note="n < m")
    report.scatter("Classes", [0, 1, 2, 3], [0, 0, 1, 1], "a", "b", classes=["x", "x", "<y>", "$z$"])
    report.scatter("Predicted", images[0, 0], images[0, 1], "true $x$", "predicted 預測 <b>", diagonal=True)
    report.table("Runs", [{"name": "a", "loss": 0.123456789}, {"name": "b", "steps": 12345}], note="Three seeds.")
    report.translations("Translated", [("a < b", "c", "d")], note="The first.")
    p = np.array([[0.999, 0.001], [0.25, 0.75], [0.5, 0.5]])
    report.alignments("Where it looks", [("a < b", ["x", "<y>", "</s>"], ["u", "v"], p)], note="In percent.")
    report.html("Gradients", "<table><tr><td>own fragment</td></tr></table>")
    report.config({"seed": 7, "optimizer": {"name": "adam", "rate": 1e-3}, "nothing": {}})
    return report


def test_page_is_well_formed_and_needs_nothing_else(full, tmp_path):
    html = page_of(full, tmp_path)
    page = Page(html)
    assert not re.search(r'https?:|="//|@import|<script|<link', html)
    assert all(source.startswith("data:image/png;base64,") for source in page.values("src"))
    assert all(link.startswith(("#", "data:image/png")) for link in page.values("href"))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {name[1:] for name in page.values("href") if name.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert all(attributes.get("alt") for tag, attributes in page.attributes if tag == "img")
    assert all(a.get("aria-label") for tag, a in page.attributes if tag == "svg")
    assert len(html) < 1_500_000


def test_wide_pictures_are_large_and_a_second_line_has_its_colour(full, tmp_path):
    html = page_of(full, tmp_path)
    large = html.split('<div class="pictures large">')[1].split("</div>")[0]
    assert large.count("<img ") == 2
    assert "pixels" not in large
    b, c = (html.split(f'aria-label="{name}: 8 values')[1].split("</svg>")[0] for name in "bc")
    assert "stroke: var(--test)" not in b
    assert c.count("stroke: var(--test)") == 1


def test_page_says_what_it_was_given(full, tmp_path):
    text = Page(page_of(full, tmp_path)).text
    for words in ("98.1 %", "64–32–10 on 1,437 images", "is 3, said 4", "0.12346", "12,345", "Three seeds."):
        assert words in text
    for words in (
        "own fragment",
        "optimizer.rate",
        "0.001",
        "Area under the curve 0.9000",
        "true $x$",
        "預測 <b>",
    ):
        assert words in text
    titles = ["Learning curves", "Confusion matrix", "The most mistaken", "One update step", "ROC", "Predicted"]
    places = [text.rindex(title) for title in titles[:4]]
    assert places == sorted(places)


def test_same_input_same_page(tmp_path):
    pages = []
    for _ in range(2):
        report = Report("twice")
        report.curves(list(metrics(120)))
        report.roc([0, 1], [0, 1], 0.5)
        pages.append(page_of(report, tmp_path))
    assert pages[0] == pages[1]


def test_text_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>&'
    report = Report(evil, evil, facts={evil: evil})
    report.curves([{"step": 1, evil: 1.0}, {"step": 2, evil: 2.0}])
    report.confusion([[1, 2], [3, 4]], [evil, "b"])
    report.pictures(evil, np.zeros((1, 2, 2)), [evil])
    report.scatter(evil, [1, 2], [3, 4], evil, evil)
    report.table(evil, [{evil: evil}], note=evil)
    report.translations(evil, [(evil, evil, evil)], note=evil)
    report.alignments(evil, [(evil, [evil], [evil], [[1.0]])], note=evil)
    report.config({evil: evil})
    update = example((3, 2), "tanh", "cross_entropy")[2]
    report.worked_update(update._replace(classes=(evil, evil), activation=evil))
    html = page_of(report, tmp_path)
    assert "<script" not in html
    assert Page(html).text.count(evil) > 10


def test_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("the old page")

    def fail(*_):
        raise OSError("disk full")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match="disk full"):
                Report("new").write(path)
        assert path.read_text() == "the old page"
        assert os.listdir(tmp_path) == ["report.html"]
    Report("new").write(str(path))
    assert "<h1>new</h1>" in path.read_text()


# ---- its parts --------------------------------------------------------------------------------------


def test_curves_pair_metrics_and_leave_gaps(tmp_path):
    rows = [{"step": i, "loss": 1 / i, "test_loss": None, "rate": 0.1, "blank": None} for i in range(1, 101)]
    rows[9]["loss"], rows[10]["loss"], rows[99]["test_loss"] = math.nan, math.inf, 0.5
    report = Report("gaps")
    report.curves(rows)
    page = Page(page_of(report, tmp_path))
    assert page.words.count("loss") == 1  # one chart for loss and test_loss, none for the blank metric
    assert "blank" not in page.words
    assert "training 0.01 test 0.5 2 not finite" in page.text


@pytest.mark.parametrize(
    "rows",
    [
        [{"loss": 1.0}],
        [{"step": 1, "loss": math.nan}],
        [{"step": i, "loss": -math.inf} for i in range(100)],
        [{"step": "1", "loss": "2.5", "test_loss": ""}],  # as csv.DictReader reads them
        [{"step": 5, "loss": 0.0}, {"step": 5, "loss": 0.0}],
        [{"step": i, "loss": 10.0 ** (-i / 1000)} for i in range(5000)],
        [{"step": 1}],
    ],
)
def test_curves_of_unusual_rows(tmp_path, rows):
    report = Report("unusual")
    report.curves(rows)
    Page(page_of(report, tmp_path))


def test_confusion_counts_and_names_the_errors(tmp_path):
    report = Report("confusion")
    report.confusion(np.array([[50, 2, 0], [0, 40, 0], [7, 1, 0]]), ["cat", "dog", "automobile"])
    text = Page(page_of(report, tmp_path)).text
    assert "10 of 100 wrong" in text
    assert "automobile taken for cat (7×)" in text
    assert "96.2" in text  # the cats' recall
    assert "–" in text  # nothing was ever taken for an automobile


def test_images_keep_their_pixels():
    matplotlib_image = pytest.importorskip("matplotlib.image")
    import base64
    import io

    random = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 3), (1, 1)):
        image = random.integers(0, 256, shape).astype(np.uint8)
        uri = png(image)
        read = matplotlib_image.imread(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        np.testing.assert_array_equal(np.rint(read * 255).astype(np.uint8), image)
    np.testing.assert_array_equal(pixels(np.array([[-1.0, 0.0, 1.0, np.nan]])), [[0, 128, 255, 128]])


def test_smooth_and_thin():
    y = np.sin(np.arange(10_000) / 50)
    y[17], y[5000] = np.nan, 9.0
    x, thinned = thin(np.arange(10_000), y)
    assert len(x) <= 1400
    assert np.nanmax(thinned) == 9.0
    assert np.isnan(smooth(y)[17])
    np.testing.assert_allclose(smooth(np.ones(100)), 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.curves([]), "at least one row"),
        (lambda r: r.curves([{"loss": "high"}]), "'loss' in row 0 must be a number or None, got 'high'"),
        (lambda r: r.confusion(np.ones((2, 3), int), ["a", "b"]), r"\(2, 2\) for the 2 classes, got \(2, 3\)"),
        (lambda r: r.confusion(np.ones((2, 2)), ["a", "b"]), "of integers"),
        (lambda r: r.pictures("p", np.ones((2, 4, 4)), ["one"]), "one for each of the 2 images, got 1"),
        (lambda r: r.pictures("p", np.ones((4, 4)), ["one"]), r"\(n, h, w\).*got \(4, 4\)"),
        (
            lambda r: r.alignments("a", [("b", ["c"], ["d"], np.ones((2, 1)))]),
            r"\(1, 1\), as its words; got \(2, 1\)",
        ),
        (lambda r: r.alignments("a", [("b", ["c"], ["d"], [[1.5]])]), "from 1.5 to 1.5"),
        (lambda r: r.roc([0, 1], [0, 0.5, 1], 0.5), r"equal length.*got \(2,\) and \(3,\)"),
        (lambda r: r.scatter("s", [], [], "x", "y"), "not empty"),
        (lambda r: r.scatter("s", [1], [1], "x", "y", classes=[1, 2]), "classes must be one for each of the 1"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(Report("bad"))


# ---- in a browser -----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")
@pytest.mark.parametrize("width", [390, 1280])
def test_page_never_scrolls_sideways(full, tmp_path, width):
    """The page sits in a frame as wide as a phone, and what is wider must scroll in its own box."""
    full.confusion(np.ones((20, 20), int), [f"a long class name {i}" for i in range(20)])
    full.worked_update(example((9, 8, 5, 30), "relu", "binary_cross_entropy")[2])
    full.write(tmp_path / "report.html")
    measure = "const d = f.contentDocument.documentElement; document.title = [d.scrollWidth, d.clientWidth]"
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" src="report.html" style="width:{width}px; height:800px" onload="{measure}"></iframe>'
    )
    options = [
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "no-first-run",
        "dump-dom",
    ]
    options += [
        "allow-file-access-from-files",
        "virtual-time-budget=5000",
        f"user-data-dir={tmp_path / 'profile'}",
    ]
    command = [CHROMIUM, *(f"--{option}" for option in options), (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    scrolled, visible = map(int, re.search(r"<title>(.*?)</title>", dom)[1].split(","))
    assert visible >= width - 20  # less a scroll bar
    assert scrolled <= visible
