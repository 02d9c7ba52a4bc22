"""The study of the README's quick start."""

from relu_study import Experiment, RunSpec, Study, grid

base = RunSpec(rows=2000, epochs=3, initializer="he_normal")
arms = grid(base, activation=["relu", "tanh"], learning_rate=[1e-3, 1e-2])
study = Study("rates", "Rates", "Which rate keeps units alive?", [Experiment("main", arms)], seeds=4)
