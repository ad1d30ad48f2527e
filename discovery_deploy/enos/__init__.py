"""The room `enos`."""
