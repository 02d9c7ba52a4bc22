"""The sections of the article study's report."""

from relu_study import Section


def section(title: str, text: str, claim: str, *tables: str, figures: tuple[str, ...] = ()) -> Section:
    return Section(title, text, claims=(claim,), tables=tables, figures=figures or (claim.lower(),))


SECTIONS = [
    Section(
        "What helps, in one table",
        "Every arm has the article's inputs and its 25 epochs, and is paired with the baseline seed by seed: same data, "
        "same order, same normal draws. A dead fraction is an upper bound on true death, since it is counted on a finite "
        "probe set; the certified fraction beside it is proven for every input of the box.",
        tables=("headline",),
        figures=("headline",),
    ),
    section(
        "Does the one-layer ReLU net die?",
        "On the box (-1, 0)^4 a unit with zero bias is off everywhere exactly when none of its four weights is negative: "
        "one unit in sixteen at the start, under any symmetric initialiser. For a layer of 32 to be silent from the first "
        "epoch, as the article's picture shows it, all 32 must be. Whether training gets there from here is what this "
        "asks.",
        "C1",
        "depth",
        figures=("c1", "c1_histograms"),
    ),
    section(
        "Do more layers help?",
        "Deeper sites see only what the site before lets through, which is never negative, so their units die for another "
        "reason than the inputs' sign. The figure follows the units that were alive at the start.",
        "C2",
        "depth",
        figures=("c2", "c2_sites"),
    ),
    section(
        "Does more data help?",
        "Twice the rows of the same box, once for as many updates as the baseline and once for as many epochs, which is "
        "twice the updates. Only the first comparison is about data.",
        "C3",
        "data",
    ),
    section(
        "Does dropout help?",
        "Dropout zeroes outputs in training only; every count here is made in evaluation mode, without it.",
        "C4",
        "dropout",
    ),
    section(
        "Do more epochs help?",
        "A unit that is dead on all training rows gets no gradient, and only the optimiser's memory can move its weights: "
        "Adam has one, plain SGD has none. A unit that is dead on the probe set alone may still fire on a row outside it "
        "and come back; the table counts units that came back, once each, for both notions. The study `article_rows` "
        "repeats this with all training rows as the probe set.",
        "C5",
        "epochs",
    ),
    section(
        "Do other initialisers help?",
        "With zero biases a first-layer unit's sign pattern decides whether it is dead, and a scale does not change a "
        "sign: schemes that share their draws start with the same dead units. They differ in how far the weights are from "
        "those of a dead unit, and so in what the first epochs do to them.",
        "C6",
        "initializers",
    ),
    section(
        "Do negative weights help?",
        "With weights from U(-1, 0) every first-layer pre-activation is positive on this box: no unit is dead and every "
        "unit is linear. In net B the same weights then meet inputs that are never negative, and the second site starts "
        "wholly dead.",
        "C7",
        "negative",
    ),
    section(
        "Do other activations fail by vanishing gradients?",
        "A gradient vanishes on its way when the first site gets much less of it than the last. A small gradient at the "
        "end of training is no such thing where the loss has reached its floor, and there this is not testable.",
        "C8",
        "activations",
        figures=("c8", "c8_depth"),
    ),
    section(
        "Does SELU rescue?",
        "SELU has no flat piece, so none of its units can be certified dead. Each claim is asked with and without "
        "AlphaDropout, against ReLU and leaky ReLU of the same depth.",
        "C9",
        "selu",
        figures=("c9", "c9_histograms"),
    ),
    section(
        "Vanishing or dead?",
        "The choice arises only where a ReLU net has lost a whole site; the comparison keeps the seeds where it has. With "
        "the article's random start hardly one does; with negative weights the second site of net B is dead in every run. "
        "Where there is nothing to learn, a dead net is as good as any.",
        "C10",
    ),
    Section(
        "How to get the article's picture",
        "With a ReLU on the output too, zero is the best answer to a target that is never positive, and reaching it "
        "silences every gradient: outputs and gradients at zero are then the optimum, not a disease.",
        tables=("output",),
        figures=("output", "output_histograms"),
    ),
    Section("Does it hang on our choices?", "Width, optimiser and batch size, on net A.", tables=("sensitivity",)),
    Section(
        "At each arm's best learning rate",
        "A comparison at one rate can be one of rates. Here each arm has five, the best is chosen by validation loss on "
        "the even seeds and reported on the odd ones.",
        tables=("tuned",),
        figures=("tuned",),
    ),
]
