"""The log's tables beyond Django's models: statements, partitions, triggers and rights."""
