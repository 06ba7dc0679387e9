"""The recording beside the main process: it never stands in a request's way."""

import asyncio
from array import array
from types import SimpleNamespace

import pytest
from sglang.srt.managers.io_struct import BatchTokenizedGenerateReqInput, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.config import ConfigError, TokencakeConfig
from tokencake_sglang.engine import recording as module
from tokencake_sglang.engine.recording import Recording, block_size, check_record
from tokencake_sglang.engine.request_tag import with_tag
from tokencake_sglang.replay.tokens import common_prefix
from tokencake_sglang.replay.workload import read

TAG = AgentTag(agent="coder", application="run", agent_type="coder", critical=True)


def tokenized(rid, prompt, tag=None, **fields):
    params = {"max_new_tokens": 4}
    return TokenizedGenerateReqInput(
        rid=rid,
        input_text="",
        input_ids=array("q", prompt),
        input_embeds=None,
        mm_inputs=fields.pop("mm_inputs", None),
        token_type_ids=None,
        sampling_params=SamplingParams(**(params if tag is None else with_tag(params, tag))),
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        **fields,
    )


def answer(count, reason="length"):
    finish = None if reason is None else {"type": reason}
    return {"meta_info": {"finish_reason": finish, "completion_tokens": count}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.jsonl"


@pytest.fixture
def recording(path):
    opened = Recording(str(path), page_size=1, model="folder/model", agent_timeout_s=60.0)
    yield opened
    opened.close()


def ask(recording, message, output, answers=None):
    """Sends a request and takes its answers to the end, as SGLang's main process would."""
    recording.dispatched(message, {})

    async def stream():
        for one in answers or [answer(len(output))]:
            yield one

    async def take():
        state = SimpleNamespace(output_ids=output)
        return [a async for a in recording.answered(stream(), message.rid, state)]

    return asyncio.run(take())


def test_what_is_asked_becomes_a_workload_when_the_recording_is_closed(recording, path):
    ask(recording, tokenized("1", range(100), TAG), [1, 2, 3])
    ask(recording, tokenized("2", range(100)), [4, 5])
    recording.close()
    workload = read(path)
    untagged, tagged = workload.requests
    assert (tagged.agent, tagged.agent_type, tagged.critical) == ("coder", "coder", True)
    assert (tagged.prompt_length, tagged.output_length) == (100, 3)
    assert untagged.agent is None and untagged.output_length == 2
    assert common_prefix(tagged.prompt, untagged.prompt) == 64
    assert workload.header.options == {"model": "model", "page_size": 1}


def test_requests_of_a_batch_are_recorded_one_by_one(recording, path):
    batch = BatchTokenizedGenerateReqInput(batch=[tokenized("1", [1]), tokenized("2", [2])])
    recording.dispatched(batch, {})
    for rid in "12":
        ask(recording, SimpleNamespace(rid=rid), [7])
    recording.close()
    assert len(read(path).requests) == 2


def test_an_output_that_does_not_reach_the_main_process_is_counted(recording, path):
    ask(recording, tokenized("1", range(10)), [], [answer(6)])
    recording.close()
    assert read(path).requests[0].output_length == 6
    assert recording.snapshot()["output_unknown"] == 1


@pytest.mark.parametrize("answers", [[answer(2, "abort")], [answer(2, None)]])
def test_aborted_requests_are_left_out(recording, path, answers):
    ask(recording, tokenized("1", range(10)), [1, 2], answers)
    recording.close()
    assert read(path).requests == ()
    assert recording.snapshot()["aborted"] == 1


def test_health_checks_are_not_recorded(recording, path):
    ask(recording, tokenized("HEALTH_CHECK_1", range(10)), [1])
    recording.close()
    assert read(path).requests == ()


@pytest.mark.parametrize("fields", [{"extra_key": "other"}, {"lora_id": "l"}, {"mm_inputs": 1}])
def test_what_has_a_cache_of_its_own_shares_nothing(recording, path, fields):
    for rid, own in (("1", {}), ("2", fields)):
        ask(recording, tokenized(rid, range(100), **own), [1])
    recording.close()
    first, second = read(path).requests
    assert common_prefix(first.prompt, second.prompt) == 0


def test_a_write_that_fails_ends_the_recording_and_nothing_else(recording, path, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    recording._recorder._write = full
    assert len(ask(recording, tokenized("1", range(10)), [1])) == 1
    assert len(ask(recording, tokenized("2", range(10)), [1])) == 1
    recording.close()
    assert recording.snapshot()["state"] == "failed"
    assert [record.message for record in caplog.records if "ends here" in record.message] == [
        f"tokencake: recording to {path} ends here: OSError(28, 'No space left on device')"
    ]


def test_when_the_thread_falls_behind_requests_are_left_out_and_counted(
    recording, path, monkeypatch
):
    monkeypatch.setattr(module, "QUEUED_TOKENS_MAX", -1)
    ask(recording, tokenized("1", range(10)), [1])
    recording.close()
    assert read(path).requests == ()
    assert recording.snapshot()["fell_behind"] == 1


def test_a_file_that_exists_is_not_overwritten(recording, path):
    with pytest.raises(ConfigError, match="exists; name a new file"):
        Recording(str(path), page_size=1, model="m", agent_timeout_s=1.0)


@pytest.mark.parametrize(
    ("name", "message"), [("t.jsonl.gz", "compress it afterwards"), ("no/t.jsonl", "a new file")]
)
def test_a_file_that_cannot_be_recorded_to_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        check_record(TokencakeConfig(record=str(tmp_path / name)))


@pytest.mark.parametrize(("page_size", "tokens"), [(1, 64), (8, 64), (16, 16), (128, 128)])
def test_a_block_is_a_page_where_that_is_not_too_small(page_size, tokens):
    assert block_size(page_size) == tokens
