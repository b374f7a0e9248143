"""Layers: `Layer`, those with parameters, and the combinators that make networks of them."""

from jaxnet.layers import initializers as initializers
from jaxnet.layers.activation import activation as activation
from jaxnet.layers.combinators import parallel as parallel
from jaxnet.layers.combinators import repeat as repeat
from jaxnet.layers.combinators import residual as residual
from jaxnet.layers.combinators import serial as serial
from jaxnet.layers.convolution import conv as conv
from jaxnet.layers.convolution import conv_transpose as conv_transpose
from jaxnet.layers.dense import dense as dense
from jaxnet.layers.dropout import dropout as dropout
from jaxnet.layers.layer import Layer as Layer
from jaxnet.layers.noise import gaussian_noise as gaussian_noise
from jaxnet.layers.normalization import batch_norm as batch_norm
from jaxnet.layers.normalization import group_norm as group_norm
from jaxnet.layers.normalization import layer_norm as layer_norm
from jaxnet.layers.normalization import trainable as trainable
from jaxnet.layers.pooling import avg_pool as avg_pool
from jaxnet.layers.pooling import global_avg_pool as global_avg_pool
from jaxnet.layers.pooling import global_max_pool as global_max_pool
from jaxnet.layers.pooling import max_pool as max_pool
from jaxnet.layers.pooling import upsample as upsample
from jaxnet.layers.recurrent import gru as gru
from jaxnet.layers.recurrent import lstm as lstm
from jaxnet.layers.recurrent import rnn as rnn
from jaxnet.layers.reshape import flatten as flatten
from jaxnet.layers.reshape import reshape as reshape
