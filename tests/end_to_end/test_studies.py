"""Every packaged study loads and has each of its presets."""

from __future__ import annotations

import pytest

from relu_study.study.draw_study import DrawStudy
from relu_study.study.loading import load_study, studies


@pytest.mark.parametrize("name", studies())
def test_study_is_complete_at_every_preset(name):
    study = load_study(studies()[name])
    assert study.name == name and study.figures
    for preset in ("default", *study.presets):
        sized = study.with_preset(preset)
        if isinstance(sized, DrawStudy):
            assert all(experiment.draws > 0 for experiment in sized.experiments)
        else:
            runs = sized.runs()
            assert runs and len({run.run_id for run in runs}) == len(runs)
