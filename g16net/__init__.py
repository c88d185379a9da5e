"""EfficientNet made efficient in practice: group convolutions, proxy-normalised activations, half-resolution training.

Importing the package imports no TensorFlow, so that `g16net.costs` and `g16net.report` work anywhere and a
program can choose its Keras generation first (`TF_USE_LEGACY_KERAS=1` selects tf-keras). With Keras imported before or
after it, `keras.models.load_model` needs nothing else for models with layers, optimizer and losses of this package.
"""

from g16net import moved, registration

__version__ = "0.1.0"

moved.install()
registration.with_keras()
