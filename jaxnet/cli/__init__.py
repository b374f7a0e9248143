"""The command `jaxnet`, and the frame around an experiment."""

from jaxnet.cli.commands import main as main
from jaxnet.cli.experiment import NOT_NEGATIVE as NOT_NEGATIVE
from jaxnet.cli.experiment import POSITIVE as POSITIVE
from jaxnet.cli.experiment import RunOptions as RunOptions
from jaxnet.cli.experiment import WholeNumbers as WholeNumbers
from jaxnet.cli.experiment import configuration as configuration
from jaxnet.cli.experiment import experiment as experiment
from jaxnet.cli.experiment import option as option
