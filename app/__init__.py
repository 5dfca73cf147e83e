"""What is true of jobs, and the ways to ask."""
