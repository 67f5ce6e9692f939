"""Engine `sglang-cpu`: the real SGLang without a GPU.

`environment` installs it without CUDA packages, `model` makes a model folder from a package,
`standins/` lets it be imported and timed on a CPU, and `engine` puts them together.
"""
