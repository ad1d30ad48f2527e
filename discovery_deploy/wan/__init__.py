"""The room `wan`."""
