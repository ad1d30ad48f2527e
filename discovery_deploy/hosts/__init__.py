"""The room `hosts`."""
