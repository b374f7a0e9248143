"""Data sets in their standard formats, and mini-batches."""

from jaxnet.data.batches import Batches as Batches
from jaxnet.data.batches import batches as batches
from jaxnet.data.datasets import Dataset as Dataset
from jaxnet.data.datasets import breast_cancer as breast_cancer
from jaxnet.data.datasets import diabetes as diabetes
from jaxnet.data.datasets import digits as digits
from jaxnet.data.datasets import mnist as mnist
from jaxnet.data.idx import idx as idx
