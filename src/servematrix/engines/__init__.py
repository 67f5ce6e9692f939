"""Engines: what serves, behind one small protocol (`base`).

Nothing is imported here: `servematrix.engines.guard` runs as a process of its own and must start
in a fraction of the time that the rest of the package takes to import.
"""
