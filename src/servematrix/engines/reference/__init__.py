"""The embedded server: SGLang's HTTP interface before a small language model and a made-up GPU.

It exists so that the whole matrix runs anywhere: no GPU, no weights, no downloads. A green
run on it says that the matrix works; it says nothing about any real server. Run it with
``python -m servematrix.engines.reference --model-path NAME --port N``.
"""
