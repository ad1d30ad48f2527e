"""The room `software`."""
