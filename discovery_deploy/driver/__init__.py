"""The room `driver`."""
