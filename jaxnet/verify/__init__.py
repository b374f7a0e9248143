"""Gradient verification for any JAX function: four roads to one gradient, and they must meet."""

from jaxnet.verify import mutate as mutate
from jaxnet.verify.cases import case as case
from jaxnet.verify.check import GradientError as GradientError
from jaxnet.verify.check import assert_gradients as assert_gradients
from jaxnet.verify.check import check_gradients as check_gradients
from jaxnet.verify.error_map import ErrorMap as ErrorMap
from jaxnet.verify.layer import LayerLike as LayerLike
from jaxnet.verify.layer import check_layer as check_layer
from jaxnet.verify.module import check_module as check_module
from jaxnet.verify.mutation_report import MutationReport as MutationReport
from jaxnet.verify.report import LeafReport as LeafReport
from jaxnet.verify.report import Report as Report
from jaxnet.verify.report import WitnessReport as WitnessReport
from jaxnet.verify.report import Worst as Worst
from jaxnet.verify.sweep import Combination as Combination
from jaxnet.verify.sweep import SweepReport as SweepReport
from jaxnet.verify.sweep import sweep as sweep
