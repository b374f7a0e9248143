"""Networks: each returns a `Layer`, `gan` a pair of them."""

from jaxnet.networks.autoencoder import Variational as Variational
from jaxnet.networks.autoencoder import autoencoder as autoencoder
from jaxnet.networks.autoencoder import variational_autoencoder as variational_autoencoder
from jaxnet.networks.convolutional import convolutional as convolutional
from jaxnet.networks.decoder import Decoder as Decoder
from jaxnet.networks.feedforward import feedforward as feedforward
from jaxnet.networks.gan import GAN as GAN
from jaxnet.networks.gan import gan as gan
from jaxnet.networks.gan import with_class as with_class
from jaxnet.networks.generate import Generated as Generated
from jaxnet.networks.generate import generate as generate
from jaxnet.networks.heads import masked_language_model as masked_language_model
from jaxnet.networks.heads import sequence_classifier as sequence_classifier
from jaxnet.networks.recurrent import lstm as lstm
from jaxnet.networks.recurrent import recurrent as recurrent
from jaxnet.networks.recurrent import recurrent_decoder as recurrent_decoder
from jaxnet.networks.recurrent import sequence_to_sequence as sequence_to_sequence
from jaxnet.networks.resnet import resnet as resnet
from jaxnet.networks.transformer import transformer as transformer
from jaxnet.networks.transformer import transformer_decoder as transformer_decoder
from jaxnet.networks.transformer import transformer_encoder as transformer_encoder
