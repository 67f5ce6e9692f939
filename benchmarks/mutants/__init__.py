"""Mutation testing of gates and kits: would a test notice if this line said something else?

mutmut changes one thing at a time and runs the tests that reach it. What survives is killed by a
test, or explained in `explained.toml` beside this file. How it is run and read: `docs/mutants.md`.
"""
