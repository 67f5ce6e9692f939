"""Validation: do the kits tell servers of known state apart?

A check that has never met a broken server may pass everything; one that has never met a healthy
server may fail everything. `servematrix validate` runs servers whose state is known beforehand and
compares what the kits said of each with what they had to say.
"""
