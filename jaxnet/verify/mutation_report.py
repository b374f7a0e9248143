"""What became of each mutant."""

import json
from collections import Counter
from dataclasses import asdict, dataclass

STATES = ("killed", "equivalent", "invalid", "survived")


@dataclass(frozen=True)
class Mutant:
    """One mutant and its fate.

    Attributes:
        function: the name of the function that was changed.
        line: where, in the function's file.
        change: the change in words.
        state: "killed": a check failed; "equivalent": the checks pass and the gradients were compared and
            are equal; "invalid": it raises, as a user would see at once; "survived": none of these.
        detail: the verdict that killed it, how equal the gradients are, what was raised, or what differs.
        seconds: how long it took.
    """

    function: str
    line: int
    change: str
    state: str
    detail: str
    seconds: float

    def __str__(self) -> str:
        """One line."""
        return f"{self.state}: {self.function} {self.change}: {self.detail}"


@dataclass(frozen=True)
class MutationReport:
    """All mutants of a function. `str(report)` counts them and names those that survived or are equivalent.

    Attributes:
        title: what was mutated.
        mutants: their fates, in the order of the source.
        possible: how many mutants there are, where only a sample was tried.
        remarks: what else there is to know.
        seconds: how long it took.
    """

    title: str
    mutants: tuple[Mutant, ...]
    possible: int
    remarks: tuple[str, ...]
    seconds: float

    @property
    def survivors(self) -> tuple[Mutant, ...]:
        """The mutants that no check found and that are not equivalent."""
        return tuple(mutant for mutant in self.mutants if mutant.state == "survived")

    @property
    def ok(self) -> bool:
        """Whether some mutant was killed and none survived."""
        return not self.survivors and self.count("killed") > 0

    def count(self, state: str) -> int:
        """How many mutants ended in that state."""
        return Counter(mutant.state for mutant in self.mutants)[state]

    def __str__(self) -> str:
        """The counts, then a line for each mutant that was neither killed nor invalid."""
        of = "" if len(self.mutants) == self.possible else f" of {self.possible}"
        counts = ", ".join(f"{self.count(state)} {state}" for state in STATES)
        head = f"{'PASS' if self.ok else 'FAIL'}  {self.title}  {len(self.mutants)}{of} mutants: {counts}"
        shown = [
            mutant for state in ("survived", "equivalent") for mutant in self.mutants if mutant.state == state
        ]
        lines = [f"{head}  {self.seconds:.1f} s", *(f"  {mutant}" for mutant in shown)]
        return "\n".join([*lines, *(f"  note: {remark}" for remark in self.remarks)])

    def to_json(self) -> str:
        """Everything, every mutant included, as JSON."""
        counts = {state: self.count(state) for state in STATES}
        return json.dumps({"ok": self.ok, **counts, **asdict(self)}, indent=1, ensure_ascii=False)
