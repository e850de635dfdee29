from .._keras import keras


class Quantized(keras.Model):
    pass


def wrap(): pass
def plan(): pass
def calibrate(): pass
