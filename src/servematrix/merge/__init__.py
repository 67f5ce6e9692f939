"""Several runs of one matrix, such as the shards of a workflow, joined into one."""
