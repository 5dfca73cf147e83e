"""What needs a real GPU: `make test-gpu`."""
