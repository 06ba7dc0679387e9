"""Without tags the extension does what stock SGLang does, at the same times; a small measurement."""

import pytest

from benchmarks import untagged_cost
from benchmarks.untagged_cost import EXTENSION, PYTHON_CORE, STOCK, Load, compare, ratios, spread

SMALL = Load(
    conversations=10, turns=4, question=60, output=16, pool_tokens=1536, host_tokens=15_360
)


def test_ratios_are_of_runs_beside_each_other():
    assert ratios([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert spread([3.04, 1.06, 2.0]) == {"median": 2.0, "min": 1.1, "max": 3.0}


@pytest.mark.slow
def test_untagged_requests_are_served_as_by_stock_sglang():
    """``compare`` ends with an error if a request ends at another virtual time."""
    found = compare(SMALL, "overlap", runs=1)
    assert found["tree_cores"][STOCK] == "RustUnifiedTreeCore"
    assert found["tree_cores"][PYTHON_CORE] == found["tree_cores"][EXTENSION] == "UnifiedTreeCore"
    assert found["outcome"]["host_hit_tokens"] > 0


def test_servers_that_do_not_do_the_same_are_an_error(monkeypatch):
    def made_up(_measure, server, *_):
        ends = "later" if server == EXTENSION else "in time"
        return {"cpu_us_per_step": 1.0, "tree_core": "", "outcome": {"finished": ends}}

    monkeypatch.setattr(untagged_cost, "run_in_fork", made_up)
    with pytest.raises(SystemExit, match="did not do the same.*later"):
        compare(SMALL, "overlap", runs=1)
