"""Do dead units come back? The article's hundred epochs again, a unit being dead only when it is so on all training rows.

Every unit is measured on all 140,000 training rows, where the article study takes the first 8,192: a unit that is dead
there can still fire on one of the others, get a gradient and come back.
"""

from relu_study import Experiment, Figure, RunSpec, Study, Table, Target

A = RunSpec(task="negative_box", initializer="random_normal", leak=0.3, epochs=100)
arms = {"100 epochs, Adam": A, "100 epochs, SGD": A.replace(optimizer="sgd", learning_rate=0.01)}
SEEN = ("dead_fraction", "certified_dead_fraction", "revived_fraction", "certified_revived_fraction")

study = Study(
    name="article_rows",
    title="Do dead units come back?",
    text=(
        "The article says that more epochs cannot help, since a dead unit gets no gradient. This study calls a unit "
        "dead when it is so on every training row, so that no gradient can reach it; what still moves its weights is "
        "the optimiser's memory. Adam has one, plain SGD has none."
    ),
    experiments=[Experiment("rows", arms)],
    seeds=16,
    probe_examples=140_000,
    targets=(Target("wave", 1.0, 0.0),),
    tables=[
        Table(
            "rows",
            "Units dead on the probe set, and those that came back.",
            ("rows",),
            tuple(f"{m}@{e}" for m in SEEN for e in (25, 100)),
        )
    ],
    figures=[Figure("rows", "Dead and revived units over a hundred epochs.", "curves", ("rows",), metrics=SEEN)],
)
