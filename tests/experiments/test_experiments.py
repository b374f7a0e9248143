"""The experiments as a user runs them: processes of their own, in an empty folder."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from jaxnet import train

FOLDER = Path(__file__).parents[2] / "experiments"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.py"))
EVERY_DAY = ["autoencoder_anomaly"]  # whose processes `make test` starts, .ci/run all
WITHOUT_FILES = ["feedforward_cancer", "feedforward_digits", "feedforward_regression"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs an experiment in one folder, with one compilation cache that is empty at first."""
    cwd = tmp_path_factory.mktemp("somewhere")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cwd / "cache"), "COLUMNS": "120"}
    environment.pop("JAXNET_DATA", None)

    def run(name, *options, typed=None):
        command = [sys.executable, FOLDER / f"{name}.py", *options]
        return subprocess.run(command, cwd=cwd, env=environment, input=typed, capture_output=True, text=True)

    run.cwd, run.environment = cwd, environment
    return run


def options_of(name):
    """The fields of an experiment's `Config`."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return fields(module.Config)


def of_cache(cwd):
    return sorted(path.name for path in (cwd / "cache").iterdir() if path.name.endswith("-cache"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERY_DAY else pytest.mark.long) for name in EXPERIMENTS]
)
def test_help_has_every_option_with_its_default(run, name):
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    for option in options_of(name):
        flag = f"--{option.name.replace('_', '-')}"
        assert re.search(rf" {flag} ", text), flag
        assert option.metadata["help"] in text
        if option.default not in ("", False, None):  # these are said in words
            of_tuple = isinstance(option.default, tuple)
            default = ",".join(map(str, option.default)) if of_tuple else str(option.default)
            assert re.search(rf" {flag} .*?\[default: {re.escape(default)}[;\]]", text), flag


@pytest.mark.long
@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_two_runs(run, name):
    """The second loads what the first compiled, ends with the same bits, and overwrites nothing."""
    metrics, compiled = [], []
    for folder in (name, f"{name}-2"):
        done = run(name, "--epochs", "2")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"runs/{folder}/report.html" in done.stdout
        made = run.cwd / "runs" / folder
        assert sorted(path.name for path in made.iterdir()) == [
            "checkpoints",
            "config.json",
            "metrics.csv",
            "report.html",
        ]
        rows = train.read_metrics(made / "metrics.csv")
        metrics.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
        compiled.append(of_cache(run.cwd))
    assert metrics[0] == metrics[1]
    assert {"step", "epoch", "loss", "test_loss"} <= set(metrics[0][0])
    assert compiled[0]
    assert compiled[0] == compiled[1]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EVERY_DAY else pytest.mark.long)
        for name in EXPERIMENTS
        if "smoke" in {f.name for f in options_of(name)}
    ],
)
def test_smoke(run, name):
    """The whole script in seconds, on data that need no files; and every gradient check passes."""
    done = run(name, "--smoke", "--epochs", "1", "--run", f"{name}-smoke")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("jaxnet")
    assert "PASS" in done.stdout
    assert "FAIL" not in done.stdout
    made = run.cwd / "runs" / f"{name}-smoke"
    assert {"config.json", "report.html"} <= {path.name for path in made.iterdir()}
    assert all(train.read_metrics(path) for path in made.rglob("metrics.csv"))


@pytest.mark.long
@pytest.mark.parametrize("name", ["convolutional_cifar10", "transformer_gpt"])
def test_the_preset_for_a_gpu(run, name):
    done = run(name, "--smoke", "--preset", "gpu", "--epochs", "1", "--run", f"{name}-gpu")
    assert (done.returncode, done.stderr) == (0, "")
    config = json.loads((run.cwd / f"runs/{name}-gpu/config.json").read_text())
    assert config["options"]["preset"] == "gpu"


@pytest.mark.long
def test_a_text_of_ones_own_is_written_on_from_another_prompt(run):
    (run.cwd / "mine.txt").write_text("one two three four five six seven eight nine ten\n" * 40)
    options = "--smoke", "--text", "mine.txt", "--epochs", "1", "--run", "mine", "--length", "20"
    assert run("transformer_gpt", *options, "--temperature", "0").returncode == 0
    metrics = (run.cwd / "runs/mine/metrics.csv").read_text()
    done = run("transformer_gpt", "--resume", "--run", "mine", "--prompt", "three ", "--length", "9")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^three[a-z \n]{9}\n\nvalidation loss", done.stdout, re.MULTILINE)
    assert (run.cwd / "runs/mine/metrics.csv").read_text() == metrics
    done = run("transformer_gpt", "--resume", "--run", "mine", "--prompt", "€")
    assert only_error(done).startswith("error: character 0 of the text, '€', is not one of the")


@pytest.mark.long
def test_words_of_a_text_of_ones_own_are_written_on_from_another_prompt(run):
    (run.cwd / "words.txt").write_text("one two three four five six seven eight nine ten\n" * 40)
    options = "--text", "words.txt", "--unit", "word", "--features", "24", "--embedding", "16", "--block", "8"
    done = run("lstm_language_model", *options, "--epochs", "2", "--run", "words", "--length", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^LSTM +[\d.]+ nats a word +[\d.]+ perplexity$", done.stdout, re.MULTILINE)
    assert "12 words; 0.0% of those held out are unknown" in done.stdout  # with the end of a line, and <unk>
    config = json.loads((run.cwd / "runs/words/config.json").read_text())["options"]
    assert (config["features"], config["dropout"]) == (24, None)
    metrics = (run.cwd / "runs/words/metrics.csv").read_text()
    done = run("lstm_language_model", "--resume", "--run", "words", "--prompt", "three four", "--length", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nthree four" in done.stdout
    assert (run.cwd / "runs/words/metrics.csv").read_text() == metrics
    done = run("lstm_language_model", "--resume", "--run", "words", "--prompt", " ")
    assert only_error(done) == "error: --prompt ' ' has no word to write on from"


@pytest.mark.long
@pytest.mark.parametrize("name", ["lstm_translation", "transformer_translation"])
def test_a_sentence_of_ones_own_is_translated_by_a_finished_run(run, name):
    smoke = "--smoke", "--epochs", "1", "--run", f"{name}-own"
    done = run(name, *smoke, "--translate", "twenty-one")
    assert (done.returncode, done.stderr) == (0, "")
    made = run.cwd / "runs" / f"{name}-own"
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    again = run(name, "--resume", "--run", f"{name}-own", "--translate", "twenty-one")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    assert "PASS" not in again.stdout
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before
    config = json.loads((made / "config.json").read_text())
    assert config["options"]["translate"] == ""


@pytest.mark.long
def test_a_fine_tuning_goes_on_without_the_pre_training_and_judges_a_sentence(run):
    assert run("transformer_bert", "--smoke", "--epochs", "1", "--run", "judge").returncode == 0
    folder = run.cwd / "runs/judge"
    shutil.rmtree(folder / "from-scratch-0")  # as if it had been stopped before
    written = {path: path.stat().st_mtime_ns for path in (folder / "pretraining/checkpoints").rglob("*")}
    done = run("transformer_bert", "--resume", "--run", "judge", "--sentence", "The film isn't dull!")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^“The film isn't dull!” is (positive|negative) \(\d+%\)$", done.stdout, re.MULTILINE)
    assert (folder / "from-scratch-0/metrics.csv").exists()
    assert {path: path.stat().st_mtime_ns for path in written} == written
    for sentence in (" ", "?!"):
        done = run("transformer_bert", "--resume", "--run", "judge", "--sentence", sentence)
        assert only_error(done) == f"error: --sentence needs a word; got {sentence!r}"


@pytest.mark.long
def test_a_conversation(run):
    """Lines in, lines out, until an empty one, the end of the file or Ctrl-C; the run stays as it was."""
    assert run("lstm_chatbot", "--smoke", "--epochs", "12", "--run", "talker").returncode == 0
    folder, chat = run.cwd / "runs/talker", ("--resume", "--run", "talker", "--chat")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    replies = []
    for typed in ("Where is the cat 7 ?\nThank you!\n\nnever read\n", "Where is the cat 7?\nThank you!\n"):
        done = run("lstm_chatbot", *chat, typed=typed)
        assert (done.returncode, done.stderr) == (0, "")
        _, *said, end = done.stdout.split("> ")
        assert not end.strip()
        replies.append(said)
    assert replies[0] == replies[1]  # drawn by the run's seed
    assert [re.fullmatch(r".+\n", reply) is not None for reply in replies[0]] == [True, True]
    done = run("lstm_chatbot", *chat, "--beams", "2", typed="Where is the ball 12?\n")
    assert (done.returncode, done.stdout.count("> ")) == (0, 2)

    command = [sys.executable, FOLDER / "lstm_chatbot.py", *chat]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=run.cwd, env=run.environment, text=True, **pipes) as process:
        process.stdin.write("Thank you!\n")
        process.stdin.flush()
        while not process.stdout.readline().startswith("> "):
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert process.stderr.read() == ""
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nobody_to_talk_with(run):
    assert "--chat talks with a finished run" in only_error(run("lstm_chatbot", "--chat"))


@pytest.mark.long
def test_config_json(run):
    options = ("--seed", "3", "--hidden", "5,4", "--activation", "tanh")
    assert run("feedforward_cancer", "--run", "named", "--epochs", "1", *options).returncode == 0
    config = json.loads((run.cwd / "runs/named/config.json").read_text())
    assert set(config["options"]) == {option.name for option in options_of("feedforward_cancer")}
    given = {"seed": 3, "hidden": [5, 4], "activation": "tanh", "epochs": 1}
    assert config["options"].items() >= given.items()
    assert config["versions"] == train.versions()


def only_error(done):
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--activation rleu", "error: unknown activation 'rleu': did you mean 'relu'?"),
        ("--batch-size 5000", "error: batches has no batch to give: 1437 examples, batch_size=5000"),
        ("--dropout 1", "error: Invalid value for '--dropout': 1.0 is not in the range 0<=x<1."),
        ("--learning-rate nan", "error: learning_rate must be in [0, inf); got nan"),
    ],
)
def test_mistakes(run, options, message):
    assert only_error(run("feedforward_digits", *options.split())).startswith(message)


@pytest.mark.long
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--input", "50", "--input must be a multiple of --segment; got 50 and 24: try --input 72"),
        ("--horizons", "", "--horizons must be at least one number of hours, such as 24,336; got none"),
    ],
)
def test_hours_that_cannot_be_foretold(run, option, value, message):
    assert only_error(run("recurrent_forecast", "--smoke", option, value)) == f"error: {message}"


@pytest.mark.long
def test_a_learning_rate_far_too_large(run):
    line = only_error(run("feedforward_digits", "--run", "wild", "--learning-rate", "1e30", "--epochs", "2"))
    pattern = (
        r"error: the loss became \S+ in step 2 \(epoch 1\); first not finite: activation layer\d of shape .*; "
        r"the checkpoint of step 0 is kept in runs/wild\. A smaller learning rate may help"
    )
    assert re.fullmatch(pattern, line)
    assert train.Checkpoints(run.cwd / "runs/wild/checkpoints").steps() == [0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "recurrent_speech" else pytest.mark.long)
        for name in EXPERIMENTS
        if "data" in {f.name for f in options_of(name)}
    ],
)
def test_without_its_data_no_run_is_left_behind(run, name):
    line = only_error(run(name, "--data", "nowhere", "--run", f"{name}-nowhere"))
    assert line == "error: the data folder nowhere isn't there (--data DIR or JAXNET_DATA)"
    assert not (run.cwd / "runs" / f"{name}-nowhere").exists()


def test_files_that_are_not_there(run):
    line = only_error(run("feedforward_mnist"))
    assert "train-images-idx3-ubyte" in line
    assert "--data DIR or the environment variable JAXNET_DATA" in line
    line = only_error(run("feedforward_mnist", "--data", "nowhere"))
    assert line == "error: the data folder nowhere isn't there (--data DIR or JAXNET_DATA)"
