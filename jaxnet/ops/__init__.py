"""Operations with a hand-written backward pass, one file each.

They take arrays of JAX or NumPy; a list or a number is a TypeError, which names the argument.
"""

from jaxnet.ops.attention import attention as attention
from jaxnet.ops.attention import attention_vjp as attention_vjp
from jaxnet.ops.batch_norm import batch_norm as batch_norm
from jaxnet.ops.batch_norm import batch_norm_inference as batch_norm_inference
from jaxnet.ops.batch_norm import batch_norm_inference_vjp as batch_norm_inference_vjp
from jaxnet.ops.batch_norm import batch_norm_vjp as batch_norm_vjp
from jaxnet.ops.convolution import conv as conv
from jaxnet.ops.convolution import conv_vjp as conv_vjp
from jaxnet.ops.dispatch import using as using
from jaxnet.ops.embedding import embedding as embedding
from jaxnet.ops.embedding import embedding_vjp as embedding_vjp
from jaxnet.ops.global_pooling import global_avg_pool as global_avg_pool
from jaxnet.ops.global_pooling import global_avg_pool_vjp as global_avg_pool_vjp
from jaxnet.ops.global_pooling import global_max_pool as global_max_pool
from jaxnet.ops.global_pooling import global_max_pool_vjp as global_max_pool_vjp
from jaxnet.ops.gru import gru as gru
from jaxnet.ops.gru import gru_step as gru_step
from jaxnet.ops.gru import gru_vjp as gru_vjp
from jaxnet.ops.linear import linear as linear
from jaxnet.ops.linear import linear_vjp as linear_vjp
from jaxnet.ops.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from jaxnet.ops.linear_cross_entropy import linear_cross_entropy_vjp as linear_cross_entropy_vjp
from jaxnet.ops.lstm import lstm as lstm
from jaxnet.ops.lstm import lstm_step as lstm_step
from jaxnet.ops.lstm import lstm_vjp as lstm_vjp
from jaxnet.ops.normalization import group_norm as group_norm
from jaxnet.ops.normalization import group_norm_vjp as group_norm_vjp
from jaxnet.ops.normalization import layer_norm as layer_norm
from jaxnet.ops.normalization import layer_norm_vjp as layer_norm_vjp
from jaxnet.ops.normalization import rms_norm as rms_norm
from jaxnet.ops.normalization import rms_norm_vjp as rms_norm_vjp
from jaxnet.ops.pooling import avg_pool as avg_pool
from jaxnet.ops.pooling import avg_pool_vjp as avg_pool_vjp
from jaxnet.ops.pooling import max_pool as max_pool
from jaxnet.ops.pooling import max_pool_vjp as max_pool_vjp
from jaxnet.ops.rnn import rnn as rnn
from jaxnet.ops.rnn import rnn_step as rnn_step
from jaxnet.ops.rnn import rnn_vjp as rnn_vjp
from jaxnet.ops.rotary import rotary as rotary
from jaxnet.ops.rotary import rotary_vjp as rotary_vjp
from jaxnet.ops.transposed_convolution import conv_transpose as conv_transpose
from jaxnet.ops.transposed_convolution import conv_transpose_vjp as conv_transpose_vjp
from jaxnet.ops.upsampling import upsample as upsample
from jaxnet.ops.upsampling import upsample_vjp as upsample_vjp
