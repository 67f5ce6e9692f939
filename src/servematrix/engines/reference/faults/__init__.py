"""Faults that the embedded server can be given: ``--fault NAME[=VALUE]``, several at once.

Each makes the server wrong in one way, as a real one was once: it computes, answers, counts or
lives otherwise than a healthy one, and says nothing of it in what it tells about itself. They
stand beside the healthy parts, as variants of them that are put in when the server is built, so
that a healthy server runs none of this.
"""
