"""Where cells run: in this process (`local`), or as tasks on the nodes of a Ray cluster (`ray`).

`usage` refuses what cannot be together, `cluster` is the only place that imports Ray, `attempt` is
what runs on a node, `command` the run of one cell that is started there, `reports` how that run
tells of its tests, `quiet` keeps Ray off the terminal, and `dispatch` has the hooks that make all
of it one run.
"""

NAMES = ("local", "ray")
