"""Models and data of the Hugging Face hub: on disk before they are needed, downloaded once a host.

`cache` knows what of a repository is on disk, `download` brings the rest, in a process of its own
(`fetch`), whose environment is that of the server: its hub, its token, its cache.
"""
