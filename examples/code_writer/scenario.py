"""What the applications work on: briefs, tools' answers and tools' durations, all deterministic.

The words stand for what a coding agent reads: a brief, search results, source files, test output.
How much of them there is matters, what they say does not.
"""

import hashlib
from dataclasses import dataclass

PROGRAMMERS = 3

SYSTEM = """You are one of several agents who write a Python package together. The planner splits \
the work, the searcher looks up what is not known, the programmers write one module each and repair \
it until its tests pass, and the reviewer reads everything before it is merged. Answer briefly. \
Never invent an interface: use the ones in the brief. Keep functions short, name units in variable \
names, raise ValueError with the offending value, and write no comments that repeat the code."""

_PRODUCTS = (
    "a command line tool that renames photographs by the place and the day they were taken",
    "a library that reconciles bank statements with invoices and explains every mismatch",
    "a service that watches a folder of sensor logs and reports drift before it matters",
    "a parser for train timetables that answers which connections survive a delay",
    "a simulator of lifts in an office tower that compares dispatching strategies",
    "a planner for a community garden that rotates crops and counts the seeds to order",
)
_MODULES = ("reader", "model", "report", "index", "schedule", "check", "store", "merge")
_NOUNS = [
    "invoice",
    "record",
    "offset",
    "window",
    "bucket",
    "sensor",
    "platform",
    "ticket",
    "parcel",
    "ledger",
    "segment",
    "marker",
    "shelf",
    "batch",
    "header",
    "station",
    "valve",
    "cabin",
    "quota",
    "region",
    "season",
    "folder",
    "token",
    "column",
    "driver",
    "cursor",
    "branch",
    "margin",
    "anchor",
    "signal",
    "packet",
    "filter",
]
_VERBS = [
    "reads",
    "drops",
    "merges",
    "sorts",
    "keeps",
    "splits",
    "counts",
    "checks",
    "rounds",
    "joins",
    "skips",
    "caches",
]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool call: it takes ``duration_s``; the program foretold ``predicted_s``."""

    name: str
    duration_s: float
    predicted_s: float
    answer: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """How large one run is.

    ``words`` scales everything that is read, ``output_tokens`` is the length of one answer.
    """

    applications: int = 4
    programmer_turns: int = 3
    output_tokens: int = 6
    words: float = 0.8
    stagger_s: float = 1.0
    """Between the starts of one application and the next."""

    @property
    def turns(self) -> int:
        """Answers in one run: planner, searcher twice, programmers, reviewer."""
        return self.applications * (4 + PROGRAMMERS * self.programmer_turns)

    def brief(self, application: int) -> str:
        product = _PRODUCTS[application % len(_PRODUCTS)]
        details = self._prose(90, "brief", application)
        return f"{SYSTEM}\n\nBrief {application}: write {product}.\n{details}\n"

    def module(self, application: int, programmer: int) -> str:
        name = _MODULES[(application + programmer) % len(_MODULES)]
        listing = self._listing(14, name, application, programmer)
        return f"\nYou are programmer {programmer}; your module is {name}.py.\n{listing}\n"

    def search(self, application: int) -> Tool:
        answer = self._prose(60, "search", application)
        return self._tool("search", 0.8, 2.0, f"\nResults:\n{answer}\n", application)

    def tests(self, application: int, programmer: int, turn: int) -> Tool:
        report = self._listing(9, "FAILED", application, programmer, turn)
        return self._tool(
            "run_tests", 0.5, 6.0, f"\nTests:\n{report}\n", application, programmer, turn
        )

    def _tool(self, name: str, least_s: float, most_s: float, answer: str, *where: int) -> Tool:
        """Spread evenly in the logarithm; the prediction is up to 20 % off, either way."""
        place = _fraction(name, *where)
        duration_s = least_s * (most_s / least_s) ** place
        error = 0.4 * (_fraction("prediction", name, *where) - 0.5)
        return Tool(name, round(duration_s, 2), round(duration_s * (1.0 + error), 2), answer)

    def _prose(self, words: int, *where: object) -> str:
        def sentence(index: int) -> str:
            return (
                f"The {_pick(_NOUNS, index, 'a', *where)} {_pick(_VERBS, index, *where)} "
                f"each {_pick(_NOUNS, index, 'b', *where)}."
            )

        return " ".join(sentence(index) for index in range(round(words * self.words / 5)))

    def _listing(self, lines: int, title: str, *where: int) -> str:
        def line(index: int) -> str:
            left = _pick(_NOUNS, index, "left", title, *where)
            right = _pick(_NOUNS, index, "right", title, *where)
            return f"{title} {left}.{_pick(_VERBS, index, title, *where)}({right})"

        return "\n".join(line(index) for index in range(round(lines * self.words)))


def _fraction(*where: object) -> float:
    """A number from 0 to 1 that depends on ``where`` only."""
    digest = hashlib.sha256(repr(where).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _pick(words: list[str], *where: object) -> str:
    return words[int(_fraction(*where) * len(words))]
