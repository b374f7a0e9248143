"""Data sets in their standard formats, and mini-batches."""

from jaxnet.data import augment as augment
from jaxnet.data.batches import Batches as Batches
from jaxnet.data.batches import batches as batches
from jaxnet.data.datasets import Dataset as Dataset
from jaxnet.data.datasets import breast_cancer as breast_cancer
from jaxnet.data.datasets import diabetes as diabetes
from jaxnet.data.datasets import digits as digits
from jaxnet.data.datasets import mnist as mnist
from jaxnet.data.idx import idx as idx
from jaxnet.data.images import Boxes as Boxes
from jaxnet.data.images import Detection as Detection
from jaxnet.data.images import blood_cells as blood_cells
from jaxnet.data.images import cifar10 as cifar10
from jaxnet.data.images import faces as faces
from jaxnet.data.series import Series as Series
from jaxnet.data.series import nab as nab
