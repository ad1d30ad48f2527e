"""The room `software.patches`."""
