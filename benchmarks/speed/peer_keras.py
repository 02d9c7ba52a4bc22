"""Keras on TensorFlow, for peers.py: `fit`, with the callback of the article "Is ReLU Dead?".

After every epoch the callback writes, over 8,192 training examples, histograms of every layer's outputs and of the loss's
gradient with respect to every weight to a TensorBoard log. An epoch is timed from its beginning to the callback's end, so what
`fit` does before the first and after the last costs nothing.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
import peer
import tensorflow as tf


class Histograms(keras.callbacks.Callback):
    """Outputs and gradients of every layer, as histograms in a TensorBoard log."""

    def __init__(self, model: keras.Model, x: Any, y: Any, folder: str) -> None:
        super().__init__()
        outputs = keras.Model(model.inputs, [layer.output for layer in model.layers])
        self.x, self.y = tf.constant(x[: peer.PROBE_EXAMPLES]), tf.constant(y[: peer.PROBE_EXAMPLES])
        self.writer, self.epochs = tf.summary.create_file_writer(folder), 0
        loss_of = keras.losses.MeanSquaredError()

        @tf.function
        def look(x: tf.Tensor, y: tf.Tensor) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                values = outputs(x, training=False)
                loss = loss_of(y, values[-1] if isinstance(values, list) else values)
            return values, tape.gradient(loss, model.trainable_variables)

        self.look = look

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values, gradients = self.look(self.x, self.y)
        with self.writer.as_default(step=self.epochs):
            for layer, value in zip(self.model.layers, values, strict=True):
                tf.summary.histogram(f"{layer.name}/output", value)
            for variable, gradient in zip(self.model.trainable_variables, gradients, strict=True):
                tf.summary.histogram(f"{variable.path}/gradient", gradient)
        self.writer.flush()
        self.epochs += 1


class Clock(keras.callbacks.Callback):
    """Seconds of the epochs since it was made; the last of the callbacks, so that the others count."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds += time.perf_counter() - self.began


class Fit:
    """One network; a piece is whole epochs."""

    width = networks = 1

    def __init__(self, job: peer.Job, settings: Any) -> None:
        keras.utils.clear_session()
        self.job, (self.x, self.y) = job, peer.data(job)
        d_in, *hidden, d_out = job.layers
        dense = [keras.layers.Dense(units, activation="relu", kernel_initializer="he_normal") for units in hidden]
        self.model = keras.Sequential([keras.Input((d_in,)), *dense, keras.layers.Dense(d_out)])
        self.model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", **(settings or {}))
        self.folder = tempfile.TemporaryDirectory()
        self.histograms = Histograms(self.model, self.x, self.y, self.folder.name)
        self.model.fit(self.x[: 2 * job.batch], self.y[: 2 * job.batch], job.batch, verbose=0, callbacks=[self.histograms])

    def piece(self, steps: int) -> tuple[int, float]:
        per_epoch, clock = -(-self.job.rows // self.job.batch), Clock()
        epochs = max(round(steps / per_epoch), 1)
        self.model.fit(self.x, self.y, self.job.batch, epochs=epochs, shuffle=True, verbose=0, callbacks=[self.histograms, clock])
        return epochs * per_epoch, clock.seconds


if __name__ == "__main__":
    threads = len(os.sched_getaffinity(0))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    peer.serve(f"keras {keras.__version__}, tensorflow {tf.__version__}", Fit)
