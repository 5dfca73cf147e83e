"""Containers: the keeper of container jobs, and what it needs of the Docker Engine API.

Everything here imports the standard library only (and parts of the keeper of processes): it must outlive the agent.
"""
