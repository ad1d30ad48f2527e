"""The room `cloud`."""
