"""What Keras and tf2onnx write. Runs in the environment with TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import applications, layers

from tools.exporters.protocol import Export, Facts, serve

PACKAGES = ("tensorflow-cpu", "keras", "tf2onnx", "onnx")
CLASSES = 10

Network = Callable[[], keras.Model]


def make(build: Network) -> keras.Model:
    """A network with random weights, nothing of it constant, and the statistics of noise."""
    keras.utils.set_random_seed(0)
    net = build()
    draw = np.random.default_rng(0)
    norms = [layer for layer in net._flatten_layers() if isinstance(layer, layers.BatchNormalization)]
    for weight in net.weights:
        if weight.dtype == "float32" and np.ptp(weight.numpy()) == 0 and "moving" not in weight.path:
            weight.assign(weight.numpy() + 0.1 * draw.standard_normal(weight.shape))
    for norm in norms:
        norm.momentum = 0.0
    net(draw.standard_normal((8, *net.input_shape[1:])).astype("float32"), training=True)
    return net


def sequential() -> keras.Model:
    """A small network as in tutorials, its Softmax included."""
    return keras.Sequential(
        [
            *(layers.Input((32, 32, 3)), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.Activation("swish")),
            *(layers.AveragePooling2D(2), layers.Flatten(), layers.Dropout(0.5)),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def functional() -> keras.Model:
    """Separable convolutions with TensorFlow's padding, gates, a skip, attention, resizing."""
    x = entry = layers.Input((32, 32, 3))
    x = layers.Rescaling(0.5, offset=0.1)(x)
    x = layers.SeparableConv2D(4, 3, strides=2, padding="same", activation="hard_swish")(x)
    gate = layers.Dense(4, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.add([x, layers.multiply([layers.DepthwiseConv2D(3, padding="same")(x), gate])])
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.ReLU(6.0)(x))
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(8, 8, strides=8, activation="elu")(x)
    tokens = layers.LayerNormalization()(layers.Reshape((16, 8))(x))
    tokens = layers.add([tokens, layers.MultiHeadAttention(2, 4)(tokens, tokens)])
    tokens = layers.Dense(8, activation="silu")(layers.GroupNormalization(2)(tokens))
    return keras.Model(entry, layers.Dense(CLASSES)(layers.GlobalMaxPooling1D()(tokens)))


def recurrent(kind: Callable[..., Any]) -> keras.Model:
    """A recurrent network over the rows of the image."""
    x = entry = layers.Input((32, 32, 3))
    x = kind(4)(layers.Reshape((32, 96))(x))
    return keras.Model(entry, layers.Dense(CLASSES)(x))


def _application(name: str, **values: Any) -> Network:
    build = getattr(applications, name)
    return partial(build, weights=None, classes=CLASSES, **{"input_shape": (64, 64, 3), **values})


NETWORKS: dict[str, Network] = {
    "Sequential": sequential,
    "functional": functional,
    "LSTM": partial(recurrent, layers.LSTM),
    "GRU": partial(recurrent, layers.GRU),
    "MobileNet": _application("MobileNet", alpha=0.25),
    "MobileNetV2": _application("MobileNetV2", alpha=0.35),
    "MobileNetV3Small": _application("MobileNetV3Small", alpha=0.75),
    "EfficientNetB0": _application("EfficientNetB0"),
    "EfficientNetV2B0": _application("EfficientNetV2B0"),
    "ResNet50": _application("ResNet50"),
    "ResNet50V2": _application("ResNet50V2"),
    "DenseNet121": _application("DenseNet121"),
    "InceptionV3": _application("InceptionV3", input_shape=(96, 96, 3)),
    "Xception": _application("Xception", input_shape=(96, 96, 3)),
    "NASNetMobile": _application("NASNetMobile"),
    "ConvNeXtTiny": _application("ConvNeXtTiny"),
    "VGG16": _application("VGG16"),
}


def write_keras(net: keras.Model, path: Path) -> str:
    """Keras' own export."""
    net.export(path, format="onnx", verbose=False)
    return "nhwc"


def write_tf2onnx(net: keras.Model, path: Path, *, nchw: bool) -> str:
    """tf2onnx from the function of a network; with `nchw` it converts the input's layout."""
    signature = tf.TensorSpec((None, *net.input_shape[1:]), tf.float32, name="image")
    function = tf.function(lambda image: net(image, training=False), input_signature=[signature])
    layout = ["image"] if nchw else None
    tf2onnx.convert.from_function(
        function, input_signature=[signature], inputs_as_nchw=layout, output_path=str(path)
    )
    return "nchw" if nchw else "nhwc"


EXPORTERS: dict[str, Callable[[keras.Model, Path], str]] = {
    "Keras export": write_keras,
    "tf2onnx": partial(write_tf2onnx, nchw=False),
    "tf2onnx inputs-as-nchw": partial(write_tf2onnx, nchw=True),
}
BY_ALL = ("Sequential", "functional", "LSTM", "MobileNet", "MobileNetV3Small", "EfficientNetB0", "ResNet50V2")
"""The networks that all exporters write: Keras' own export is mostly tf2onnx, too."""


def export(name: str, write: Callable[[keras.Model, Path], str], path: Path) -> Facts:
    """Build a network and write its file."""
    keras.backend.clear_session()
    net = make(NETWORKS[name])
    layout = write(net, path)
    return {"side": net.input_shape[1], "classes": CLASSES, "layout": layout}


def _list_cases() -> Iterator[tuple[str, Export]]:
    for name in NETWORKS:
        for exporter, write in EXPORTERS.items():
            if name in BY_ALL or write is write_keras:
                yield f"keras/{name}/{exporter}", partial(export, name, write)


if __name__ == "__main__":
    serve(dict(_list_cases()), PACKAGES)
