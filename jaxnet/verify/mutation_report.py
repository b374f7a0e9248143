"""What became of each mutant."""

import html
import json
import os
from dataclasses import asdict, dataclass

from jaxnet.verify import page

STATES = ("killed", "equivalent", "invalid", "survived")
_SHOWN = ("survived", "equivalent", "killed", "invalid")  # what needs a reader first
_COLOURS = {"survived": "fail", "killed": "pass"}


@dataclass(frozen=True)
class Mutant:
    """One mutant and its fate.

    Attributes:
        file: of the function that was changed.
        line: where in the file.
        function: its name.
        change: the change in words.
        state: "killed": a check failed; "equivalent": the checks pass and the gradients were compared and
            are equal; "invalid": it raises, as a user would see at once; "survived": none of these.
        detail: the verdict that killed it, how equal the gradients are, what was raised, or what differs.
        seconds: how long it took.
    """

    file: str
    line: int
    function: str
    change: str
    state: str
    detail: str
    seconds: float

    @property
    def decided(self) -> bool:
        """Whether it says something about the check: it is wrong, and was found or not."""
        return self.state in ("killed", "survived")

    def __str__(self) -> str:
        """One line."""
        return f"{self.state}: {self.file}:{self.line}: {self.function}, {self.change}: {self.detail}"


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
        return self._with("survived")

    @property
    def state(self) -> str:
        """ "fail" if a mutant survived, "undecided" if none was killed either, else "pass"."""
        return "fail" if self.survivors else "pass" if self.count("killed") else "undecided"

    @property
    def ok(self) -> bool:
        """Whether some mutant was killed and none survived."""
        return self.state == "pass"

    @property
    def counts(self) -> str:
        """How many mutants ended how, in words."""
        of = "" if len(self.mutants) == self.possible else f" of {self.possible}"
        return f"{len(self.mutants)}{of} mutants: " + ", ".join(f"{self.count(s)} {s}" for s in STATES)

    def count(self, state: str) -> int:
        """How many mutants ended in that state."""
        return len(self._with(state))

    def _with(self, *states: str) -> tuple[Mutant, ...]:
        return tuple(mutant for state in states for mutant in self.mutants if mutant.state == state)

    def __str__(self) -> str:
        """The counts, then a line for each mutant that was neither killed nor invalid."""
        lines = [f"{self.state.upper()}  {self.title}  {self.counts}  {self.seconds:.1f} s"]
        lines += [f"  {mutant}" for mutant in self._with("survived", "equivalent")]
        return "\n".join([*lines, *(f"  note: {remark}" for remark in self.remarks)])

    def to_json(self) -> str:
        """Everything, every mutant included, as JSON."""
        counts = {state: self.count(state) for state in STATES}
        content = {"state": self.state, "ok": self.ok, **counts, **asdict(self)}
        return json.dumps(content, indent=1, ensure_ascii=False)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that needs no other file, the survivors first. A reader never sees half of it."""
        rows = "".join(map(_row, self._with(*_SHOWN)))
        table = f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
        page.write(path, page.document(self, self.counts, table))


def _row(mutant: Mutant) -> str:
    """What was changed and where, and its fate."""
    where = f"{mutant.file}:{mutant.line}"
    cells = [mutant.function, mutant.change, f"{mutant.state}: {mutant.detail}"]
    texts = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr class="{_COLOURS.get(mutant.state, "")}"><th>{html.escape(where)}</th>{texts}</tr>'
