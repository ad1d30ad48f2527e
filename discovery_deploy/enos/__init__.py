"""An experiment file from a `reservation.yaml` of EnOS. Imported by the command line alone."""

__all__ = ["enos_import"]
