"""`servematrix replay`: the gates applied to recordings of servers, without a server.

`reading` turns a file into what gates take, `judging` hands that to them under the limits of a
configuration, `command` prints the verdicts.
"""
