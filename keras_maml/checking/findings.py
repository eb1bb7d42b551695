"""What a check found, for a reader and for a program."""

import dataclasses
import textwrap
from typing import Any

WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong, or doubtful.

    Args:
        code: a short name that stays the same, such as `"leaked-queries"`; all are listed at `keras_maml.check`.
        severity: `"error"`: results will be wrong, or there will be none; `"warning"`: they may be.
        message: what was found.
        remedy: what to do.
    """

    code: str
    severity: str
    message: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class VariableReport:
    """What becomes of one trainable weight.

    Args:
        path: of the variable.
        shape: a tuple.
        adapts: whether inner steps move it.
        gradient: root mean square of its meta-gradient in the episode that was run; `None` if it gets none or none was
            computed.
        remark: why, where there is something to say.
    """

    path: str
    shape: tuple
    adapts: bool
    gradient: float | None
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `keras_maml.check` found.

    Args:
        findings: `Finding`s, errors first.
        variables: a `VariableReport` for each trainable weight, the model's first, then those of the rule.
        facts: dict of strings and numbers: which gradient was compared with what, the loss before and after inner
            steps, normalisation, task mapping.
        memory: a `MemoryPrediction`, or `None` if the step could not be traced.
    """

    findings: tuple
    variables: tuple
    facts: dict
    memory: Any = None

    @property
    def verdict(self):
        """`"wrong"` if there is an error, `"doubtful"` if there is a warning, else `"fine"`."""
        severities = {finding.severity for finding in self.findings}
        return "wrong" if "error" in severities else "doubtful" if severities else "fine"

    @property
    def codes(self):
        """The codes of all findings."""
        return tuple(finding.code for finding in self.findings)

    def to_dict(self):
        """All of it in dicts, lists, strings and numbers."""
        memory = None if self.memory is None else dataclasses.asdict(self.memory)
        return {
            "verdict": self.verdict,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "variables": [dataclasses.asdict(variable) for variable in self.variables],
            "facts": self.facts,
            "memory": memory,
        }

    def __str__(self):
        return "\n".join(self._lines())

    def _lines(self):
        count = len(self.findings)
        yield f"verdict: {self.verdict}" + (f", {count} finding{'s' * (count != 1)}" if count else "")
        for finding in self.findings:
            yield ""
            text = f"{finding.severity} [{finding.code}] {finding.message} {finding.remedy}"
            yield from textwrap.wrap(text, WIDTH, subsequent_indent="    ")
        if self.variables:
            yield ""
            yield from self._variable_lines()
        yield ""
        width = max(map(len, self.facts), default=0)
        for name, value in self.facts.items():
            yield from textwrap.wrap(f"{name:{width}}  {value}", WIDTH, subsequent_indent=" " * (width + 2))
        if self.memory is not None:
            yield from textwrap.wrap(f"{'memory':{width}}  {self.memory}", WIDTH, subsequent_indent=" " * (width + 2))

    def _variable_lines(self):
        rows = [("weight", "shape", "adapts", "meta-gradient")]
        for variable in self.variables:
            gradient = "none" if variable.gradient is None else f"{variable.gradient:.2g}"
            shape = " x ".join(map(str, variable.shape)) or "scalar"
            last = f"{gradient}  {variable.remark}" if variable.remark else gradient
            rows.append((variable.path, shape, "yes" if variable.adapts else "no", last))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        for *cells, last in rows:
            yield "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last])
