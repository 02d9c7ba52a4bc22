"""A tiny study whose units die at a high rate: plain gradient descent, five steps an epoch, the last on a partial batch."""

from dataclasses import replace

from relu_study import Experiment, RunSpec, Study

dying = RunSpec(rows=200, batch_size=32, width=8, depth=2, epochs=3, initializer="he_normal", optimizer="sgd", learning_rate=0.5)
study = Study("dying", "Dying units", "Which step?", [Experiment("main", {"relu": dying})], seeds=2, metrics=("val_loss",))


def study_of(name: str, spec: RunSpec, seeds: int = 1) -> Study:
    """Return a study of one configuration."""
    return replace(study, name=name, experiments=(Experiment("main", {"only": spec}),), seeds=seeds)
