"""The room `testbeds`."""
