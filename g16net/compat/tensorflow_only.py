"""Imported first by what needs TensorFlow below Keras: says so where Keras computes with another backend."""

from g16net.compat.versions import need_tensorflow

need_tensorflow("g16net's data, training and export")
