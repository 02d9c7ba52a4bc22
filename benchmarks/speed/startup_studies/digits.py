"""A small study of a user: three activations, four rates and 20 seeds on digits for 10 epochs."""

from relu_study import Experiment, RunSpec, Study, grid

base = RunSpec(task="digits", epochs=10, initializer="he_normal")
arms = grid(base, activation=["relu", "leaky_relu", "tanh"], learning_rate=[1e-3, 3e-3, 1e-2, 3e-2])
study = Study("digits", "Digits", "Which rate keeps units alive?", [Experiment("main", arms)], seeds=20)
