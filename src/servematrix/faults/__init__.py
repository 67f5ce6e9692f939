"""The fault matrix: every fault of the embedded server against every kit, and healthy servers.

It answers whether this suite would notice a given bug. What a fault does stands beside the server
(`engines/reference/faults`); what each stands for, and what must catch it, in
`resources/faults.toml`; what is drawn here comes from the records of a run.
"""
