"""Ranks and nodes: start and end the processes of a job."""
