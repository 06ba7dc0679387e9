"""What the records of returns say of loads that were not hidden."""

from benchmarks.hidden_loads import tally


def returned(reason: str, loaded_tokens: int, **detail) -> dict:
    return {
        "action": "return",
        "reason": reason,
        "detail": {"loaded_at_admission_tokens": loaded_tokens, **detail},
    }


def test_tokens_are_counted_by_what_kept_them_back():
    found = tally(
        [
            returned("resident", 0),
            returned("uploaded_in_time", 0, upload_due_s=1.0),
            returned("not_uploaded", 100, upload_due_s=1.0, upload_kept_back="queue_waits"),
            returned("upload_late", 30, upload_due_s=1.0, upload_kept_back="no_room"),
            returned("upload_late", 5, upload_due_s=1.0),
            returned("not_uploaded", 7),
            returned("not_uploaded", 200, upload_due_s=2.0, upload_kept_back="queue_waits"),
        ]
    )
    assert found["loaded_at_admission"] == {
        "no_room": {"turns": 1, "tokens": 30},
        "not_due": {"turns": 1, "tokens": 7},
        "queue_waits": {"turns": 2, "tokens": 300},
        "under_way": {"turns": 1, "tokens": 5},
    }
    assert found["outcomes"] == {
        "not_uploaded": 3,
        "resident": 1,
        "upload_late": 2,
        "uploaded_in_time": 1,
    }
