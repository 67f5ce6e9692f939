"""Gates: pure functions from measurements to verdicts. They import nothing of ours outside."""

from servematrix.gates.verdict import Number, Outcome, Verdict, worst

__all__ = ["Number", "Outcome", "Verdict", "worst"]
