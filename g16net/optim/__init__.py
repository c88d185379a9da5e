from g16net import compat  # noqa: F401  first, as it says in one sentence where Keras or TensorFlow is not there
