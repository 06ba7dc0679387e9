"""Python programs that start SGLang themselves get the extension from the environment."""

import pytest

from tests.models import tiny_llama
from tests.server.processes import SCRIPTS, free_port, printed_json, run_python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def test_an_engine_plans_for_tagged_requests_and_takes_signals(llama):
    port = free_port() + 1000
    completed = run_python(
        *(str(SCRIPTS / "engine.py"), str(llama)),
        TOKENCAKE_ENABLE="1",
        TOKENCAKE_ZMQ_ENDPOINT=f"tcp://127.0.0.1:{port}",
    )
    assert completed.returncode == 0, completed.stdout[-4000:]
    found = printed_json(completed)
    untagged, first, again = found["outputs"]
    assert untagged == first == again
    [rank] = found["status"]["ranks"]
    assert rank["decisions"]["counts"]["return.resident"] == 1
    assert rank["agents"] == {"stalled": 1}
    assert found["status"]["front_door"]["signals"]["accepted"] == {
        "call_start": 2,
        "call_finish": 1,
    }


def test_a_runtime_serves_with_the_extension_though_its_parent_loads_no_plugin(llama):
    port = free_port()
    completed = run_python(
        *(str(SCRIPTS / "runtime.py"), str(llama), str(port)), TOKENCAKE_ENABLE="1"
    )
    assert completed.returncode == 0, completed.stdout[-4000:]
    found = printed_json(completed)
    assert found["parent"] is None
    assert found["settings"]["radix_cache_backend"] == "tokencake"
    assert found["settings"]["enable_hierarchical_cache"] is True
    assert found["status"]["config"]["zmq_endpoint"] == f"tcp://127.0.0.1:{port + 1000}"
    [rank] = found["status"]["ranks"]
    assert rank["decisions"]["counts"]["return.resident"] == 1
    assert rank["host_tokens"] >= 4 * rank["pool_tokens"]
