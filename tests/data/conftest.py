"""The real files, where they are."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data():
    """The folder of data sets: `real_data("mnist", …)` skips the test if it hasn't all of these folders."""

    def folder(*names):
        found = Path(os.environ.get("JAXNET_DATA") or Path(__file__).parents[3] / "shared" / "data")
        missing = [name for name in names if not (found / name).is_dir()]
        if missing:
            pytest.skip(f"{found} has no {', '.join(missing)}: set JAXNET_DATA to the folder of the data sets")
        return found

    return folder
