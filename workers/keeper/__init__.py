"""The keeper: a small process that is the parent of all jobs of a node. Standard library only.

It owns their pipes, exit records and lease deadlines, so that an agent may stop, hang or be upgraded meanwhile.
"""
