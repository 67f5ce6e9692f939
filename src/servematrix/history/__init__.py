"""What was measured over many runs: a database made of their records, tables, exports."""
