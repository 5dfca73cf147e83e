"""The compute contract: container jobs by image, command and size."""
