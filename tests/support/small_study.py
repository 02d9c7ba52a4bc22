"""A small study on the article's data: two cohorts, three arms, one claim, and SGD and few metrics for fast compilation."""

from relu_study import Claim, Experiment, Figure, RunSpec, Study, Table, Target

base = RunSpec(rows=600, batch_size=32, width=8, epochs=2, initializer="he_normal", optimizer="sgd")
arms = {"relu": base, "lecun": base.replace(initializer="lecun_normal"), "tanh": base.replace(activation="tanh")}

study = Study(
    name="small",
    title="A small study",
    text="Does a tanh keep its units?",
    seeds=3,
    metrics=("val_loss",),
    targets=(Target("wave", 1.0, 0.0), Target("sum", 1 / 3, 0.0)),
    use_targets=("wave",),
    experiments=[Experiment("main", arms), Experiment("again", {"relu": base})],
    claims=[Claim("S1", "tanh loses fewer units", "dead_fraction", "tanh", "relu", "less", margin=0.05)],
    tables=[Table("main", "Loss and dead units.", ("main",), ("val_loss", "dead_fraction"), baseline="relu")],
    figures=[Figure("main", "Loss.", "curves", ("main",), metrics=("val_loss",))],
    presets={"full": {"seeds": 4, "use_targets": ()}},
)
