"""The room `experiment`."""
