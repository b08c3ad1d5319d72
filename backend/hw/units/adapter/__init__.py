"""The adapter unit and the load port."""
