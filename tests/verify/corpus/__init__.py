"""Functions with one planted mistake each, and correct ones with traps: `CASES`, by name.

Nothing of jaxnet is imported: a case is a plain JAX function, so that every checker can be put to it.
"""

import importlib
import pkgutil

from .registry import CASES as CASES
from .registry import SEEDS as SEEDS
from .registry import Case as Case
from .registry import Setup as Setup

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
