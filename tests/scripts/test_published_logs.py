"""Max-softmax on the published logs gives the specification's figures."""

import statistics

import pytest
from published_logs import KNOWN, measure, table

from trainkit.datafiles import data_folder


@pytest.mark.parametrize("name", KNOWN)
def test_the_published_figures_are_reproduced(name: str) -> None:
    if not (data_folder() / "attack_logs").is_dir():
        pytest.skip(f"the attack logs are missing from {data_folder()}; set KIT_DATA")
    known, result = KNOWN[name], measure(name, seeds=8)
    assert result["counts"] == known["counts"]
    assert result["relabelled_rows"] == 0
    assert result["far"] == pytest.approx(known["far"], abs=5e-4)
    row = result["rows"]["s1, as in the specification"]
    assert set(row["n_adv"]) == set(row["n_clean"]) == {known["n_adv"]}
    for figure, value in known["figures"].items():
        # Ours is a mean of 8 draws, the known one of 5: the error of their difference, three times.
        error = statistics.stdev(row[figure]) * (1 / 8 + 1 / 5) ** 0.5
        assert abs(statistics.fmean(row[figure]) - value) < 3 * error + 5e-4, figure
    for rate in result["calibrated"]["fpr"]:
        assert 0.02 < rate < 0.2
    assert name in table({name: result})
