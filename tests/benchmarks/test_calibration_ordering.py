"""The comparison with the authors' four systems, and its committed result."""

import json

from benchmarks.calibration.ordering import PUBLISHED_WALL_S, RESULT, SYSTEMS, compare, order, table
from benchmarks.calibration.setup import PUBLISHED_SETUP
from benchmarks.matrix.systems import all_systems


def figures(wall_s: float) -> dict:
    return {
        "makespan_s": wall_s,
        "end_to_end_s": {"mean": 1.0, "p95": 2.0},
        "prefill_tokens": {"computed": 10},
        "hits": {"device_tokens": 3, "host_tokens": 4},
        "transfers": {"to_device_bytes": 2e9, "to_host_bytes": 0},
        "steps": 5,
        "retractions": 0,
        "decisions": {},
    }


def test_an_order_is_the_published_one_only_if_all_four_agree():
    wall_s = {"native": 1000.0, "scheduling": 900.0, "offload": 700.0, "both": 650.0}
    row = compare(1.0, {name: figures(seconds) for name, seconds in wall_s.items()})
    assert row["same_order"]
    assert row["systems"]["both"]["measured_to_native"] == 0.65
    assert row["systems"]["both"]["published_to_native"] == 0.658
    wall_s["scheduling"] = 640.0
    row = compare(1.0, {name: figures(seconds) for name, seconds in wall_s.items()})
    assert row["measured_order"] == ["native", "offload", "both", "scheduling"]
    assert not row["same_order"]


def test_every_published_rate_has_the_four_systems_in_one_order():
    assert tuple(PUBLISHED_WALL_S) == PUBLISHED_SETUP.rates
    for wall_s in PUBLISHED_WALL_S.values():
        assert order(wall_s) == ["native", "scheduling", "offload", "both"]
    assert all(system in all_systems() for system in SYSTEMS.values())


def test_the_committed_result_is_of_the_server_as_it_is_set_up_now():
    result = json.loads(RESULT.read_text())
    assert result["setup"] == json.loads(json.dumps(PUBLISHED_SETUP.as_dict()))
    assert tuple(row["rate"] for row in result["rates"]) == PUBLISHED_SETUP.rates
    for rate in PUBLISHED_SETUP.rates:
        assert f"{rate} applications/s: the published order" in table(result)
